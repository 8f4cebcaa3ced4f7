"""Outlines: plain images have one, whatever is not plain has none, and no picture depends on it."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomfs import frames, image, outline, pixels
from dicomfs.errors import DicomfsError, NotDisplayable
from dicomfs.header import read_file_meta, read_header
from dicomfs.model import Header, Layout, Recipe, Source
from dicomfs.render import decide_pool, render
from tests.unit.reference import write
from tests.unit.test_render import outcome, wheel_files

RECIPES = (
    Recipe("png"),
    Recipe("jpg", window="header", marks=True, max_size=100),
    Recipe("bmp", window="full", overlays=False, shutters=False, subtraction=False),
    Recipe("tiff16"),
)


def read(path: Path) -> tuple[Header, int]:
    """The header of a file, and the bytes of its data set."""
    with path.open("rb") as file:
        meta = read_file_meta(file)
        size = path.stat().st_size - meta.data_set_offset
        file.seek(meta.data_set_offset)
        return read_header(file, size, meta.transfer_syntax), size


def layout_of(path: Path) -> Layout | None:
    """As the index would have it."""
    header, size = read(path)
    if header.outline is None or header.pixel_offset is None:
        return None
    return Layout(size, header.pixel_offset, header.outline)


def ct(path: Path, syntax: UID = ExplicitVRLittleEndian, **attributes: Any) -> Path:
    """A plain image: a bright disc, twelve bits, with a window and a rescale."""
    y, x = np.mgrid[0:40, 0:50]
    values = (900 + 300 * ((x - 25) ** 2 + (y - 20) ** 2 < 150) + (x * 3 + y * 7) % 40).astype("u2")
    usual = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "BitsStored": 12,
        "HighBit": 11,
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        "WindowCenter": "40",
        "WindowWidth": "400",
        "PixelSpacing": ["0.7", "0.7"],
        "PatientName": "Doe^Jane",
        "PatientWeight": "70",
    }
    return write(path, attributes.pop("values", values), syntax, **{**usual, **attributes})


def plain(path: Path) -> Layout:
    layout = layout_of(path)
    assert layout is not None
    return layout


def never(*_: object, **__: object) -> object:
    raise AssertionError("the file was parsed")


def test_every_attribute_of_a_picture_is_accounted_for() -> None:
    read_by_renders = {*frames.TAGS, *image.TAGS}
    kept = set(outline.KEPT)
    assert kept | outline.COMPLEX | outline.IDLE == read_by_renders
    assert len(kept) + len(outline.COMPLEX) + len(outline.IDLE) == len(read_by_renders)
    assert list(outline.KEPT) == sorted(kept)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_plain_image_is_not_parsed(tmp_path: Path, syntax: UID, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ct(tmp_path / "a.dcm", syntax)
    layout = plain(path)
    parsed = [render(Source(path), recipe, None) for recipe in RECIPES]
    window = decide_pool([Source(path)], "header")
    monkeypatch.setattr(image, "dcmread", never)
    assert [render(Source(path, 0, layout), recipe, None) for recipe in RECIPES] == parsed
    assert decide_pool([Source(path, 0, layout)], "header") == window
    with pytest.raises(NotDisplayable):
        render(Source(path), RECIPES[0], None)


def test_of_many_frames_only_one_is_read(tmp_path: Path) -> None:
    values = np.arange(96 * 30 * 20, dtype="u2").reshape(96, 30, 20)
    path = ct(tmp_path / "a.dcm", values=values, NumberOfFrames=96, BitsStored=16, HighBit=15)
    layout = plain(path)
    for frame in (0, 57, 95):
        source = Source(path, frame)
        assert render(replace(source, layout=layout), RECIPES[3], None) == render(source, RECIPES[3], None)
    taken: list[int] = []

    class Watched(BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            taken.append(len(found))
            return found

    with (
        path.open("rb", buffering=0) as raw,
        Watched(raw) as file,
        image.open_image(file, (), layout) as opened,
    ):
        pixels.grey(opened, 57)
    assert sum(taken) == layout.pixel_offset + 30 * 20 * 2
    assert refused(Source(path, 96, layout)) == refused(Source(path, 96)) != ""


def test_it_names_no_patient_and_is_small(tmp_path: Path) -> None:
    found = plain(ct(tmp_path / "a.dcm")).outline
    known = outline.unpack(found)
    assert known is not None
    values = outline.attributes(known.body)
    assert (values[0x00281050], values[0x00280010]) == (b"40", b"\x28\0")
    assert not any(tag >> 16 == 0x0010 for tag in values)
    assert len(found) < 150


def test_images_of_a_series_share_what_is_derived_from_it(tmp_path: Path) -> None:
    one, other = (plain(ct(tmp_path / f"{n}.dcm", SOPInstanceUID=f"1.2.{n}")).outline for n in (1, 2))
    first, second = outline.unpack(one), outline.unpack(other)
    assert first is not None
    assert second is not None
    assert first.body == second.body
    assert first.checksum != second.checksum


def sequence(keyword: str) -> dict[str, Any]:
    return {keyword: [Dataset()]}


NOT_PLAIN: dict[str, Callable[[Path], Path]] = {
    "big endian": lambda path: ct(path, ExplicitVRBigEndian),
    "deflated": lambda path: ct(path, DeflatedExplicitVRLittleEndian),
    "modality LUT": lambda path: ct(path, **sequence("ModalityLUTSequence")),
    "VOI LUT": lambda path: ct(path, **sequence("VOILUTSequence")),
    "functional groups": lambda path: ct(path, **sequence("SharedFunctionalGroupsSequence")),
    "regions": lambda path: ct(path, **sequence("SequenceOfUltrasoundRegions")),
    "isotope": lambda path: ct(path, **sequence("RadiopharmaceuticalInformationSequence")),
    "subtracted": lambda path: ct(path, RecommendedViewingMode="SUB"),
    "long value": lambda path: ct(path, ImageType=["ORIGINAL", "PRIMARY", *["X" * 16] * 20]),
    "long header": lambda path: ct(path, EncapsulatedDocument=bytes(outline.MAX_HEAD_BYTES)),
    "three samples": lambda path: ct(path, values=np.zeros((4, 4, 3), "u1"), BitsStored=8, HighBit=7),
    "32 bits": lambda path: ct(path, values=np.zeros((4, 4), "u4")),
    "palette": lambda path: ct(path, PhotometricInterpretation="PALETTE COLOR"),
    "no pixels": lambda path: ct(path, values=b""),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_what_is_not_plain_has_none(tmp_path: Path, what: str) -> None:
    assert read(NOT_PLAIN[what](tmp_path / "a.dcm"))[0].outline is None


def test_an_overlay_is_not_plain(tmp_path: Path) -> None:
    path = ct(tmp_path / "a.dcm")
    ds = dcmread(path)
    ds.add_new(0x60000010, "US", 40)
    ds.save_as(path)
    assert read(path)[0].outline is None


def test_a_number_of_another_kind_is_not_plain(tmp_path: Path) -> None:
    """Rows as text, as some writers have it: what it means depends on its VR."""
    path = ct(tmp_path / "a.dcm")
    raw = path.read_bytes()
    rows = b"\x28\0\x10\0US\2\0\x28\0"
    assert raw.count(rows) == 1
    path.write_bytes(raw.replace(rows, b"\x28\0\x10\0IS\2\x0040"))
    assert read(path)[0].outline is None
    assert render(Source(path), RECIPES[0], None)


def test_every_real_plain_image_looks_the_same() -> None:
    compared = 0
    for path in (path for path in wheel_files() if path.stat().st_size < 1_000_000):
        try:
            layout = layout_of(path)
        except DicomfsError:
            continue
        if layout is not None:
            for recipe in RECIPES[:2]:
                assert outcome(path, recipe, layout) == outcome(path, recipe), (path, recipe)
            compared += 1
    assert compared > 10


# ---------------------------------------------------------------- the file is another than the index says


def refused(source: Source, recipe: Recipe = RECIPES[0]) -> str:
    return outcome(source.path, recipe, source.layout, source.frame)[1]


def test_a_file_in_its_place_is_shown_as_what_it_is(tmp_path: Path) -> None:
    path = ct(tmp_path / "a.dcm")
    layout = plain(path)
    other = ct(tmp_path / "b.dcm", WindowCenter="90")  # of the same length
    assert (plain(other).pixel_offset, plain(other).size) == (layout.pixel_offset, layout.size)
    for recipe in RECIPES:
        assert outcome(other, recipe, layout) == outcome(other, recipe)
    assert outcome(other, RECIPES[0]) != outcome(path, RECIPES[0])


def test_a_file_that_is_gone_is_missing(tmp_path: Path) -> None:
    layout = plain(ct(tmp_path / "a.dcm"))
    with pytest.raises(FileNotFoundError):
        render(Source(tmp_path / "gone.dcm", 0, layout), RECIPES[0], None)


def test_a_file_that_is_cut_short_is_refused_as_ever(tmp_path: Path) -> None:
    path = ct(tmp_path / "a.dcm")
    layout, raw = plain(path), path.read_bytes()
    for kept in (len(raw) - 1, len(raw) - 40 * 50 * 2, len(raw) - layout.size, 200, 0):
        path.write_bytes(raw[:kept])
        assert refused(Source(path, 0, layout)) == refused(Source(path)) != ""


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4),
    st.one_of(st.just(1.0), st.floats(0.05, 1)),
    st.binary(max_size=2),
)
def test_damage_shows_as_without_a_layout(
    tmp_path_factory: pytest.TempPathFactory, hits: list[tuple[float, bytes]], kept: float, more: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "outlined.dcm"
    layout = plain(ct(path))
    raw = bytearray(path.read_bytes())
    for place, junk in hits:
        # the file meta information is not what a picture is made from
        at = len(raw) - layout.size + int(place**3 * (layout.size - 4))
        raw[at : at + len(junk)] = junk
    path.write_bytes(raw[: int(len(raw) * kept)] + more)
    assert outcome(path, RECIPES[0], layout) == outcome(path, RECIPES[0])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_broken_layout_is_not_believed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = ct(tmp_path_factory.getbasetemp() / "whole.dcm")
    layout = plain(path)
    garbled = bytearray(layout.outline)
    garbled[data.draw(st.integers(0, len(garbled) - 1))] ^= data.draw(st.integers(1, 255))
    far = st.sampled_from([-1, 0, 1, 11, layout.size, 1 << 40, 1 << 63])
    for broken in (
        replace(layout, outline=bytes(garbled)),
        replace(layout, outline=layout.outline[: data.draw(st.integers(0, len(garbled) - 1))]),
        replace(layout, outline=data.draw(st.binary(max_size=200))),
        replace(layout, pixel_offset=data.draw(far)),
        replace(layout, size=data.draw(far.filter(lambda size: size != layout.size))),
    ):
        assert outcome(path, RECIPES[0], broken) == outcome(path, RECIPES[0])


def test_what_inflates_without_end_is_no_outline() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -10)
    bomb = deflater.compress(bytes(10_000_000)) + deflater.flush()
    with pytest.raises(ValueError, match="does not end"):
        outline.attributes(bomb)


def test_absurd_sizes_are_refused_as_ever(tmp_path: Path) -> None:
    absurd: tuple[dict[str, Any], ...] = (
        {"Rows": 65535, "Columns": 65535},
        {"Rows": 10000},
        {"Rows": 0},
        {"NumberOfFrames": 2**31 - 1},
    )
    for sides in absurd:
        path = ct(tmp_path / "a.dcm", **sides)
        source = Source(path, sides.get("NumberOfFrames", 1) - 1)
        refusal = refused(source)
        assert refusal
        assert refused(replace(source, layout=plain(path))) == refusal
