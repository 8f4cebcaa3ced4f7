"""Grey values against DCMTK's renderer, dcmj2pnm, on files of the pydicom wheels.

RENDERING gate: maximal difference 1 (DCMTK truncates, dicomfs rounds), mean at most 0.6.
"""

import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dicomfs.model import PoolWindow, Recipe, Source
from dicomfs.render import render
from tests.support import require, shipped

GREY = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR-SIEMENS-DICOM-WithOverlays.dcm",
    "examples_overlay.dcm",
    "bad_sequence.dcm",
    "dicomdirtests/77654033/CT2/17106",
    "dicomdirtests/98892003/MR1/5641",
]
INVERTED = "MR_small.dcm"
COLOUR = [
    "color-pl.dcm",
    "examples_palette.dcm",
    "ExplVR_BigEnd.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "examples_ybr_color.dcm",
]
ITS_OWN = PoolWindow(None, None, "header")


@pytest.fixture(autouse=True)
def dcmj2pnm() -> None:
    require("dcmj2pnm")


def ours(path: Path, window: PoolWindow) -> NDArray[np.int64]:
    return rendered(path, Recipe("png", square=False, overlays=False), window)


def rendered(path: Path, recipe: Recipe, window: PoolWindow | None = None) -> NDArray[np.int64]:
    return np.asarray(Image.open(BytesIO(render(Source(path), recipe, window)))).astype(np.int64)


def theirs(path: Path, folder: Path, *options: str) -> NDArray[np.int64]:
    output = folder / "dcmtk.pnm"
    subprocess.run(["dcmj2pnm", "+op", *options, str(path), str(output)], check=True, capture_output=True)
    return np.asarray(Image.open(output)).astype(np.int64)


@pytest.mark.parametrize("name", [name for name in GREY if name != "CT_small.dcm"])
def test_header_windows(name: str, tmp_path: Path) -> None:
    path = shipped(name)
    difference = np.abs(ours(path, ITS_OWN) - theirs(path, tmp_path, "-O", "+Wi", "1"))
    assert difference.max() <= 1
    assert difference.mean() <= 0.6


@pytest.mark.parametrize("name", GREY)
def test_a_window_in_modality_units(name: str, tmp_path: Path) -> None:
    # low .. high is LINEAR with centre (low + high + 1) / 2 and width high - low + 1
    path = shipped(name)
    difference = np.abs(
        ours(path, PoolWindow(0, 399, "test")) - theirs(path, tmp_path, "-O", "+Ww", "200", "400")
    )
    assert difference.max() <= 1


@pytest.mark.parametrize("name", GREY)
def test_the_rough_window(name: str, tmp_path: Path) -> None:
    # DCMTK's +Wm: centre (min + max + 1) / 2, width max - min + 1; LINEAR ends at min and max then
    found = rendered(shipped(name), Recipe("png", window="full", square=False, overlays=False))
    assert np.abs(found - theirs(shipped(name), tmp_path, "-O", "+Wm")).max() <= 1


@pytest.mark.parametrize("name", GREY)
def test_a_fixed_window(name: str, tmp_path: Path) -> None:
    found = rendered(shipped(name), Recipe("png", window="300.5/801", square=False, overlays=False))
    assert np.abs(found - theirs(shipped(name), tmp_path, "-O", "+Ww", "300.5", "801")).max() <= 1


@pytest.mark.parametrize("name", ["MR-SIEMENS-DICOM-WithOverlays.dcm", "examples_overlay.dcm"])
def test_overlays_are_where_dcmtk_draws_them(name: str, tmp_path: Path) -> None:
    path = shipped(name)
    without = theirs(path, tmp_path, "-O", "+Ww", "200", "400")
    drawn = theirs(path, tmp_path, "+Ww", "30000", "2") > 0  # no pixel but those of overlays is that bright
    assert 50 < drawn.sum() < drawn.size // 2
    found = rendered(path, Recipe("png", window="200/400"))
    assert (found[drawn] == 255).all()
    away = ~drawn
    for rows, columns in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        away &= ~np.roll(drawn, (rows, columns), (0, 1))
    assert np.abs(found - without)[away].max() <= 1


@pytest.mark.parametrize("name", COLOUR)
def test_colour(name: str, tmp_path: Path) -> None:
    path = shipped(name)
    difference = np.abs(ours(path, ITS_OWN) - theirs(path, tmp_path))
    assert difference.max() <= 3  # two inverse DCTs, two roundings of YBR
    assert difference.mean() <= 0.6
