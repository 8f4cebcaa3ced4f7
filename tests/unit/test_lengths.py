"""Lengths that are told from the header alone, against the files that are really made."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicomfs.errors import NotDisplayable
from dicomfs.lengths import length
from dicomfs.model import Recipe, Source
from dicomfs.render import render
from tests.made import data_set, save
from tests.support import shipped

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"PixelSpacing": [0.5, 0.5]},
    {"PixelSpacing": [0.5, 0.7]},
    {"ImagerPixelSpacing": [2, 1]},
    {"PixelAspectRatio": [3, 2]},
    {"PixelSpacing": [1000, 0.001]},
]


def image(folder: Path, shape: tuple[int, ...], bits: int, **changes: Any) -> Path:
    """An image of this shape: (frames, rows, columns) or (frames, rows, columns, 3)."""
    ramp = np.arange(np.prod(shape)).reshape(shape)
    samples = shape[3] if len(shape) == 4 else 1
    pixels = ramp.astype(np.uint8 if bits == 8 else np.uint16)
    ds = data_set(pixels=np.zeros(shape[:3], np.uint16))
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = samples, "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        ds.PlanarConfiguration = 0
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return save(folder / "image.dcm", ds)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 90)),
    kind=st.sampled_from(["grey 8", "grey 16", "rgb"]),
    recipe=st.builds(
        Recipe,
        st.sampled_from(["bmp", "tiff"]),
        max_size=st.sampled_from([0, 31]),
        square=st.booleans(),
        marks=st.booleans(),
    ),
    place=st.sampled_from(GEOMETRIES),
)
def test_told_is_made(
    tmp_path: Path, shape: tuple[int, ...], kind: str, recipe: Recipe, place: dict[str, Any]
) -> None:
    full = (*shape, 3) if kind == "rgb" else shape
    source = Source(image(tmp_path, full, 16 if kind == "grey 16" else 8, **place), shape[0] - 1)
    told = length(source, recipe)
    assert told is not None
    assert told == len(render(source, recipe, None))


@pytest.mark.parametrize("name", ["bmp", "tiff"])
def test_large_pictures(tmp_path: Path, name: str) -> None:
    source = Source(image(tmp_path, (1, 1200, 901), 16))
    assert length(source, Recipe(name)) == len(render(source, Recipe(name), None))


@pytest.mark.parametrize("name", ["jpg", "png", "gif", "tiff16", "png16", "json", "pdf"])
def test_other_formats_have_to_be_made(tmp_path: Path, name: str) -> None:
    assert length(Source(image(tmp_path, (1, 8, 8), 16)), Recipe(name)) is None


@pytest.mark.parametrize(
    ("changes", "frame"),
    [
        ({}, 1),
        ({"PixelData": bytes(64)}, 0),
        ({"PixelData": None}, 0),
        ({"Rows": 0}, 0),
        ({"Rows": 60_000, "Columns": 60_000}, 0),
        ({"PhotometricInterpretation": "YBR_FULL"}, 0),
        ({"SamplesPerPixel": 4}, 0),
        ({"NumberOfFrames": 2}, 0),
    ],
)
def test_what_may_become_a_notice_is_not_told(tmp_path: Path, changes: dict[str, Any], frame: int) -> None:
    source = Source(image(tmp_path, (1, 8, 8), 16, **changes), frame)
    try:
        told = length(source, Recipe("bmp"))
    except NotDisplayable:
        told = None
    assert told is None


def test_real_files() -> None:
    told, untold = 0, 0
    for path in sorted(shipped("CT_small.dcm").parent.glob("*.dcm")):
        source = Source(path)
        for recipe in (Recipe("bmp"), Recipe("tiff", max_size=100)):
            try:
                found = length(source, recipe)
            except NotDisplayable:
                found = None
            if found is None:
                untold += 1
                continue
            told += 1
            assert found == len(render(source, recipe, None)), path.name
    assert told > 20
    assert untold > 20
