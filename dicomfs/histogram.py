"""Histograms of stored values: what the window rules measure. Pure numpy, no files, no data sets.

Padding, and in CT whatever lies below air, is no image and never counted. Called by `render` (to
measure) and `window` (to decide).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomfs.display import Display
from dicomfs.grey import Floats, Lut, modality_values

AIR_HU = -1024.0
GLIMPSE_STEP = 16
"""Every so many rows and columns is looked at for a first impression."""
BORDER_SHARE = 0.5
"""Share of the outermost pixels that must have one value for it to be border and not image."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One frame of a pool: its header's wishes and its histogram without padding."""

    display: Display
    stored: Floats
    """Distinct stored values, ascending."""
    counts: NDArray[np.int64]
    border: float | None
    """The stored value of a collimator's or shutter's shadow, if there is one."""

    @property
    def values(self) -> Floats:
        """Modality values, in the order of `stored`."""
        return modality_values(self.stored, self.display.transformation)


def measure(
    codes: NDArray[Any],
    levels: NDArray[np.int32] | None,
    display: Display,
    covered: NDArray[np.bool_] | None = None,
) -> Member:
    """Histogram of one frame, `codes` and `levels` as in `pixels.Grey`; constant frames are fine.

    `covered`: pixels that a shutter hides; they are not counted, and then there is no border either.
    """
    outermost = _ring(codes) if covered is None else codes[:0, 0]
    if covered is not None:
        codes = codes[~covered]
    if levels is None:
        found, counts = np.unique(codes[np.isfinite(codes)], return_counts=True)
        stored, ring = found.astype(np.float64), outermost.astype(np.float64)
    else:
        histogram = np.bincount(codes.ravel(), minlength=levels.size)
        used = np.flatnonzero(histogram)
        stored, counts = levels[used].astype(np.float64), histogram[used]
        order = np.argsort(stored, kind="stable")
        stored, counts = stored[order], counts[order]
        ring = levels[outermost].astype(np.float64)
    keep = _is_image(stored, display)
    if keep.any():
        stored, counts = stored[keep], counts[keep]
    return Member(display, stored, counts.astype(np.int64), _border(ring))


def glimpse(
    codes: NDArray[Any],
    levels: NDArray[np.int32] | None,
    display: Display,
    covered: NDArray[np.bool_] | None = None,
) -> list[float]:
    """Finite modality values of a few of the pixels that `measure` counts; none when it is sure of none."""
    units = display.transformation
    if isinstance(units, Lut):
        return []
    few = codes[::GLIMPSE_STEP, ::GLIMPSE_STEP]
    few = few.ravel() if covered is None else few[~covered[::GLIMPSE_STEP, ::GLIMPSE_STEP]]
    if not few.size:
        return []
    ordered = np.sort(few if levels is None else levels.take(few))
    # of so few, plain numbers are quicker than arrays
    chosen = {float(ordered[(ordered.size - 1) * part // 4]) for part in range(5)}
    first, last = display.padding or (math.inf, -math.inf)
    values = [stored * units.slope + units.intercept for stored in chosen if not first <= stored <= last]
    least = AIR_HU if display.modality == "CT" else -math.inf
    return [value for value in values if least <= value < math.inf and value != -math.inf]


def _is_image(stored: Floats, display: Display) -> NDArray[np.bool_]:
    keep = np.ones(stored.shape, bool)
    if display.padding is not None:
        keep &= (stored < display.padding[0]) | (stored > display.padding[1])
    if display.modality == "CT":
        keep &= modality_values(stored, display.transformation) >= AIR_HU
    return keep


def _ring(codes: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([codes[0], codes[-1], codes[:, 0], codes[:, -1]])


def _border(ring: Floats) -> float | None:
    if not ring.size:
        return None
    values, counts = np.unique(ring, return_counts=True)
    most = int(np.argmax(counts))
    return float(values[most]) if counts[most] > BORDER_SHARE * ring.size else None


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Histogram of modality values over several frames."""

    values: Floats
    counts: NDArray[np.int64]

    def percentile(self, percent: float) -> float:
        """The least value with at least `percent` of all pixels at or below it; 0 for no pixels."""
        if not self.values.size:
            return 0.0
        cumulated = np.cumsum(self.counts)
        # rounded: 99.9 % of 10 000 is 9990, not the 9990.000000000002 of doubles
        at = int(np.searchsorted(cumulated, round(percent * float(cumulated[-1]) / 100, 6)))
        return float(self.values[min(at, self.values.size - 1)])


def pooled(members: Sequence[Member], *, without_border: bool = False) -> Pool:
    values, counts = [], []
    for member in members:
        keep = np.isfinite(member.values)
        if without_border and member.border is not None:
            inside = keep & (member.stored != member.border)
            keep = inside if inside.any() else keep
        values.append(member.values[keep])
        counts.append(member.counts[keep])
    joined = np.concatenate(values)
    order = np.argsort(joined, kind="stable")
    return Pool(joined[order], np.concatenate(counts)[order])


def otsu(values: Floats, counts: NDArray[np.int64]) -> float:
    """The threshold between two classes of greatest variance between them; `values` ascending."""
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    moment = np.cumsum(values * counts)
    mean_below, mean_above = moment[:-1] / below, (moment[-1] - moment[:-1]) / above
    return float(values[:-1][np.argmax(below * above * (mean_below - mean_above) ** 2)])
