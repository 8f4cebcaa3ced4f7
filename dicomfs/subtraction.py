"""Mask subtraction of angiograms: which frames make the mask of a frame, and the difference.

Only where the header recommends it (Recommended Viewing Mode SUB). Decodes nothing itself: frames are
asked for. Called by `render`.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomfs.attributes import integer, integers, items, octets, text

TAGS = (0x00281040, 0x00281090, 0x00286100)
"""Every attribute that this module reads at the top level."""

_OPERATIONS = ("AVG_SUB", "TID", "REV_TID")
MAX_FRAMES = 32
"""So many frames of a mask are averaged; of more, an even choice."""
_FARTHEST = 100.0
"""A mask is shifted by at most so many pixels."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Subtraction:
    """What is subtracted from what, for one frame; frames are counted from 0."""

    mask: tuple[int, ...]
    contrast: tuple[int, ...]
    shift: tuple[float, float] = (0.0, 0.0)
    """Pixels down and to the right by which the mask is moved."""
    logarithmic: bool = False
    """The values are proportional to intensity: their logarithms are what can be subtracted."""


def is_recommended(ds: Dataset) -> bool:
    """True when the image asks to be shown subtracted, and says how (PS3.3 C.7.6.10)."""
    if text(ds, 0x00281090).upper() != "SUB":
        return False
    return any(text(item, 0x00286101).upper() in _OPERATIONS for item in items(ds, 0x00286100))


def subtraction(ds: Dataset, frame: int, frames: int) -> Subtraction | None:
    """The subtraction that applies to `frame` of `frames`; None when none does (PS3.3 C.7.6.10.1)."""
    if not is_recommended(ds):
        return None
    for item in items(ds, 0x00286100):
        ranges = integers(item, 0x00286102)
        pairs = list(zip(ranges[0::2], ranges[1::2], strict=False))
        if pairs and not any(first <= frame + 1 <= last for first, last in pairs):
            continue
        found = _mask(item, frame, frames, pairs)
        if found:
            averaged = max(1, min(integer(item, 0x00286112, 1), MAX_FRAMES))
            contrast = tuple(range(frame, min(frame + averaged, frames)))
            # LIN: proportional to X-ray intensity (C.8.7.1.1.2); LOG and DISP are subtracted as they are
            logarithmic = text(ds, 0x00281040).upper() == "LIN"
            return Subtraction(found, contrast, _shift(item), logarithmic)
    return None


def _mask(item: Dataset, frame: int, frames: int, pairs: list[tuple[int, int]]) -> tuple[int, ...]:
    operation = text(item, 0x00286101).upper()
    if operation == "AVG_SUB":
        numbers = [number - 1 for number in integers(item, 0x00286110) if 0 < number <= frames]
        chosen = min(len(numbers), MAX_FRAMES)
        return tuple(numbers[at * len(numbers) // chosen] for at in range(chosen))
    offset = integer(item, 0x00286120, 1, signed=True) or 1
    if operation == "TID":
        wanted = frame - offset
    elif operation == "REV_TID" and pairs:
        wanted = pairs[0][0] - 1 - offset - (frame - (pairs[0][0] - 1))
    else:
        return ()
    # a mask that would lie outside of the run: the nearest frame there is
    return (min(max(wanted, 0), frames - 1),)


def _shift(item: Dataset) -> tuple[float, float]:
    raw, little = octets(item, 0x00286114)
    if len(raw) < 8:
        return 0.0, 0.0
    down, right = struct.unpack("<2f" if little else ">2f", raw[:8])
    if not (math.isfinite(down) and math.isfinite(right)) or max(abs(down), abs(right)) > _FARTHEST:
        return 0.0, 0.0
    return down, right


def subtracted(wanted: Subtraction, stored: Callable[[int], NDArray[np.float32]]) -> Floats:
    """Contrast minus mask, shape (rows, columns); `stored` gives the values of a frame."""

    def average(frames: tuple[int, ...]) -> Floats:
        total = sum((_prepared(stored(frame), wanted) for frame in frames), start=np.float32(0))
        mean: Floats = np.asarray(total, np.float32) / np.float32(len(frames))
        return mean

    return average(wanted.contrast) - _moved(average(wanted.mask), *wanted.shift)


def _prepared(values: Floats, wanted: Subtraction) -> Floats:
    if not wanted.logarithmic:
        return values
    logarithms: Floats = np.log(np.maximum(values, 1)).astype(np.float32)
    return logarithms


def _moved(mask: Floats, down: float, right: float) -> Floats:
    """A mask moved by parts of pixels, linearly interpolated, its edges repeated."""
    for axis, distance in ((0, down), (1, right)):
        if distance:
            places = np.clip(np.arange(mask.shape[axis]) - distance, 0, mask.shape[axis] - 1)
            lower = np.floor(places).astype(np.int64)
            upper = np.minimum(lower + 1, mask.shape[axis] - 1)
            part = (places - lower).astype(np.float32)
            part = part[:, None] if axis == 0 else part[None, :]
            mask = mask.take(lower, axis) * (1 - part) + mask.take(upper, axis) * part
    return mask
