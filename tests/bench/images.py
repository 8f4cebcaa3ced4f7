"""Synthetic images for the benchmarks: the same pixels for the same seed, UIDs that can be renewed in place.

The pictures have what makes encoders work: smooth anatomy that moves from image to image, and noise.
"""

import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    XRayAngiographicImageStorage,
)

Frame = npt.NDArray[np.uint16]

_HEAD_BYTES = 4096
"""All UIDs of a file are in its first bytes."""


def _uid() -> str:
    """A UID of 44 characters (PS3.5 B.2), so that one can be written over another."""
    return f"2.25.{random.randrange(10**38, 2**128)}"


@dataclass(slots=True)
class ImageSet:
    """Files of one series; `renew` makes them another series of the same pixels."""

    paths: list[Path]
    uids: list[str]
    """Study, series, then one for each file."""

    def renew(self) -> None:
        """Write new UIDs into all files: a receiver that has had them sees new objects."""
        new = [_uid() for _ in self.uids]
        shared = list(zip(self.uids[:2], new[:2], strict=True))
        for path, *own in zip(self.paths, self.uids[2:], new[2:], strict=True):
            with path.open("r+b") as file:
                head = file.read(_HEAD_BYTES)
                for before, after in (*shared, tuple(own)):
                    head = head.replace(before.encode(), after.encode())
                file.seek(0)
                file.write(head)
        self.uids = new


def write_ct(folder: Path, count: int, day: str = "20240229") -> ImageSet:
    """CT images of 512x512 pixels of 16 bit, 525 kB each, uncompressed; as JPEG some 55 kB each."""
    ds = _header(CTImageStorage, "CT", "Abdomen", day)
    ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    return _write(folder, ds, _moving(count, (512, 512), background=24, body=1060, noise=40))


def write_mr(folder: Path, count: int) -> ImageSet:
    """MR images of 256x256 pixels of 16 bit with a header window, 132 kB each, uncompressed."""
    ds = _header(MRImageStorage, "MR", "FIESTA")
    ds.WindowCenter, ds.WindowWidth = "300", "600"
    return _write(folder, ds, _moving(count, (256, 256), background=20, body=400, noise=25))


def write_cr(folder: Path, count: int, day: str) -> ImageSet:
    """Radiographs of 3 000 x 2 000 pixels of 16 bit with a header window, 12 MB each, uncompressed."""
    ds = _header(ComputedRadiographyImageStorage, "CR", "Pelvis", day)
    ds.WindowCenter, ds.WindowWidth = "1500", "3000"
    return _write(folder, ds, _moving(count, (2000, 3000), background=200, body=2000, noise=20))


def write_xa(folder: Path, count: int, frames: int, day: str) -> ImageSet:
    """Angiographic runs of 1 024x1 024 pixels of 16 bit with a header window; 200 MB for each 96 frames."""
    ds = _header(XRayAngiographicImageStorage, "XA", "Coronary", day)
    ds.WindowCenter, ds.WindowWidth, ds.NumberOfFrames = "1500", "3000", frames
    runs = (
        np.stack(list(_moving(frames, (1024, 1024), background=300, body=1800, noise=60)))
        for _ in range(count)
    )
    return _write(folder, ds, runs)


def write_run(folder: Path, frames: int) -> Path:
    """One multi-frame object of `frames` frames of 512x512 pixels of 16 bit, written without holding it."""
    ds = _header(EnhancedCTImageStorage, "CT", "Perfusion")
    ds.SOPInstanceUID, ds.InstanceNumber, ds.NumberOfFrames = _uid(), 1, frames
    ds.Rows = ds.Columns = 512
    folder.mkdir(parents=True)
    path = folder / "run.dcm"
    ds.save_as(path, enforce_file_format=True)
    frame = next(_moving(1, (512, 512), background=24, body=1060, noise=40)).astype("<u2").tobytes()
    with path.open("ab") as file:
        # Pixel Data, OW, its head by hand (PS3.5 7.1.2).
        file.write(struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, frames * len(frame)))
        for _ in range(frames):
            file.write(frame)
    return path


def _header(sop_class: UID, modality: str, description: str, day: str = "20240229") -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = sop_class
    ds.StudyDate, ds.StudyTime, ds.Modality = day, "101500", modality
    ds.SeriesDescription, ds.SeriesNumber = description, 4
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Measured^Often", "BENCH", "19700101"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = _uid(), _uid()
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    return ds


def _write(folder: Path, ds: Dataset, pixels: Iterable[Frame]) -> ImageSet:
    """A file for each array: of rows x columns, or frames x rows x columns."""
    folder.mkdir(parents=True)
    files = ImageSet([], [ds.StudyInstanceUID, ds.SeriesInstanceUID])
    for number, values in enumerate(pixels, start=1):
        ds.Rows, ds.Columns = values.shape[-2:]
        ds.SOPInstanceUID, ds.InstanceNumber = _uid(), number
        ds.PixelData = values.astype("<u2").tobytes()
        path = folder / f"{number:05}.dcm"
        ds.save_as(path, enforce_file_format=True)
        files.paths.append(path)
        files.uids.append(ds.SOPInstanceUID)
    return files


def _moving(count: int, shape: tuple[int, int], *, background: int, body: int, noise: int) -> Iterator[Frame]:
    """`count` frames of rows x columns, 12 bit: an ellipse with a beating hole, under noise."""
    rng = np.random.default_rng(20240229)
    rows, columns = shape
    field = rng.normal(0, noise, (2 * rows, 2 * columns)).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j].astype(np.float32)
    still = background + body * ((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1) * (1 + 0.1 * np.cos(5 * x))
    distance = (x - 0.2) ** 2 + y**2
    for index in range(count):
        radius = 0.2 + 0.05 * np.sin(index)
        top, left = rng.integers(0, rows), rng.integers(0, columns)
        frame = field[top : top + rows, left : left + columns] + still
        frame += (0.4 * still) * (distance < radius**2)
        yield frame.clip(0, 4095).astype(np.uint16)
