"""What lies over the pixels: overlay planes (60xx) and display shutters, as masks, and how they are drawn.

Reads attributes defensively; a plane or shutter that is broken is left out and never costs the picture.
Knows nothing of windows. Called by `render`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from dicomfs.attributes import integer, integers, items, number, octets, text, texts
from dicomfs.display import functional_groups

Mask = NDArray[np.bool_]

_GROUPS = range(0x6000, 0x6020, 2)
_OVERLAY_ELEMENTS = (0x0010, 0x0011, 0x0015, 0x0040, 0x0050, 0x0051, 0x0100, 0x0102, 0x3000)
_SHUTTER_TAGS = (
    *(0x00181600, 0x00181602, 0x00181604, 0x00181606, 0x00181608, 0x00181610, 0x00181612),
    *(0x00181620, 0x00181622, 0x00181623),
)
TAGS = (
    *_SHUTTER_TAGS,
    *(group << 16 | element for group in _GROUPS for element in _OVERLAY_ELEMENTS),
    *(0x52009229, 0x52009230),
)
"""Every attribute that this module reads at the top level."""

MAX_PLANE_PIXELS = 300_000_000
_FRAME_SHUTTER = 0x00189472
_FARTHEST = 1_000_000
"""Coordinates of a shutter are cut here, in pixels."""
_WHITE = 255
_EDGE_DIVISOR = 3
"""Pixels around an overlay are darkened, so that it is seen on bright tissue too."""


# ---------------------------------------------------------------- overlays


def has_overlays(ds: Dataset) -> bool:
    """False when nothing in the header speaks of an overlay."""
    return any(tag >> 16 in _GROUPS for tag in ds.keys())  # noqa: SIM118 - iteration converts the values


def overlays(ds: Dataset, frame: int, codes: NDArray[Any], unused_bits: int) -> Mask | None:
    """Where overlay graphics are drawn on a frame, shape (rows, columns); None when nowhere.

    `codes`: the frame's words as they are stored; `unused_bits` of them may hold planes, as they did
    until 2003 (PS3.3 C.9.2). Regions of interest (Overlay Type R) are drawn as outlines. The plane that is a
    bitmap shutter is none.
    """
    rows, columns = codes.shape[:2]
    found: Mask | None = None
    for group in _GROUPS:
        if group == integer(ds, 0x00181623, 0) and "BITMAP" in _shapes(ds):
            continue
        plane = _plane(ds, group << 16, frame, rows, columns)
        if plane is None:
            plane = _embedded(ds, group << 16, codes, unused_bits)
        if plane is None:
            continue
        if text(ds, group << 16 | 0x0040).upper() == "R":
            plane &= ~_eroded(plane)
        found = plane if found is None else found | plane
    return found if found is not None and found.any() else None


def _plane(ds: Dataset, group: int, frame: int, rows: int, columns: int) -> Mask | None:
    """An overlay plane of its own data, placed on the image (PS3.3 C.9.2)."""
    height, width = integer(ds, group | 0x0010, 0), integer(ds, group | 0x0011, 0)
    first = frame + 1 - integer(ds, group | 0x0051, 1) if number(ds, group | 0x0015) is not None else 0
    if not 0 < height * width <= MAX_PLANE_PIXELS or not 0 <= first < max(1, number(ds, group | 0x0015) or 1):
        return None
    data, little = octets(ds, group | 0x3000)
    start, end = first * height * width, (first + 1) * height * width
    if not data or 8 * len(data) < end:
        return None
    packed = np.frombuffer(data[start // 8 // 2 * 2 : (end + 15) // 16 * 2], np.uint8)
    if not little and packed.size % 2 == 0:
        packed = packed.reshape(-1, 2)[:, ::-1].ravel()  # OW: the first pixel is in the low bit of a word
    skipped = start - start // 8 // 2 * 16
    bits = np.unpackbits(packed, bitorder="little")[skipped : skipped + height * width]
    origin = integers(ds, group | 0x0050, signed=True)
    top, left = (origin[0] - 1, origin[1] - 1) if len(origin) == 2 else (0, 0)
    return _placed(bits.reshape(height, width).astype(bool), top, left, rows, columns)


def _placed(plane: Mask, top: int, left: int, rows: int, columns: int) -> Mask:
    """The part of a plane that lies on an image, at its place."""
    placed = np.zeros((rows, columns), bool)
    part = plane[max(0, -top) : max(0, rows - top), max(0, -left) : max(0, columns - left)]
    row, column = max(0, top), max(0, left)
    placed[row : row + part.shape[0], column : column + part.shape[1]] = part
    return placed


def _embedded(ds: Dataset, group: int, codes: NDArray[Any], unused_bits: int) -> Mask | None:
    """An overlay plane in a bit of the pixel data that no stored value uses."""
    position = integer(ds, group | 0x0102, 0)
    if octets(ds, group | 0x3000)[0] or integer(ds, group | 0x0100, 1) <= 1 or codes.dtype.kind != "u":
        return None
    if position > 15 or not unused_bits >> position & 1:
        return None
    found: Mask = (codes & (1 << position)) != 0
    return found


def _eroded(mask: Mask) -> Mask:
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner


def burn(picture: NDArray[np.uint8], mask: Mask) -> None:
    """Draw a mask into a picture, grey or RGB: white, what is next to it darkened."""
    around = np.pad(mask, 1)
    near = around[:-2] | around[1:-1] | around[2:]
    edge = (near[:, :-2] | near[:, 1:-1] | near[:, 2:]) & ~mask
    picture[edge] //= _EDGE_DIVISOR
    picture[mask] = _WHITE


# ---------------------------------------------------------------- shutters


@dataclass(frozen=True, slots=True, eq=False)
class Shutter:
    """A display shutter on one frame."""

    covered: Mask
    value: int
    """Grey of what is covered, 0 to 255."""


def has_shutters(ds: Dataset) -> bool:
    """False when nothing in the header speaks of a shutter."""
    return any(tag in ds for tag in (0x00181600, 0x52009229, 0x52009230))


def shutter(ds: Dataset, frame: int, shape: tuple[int, int], aspect: float) -> Shutter | None:
    """The display shutter (PS3.3 C.7.6.11, C.7.6.15) of a frame; None without, or if it left nothing visible.

    `aspect`: height of a pixel divided by its width, for the radius counts along a row.
    """
    source = ds
    for group in functional_groups(ds, frame):
        if own := items(group, _FRAME_SHUTTER):
            source = own[0]
            break
    covered = np.zeros(shape, bool)
    for name in _shapes(source)[:3]:
        hidden = _HIDDEN[name](source, shape, aspect) if name in _HIDDEN else None
        if hidden is not None:
            covered |= hidden
    if "BITMAP" in _shapes(ds):
        plane = _plane(ds, integer(ds, 0x00181623, 0) << 16, frame, *shape)
        covered = covered if plane is None else covered | plane
    if not covered.any() or covered.all():
        return None
    return Shutter(covered, integer(source, 0x00181622, 0) >> 8)


def _shapes(ds: Dataset) -> tuple[str, ...]:
    return tuple(shape.upper() for shape in texts(ds, 0x00181600))


def _numbers(ds: Dataset, tag: int) -> list[float]:
    """All values of an integer string, bounded; none when any is broken."""
    try:
        found = [float(value) for value in texts(ds, tag)]
    except ValueError:
        return []
    bounded = [max(-_FARTHEST, min(_FARTHEST, value)) for value in found]
    return bounded if all(map(math.isfinite, found)) else []


def _rectangle(ds: Dataset, shape: tuple[int, int], _aspect: float) -> Mask | None:
    edges = [_numbers(ds, tag) for tag in (0x00181602, 0x00181604, 0x00181606, 0x00181608)]
    if not all(edges):
        return None
    left, right, upper, lower = (edge[0] for edge in edges)
    row, column = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    outside: Mask = (row < upper) | (row > lower) | (column < left) | (column > right)
    return outside


def _circle(ds: Dataset, shape: tuple[int, int], aspect: float) -> Mask | None:
    centre, radius = _numbers(ds, 0x00181610), _numbers(ds, 0x00181612)
    if len(centre) < 2 or not radius:
        return None
    row, column = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    outside: Mask = ((row - centre[0]) * aspect) ** 2 + (column - centre[1]) ** 2 > radius[0] ** 2
    return outside


def _polygon(ds: Dataset, shape: tuple[int, int], _aspect: float) -> Mask | None:
    vertices = _numbers(ds, 0x00181620)
    points = [(column - 1, row - 1) for row, column in zip(vertices[0::2], vertices[1::2], strict=False)]
    if len(points) < 3:
        return None
    inside = Image.new("L", (shape[1], shape[0]), 0)
    ImageDraw.Draw(inside).polygon(points, fill=1, outline=1)
    outside: Mask = np.asarray(inside) == 0
    return outside


_HIDDEN = {"RECTANGULAR": _rectangle, "CIRCULAR": _circle, "POLYGONAL": _polygon}


def cover(picture: NDArray[np.uint8], over: Shutter) -> None:
    """Paint a shutter into a picture, grey or RGB."""
    picture[over.covered] = over.value
