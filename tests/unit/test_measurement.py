"""16-bit formats lead back to the values that pydicom computes; nothing else gets into any file."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_rescale
from pydicom.uid import EncapsulatedPDFStorage

from dicomfs.errors import NotDisplayable
from dicomfs.model import Recipe, Source
from dicomfs.recipes import FORMATS, Kind
from dicomfs.render import render
from tests.support import shipped
from tests.unit.reference import write

VALUES = [name for name, one in FORMATS.items() if one.kind is Kind.VALUES]


def measured(path: Path, name: str, frame: int = 0) -> tuple[NDArray[np.float64], dict[str, str]]:
    """Values as a program reads them, and the calibration."""
    image = Image.open(BytesIO(render(Source(path, frame), Recipe(name), None)))
    line = image.tag_v2[270] if name == "tiff16" else image.info["Description"]  # type: ignore[attr-defined]
    found = dict(row.split("=", 1) for row in line.strip().split("\n"))
    pixels = np.asarray(image)
    assert pixels.dtype == np.uint16
    return float(found["c0"]) + float(found["c1"]) * pixels, found


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(
    "file",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "693_J2KI.dcm",
    ],
)
def test_values_are_exact(name: str, file: str) -> None:
    ds = dcmread(shipped(file))
    ds.remove_private_tags()
    expected = apply_rescale(ds.pixel_array, ds)
    found, calibration = measured(shipped(file), name)
    assert np.array_equal(found, expected)
    assert calibration.get("vunit") == ("HU" if ds.Modality == "CT" else None)


@pytest.mark.parametrize("name", VALUES)
def test_slope_and_sign(tmp_path: Path, name: str) -> None:
    pixels = np.array([[-2048, -1, 0, 2047]], "i2")
    wishes: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "RescaleType": "OD"}
    path = write(tmp_path / "a.dcm", pixels, RescaleSlope=0.25, RescaleIntercept=-3, **wishes)
    found, calibration = measured(path, name)
    assert found.tolist() == [[-515.0, -3.25, -3.0, 508.75]]
    assert calibration["vunit"] == "OD"
    # the mapping is the header's alone
    other = write(path, pixels // 7, RescaleSlope=0.25, RescaleIntercept=-3, **wishes)
    assert measured(other, name)[1] == calibration


@pytest.mark.parametrize("name", VALUES)
def test_polarity_padding_overlays_and_shape_are_left_out(tmp_path: Path, name: str) -> None:
    pixels = np.arange(24, dtype="u2").reshape(4, 6)
    path = write(
        tmp_path / "a.dcm",
        pixels,
        PhotometricInterpretation="MONOCHROME1",
        PixelPaddingValue=3,
        PixelSpacing=[2, 1],
        ShutterShape="RECTANGULAR",
        ShutterLeftVerticalEdge=2,
        ShutterRightVerticalEdge=3,
        ShutterUpperHorizontalEdge=2,
        ShutterLowerHorizontalEdge=3,
    )
    assert np.array_equal(measured(path, name)[0], pixels)


@pytest.mark.parametrize("name", VALUES)
def test_what_does_not_fit_is_spread(tmp_path: Path, name: str) -> None:
    pixels = np.array([[0, 1 << 30, 1 << 31]], "u4")
    found, _ = measured(write(tmp_path / "a.dcm", pixels), name)
    assert np.abs(found - pixels).max() <= (1 << 31) / 65535 / 2
    values = np.linspace(-0.25, 7.5, 24, dtype="<f4").reshape(4, 6)
    ds = dcmread(write(tmp_path / "b.dcm", np.zeros((4, 6), "u4"), Modality="OT"))
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.FloatPixelData = values.tobytes()
    ds.save_as(tmp_path / "b.dcm")
    found, calibration = measured(tmp_path / "b.dcm", name)
    assert np.abs(found - values).max() <= float(calibration["c1"]) / 2 * 1.001


@pytest.mark.parametrize("name", VALUES)
def test_colour_has_no_values(name: str) -> None:
    with pytest.raises(NotDisplayable, match="colour"):
        render(Source(shipped("examples_rgb_color.dcm")), Recipe(name), None)


SECRETS: dict[str, Any] = {
    "PatientName": "Zyxwv^Quentin",
    "PatientID": "PID-8842-77",
    "PatientBirthDate": "19530417",
    "StudyInstanceUID": "1.2.826.0.1.3680043.9.7777.1",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.9.7777.2",
    "SOPInstanceUID": "1.2.826.0.1.3680043.9.7777.3",
    "AccessionNumber": "ACC-5512",
    "InstitutionName": "St Elsewhere",
    "StudyDescription": "Zyxwv Quentin heart",
    "RescaleType": "Zyxwv",
    "Laterality": "ZYXWV",
}


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in {"json", "pdf"}])
def test_nothing_of_the_patient_gets_into_a_file(tmp_path: Path, name: str) -> None:
    pixels = np.arange(64 * 64, dtype="u2").reshape(64, 64)
    path = write(
        tmp_path / "Zyxwv.dcm", pixels, PixelSpacing=[0.5, 0.5], LossyImageCompression="01", **SECRETS
    )
    file = render(Source(path), Recipe(name, marks=True), None)
    for secret in (part for text in SECRETS.values() for part in text.split("^")):
        assert secret.lower().encode() not in file.lower()
        assert secret.encode("utf-16-le") not in file
    for word in (b"Exif", b"http://ns.adobe.com", b"iTXt", b"tIME"):
        assert word not in file


def test_every_format_of_one_file_with_and_without(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "SOPClassUID": EncapsulatedPDFStorage,
        "EncapsulatedDocument": b"%PDF-1.4\n%%EOF\n",
    }
    path = write(tmp_path / "a.dcm", b"", **document)
    answers = {}
    for name in FORMATS:
        try:
            answers[name] = render(Source(path), Recipe(name), None)
        except NotDisplayable:
            continue
    assert set(answers) == {"pdf", "json"}
    assert isinstance(Dataset.from_json(answers["json"].decode()), Dataset)
