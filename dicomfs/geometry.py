"""How large a pixel is: square pixels, scaling down, and the true size that goes into a file.

`geometry` reads attributes, `fitted` resamples a picture. Knows nothing of windows or formats. Called by
`render`.
"""

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicomfs.attributes import integer, items, octets, texts
from dicomfs.display import functional_groups

T = TypeVar("T", np.uint8, np.uint16)

TAGS = (0x00181164, 0x00182010, 0x00186011, 0x00280030, 0x00280034, 0x52009229, 0x52009230)
"""Every attribute that this module reads at the top level."""

SQUARE_WITHIN = 0.01
"""Sides that differ by less are square: spacings are rounded, and resampling costs sharpness."""
MAX_ASPECT = 10.0
"""Beyond this ratio of the sides it is no image geometry but a mistake."""
MAX_SQUARED_PIXELS = 300_000_000
"""Larger pictures keep the pixels that they have."""
MIN_TRUE_MM, MAX_TRUE_MM = 0.01, 10.0
"""Sides of a pixel that are written into files: a microscope's picture at true size is a speck."""

_SPACINGS = (0x00280030, 0x00181164, 0x00182010)
"""PixelSpacing (in the patient), ImagerPixelSpacing (at the detector), NominalScannedPixelSpacing (film)."""
_PIXEL_MEASURES = 0x00289110
_2D_FORMAT, _CENTIMETRES = 1, 3
_MM_PER_CM = 10.0
_MM_PER_METRE = 1000.0


@dataclass(frozen=True, slots=True)
class Geometry:
    """Size of one pixel."""

    aspect: float = 1.0
    """Height of a pixel divided by its width."""
    width_mm: float | None = None
    """Width of a pixel in millimetres; None when unknown, or not a plausible measure."""


def geometry(ds: Dataset, frame: int) -> Geometry:
    """The pixel size of one frame; broken and implausible attributes count as missing.

    PS3.3 10.7.1.3: the first value is the distance of rows (the pixel's height). Spacing goes before
    ultrasound calibration (C.8.5.5), that before Pixel Aspect Ratio (C.7.6.3.1.7).
    """
    for height, width in _candidates(ds, frame):
        if height > 0 and width > 0 and 1 / MAX_ASPECT <= height / width <= MAX_ASPECT:
            true = MIN_TRUE_MM <= width <= MAX_TRUE_MM
            return Geometry(height / width, width if true else None)
    ratio = _pair(texts(ds, 0x00280034))
    if ratio and min(ratio) > 0 and 1 / MAX_ASPECT <= ratio[0] / ratio[1] <= MAX_ASPECT:
        return Geometry(ratio[0] / ratio[1])
    return Geometry()


def _candidates(ds: Dataset, frame: int) -> Iterable[tuple[float, float]]:
    """Height and width in millimetres, the most trustworthy first."""
    for group in functional_groups(ds, frame):
        for measures in items(group, _PIXEL_MEASURES)[:1]:
            yield from _found(_pair(texts(measures, _SPACINGS[0])))
    for tag in _SPACINGS:
        yield from _found(_pair(texts(ds, tag)))
    yield from _found(_calibrated(ds))


def _found(pair: tuple[float, float] | None) -> Iterable[tuple[float, float]]:
    return [pair] if pair else []


def _pair(values: tuple[str, ...]) -> tuple[float, float] | None:
    try:
        pair = float(values[0]), float(values[1])
    except (ValueError, IndexError):
        return None
    return pair if all(map(math.isfinite, pair)) else None


def _calibrated(ds: Dataset) -> tuple[float, float] | None:
    """Pixel size of the two-dimensional ultrasound regions, when they are all of one scale."""
    found = set()
    for region in items(ds, 0x00186011):
        units = integer(region, 0x00186024, 0), integer(region, 0x00186026, 0)
        if integer(region, 0x00186012, 0) != _2D_FORMAT or units != (_CENTIMETRES, _CENTIMETRES):
            continue
        across, down = abs(_double(region, 0x0018602C)), abs(_double(region, 0x0018602E))
        found.add((_MM_PER_CM * down, _MM_PER_CM * across))
    return found.pop() if len(found) == 1 else None


def _double(ds: Dataset, tag: int) -> float:
    raw, little = octets(ds, tag)
    if len(raw) < 8:
        return 0.0
    value: float = struct.unpack("<d" if little else ">d", raw[:8])[0]
    return value if math.isfinite(value) else 0.0


def fitted(
    picture: NDArray[T], pixel: Geometry, *, square: bool, max_size: int
) -> tuple[NDArray[T], tuple[float, float] | None]:
    """The picture with square pixels and at most `max_size` a side, and its pixels per metre (x, y).

    The coarser direction is resampled up (cubic), and both directions down at once (Lanczos, which
    averages over all it leaves out). uint8 or uint16, grey or (uint8) RGB. No metres when the size of the
    pixels is unknown.
    """
    rows, columns = picture.shape[:2]
    height, width = float(rows), float(columns)
    if square and abs(pixel.aspect - 1) >= SQUARE_WITHIN:
        taller = pixel.aspect > 1
        squared = (rows * pixel.aspect, width) if taller else (height, columns / pixel.aspect)
        if squared[0] * squared[1] <= MAX_SQUARED_PIXELS:
            height, width = squared
    shrink = min(1.0, max_size / max(height, width)) if max_size > 0 else 1.0
    size = max(1, math.floor(width * shrink + 0.5)), max(1, math.floor(height * shrink + 0.5))
    if size != (columns, rows):
        smaller = size[0] < columns or size[1] < rows
        method = Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC
        picture = _resized(picture, size, method)
    if pixel.width_mm is None:
        return picture, None
    wide, high = columns * pixel.width_mm, rows * pixel.width_mm * pixel.aspect
    return picture, (size[0] * _MM_PER_METRE / wide, size[1] * _MM_PER_METRE / high)


def _resized(picture: NDArray[T], size: tuple[int, int], method: Image.Resampling) -> NDArray[T]:
    if picture.dtype.itemsize == 1:
        return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, method), picture.dtype)
    # Pillow resamples 16 bits as if they were 8; as floating point it does not
    resized = np.asarray(Image.fromarray(picture.astype(np.float32)).resize(size, method))
    most = np.iinfo(np.uint16).max
    return np.clip(np.floor(resized + np.float32(0.5)), 0, most).astype(picture.dtype)
