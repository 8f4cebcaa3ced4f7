"""Colour profiles: a profile whose red is blue, made from Pillow's sRGB by swapping two of its tags."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from pydicom.dataset import Dataset

from dicomfs.model import Recipe, Source
from dicomfs.render import render
from tests.unit.reference import write

RGB = (
    np.stack(np.meshgrid([10, 90, 200], [30, 120, 250], [5, 100, 180]), axis=-1).reshape(3, 9, 3).astype("u1")
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = (
    SRGB.replace(b"rXYZ", b"####")
    .replace(b"bXYZ", b"rXYZ")
    .replace(b"####", b"bXYZ")
    .replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))
)


def picture(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(render(Source(path), Recipe("png"), None))))


def test_a_profile_is_applied(tmp_path: Path) -> None:
    found = picture(write(tmp_path / "a.dcm", RGB, ICCProfile=SWAPPED)).astype(int)
    assert np.abs(found - RGB[..., ::-1]).max() <= 1


def test_microscopy_keeps_it_in_the_optical_path(tmp_path: Path) -> None:
    path = Dataset()
    path.ICCProfile = SWAPPED
    found = picture(write(tmp_path / "a.dcm", RGB, OpticalPathSequence=[path])).astype(int)
    assert np.abs(found - RGB[..., ::-1]).max() <= 1


def test_palettes_have_profiles_too(tmp_path: Path) -> None:
    table: dict[str, Any] = {}
    for number, colour in enumerate(("Red", "Green", "Blue")):
        table[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        table[f"{colour}PaletteColorLookupTableData"] = bytes([(40, 90, 220)[number]] * 256)
    pixels = np.zeros((4, 4), "u1")
    wishes = {"PhotometricInterpretation": "PALETTE COLOR", "ICCProfile": SWAPPED} | table
    found = picture(write(tmp_path / "a.dcm", pixels, **wishes)).astype(int)
    assert np.abs(found - [220, 90, 40]).max() <= 1


@pytest.mark.parametrize(
    "profile", [SRGB, b"", b"\0" * 500, SWAPPED[:300], SWAPPED.replace(b"RGB XYZ ", b"CMYKXYZ ")]
)
def test_srgb_and_broken_profiles_change_nothing(tmp_path: Path, profile: bytes) -> None:
    assert np.array_equal(picture(write(tmp_path / "a.dcm", RGB, ICCProfile=profile)), RGB)
