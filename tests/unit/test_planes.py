"""Overlays and shutters: bits and edges where the standard puts them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicomfs.model import Recipe, Source
from dicomfs.render import render
from tests.unit.reference import write

PIXELS = np.full((12, 10), 90, "u1")


def picture(path: Path, frame: int = 0, **recipe: Any) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(render(Source(path, frame), Recipe("png", **recipe), None))))


def packed(plane: NDArray[np.bool_]) -> bytes:
    raw = np.packbits(plane.ravel(), bitorder="little").tobytes()
    return raw + b"\0" * (len(raw) % 2)


def overlaid(path: Path, group: int, plane: NDArray[np.bool_], **more: Any) -> Path:
    """`path` with one overlay plane: rows x columns, or frames x rows x columns."""
    ds = dcmread(path)
    block = ds
    block.add_new((group, 0x0010), "US", plane.shape[-2])
    block.add_new((group, 0x0011), "US", plane.shape[-1])
    block.add_new((group, 0x0040), "CS", more.get("kind", "G"))
    block.add_new((group, 0x0050), "SS", more.get("origin", [1, 1]))
    block.add_new((group, 0x0100), "US", 1)
    block.add_new((group, 0x0102), "US", 0)
    if plane.ndim == 3:
        block.add_new((group, 0x0015), "IS", plane.shape[0])
        block.add_new((group, 0x0051), "US", more.get("first", 1))
    block.add_new((group, 0x3000), "OW", more.get("data", packed(plane)))
    ds.save_as(path)
    return path


def test_a_graphic_is_white_on_a_dark_edge(tmp_path: Path) -> None:
    plane = np.zeros((12, 10), bool)
    plane[4, 2:7] = True
    path = overlaid(write(tmp_path / "a.dcm", PIXELS), 0x6000, plane)
    found = picture(path)
    assert (found == 255).tolist() == plane.tolist()
    assert (found[3, 1:8] == 30).all()
    assert (found[4, [1, 7]] == 30).all()
    assert (found[6] == 90).all()
    assert (picture(path, overlays=False) == 90).all()


def test_on_colour_too(tmp_path: Path) -> None:
    plane = np.zeros((12, 10), bool)
    plane[4, 2:7] = True
    path = overlaid(write(tmp_path / "a.dcm", np.full((12, 10, 3), 90, "u1")), 0x6002, plane)
    assert (picture(path) == 255).all(axis=2).tolist() == plane.tolist()


@pytest.mark.parametrize("origin", [(3, 2), (-1, 0), (11, 9), (40, 40), (-30000, 1)])
def test_origin_may_lie_outside(tmp_path: Path, origin: tuple[int, int]) -> None:
    plane = np.ones((4, 3), bool)
    path = overlaid(write(tmp_path / "a.dcm", PIXELS), 0x6000, plane, origin=list(origin))
    rows, columns = np.indices((12, 10)) + 1
    inside = (rows >= origin[0]) & (rows < origin[0] + 4) & (columns >= origin[1]) & (columns < origin[1] + 3)
    assert (picture(path) == 255).tolist() == inside.tolist()


def test_a_region_of_interest_is_an_outline(tmp_path: Path) -> None:
    plane = np.zeros((12, 10), bool)
    plane[2:9, 2:8] = True
    path = overlaid(write(tmp_path / "a.dcm", PIXELS), 0x6000, plane, kind="R")
    white = picture(path) == 255
    assert white.sum() == 7 * 6 - 5 * 4
    assert not white[3:8, 3:7].any()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_planes_of_frames_and_bytes_of_words(tmp_path: Path, syntax: Any) -> None:
    # 3 x 5 bits: the second plane begins within a byte
    planes = np.random.default_rng(3).random((2, 3, 5)) < 0.5
    path = write(tmp_path / "a.dcm", np.full((3, 3, 5), 90, "u1"), syntax, NumberOfFrames=3)
    raw = packed(planes)
    if syntax is ExplicitVRBigEndian:
        raw = np.frombuffer(raw, "<u2").astype(">u2").tobytes()
    overlaid(path, 0x6000, planes, first=2, data=raw)
    assert (picture(path, 0) == 90).all()
    assert (picture(path, 1) == 255).tolist() == planes[0].tolist()
    assert (picture(path, 2) == 255).tolist() == planes[1].tolist()


def test_planes_in_unused_bits(tmp_path: Path) -> None:
    plane = np.zeros((12, 10), bool)
    plane[5] = True
    words = np.full((12, 10), 700, "u2") | plane.astype("u2") << 13
    wishes: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "Modality": "XA"}
    path = write(tmp_path / "a.dcm", words, WindowCenter=700, WindowWidth=400, **wishes)
    ds = dcmread(path)
    for element, vr, value in ((0x10, "US", 12), (0x11, "US", 10), (0x40, "CS", "G"), (0x100, "US", 16)):
        ds.add_new((0x6000, element), vr, value)
    ds.add_new((0x6000, 0x0102), "US", 13)
    ds.save_as(path)
    assert (picture(path) == 255).tolist() == plane.tolist()
    assert len(np.unique(picture(path, overlays=False))) == 1
    ds[0x6000, 0x0102].value = 5  # a bit of the values is no overlay
    ds.save_as(path)
    assert len(np.unique(picture(path))) == 1


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff" * 14])
def test_planes_that_are_cut_short_are_left_out(tmp_path: Path, data: bytes) -> None:
    plane = np.ones((12, 10), bool)  # 120 bits: 15 bytes
    path = overlaid(write(tmp_path / "a.dcm", PIXELS), 0x6000, plane, data=data)
    assert (picture(path) == 90).all()


# ---------------------------------------------------------------- shutters


def shuttered(folder: Path, pixels: NDArray[Any] = PIXELS, **wishes: Any) -> Path:
    return write(folder / "a.dcm", pixels, **wishes)


RECTANGLE: dict[str, Any] = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 3,
    "ShutterRightVerticalEdge": 8,
    "ShutterUpperHorizontalEdge": 2,
    "ShutterLowerHorizontalEdge": 11,
}


def test_rectangle_counts_from_one(tmp_path: Path) -> None:
    found = picture(shuttered(tmp_path, **RECTANGLE))
    expected = np.zeros((12, 10), bool)
    expected[1:11, 2:8] = True
    assert (found == 90).tolist() == expected.tolist()
    assert (found[~expected] == 0).all()
    assert (picture(shuttered(tmp_path, **RECTANGLE), shutters=False) == 90).all()
    # P-values run to FFFF
    grey = picture(shuttered(tmp_path, **RECTANGLE, ShutterPresentationValue=0x8000))
    assert (grey[~expected] == 128).all()


def test_circle_is_round_on_pixels_that_are_not_square(tmp_path: Path) -> None:
    wishes = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [21, 31], "RadiusOfCircularShutter": 10}
    path = shuttered(tmp_path, np.full((41, 61), 90, "u1"), **wishes, PixelAspectRatio=["2", "1"])
    open_pixels = picture(path, square=False) == 90
    rows, columns = np.nonzero(open_pixels)
    assert (columns.min(), columns.max()) == (20, 40)
    assert (rows.min(), rows.max()) == (15, 25)


def test_shapes_cut_away_together(tmp_path: Path) -> None:
    wishes = RECTANGLE | {
        "ShutterShape": ["RECTANGULAR", "POLYGONAL"],
        "VerticesOfThePolygonalShutter": [1, 1, 12, 1, 12, 10],  # the lower left half
    }
    found = picture(shuttered(tmp_path, **wishes)) == 90
    assert found[10, 2]
    assert not found[1, 7]  # beyond the diagonal
    assert not found[11, 0]  # outside the rectangle


def test_bitmap_is_a_shutter_and_no_overlay(tmp_path: Path) -> None:
    plane = np.zeros((12, 10), bool)
    plane[:3] = True
    path = shuttered(tmp_path, ShutterShape="BITMAP", ShutterOverlayGroup=0x6004)
    overlaid(path, 0x6004, plane)
    assert (picture(path) == 0).tolist() == plane.tolist()


def test_shutters_of_frames(tmp_path: Path) -> None:
    item, group = Dataset(), Dataset()
    for keyword, value in RECTANGLE.items():
        setattr(item, keyword, value)
    group.FrameDisplayShutterSequence = [item]
    path = shuttered(
        tmp_path,
        np.stack([PIXELS, PIXELS]),
        NumberOfFrames=2,
        PerFrameFunctionalGroupsSequence=[Dataset(), group],
    )
    assert (picture(path, 0) == 90).all()
    assert (picture(path, 1) == 0).sum() == 120 - 60


@pytest.mark.parametrize(
    "wishes",
    [
        {"ShutterShape": "RECTANGULAR"},
        {"ShutterShape": "STAR"},
        RECTANGLE | {"ShutterLeftVerticalEdge": 9, "ShutterRightVerticalEdge": 2},
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [900, 900], "RadiusOfCircularShutter": 1},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 5]},
        {"ShutterShape": "BITMAP", "ShutterOverlayGroup": 0x6000},
    ],
)
def test_broken_shutters_hide_nothing(tmp_path: Path, wishes: dict[str, Any]) -> None:
    assert (picture(shuttered(tmp_path, **wishes)) == 90).all()


def test_what_a_shutter_hides_does_not_set_the_window(tmp_path: Path) -> None:
    pixels = np.full((40, 40), 60000, "u2")
    pixels[10:30, 10:30] = np.arange(400).reshape(20, 20) + 1000
    wishes = RECTANGLE | dict.fromkeys(("ShutterLeftVerticalEdge", "ShutterUpperHorizontalEdge"), 11)
    wishes |= dict.fromkeys(("ShutterRightVerticalEdge", "ShutterLowerHorizontalEdge"), 30)
    path = shuttered(tmp_path, pixels, **wishes)
    assert np.ptp(picture(path)[10:30, 10:30]) > 200
    assert np.ptp(picture(path, shutters=False)[10:30, 10:30]) < 10
