"""Encapsulated PDF, DICOM JSON, and data sets that inflate without end."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, EncapsulatedCDAStorage, EncapsulatedPDFStorage

from dicomfs import bounded
from dicomfs.errors import NotDisplayable
from dicomfs.model import Recipe, Source
from dicomfs.render import render
from tests.support import shipped
from tests.unit.reference import write

PDF = b"%PDF-1.4\nnot much of one\n%%EOF\n"


def file(path: Path, name: str) -> bytes:
    return render(Source(path), Recipe(name), None)


def model(path: Path) -> dict[str, Any]:
    found = json.loads(file(path, "json"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("document", [PDF, PDF[:-1]])
@pytest.mark.parametrize("with_length", [False, True])
def test_pdf_as_it_is(tmp_path: Path, document: bytes, with_length: bool) -> None:
    wishes: dict[str, Any] = {"SOPClassUID": EncapsulatedPDFStorage}
    if with_length:
        wishes["EncapsulatedDocumentLength"] = len(document)
    path = write(tmp_path / "a.dcm", b"", EncapsulatedDocument=document, **wishes)
    assert file(path, "pdf") == document


def test_what_is_no_pdf(tmp_path: Path) -> None:
    cda = write(tmp_path / "a.dcm", b"", SOPClassUID=EncapsulatedCDAStorage, EncapsulatedDocument=PDF)
    for path in (cda, shipped("MR_small.dcm")):
        with pytest.raises(NotDisplayable, match="no encapsulated PDF"):
            file(path, "pdf")
    html: dict[str, Any] = {"SOPClassUID": EncapsulatedPDFStorage, "EncapsulatedDocument": b"<html></html>"}
    with pytest.raises(NotDisplayable, match="holds no PDF"):
        file(write(tmp_path / "b.dcm", b"", **html), "pdf")


def test_json_reads_back_as_the_same_data_set() -> None:
    path = shipped("CT_small.dcm")
    expected = dcmread(path, stop_before_pixels=True)
    found = Dataset.from_json(file(path, "json").decode())
    assert len(found) > 150
    assert "PixelData" not in found
    left_out = {tag for tag in expected.keys() if tag not in found}  # noqa: SIM118 - tags, not elements
    # a private list of 1 kB and more is bulk data
    assert all(len(expected[tag].value) > 1024 for tag in left_out)
    for element in found:
        if element.tag != 0x00080005:
            assert element.value == expected[element.tag].value, element.tag


def test_json_is_utf_8_with_names_in_parts_and_keys_in_order(tmp_path: Path) -> None:
    item = Dataset()
    item.StudyDescription = "inner"
    path = write(
        tmp_path / "a.dcm",
        np.zeros((4, 4), "u1"),
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Jörg",
        ReferencedStudySequence=[item],
        WindowCenter=[40, 600.5],
        RedPaletteColorLookupTableData=bytes(1026),
    )
    found = model(path)
    # PS3.18 F.2.2: the worked form of a PN, of a sequence, of numbers
    assert found["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Müller^Jörg"}]}
    assert found["00081110"] == {"vr": "SQ", "Value": [{"00081030": {"vr": "LO", "Value": ["inner"]}}]}
    assert found["00281050"] == {"vr": "DS", "Value": [40.0, 600.5]}
    assert found["00080005"]["Value"] == ["ISO_IR 192"]
    assert "Müller".encode() in file(path, "json")
    assert list(found) == sorted(found)
    assert not {"00281201", "7FE00010", "00020010"} & set(found)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_json_of_odd_values(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((4, 4), "u1"), RealWorldValueIntercept=float("nan"))
    assert model(path)["00409224"] == {"vr": "FD", "Value": ["nan"]}
    raw = shipped("MR_small.dcm").read_bytes()
    at = raw.index(b"\x28\0\x50\x10DS")
    (tmp_path / "b.dcm").write_bytes(raw[: at + 8] + b"x" + raw[at + 9 :])
    found = model(tmp_path / "b.dcm")
    assert "00281050" not in found
    assert "00281051" in found


def nested(depth: int) -> bytes:
    opened = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    return opened * depth


def test_deep_nesting_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((4, 4), "u1"))
    raw = path.read_bytes()
    at = raw.index(b"\x08\0\x60\0CS")
    path.write_bytes(raw[:at] + nested(20_000) + raw[at:])
    for name in ("json", "png", "pdf"):
        with pytest.raises(NotDisplayable):
            file(path, name)


# ---------------------------------------------------------------- deflated data sets


def bomb(path: Path, inflated_bytes: int) -> Path:
    whole = write(path, np.zeros((4, 4), "u1"), DeflatedExplicitVRLittleEndian).read_bytes()
    start = 132 + 12 + int.from_bytes(whole[140:144], "little")
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    body = b"".join(squeezer.compress(zeros) for _ in range(inflated_bytes >> 20)) + squeezer.flush()
    path.write_bytes(whole[:start] + body)
    return path


def test_a_deflated_file_reads_like_any_other(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype="u1").reshape(16, 16)
    plain, squeezed = (
        write(tmp_path / name, pixels, *syntax)
        for name, syntax in (("a.dcm", ()), ("b.dcm", (DeflatedExplicitVRLittleEndian,)))
    )
    for name in ("png", "json", "tiff16"):
        assert file(plain, name) == file(squeezed, name)


def test_a_bomb_is_not_displayable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MAX_INFLATED_BYTES", 8 << 20)
    path = bomb(tmp_path / "a.dcm", 64 << 20)
    assert path.stat().st_size < 1 << 18
    for name in ("png", "json", "pdf"):
        with pytest.raises(NotDisplayable, match="inflate"):
            file(path, name)


def test_a_deflated_file_without_length_of_its_meta_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((4, 4), "u1"), DeflatedExplicitVRLittleEndian)
    raw = path.read_bytes()
    path.write_bytes(raw[:132] + raw[144:])
    with pytest.raises(NotDisplayable, match="no length"):
        file(path, "png")
