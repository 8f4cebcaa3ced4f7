"""Made-up headers, data sets and stores for the tests of the store and of the presenting side."""

from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomfs.archive import Archive
from dicomfs.entries import Entry
from dicomfs.index import Index
from dicomfs.inode import Inode
from dicomfs.model import Header, Receipt, Recipe
from dicomfs.renditions import Renditions
from dicomfs.tree import Tree

RECEIVED = 1_700_000_000.0
MR_STORAGE = "1.2.840.10008.5.1.4.1.1.4"

_USUAL = Header(
    sop_class_uid=MR_STORAGE,
    sop_instance_uid="2.25.1",
    study_uid="2.25.2",
    series_uid="2.25.3",
    derived_uids=(),
    patient_id="4711",
    issuer="",
    patient_name="Doe^Jane",
    patient_names=("Doe^Jane",),
    birth_date="19700102",
    sex="F",
    study_date="20240131",
    study_time="101500",
    modality="MR",
    series_name="Localizer",
    series_number=2,
    instance_number=7,
    frames=1,
    rows=64,
    columns=48,
    has_pixels=True,
    pool="",
    acquired=RECEIVED - 1000,
    pixel_offset=None,
    pixel_length=None,
)


def header(**changes: Any) -> Header:
    """A usual header, with changes; a `patient_name` is the only group unless `patient_names` are given."""
    if "patient_name" in changes:
        name = changes["patient_name"]
        changes = {"patient_names": (name,) if name else ()} | changes
    return replace(_USUAL, **changes)


def add(index: Index, *headers: Header, received: float = RECEIVED) -> list[int]:
    """Store headers, each as an original of its own, without any file; returns their sequence numbers."""
    sequences = []
    for one in headers:
        with index.write() as writer:
            sequence = writer.next_sequence()
            digest = sha256(f"{sequence}".encode()).digest()
            writer.add(one, Receipt(ExplicitVRLittleEndian, received), sequence, digest, 1000 + sequence)
        sequences.append(sequence)
    return sequences


def add_at_once(index: Index, headers: Iterable[Header], received: float = RECEIVED) -> None:
    """The same in one transaction."""
    with index.write() as writer:
        for one in headers:
            sequence = writer.next_sequence()
            digest = sha256(f"{sequence}".encode()).digest()
            writer.add(one, Receipt(ExplicitVRLittleEndian, received), sequence, digest, 1000 + sequence)


def tree(
    folder: Path, index: Index, *, formats: Iterable[str] = ("jpg",), frames: int = 1000, **view_options: Any
) -> tuple[Tree, Renditions]:
    """A view of an index; the caller closes the renditions. `view_options`: as `Tree` takes them."""
    renditions = Renditions(folder / "renditions.sqlite3", index.store_id)
    recipes = {name: (Recipe(name), f"digest of {name}") for name in formats if name != "dcm"}
    view = Tree(
        index, Archive(folder), renditions, recipes, formats=tuple(formats), frames=frames, **view_options
    )
    return view, renditions


def listed(view: Tree, folder: Inode, page: int = 500) -> list[Entry]:
    """All entries of a folder, fetched in pages as readdir does."""
    found: list[Entry] = []
    cookie = 0
    while steps := list(view.listing(folder, cookie, page)):
        found += [step.entry for step in steps]
        cookie = steps[-1].cookie
    return found


def walk(view: Tree, page: int = 500) -> dict[str, Entry]:
    """Every entry below the root by path, without the root."""
    found: dict[str, Entry] = {}

    def into(inode: Inode, path: str) -> None:
        for entry in listed(view, inode, page):
            found[f"{path}{entry.name}"] = entry
            if entry.is_folder:
                into(entry.inode, f"{path}{entry.name}/")

    into(view.root, "")
    return found


def data_set(**changes: Any) -> Dataset:
    """A small greyscale MR image of 16 bits; `pixels` is an array of rows x columns, or frames before."""
    pixels = changes.pop("pixels", np.arange(32 * 24, dtype=np.uint16).reshape(32, 24))
    ds = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": MR_STORAGE,
        "SOPInstanceUID": "2.25.1001",
        "StudyInstanceUID": "2.25.1002",
        "SeriesInstanceUID": "2.25.1003",
        "PatientID": "4711",
        "PatientName": "Doe^Jane",
        "PatientBirthDate": "19700102",
        "StudyDate": "20240131",
        "StudyTime": "101500",
        "AcquisitionDate": "20240131",
        "AcquisitionTime": "102030",
        "TimezoneOffsetFromUTC": "+0000",
        "Modality": "MR",
        "SeriesDescription": "cine",
        "SeriesNumber": 5,
        "InstanceNumber": 1,
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    }
    if pixels is not None:
        values |= {
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": pixels.shape[-2],
            "Columns": pixels.shape[-1],
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "PixelData": pixels.astype("<u2").tobytes(),
        }
        if pixels.ndim == 3:
            values["NumberOfFrames"] = pixels.shape[0]
    for keyword, value in (values | changes).items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def encoded(ds: Dataset) -> bytes:
    """The data set alone, Explicit VR Little Endian."""
    out = BytesIO()
    pydicom.dcmwrite(out, ds, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return out.getvalue()


def save(path: Path, ds: Dataset) -> Path:
    """A DICOM file."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path
