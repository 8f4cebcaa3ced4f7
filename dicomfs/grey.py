"""The grey chain: stored value -> modality value -> window -> 8 bits, as one table over all codes.

Pure numpy, no data sets, no files. The formulas are those of PS3.3 C.11.1 and C.11.2, rounded half up.
`display` fills these classes from headers, `window` chooses among them, `render` applies them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MAX_EXPONENT = 700.0
"""exp() overflows a double beyond 709."""
_TABLES_KEPT = 32
"""Of 64 kB at most."""
_CODES_AT_ONCE = 8192
_PIXELS_AT_ONCE = 1 << 18
"""numpy looks up by 64-bit numbers: those of a radiograph would be 48 MB, in no processor's cache."""
_ROWS_AT_ONCE = 256
"""Without a table the chain needs a dozen doubles per pixel: some rows at a time."""


@dataclass(frozen=True, slots=True)
class Rescale:
    """Modality value = stored * slope + intercept (PS3.3 C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Lut:
    """A lookup table of the Modality LUT (C.11.1.1) or VOI LUT (C.11.2.1.1) module."""

    first: int
    """Input value that is mapped to the first entry; below: first entry, above: last."""
    values: Floats
    maximum: float
    """Largest value that the entries' bits can hold; shown as white by a VOI LUT."""


@dataclass(frozen=True, slots=True)
class Window:
    """Window centre and width (PS3.3 C.11.2.1.2), width valid for its function."""

    centre: float
    width: float
    function: str = "LINEAR"
    """`LINEAR`, `LINEAR_EXACT` or `SIGMOID`."""

    @property
    def limits(self) -> tuple[float, float]:
        """Modality values shown as 0 and as 255; for SIGMOID those that a line of the same slope would."""
        if self.function == "LINEAR":
            half = (self.width - 1) / 2
            return self.centre - 0.5 - half, self.centre - 0.5 + half
        return self.centre - self.width / 2, self.centre + self.width / 2


@dataclass(frozen=True, slots=True)
class Span:
    """Modality value `low` is shown as 0, `high` as 255; equal: nothing above black but what exceeds it."""

    low: float
    high: float


Modality = Rescale | Lut
Voi = Window | Lut | Span


@dataclass(frozen=True, slots=True)
class Chain:
    """All that happens to a stored value on its way to the screen."""

    modality: Modality
    voi: Voi
    inverted: bool = False
    """Small values bright (PS3.3 C.7.6.3.1.2 MONOCHROME1, C.11.6.1.2 INVERSE)."""
    padding: tuple[int, int] | None = None
    """Stored values, both ends included, that are no image: shown as background."""


def modality_values(stored: NDArray[Any], modality: Modality) -> Floats:
    """Stored values of any shape to modality values, float64 of the same shape."""
    if isinstance(modality, Lut):
        return _look_up(stored.astype(np.float64), modality)
    return stored.astype(np.float64) * modality.slope + modality.intercept


def shown(values: NDArray[Any], voi: Voi) -> NDArray[np.uint8]:
    """Modality values of any shape to 0..255, before any inversion; what is no number becomes 0."""
    x = np.nan_to_num(values.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    with np.errstate(all="ignore"):
        y = _SHAPES[type(voi)](x, voi)
        rounded = np.floor(np.nan_to_num(y) + 0.5)
    return np.clip(rounded, 0.0, 255.0).astype(np.uint8)


def _look_up(x: Floats, lut: Lut) -> Floats:
    last = len(lut.values) - 1
    index = np.clip(np.floor(np.nan_to_num(x)) - lut.first, 0, last).astype(np.int64)
    values: Floats = lut.values[index]
    return values


def _by_lut(x: Floats, lut: Lut) -> Floats:
    return _look_up(x, lut) * (255.0 / lut.maximum)


def _by_span(x: Floats, span: Span) -> Floats:
    if span.high <= span.low:
        return np.where(x > span.low, 255.0, 0.0)
    return (x - span.low) / (span.high - span.low) * 255.0


def _by_window(x: Floats, window: Window) -> Floats:
    centre, width = window.centre, window.width
    if window.function == "SIGMOID":  # PS3.3 C.11.2.1.3.1
        return 255.0 / (1.0 + np.exp(np.clip(-4.0 * (x - centre) / width, -_MAX_EXPONENT, _MAX_EXPONENT)))
    if (
        window.function == "LINEAR"
    ):  # PS3.3 C.11.2.1.2.1; LINEAR_EXACT, C.11.2.1.3.2, does without both shifts
        centre, width = centre - 0.5, width - 1.0
    if width == 0:
        return np.where(x <= centre, 0.0, 255.0)
    return ((x - centre) / width + 0.5) * 255.0


_SHAPES: dict[type, Callable[[Floats, Any], Floats]] = {Lut: _by_lut, Span: _by_span, Window: _by_window}


def apply(stored: NDArray[Any], chain: Chain) -> NDArray[np.uint8]:
    """Stored values of any shape to grey values of the same shape, 0 = black."""
    with np.errstate(all="ignore"):
        picture = shown(modality_values(stored, chain.modality), chain.voi)
    if chain.inverted:
        picture = 255 - picture
    if chain.padding is not None:
        picture[(stored >= chain.padding[0]) & (stored <= chain.padding[1])] = 0
    return picture


def render_grey(codes: NDArray[Any], levels: NDArray[np.int32] | None, chain: Chain) -> NDArray[np.uint8]:
    """One frame to 8 bits, shape (rows, columns): `codes` and `levels` as `pixels.Grey` has them."""
    picture = np.empty(codes.shape, np.uint8)
    if levels is not None:
        table, flat, words = _table(levels, chain), picture.reshape(-1), codes.reshape(-1)
        for start in range(0, words.size, _PIXELS_AT_ONCE):
            part = slice(start, start + _PIXELS_AT_ONCE)
            # no code lies outside of the table: "clip" only says that nothing has to be undone
            np.take(table, words[part], out=flat[part], mode="clip")
        return picture
    for row in range(0, codes.shape[0], _ROWS_AT_ONCE):
        picture[row : row + _ROWS_AT_ONCE] = apply(codes[row : row + _ROWS_AT_ONCE], chain)
    return picture


def _table(levels: NDArray[np.int32], chain: Chain) -> NDArray[np.uint8]:
    """The chain as a table over all codes; kept where both are the same again and again."""
    if levels.flags.writeable or isinstance(chain.modality, Lut) or isinstance(chain.voi, Lut):
        return _made_table(levels, chain)
    return _kept_table(_Constant(levels), chain)


class _Constant:
    """An array that nobody changes, equal to itself only."""

    __slots__ = ("array",)

    def __init__(self, array: NDArray[np.int32]) -> None:
        self.array = array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and self.array is other.array

    def __hash__(self) -> int:
        return id(self.array)


@lru_cache(maxsize=_TABLES_KEPT)
def _kept_table(levels: _Constant, chain: Chain) -> NDArray[np.uint8]:
    return _made_table(levels.array, chain)


def _made_table(levels: NDArray[np.int32], chain: Chain) -> NDArray[np.uint8]:
    """A part at a time, so that the doubles stay in the processor's cache."""
    table = np.empty(levels.shape, np.uint8)
    for start in range(0, levels.size, _CODES_AT_ONCE):
        table[start : start + _CODES_AT_ONCE] = apply(levels[start : start + _CODES_AT_ONCE], chain)
    return table
