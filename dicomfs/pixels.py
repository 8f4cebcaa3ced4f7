"""From a DICOM file and a frame number to stored values or RGB; no other frame is read or decoded.

Grey frames stay as close to the file as possible: 16-bit words as they are stored (`codes`) plus one
table that says which stored value each word means (`levels`), so that masking, sign and clipping cost
nothing per pixel. A plain image whose layout is known is not parsed, nor is the next frame of a file: the
header is read, but only for its checksum, which tells whether what is known still fits. Of pixels nothing is
kept. Nothing here knows about windows. Called by `render`.
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

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from dicomfs.attributes import DAMAGE, integer, number, octets, text
from dicomfs.bounded import inflated, open_file
from dicomfs.codestream import declared_size, repair_jpeg
from dicomfs.errors import NotDisplayable
from dicomfs.model import Layout
from dicomfs.outline import MAX_HEAD_BYTES, attributes, unpack
from dicomfs.video import VIDEO_SYNTAXES, video_frame

T = TypeVar("T")

MAX_PIXELS = 300_000_000
"""Rows x Columns of one frame beyond which nothing is allocated."""

_PIXEL_KEYWORDS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN", b"OV", b"OL")
_UNDEFINED_LENGTH = 0xFFFFFFFF
_FILES_RECENT = 2
_MAX_RECENT_BYTES = 16 << 20
"""A longer header is parsed each time."""
_MAX_KNOWN = 256
_LEVELS_KEPT = 16
_OUTLINES_KEPT = 64
"""Different ones whose attributes stay at hand; the images of a series usually have the same."""
_DEFLATED_FRAMES = UID("1.2.840.10008.1.2.8.1")

TAGS = (
    *(0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011),
    *(0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x7FE00001, 0x7FE00002),
    *(0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203),
    *(0x00281221, 0x00281222, 0x00281223),
)
"""Every attribute that this module reads."""

_FUNCTIONAL_GROUPS = (0x52009229, 0x52009230)
_LITTLE_ENDIAN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
_NATIVE = (*_LITTLE_ENDIAN, ExplicitVRBigEndian)
_SAME_CODE = {
    # retired JPEG processes, progressive ones among them (PS3.5-2001 A.4.1): the codestream says which it is
    **{UID(f"1.2.840.10008.1.2.4.{process}"): JPEGExtended12Bit for process in (52, 53, 54, 55, 56)},
    UID("1.2.840.10008.1.2.4.58"): JPEGLossless,
}
_PLUGINS = {
    # the order is fixed, so that bytes never depend on which other decoders happen to be installed
    JPEGBaseline8Bit: ("pylibjpeg", "pillow"),
    RLELossless: ("pylibjpeg", "pydicom"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, ("pylibjpeg", "pyjpegls")),
}


@dataclass(frozen=True, slots=True)
class Grey:
    """One grey frame, shape (rows, columns).

    With `levels`: codes are uint8 or uint16 and `levels[code]` (int32) is the stored value. Without:
    codes are the stored values themselves (32 bits and more, or floating point).
    """

    codes: NDArray[Any]
    levels: NDArray[np.int32] | None


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
        return self.syntax in _NATIVE

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


def grey(image: Image, frame: int) -> Grey:
    """The stored values of one grey frame.

    Raises NotDisplayable when the frame or a decoder is missing or the data are cut short, OSError, and
    what decoders raise for damaged data (`attributes.DAMAGE`).
    """
    if image.syntax in VIDEO_SYNTAXES:
        return Grey(_video(image, frame), np.arange(256, dtype=np.int32))
    if _is_plain(image):
        codes = _words(image, frame)
    else:
        array, _ = _decode(image, frame)
        if image.is_float or array.dtype.itemsize > 2:
            return Grey(array, None)
        codes = array.astype(array.dtype.newbyteorder("="), copy=False)
        codes = codes.view(f"u{codes.dtype.itemsize}")
    bits = codes.dtype.itemsize * 8
    stored = min(image.stored, bits)
    if image.syntax in JPEG2000TransferSyntaxes + JPEGLSTransferSyntaxes:
        return Grey(codes, _clipped_levels(bits, stored, signed=image.signed))
    # old originals keep their values in the upper bits of the word; a codestream has no upper bits
    upper = stored <= image.high < bits and image.syntax not in JPEGTransferSyntaxes
    shift = image.high + 1 - stored if upper else 0
    return Grey(codes, _masked_levels(bits, stored, shift, signed=image.signed))


@lru_cache(maxsize=_LEVELS_KEPT)
def _clipped_levels(bits: int, stored: int, *, signed: bool) -> NDArray[np.int32]:
    """Stored value of each code of JPEG 2000 and JPEG-LS.

    They carry their own precision: a value beyond BitsStored is a value, not dirt (wavelets overshoot).
    """
    codes = np.arange(1 << bits, dtype=np.int32)
    values = np.where(codes >> (bits - 1), codes - (1 << bits), codes) if signed else codes
    low, high = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    return _constant(np.clip(values, low, high))


@lru_cache(maxsize=_LEVELS_KEPT)
def _masked_levels(bits: int, stored: int, shift: int, *, signed: bool) -> NDArray[np.int32]:
    """Stored value of each code: unused bits masked and sign extended (PS3.5 8.1.1)."""
    codes = np.arange(1 << bits, dtype=np.int32)
    values = codes >> shift & ((1 << stored) - 1)
    if signed:
        values = np.where(values >> (stored - 1), values - (1 << stored), values)
    return _constant(values)


def _constant(values: NDArray[Any]) -> NDArray[np.int32]:
    """Nobody can change what is shared."""
    found = values.astype(np.int32)
    found.flags.writeable = False
    return found


def _is_plain(image: Image) -> bool:
    """True when a frame's bytes are its codes: nothing is decoded, swapped or unpacked."""
    return (
        image.syntax in _LITTLE_ENDIAN
        and image.keyword == "PixelData"
        and image.allocated in {8, 16}
        and image.samples == 1
        and image.photometric in {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
    )


def _words(image: Image, frame: int) -> NDArray[Any]:
    """The codes of one frame of a plain image, shape (rows, columns); raises as `grey`."""
    _check_frame(image, frame)
    file = _native(image, frame, {})
    count = image.rows * image.columns * image.allocated // 8
    file.seek(image.start + frame * count)
    raw = file.read(count)
    if len(raw) < count:
        raise EOFError("the file has become shorter")
    return np.frombuffer(raw, f"<u{image.allocated // 8}").reshape(image.rows, image.columns)


def colour(image: Image, frame: int) -> NDArray[np.uint8]:
    """One colour frame as RGB, shape (rows, columns, 3). Raises like `grey`."""
    if image.samples == 1:
        return _palette(image, grey(image, frame))
    if image.syntax in VIDEO_SYNTAXES:
        return _video(image, frame)
    array, photometric = _decode(image, frame)
    rgb = _to_8_bits(array, image.stored)
    if photometric in {"YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}:
        converted: NDArray[np.uint8] = convert_color_space(rgb, "YBR_FULL", "RGB")
        return converted
    if photometric not in {"RGB", "MONOCHROME2", ""}:
        raise NotDisplayable(f"The colour model {photometric} is not supported.")
    return rgb


def _video(image: Image, frame: int) -> NDArray[np.uint8]:
    _check_frame(image, frame)
    if image.length is not None:
        raise NotDisplayable("Its pixel data are not compressed, but it says that they are.")
    size = (image.rows, image.columns)
    found: NDArray[np.uint8] = video_frame(
        image.file, image.start, image.syntax, frame, size, grey=image.samples == 1
    )
    return found


def _check_frame(image: Image, frame: int) -> None:
    if not 0 <= frame < image.frames:
        raise NotDisplayable(f"There is no frame {frame + 1}: the image has {image.frames}.")


def _to_8_bits(array: NDArray[Any], stored: int) -> NDArray[np.uint8]:
    if stored > 8:
        array = array >> (stored - 8)
    elif stored < 8:
        array = np.clip(array, 0, (1 << stored) - 1).astype(np.uint16) * 255 // ((1 << stored) - 1)
    narrowed: NDArray[np.uint8] = np.clip(array, 0, 255).astype(np.uint8)
    return narrowed


def _palette(image: Image, stored: Grey) -> NDArray[np.uint8]:
    """Palette colour as a table over all codes (PS3.3 C.7.6.3.1.5, segmented: C.7.9.2)."""
    if stored.levels is None:
        raise NotDisplayable("A colour palette for more than 16 bits is not supported.")
    table = apply_color_lut(stored.levels, image.ds)[:, :3]
    if table.dtype.itemsize > 1:
        # some writers announce 16 bits and fill only the lower 8
        table = table >> 8 if int(table.max()) > 255 else table
    rgb: NDArray[np.uint8] = np.take(table.astype(np.uint8), stored.codes, axis=0)
    return rgb


def _decode(image: Image, frame: int) -> tuple[NDArray[Any], str]:
    """One frame as (rows, columns[, 3]) and its photometric interpretation after decoding."""
    _check_frame(image, frame)
    options: dict[str, Any] = {
        "rows": image.rows,
        "columns": image.columns,
        "samples_per_pixel": image.samples,
        "photometric_interpretation": image.photometric or "MONOCHROME2",
        "planar_configuration": integer(image.ds, 0x00280006, 0),
        "bits_allocated": image.allocated,
        "bits_stored": image.stored,
        "pixel_representation": int(image.signed),
        "pixel_keyword": image.keyword,
        "correct_unused_bits": image.allocated > 16,
        "number_of_frames": 1,
    }
    if image.syntax == _DEFLATED_FRAMES:
        return _decode(_inflated_frame(image, frame), 0)
    try:
        decoder = get_decoder(image.syntax)
    except NotImplementedError as error:
        raise NotDisplayable(f"There is no decoder for its compression ({image.syntax.name}).") from error
    if image.syntax in _NATIVE:
        file = _native(image, frame, options)
        if image.allocated == 1 and image.samples == 1:
            return _unpacked(image, frame), image.photometric
        array, properties = decoder.as_array(file, index=frame, raw=True, **options)
        return array, str(properties["photometric_interpretation"])
    code = encapsulate([_encoded(image, frame)], has_bot=False)
    failures: list[BaseException] = []
    for plugin in _PLUGINS.get(image.syntax, ("pylibjpeg",)):
        try:
            array, properties = decoder.as_array(code, index=0, raw=True, decoding_plugin=plugin, **options)
        except DAMAGE as error:
            failures.append(error)
        except BaseException as error:
            # decoders written in Rust panic with a class of their own that no module exports
            if type(error).__name__ != "PanicException":
                raise
            failures.append(error)
        else:
            return array, str(properties["photometric_interpretation"])
    raise NotDisplayable(f"Its pixel data are damaged ({image.syntax.name}).") from failures[0]


def _inflated_frame(image: Image, frame: int) -> Image:
    """A frame of the Deflated Image Frame syntax (PS3.5 A.4.18) as a native image; never inflated further."""
    needed = (image.rows * image.columns * image.samples * image.allocated + 7) // 8
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    raw = inflater.decompress(_encoded(image, frame), needed)
    syntax = ExplicitVRLittleEndian
    return replace(image, file=BytesIO(raw), start=0, length=len(raw), syntax=syntax, frames=1)


def _native(image: Image, frame: int, options: dict[str, Any]) -> BinaryIO:
    """The file, standing before native pixel data that are long enough for `frame`."""
    if image.length is None:
        raise NotDisplayable("Its pixel data are compressed, but it says that they are not.")
    samples = image.rows * image.columns * image.samples
    if image.photometric == "YBR_FULL_422" and image.length < samples * image.frames * image.allocated // 8:
        samples = samples // 3 * 2
    elif image.photometric == "YBR_FULL_422":
        options["photometric_interpretation"] = "YBR_FULL"  # the chroma was never thinned out
    needed = ((frame + 1) * samples * image.allocated + 7) // 8
    if image.length < needed:
        raise NotDisplayable(f"Its pixel data are cut short: {image.length} of {needed} bytes.")
    image.file.seek(image.start)
    options |= {"number_of_frames": image.frames, "pixel_vr": image.vr, "view_only": True}
    return image.file


def _unpacked(image: Image, frame: int) -> NDArray[np.uint8]:
    """A frame of single bits, which need not begin at a whole byte (PS3.5 8.1.1); pydicom 3.0 expects it."""
    pixels = image.rows * image.columns
    first = frame * pixels
    image.file.seek(image.start + first // 8)
    octet = np.frombuffer(image.file.read((first % 8 + pixels + 7) // 8), np.uint8)
    bits = np.unpackbits(octet, bitorder="little")[first % 8 : first % 8 + pixels]
    return bits.reshape(image.rows, image.columns)


def _encoded(image: Image, frame: int) -> bytes:
    """The compressed bytes of one frame, repaired where a known writer's fault is repairable."""
    if image.length is not None:
        raise NotDisplayable("Its pixel data are not compressed, but it says that they are.")
    image.file.seek(image.start)
    offsets, little = octets(image.ds, 0x7FE00001)
    lengths = octets(image.ds, 0x7FE00002)[0]
    extended = (offsets, lengths) if offsets and len(offsets) == len(lengths) and little else None
    code = get_frame(image.file, frame, extended_offsets=extended, number_of_frames=image.frames)
    if image.syntax in JPEGTransferSyntaxes:
        code = repair_jpeg(code)
    size = declared_size(code)
    if size is not None and size != (image.rows, image.columns):
        raise NotDisplayable(
            f"Its compressed image is {size[1]} x {size[0]} pixels, "
            f"but it announces {image.columns} x {image.rows}."
        )
    return code
