"""Several formats and windows of one store side by side, through the real mount."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, EncapsulatedPDFStorage, ExplicitVRLittleEndian

from dicomfs import cli, exitcodes
from tests.phantom import cine
from tests.support import command_line, mounted, require_fuse, running, shipped

PDF = b"%PDF-1.4\nnot much of a report\n%%EOF\n"


def report(path: Path) -> Path:
    """An Encapsulated PDF object (PS3.3 A.45.1) of the patient of CT_small."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID("2.25.77")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.78", "2.25.79"
    ds.PatientName, ds.PatientID, ds.Modality = "Report^Reader", "R1", "DOC"
    ds.StudyDate, ds.SeriesNumber, ds.InstanceNumber = "20200102", 1, 1
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocument = PDF + b"\0" * (len(PDF) % 2)
    ds.EncapsulatedDocumentLength = len(PDF)
    ds.save_as(path, enforce_file_format=True)
    return path


def files(top: Path) -> list[Path]:
    return sorted(Path(where, name) for where, _, names in os.walk(top) for name in names)


def test_formats_and_windows_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_fuse()
    store, point = tmp_path / "store", tmp_path / "mnt"
    point.mkdir()
    (tmp_path / "cine").mkdir()
    ct = str(shipped("CT_small.dcm"))
    paths = [ct, *map(str, cine(tmp_path / "cine", slices=1, phases=3)), str(report(tmp_path / "report.dcm"))]
    assert cli.main(["import", "-q", "--store", str(store), *paths]) == exitcodes.OK
    options = "formats=png+png16+pdf+json+dcm,window=auto+full+40/400"
    argv = command_line("mount", "--store", store, point, "-o", options)
    with running(argv, tmp_path / "log", lambda: mounted(point), "the mount", mountpoint=point):
        folders = ["dcm", "json", "pdf", "png C40 W400", "png auto", "png full", "png16"]
        assert sorted(path.name for path in point.iterdir()) == folders
        found = {folder: files(point / folder) for folder in folders}
        # 4 images and a report; the report is no picture, and the images are no PDF.
        assert {folder: len(names) for folder, names in found.items()} == {
            **dict.fromkeys(folders, 4),
            "dcm": 5,
            "json": 5,
            "pdf": 1,
        }
        for path in (path for names in found.values() for path in names):
            assert path.stat().st_size == len(path.read_bytes())
        assert len({path.stat().st_ino for names in found.values() for path in names}) == 27

        (pdf,) = found["pdf"]
        assert pdf.read_bytes() == PDF
        assert pdf.relative_to(point / "pdf") == Path("Report Reader/2020-01-02/DOC_1_1.pdf")
        (header,) = [path for path in found["json"] if path.parent.parent.name == "Report Reader"]
        assert json.loads(header.read_bytes())["00080018"]["Value"] == ["2.25.77"]

        stored = dcmread(ct)
        units = stored.pixel_array * float(stored.RescaleSlope) + float(stored.RescaleIntercept)
        # PS3.3 C.11.2.1.2.1 with c = 40, w = 400, rounded half up.
        grey = np.clip(np.floor(((units - 39.5) / 399 + 0.5) * 255 + 0.5), 0, 255)
        (fixed,) = [p for p in found["png C40 W400"] if "CompressedSamples CT1" in str(p)]
        assert np.array_equal(np.asarray(Image.open(fixed)), grey)
        (values,) = [p for p in found["png16"] if "CompressedSamples CT1" in str(p)]
        shown = np.asarray(Image.open(values)).astype(int)
        assert np.array_equal(shown - shown.min(), stored.pixel_array - int(stored.pixel_array.min()))

        capsys.readouterr()
        cine_file = next(path for path in found["png auto"] if "FIESTA" in path.name)
        assert cli.main(["status", "--store", str(store), str(cine_file)]) == exitcodes.OK
        told = capsys.readouterr().out
        assert "over 3 images" in told
        assert "window=auto" in told
        assert "Demo Cine" in told.splitlines()[0]
        assert not any("Cine" in line for line in told.splitlines()[1:])
        assert cli.main(["status", "--store", str(store), str(tmp_path)]) == exitcodes.USAGE


def test_one_phase_is_not_brighter_than_another(tmp_path: Path) -> None:
    """All phases of a slice share one window: equal stored values are equal greys."""
    (tmp_path / "cine").mkdir()
    paths = cine(tmp_path / "cine", slices=1, phases=4)
    assert (
        cli.main(["render", "-q", "--output", str(tmp_path / "out"), "-o", "formats=png", *map(str, paths)])
        == 0
    )
    greys: dict[int, set[int]] = {}
    # Names are `FIESTA SAX_4_1.png` and so on, in the order of the files.
    pictures = sorted((tmp_path / "out").rglob("*.png"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
    assert len(pictures) == 4
    for path, picture in zip(paths, pictures, strict=True):
        stored = dcmread(path).pixel_array
        for value, grey in zip(stored.flat, np.asarray(Image.open(picture)).flat, strict=True):
            greys.setdefault(int(value), set()).add(int(grey))
    assert all(len(seen) == 1 for seen in greys.values())
    assert len(greys) > 100


def test_two_views_of_one_store_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_fuse()
    store, plain, other, output = (tmp_path / name for name in ("store", "plain", "other", "out"))
    for folder in (plain, other, tmp_path / "cine"):
        folder.mkdir()
    sources = [str(shipped("CT_small.dcm")), *map(str, cine(tmp_path / "cine", slices=1, phases=2))]
    assert cli.main(["import", "-q", "--store", str(store), *sources]) == exitcodes.OK
    options = "formats=png,layout=date/patient,label=name-id,date_format=%d.%m.%Y,pad=3,modality=MR"
    ct = dcmread(sources[0])
    with (
        running(
            command_line("mount", "--store", store, plain),
            *(tmp_path / "log", lambda: mounted(plain), "the mount"),
            mountpoint=plain,
        ),
        running(
            command_line("mount", "--store", store, other, "-o", options),
            *(tmp_path / "log2", lambda: mounted(other), "the other mount"),
            mountpoint=other,
        ),
    ):
        both = sorted(path.name for path in plain.iterdir())
        assert len(both) == 2
        assert any(str(ct.PatientName.family_name) in name for name in both)
        (day,) = other.iterdir()
        (patient,) = day.iterdir()
        mr = dcmread(sources[1])
        stem = str(mr.PatientName).replace("^", " ")
        assert day.name == f"{mr.StudyDate[6:]}.{mr.StudyDate[4:6]}.{mr.StudyDate[:4]}"
        assert patient.name == f"{stem} ({mr.PatientID})"
        pictures = sorted(path.name for path in patient.iterdir())
        series = f"{mr.SeriesDescription}_{int(mr.SeriesNumber):03}"
        assert pictures == [f"{series}_001.png", f"{series}_002.png"]
        capsys.readouterr()
        assert cli.main(["status", "--store", str(store), str(patient / pictures[0])]) == exitcodes.OK
        assert str(mr.SOPInstanceUID) in capsys.readouterr().out
        shown = {path.relative_to(other): path.read_bytes() for path in files(other)}
    argv = ["render", "-q", "--output", str(output), "-o", options, *sources]
    assert cli.main(argv) == exitcodes.OK
    assert {path.relative_to(output): path.read_bytes() for path in files(output)} == shown
