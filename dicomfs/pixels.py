"""A frame of an open image -> stored values or RGB; no other frame is read or decoded.

Grey frames stay as close to the file as possible: 16-bit words as they are stored (`codes`) plus one
table that says which stored value each word means (`levels`), so that masking, sign and clipping cost
nothing per pixel. Nothing is kept of pixels, and nothing here knows about windows. Called by `frames` and
`render`.
"""

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from dicomfs.attributes import DAMAGE, integer, octets
from dicomfs.codestream import declared_size, repair_jpeg
from dicomfs.errors import NotDisplayable
from dicomfs.image import Image
from dicomfs.video import VIDEO_SYNTAXES, video_frame

_LEVELS_KEPT = 16
_LITTLE_ENDIAN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
_DEFLATED_FRAMES = UID("1.2.840.10008.1.2.8.1")
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
    if image.is_native:
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
