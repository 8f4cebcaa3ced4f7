"""A DICOM file read up to its pixel data: what its header says of them, and where they lie.

A plain image whose layout is known is not parsed, nor is the next frame of a file: the header is read, but
only for its checksum, which tells whether what is known still fits. Reads no pixel: `pixels` does, from what
this gives. Called by `render` and `lengths`.
"""

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import SEEK_CUR, SEEK_END, BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
)

from dicomfs.attributes import integer, number, text
from dicomfs.bounded import inflated, open_file
from dicomfs.errors import NotDisplayable
from dicomfs.model import Layout
from dicomfs.outline import MAX_HEAD_BYTES, attributes, unpack

T = TypeVar("T")

MAX_PIXELS = 300_000_000
"""Rows x Columns of one frame beyond which nothing is allocated."""
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
"""Transfer syntaxes that leave the pixels as they are."""
TAGS = (
    *(0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011),
    *(0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x7FE00001, 0x7FE00002),
    *(0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203),
    *(0x00281221, 0x00281222, 0x00281223),
)
"""Every attribute that this module and `pixels` read."""

_PIXEL_KEYWORDS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN", b"OV", b"OL")
_UNDEFINED_LENGTH = 0xFFFFFFFF
_FUNCTIONAL_GROUPS = (0x52009229, 0x52009230)
_SAME_CODE = {
    # retired JPEG processes, progressive ones among them (PS3.5-2001 A.4.1): the codestream says which it is
    **{UID(f"1.2.840.10008.1.2.4.{process}"): JPEGExtended12Bit for process in (52, 53, 54, 55, 56)},
    UID("1.2.840.10008.1.2.4.58"): JPEGLossless,
}

_FILES_RECENT = 2
_MAX_RECENT_BYTES = 16 << 20
"""A longer header is parsed each time."""
_MAX_KNOWN = 256
_OUTLINES_KEPT = 64
"""Different ones whose attributes stay at hand; the images of a series usually have the same."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where pixel data were found: attribute, VR, first byte and length field of the value."""

    keyword: str = ""
    vr: str = ""
    start: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Image:
    """An open DICOM file, read up to its pixel data; valid inside `open_image` only."""

    ds: Dataset
    """The attributes that were asked for; no pixel data."""
    file: BinaryIO
    """Where the pixel data lie."""
    start: int
    """First byte of the pixel data value in `file`."""
    length: int | None
    """Bytes of native pixel data; None when encapsulated."""
    keyword: str
    vr: str
    syntax: UID
    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    allocated: int
    stored: int
    high: int
    signed: bool
    by_frame: bool
    """True when frames may differ in more than their pixels (functional groups)."""
    known: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False)
    """What was found out from the header alone (`find`); images of an equal header share it."""

    def find(self, what: str, frame: int, make: Callable[[], T]) -> T:
        """What `make` finds out of the header alone about `frame`, something small; it is asked once."""
        key = what, frame if self.by_frame else 0
        if key not in self.known:
            if len(self.known) >= _MAX_KNOWN:
                self.known.clear()
            self.known[key] = make()
        found: T = self.known[key]
        return found

    @property
    def is_colour(self) -> bool:
        """True when frames become RGB and no grey window applies."""
        return self.samples == 3 or self.photometric == "PALETTE COLOR"

    @property
    def is_native(self) -> bool:
        """True when the transfer syntax leaves the pixels as they are."""
        return self.syntax in NATIVE

    @property
    def unused_bits(self) -> int:
        """Bits of a 16-bit word that no stored value uses, as a mask: overlays may lie there."""
        if self.allocated != 16 or self.samples != 1:
            return 0
        used = ((1 << self.stored) - 1) << max(0, self.high + 1 - self.stored)
        return 0xFFFF & ~used

    @property
    def is_float(self) -> bool:
        """True for Float and Double Float Pixel Data."""
        return self.keyword != "PixelData"


@contextmanager
def open_image(
    path: Path | BinaryIO, tags: tuple[int, ...] = (), layout: Layout | None = None
) -> Iterator[Image]:
    """Read a file's attributes (those of the pixel modules and `tags`) and find its pixel data.

    With a `layout` that fits the file, the attributes are those of its outline, which has all that are here.
    Raises NotDisplayable for a file without usable pixel data, OSError, and whatever pydicom raises for
    a damaged data set (`attributes.DAMAGE`).
    """
    with open_file(path) as file:
        known = None if layout is None else _laid_out(file, layout)
        yield known or _image(file, tags)


def _laid_out(file: BinaryIO, layout: Layout) -> Image | None:
    """The image that a layout describes; None, with the file at its start, when it is not of this file."""
    outline = unpack(layout.outline)
    size = file.seek(0, SEEK_END)
    start = size - layout.size
    if outline is not None and start >= 0 and 0 < layout.pixel_offset <= min(layout.size, MAX_HEAD_BYTES):
        file.seek(start)
        head = file.read(layout.pixel_offset)
        if outline.fits(head):
            place = start + len(head)
            # in either VR encoding the length field is what comes last before a value
            length = min(int.from_bytes(head[-4:], "little"), size - place)
            return replace(_outlined(outline.body, outline.explicit), file=file, start=place, length=length)
    file.seek(0)
    return None


@lru_cache(maxsize=_OUTLINES_KEPT)
def _outlined(body: bytes, explicit: bool) -> Image:
    """The image of an outline, still without its file. Raises NotDisplayable."""
    ds = Dataset()
    for tag, value in attributes(body).items():
        ds[tag] = RawDataElement(BaseTag(tag), None, len(value), value, 0, not explicit, True)
    syntax = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    return _describe(ds, BytesIO(), syntax, _Place("PixelData", "OW", 0, 1))


def _image(file: BinaryIO, tags: tuple[int, ...]) -> Image:
    if not isinstance(file, BufferedReader):
        return _parsed(inflated(file), tags)
    known = _recent.find(file, tags)
    if known is None:
        whole = inflated(file)
        known = _parsed(whole, tags)
        if whole is file:
            _recent.keep(file, tags, known)
    return known


def _parsed(file: BinaryIO, tags: tuple[int, ...]) -> Image:
    ds = dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*TAGS, *tags])
    syntax = UID(str(ds.file_meta.get("TransferSyntaxUID") or ""))
    return _describe(ds, file, syntax, _locate(file, "big" if ds.original_encoding[1] is False else "little"))


class _Recent:
    """Headers of the last few files of several frames: each frame is a render, and parsing may take longer.

    What is in the file is read each time and compared by its checksum, so that a header is never another's.
    """

    def __init__(self) -> None:
        self._images: OrderedDict[tuple[object, ...], tuple[int, Image]] = OrderedDict()

    def find(self, file: BufferedReader, tags: tuple[int, ...]) -> Image | None:
        """The image of an open file; None, with the file at its start, when it has to be parsed."""
        key = self._key(file, tags)
        if key not in self._images:
            return None
        self._images.move_to_end(key)
        checksum, image = self._images[key]
        if zlib.crc32(file.read(image.start)) == checksum:
            return replace(image, file=file)
        file.seek(0)
        return None

    def keep(self, file: BufferedReader, tags: tuple[int, ...], image: Image) -> None:
        """Keep the header of what was found in an open file, if that is worth it."""
        if image.frames > 1 and image.start <= _MAX_RECENT_BYTES:
            file.seek(0)
            # (not with the file: that would stay in memory)
            kept = replace(image, file=BytesIO())
            self._images[self._key(file, tags)] = zlib.crc32(file.read(image.start)), kept
            while len(self._images) > _FILES_RECENT:
                self._images.popitem(last=False)

    @staticmethod
    def _key(file: BufferedReader, tags: tuple[int, ...]) -> tuple[object, ...]:
        stat = os.fstat(file.fileno())
        return stat.st_dev, stat.st_ino, stat.st_size, tags


_recent = _Recent()


def _locate(file: BinaryIO, order: Literal["little", "big"]) -> _Place:
    """The pixel data that `file` stands before."""
    head = file.read(12)
    if len(head) < 8:
        return _Place()
    tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
    explicit = head[4:6] in _LONG_VRS
    if not explicit:
        file.seek(8 - len(head), SEEK_CUR)
    length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
    return _Place(_PIXEL_KEYWORDS.get(tag, ""), head[4:6].decode() if explicit else "OW", file.tell(), length)


def _describe(ds: Dataset, file: BinaryIO, syntax: UID, place: _Place) -> Image:
    if not place.keyword or not place.length:
        raise NotDisplayable("It holds no pixel data.")
    if not syntax:
        implicit, little = ds.original_encoding
        explicit = ExplicitVRLittleEndian if little is not False else ExplicitVRBigEndian
        syntax = ImplicitVRLittleEndian if implicit else explicit
    syntax = _SAME_CODE.get(syntax, syntax)
    rows, columns = integer(ds, 0x00280010, 0), integer(ds, 0x00280011, 0)
    if not rows or not columns:
        raise NotDisplayable("It does not say how many rows and columns the image has.")
    if rows * columns > MAX_PIXELS:
        raise NotDisplayable(f"The image is too large: {columns} x {rows} pixels.")
    photometric = text(ds, 0x00280004).upper()
    samples = integer(ds, 0x00280002, 3 if photometric.startswith(("RGB", "YBR")) else 1)
    if samples not in {1, 3}:
        raise NotDisplayable(f"Images of {samples} samples per pixel are not supported.")
    allocated = integer(
        ds, 0x00280100, 8 * {"FloatPixelData": 4, "DoubleFloatPixelData": 8}.get(place.keyword, 2)
    )
    stored = integer(ds, 0x00280101, allocated)
    if not 0 < stored <= allocated:
        stored = allocated
    end = file.seek(0, SEEK_END)
    return Image(
        ds=ds,
        file=file,
        start=place.start,
        length=None if place.length == _UNDEFINED_LENGTH else min(place.length, end - place.start),
        keyword=place.keyword,
        vr=place.vr,
        syntax=syntax,
        rows=rows,
        columns=columns,
        samples=samples,
        frames=max(1, int(number(ds, 0x00280008) or 1)),
        photometric=photometric,
        allocated=allocated,
        stored=stored,
        high=integer(ds, 0x00280102, stored - 1),
        signed=integer(ds, 0x00280103, 0) == 1 and allocated > 1,
        by_frame=any(tag in ds for tag in _FUNCTIONAL_GROUPS),
    )
