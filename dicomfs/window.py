"""Choose a window: the decision table, from measured stored values and what the headers ask for.

Pure: no files, no data sets. A header window is trusted where such headers are known to carry meaning
and put to the test where scanners fill in each image's own extremes (MR). Otherwise the window comes
from percentiles, pooled over all images that share one grey scale, so that a cine neither flickers
nor drowns in one bright vessel. Called by `render`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dicomfs.display import Display
from dicomfs.grey import Floats, Lut, Modality, Rescale, Span, Voi, Window, modality_values
from dicomfs.histogram import Member, Pool, otsu, pooled
from dicomfs.model import PoolWindow
from dicomfs.recipes import Policy

RULES_VERSION = 2
"""Counts with every change that gives any image another window; part of every recipe's digest."""

HEADER = PoolWindow(None, None, "header")
HEADROOM = 1.1
"""Rule A ends a tenth above P99.9: half the clipped blood for a tenth of the contrast."""
HOT_PIXELS = 8
"""Pixels of each image that are left out when they lie far above all others."""
HOT_DISTANCE = 2.0
"""How far: twice as far above P0.1 as the brightest of the others."""
MINMAX_TOLERANCE = 0.03
STEADY_WIDTHS = 1.25
FULL_RANGE = 0.95
HEAD_PARTS = ("HEAD", "BRAIN", "SKULL")

_RADIOGRAPHS = ("CR", "DX", "MG", "IO", "PX")
_X_RAY_RUNS = ("XA", "RF")
_BLACK_FRAMES = ("CT", *_X_RAY_RUNS)
"""Where a frame below its window is a slice of air or a run before its contrast, and black is right."""
_MEASURED = ("MR", "NM", "PT", "RTDOSE", "SEG")
"""Modalities whose rule looks at pixels whatever the header says."""
_PHASE_TYPES = frozenset({"P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP"})
_SIGMOID_END = 1.56
"""Widths from the centre where a sigmoid is within half a grey level of its end: ln(509) / 4."""
_PALE_BITS = 8
"""Up to here values are meant for the screen as they are."""


# ---------------------------------------------------------------- the header's window


def own(
    display: Display, measured: Callable[[], Member], glimpsed: Callable[[], Sequence[float]] = list
) -> tuple[Modality, Voi] | None:
    """The frame's own header window and the units it is meant in; None when it has no usable one.

    Philips MR and PET headers may carry a rescale that was added without adapting the window: one that
    lies off the modality values but on the stored values is meant for those. A trusted window that would
    make the whole image white, or black where that cannot be, is not usable. `measured` is asked only where
    that is possible, and not when `glimpsed`, the values of some of its pixels, tell that it is not so.
    """
    voi = _preferred(display)
    if not isinstance(voi, Window):
        return None if voi is None else (display.transformation, voi)
    if _is_trusted(display):
        is_seen = _shows_something(voi, glimpsed(), display)
        return None if not is_seen and _shows_nothing(voi, measured()) else (display.transformation, voi)
    if display.transformation == Rescale():
        return display.transformation, voi
    member = measured()
    if not _overlaps(voi, member.values, member.counts) and _overlaps(voi, member.stored, member.counts):
        return Rescale(), voi
    return display.transformation, voi


def _preferred(display: Display) -> Voi | None:
    """The one of the header's windows that counts; None for none, and for 8 bits shown as they are."""
    if not display.windows:
        return None
    voi = display.windows[-1] if display.modality in _RADIOGRAPHS else display.windows[0]
    plain = isinstance(voi, Window) and display.bits <= _PALE_BITS and _is_identity(voi)
    return None if plain else voi


def _shows_nothing(window: Window, member: Member) -> bool:
    """True when every value of an image that has several lies beyond the same end of the window."""
    values = member.values[np.isfinite(member.values)]
    if values.size < 2:
        return False
    return not _shows_something(window, (float(values.min()), float(values.max())), member.display)


def _shows_something(window: Window, values: Sequence[float], display: Display) -> bool:
    """True when these values do not all lie beyond the same end; then no others beside them do."""
    if not values:
        return False
    low, high = window.limits
    if window.function == "SIGMOID":
        reach = _SIGMOID_END * window.width
        low, high = window.centre - reach, window.centre + reach
    least, most = min(values), max(values)
    return least < high and (most > low or display.modality in _BLACK_FRAMES)


def _is_trusted(display: Display) -> bool:
    """Modalities whose window is never put to the test, because it is chosen with meaning."""
    return (
        display.modality in {"CT", *_RADIOGRAPHS, *_X_RAY_RUNS, "MAP", "RTIMAGE"}
        or display.bits <= _PALE_BITS
    )


def _is_identity(window: Window) -> bool:
    low, high = window.limits
    return abs(low) <= 1.5 and abs(high - 255) <= 2.5  # 127/254, 127.5/255, 128/256


def _overlaps(window: Window, values: Floats, counts: NDArray[np.int64]) -> bool:
    order = np.argsort(values, kind="stable")
    pool = Pool(values[order], counts[order])
    low, high = window.limits
    return high > pool.percentile(0.1) and low < pool.percentile(99.9)


def _own(member: Member) -> tuple[Modality, Voi] | None:
    return own(member.display, lambda: member)


def _says_enough(members: Sequence[Member]) -> bool:
    """True when the images' own windows are to be used: every one valid, informative, steady."""
    windows = [(*found, member) for member in members if (found := _own(member)) is not None]
    if len(windows) < len(members):
        return False
    if _is_trusted(members[0].display) or any(isinstance(voi, Lut) for _, voi, _ in windows):
        return True
    tested = [
        (voi, modality_values(m.stored, units), m) for units, voi, m in windows if isinstance(voi, Window)
    ]
    if 2 * sum(_is_uninformative(*one) for one in tested) > len(tested):
        return False
    widths = [window.width for window, _, _ in tested]
    return max(widths) <= STEADY_WIDTHS * min(widths)


def _common(members: Sequence[Member]) -> PoolWindow:
    """The headers' windows if they are all one, else, of nearly equal ones, the median for all.

    Windows that change a little from phase to phase make a cine flicker a little.
    """
    found = [one for member in members if (one := _own(member)) is not None]
    linear = [voi for _, voi in found if isinstance(voi, Window) and voi.function != "SIGMOID"]
    if len(set(linear)) < 2 or len(linear) < len(members):
        return HEADER
    if any(units != member.display.transformation for (units, _), member in zip(found, members, strict=True)):
        return HEADER
    low, high = np.median([voi.limits for voi in linear], axis=0).tolist()
    return PoolWindow(low, high, f"header, median of {len(members)} images")


def _is_uninformative(window: Window, values: Floats, member: Member) -> bool:
    """A window that says nothing: the image's own extremes, the whole bit range, or beside the image."""
    if not values.size:
        return True
    low, high = window.limits
    least, most = float(values.min()), float(values.max())
    tolerance = MINMAX_TOLERANCE * (most - least) + 1  # one more: LINEAR is half a step narrower
    if abs(low - least) <= tolerance and abs(high - most) <= tolerance:
        return True
    if not _overlaps(window, values, member.counts):
        return True
    order = np.argsort(values, kind="stable")
    pool = Pool(values[order], member.counts[order])
    ends = modality_values(np.array(member.display.stored_range), member.display.transformation)
    bit_range = float(abs(ends[1] - ends[0]))
    covered = pool.percentile(99.9) - pool.percentile(0.1)
    return window.width >= FULL_RANGE * bit_range and covered < 0.5 * bit_range


# ---------------------------------------------------------------- windows from the pixels


def _unshuttered(members: Sequence[Member]) -> Pool:
    return pooled(members, without_border=members[0].display.modality in _RADIOGRAPHS + _X_RAY_RUNS)


def _over(members: Sequence[Member]) -> str:
    return f" over {len(members)} images" if len(members) > 1 else ""


def _between(low: float, high: float, pool: Pool, reason: str) -> PoolWindow:
    """A window, opened to the extremes when the percentiles fall together (a small object on nothing)."""
    if high <= low and pool.values.size:
        low, high, reason = float(pool.values[0]), float(pool.values[-1]), "minimum to maximum"
    return PoolWindow(low, high, reason)


def _adaptive(members: Sequence[Member]) -> PoolWindow:
    """Rule A: P0.1 to P99.9 and a tenth above, but never beyond the brightest pixel.

    Hot pixels are left out, and collimator borders where there can be any.
    """
    pool = _unspiked(_unshuttered(members), len(members))
    low, high = pool.percentile(0.1), pool.percentile(99.9)
    high = min(low + HEADROOM * (high - low), pool.percentile(100))
    return _between(low, high, pool, f"P0.1-P99.9 + 10 %{_over(members)}")


def _unspiked(pool: Pool, images: int) -> Pool:
    """The pool without hot pixels: in an image of 64 x 64, half a dozen are more than 0.1 %."""
    few, pixels = HOT_PIXELS * images, int(pool.counts.sum())
    if pixels < 100 * few:
        return pool
    low, rest = pool.percentile(0.1), pool.percentile(100 * (1 - few / pixels))
    keep = pool.values <= low + HOT_DISTANCE * (rest - low)
    return Pool(pool.values[keep], pool.counts[keep]) if rest > low else pool


def _percentiles(members: Sequence[Member], low: float, high: float) -> PoolWindow:
    pool = _unshuttered(members)
    reason = f"P{low:g}-P{high:g}{_over(members)}"
    return _between(pool.percentile(low), pool.percentile(high), pool, reason)


def _from_zero(members: Sequence[Member], percent: float, headroom: float) -> PoolWindow:
    pool = pooled(members)
    high = headroom * pool.percentile(percent)
    if high <= 0:
        return _between(0.0, float(pool.values[-1]) if pool.values.size else 0.0, pool, "0 to maximum")
    return PoolWindow(0.0, high, f"0 to P{percent:g}{_over(members)}")


def _body(members: Sequence[Member]) -> PoolWindow:
    """P1-P99 of the foreground: above Otsu's threshold on logarithms, so that bright does not eat dim."""
    pool = pooled(members)
    if pool.values.size > 2:
        logarithms = np.log1p(pool.values - pool.values[0])
        bright = logarithms > otsu(logarithms, pool.counts)
        share = pool.counts[bright].sum() / pool.counts.sum()
        if 0.02 < share < 0.98:
            pool = Pool(pool.values[bright], pool.counts[bright])
    return _between(pool.percentile(1), pool.percentile(99), pool, f"P1-P99 of the body{_over(members)}")


def _identity(display: Display) -> PoolWindow:
    low, high = sorted(modality_values(np.array(display.stored_range), display.transformation).tolist())
    return PoolWindow(low, high, f"{display.bits} bits as they are")


# ---------------------------------------------------------------- the decision table, a row each


def _mr(members: Sequence[Member]) -> PoolWindow:
    display = members[0].display
    ends = modality_values(np.array(display.stored_range), display.transformation)
    if _says_enough(members):
        return _common(members)
    if ends.min() < 0 and _PHASE_TYPES & set(display.image_type[2:]):
        pool = pooled(members)
        extremes = ends if display.bits <= 12 else np.array([pool.percentile(0.1), pool.percentile(99.9)])
        half = float(np.abs(extremes).max()) or 1.0
        return PoolWindow(-half, half, "phase: symmetric about 0")
    return _adaptive(members)


def _ct(members: Sequence[Member]) -> PoolWindow:
    display = members[0].display
    if _says_enough(members):
        return HEADER
    if display.bits <= _PALE_BITS:
        return _identity(display)
    if display.secondary_capture or "LOCALIZER" in display.image_type:
        return _body(members)
    units = display.transformation
    hounsfield = (isinstance(units, Rescale) and units.intercept <= -900) or any(
        member.values.size and member.values.min() < -200 for member in members
    )
    if not hounsfield:
        return _adaptive(members)
    head = any(part in display.body_part for part in HEAD_PARTS)
    centre, width, name = (35, 110, "CT head: 35/110") if head else (40, 400, "CT body: 40/400")
    if all(_shows_nothing(Window(centre, width), member) for member in members):
        return _adaptive(members)
    return PoolWindow(centre - width / 2, centre + width / 2, name)


def _nm(members: Sequence[Member]) -> PoolWindow:
    return _from_zero(members, 99.9, HEADROOM)


def _pt(members: Sequence[Member]) -> PoolWindow:
    scale = members[0].display.suv_scale
    if scale is not None:
        return PoolWindow(0.0, 5 / scale, "0 to 5 SUV")
    if _says_enough(members):
        return HEADER
    return _from_zero(members, 99.5, 1.0)


def _radiograph(members: Sequence[Member]) -> PoolWindow:
    display = members[0].display
    if _says_enough(members):
        return HEADER
    if display.bits <= _PALE_BITS:
        return _identity(display)
    return _adaptive(members) if display.for_processing else _percentiles(members, 0.5, 99.5)


def _dose(members: Sequence[Member]) -> PoolWindow:
    return _from_zero(members, 100, 1.0)


def _segmentation(members: Sequence[Member]) -> PoolWindow:
    display = members[0].display
    most = display.full_scale or max((float(member.stored.max(initial=1)) for member in members), default=1.0)
    return PoolWindow(0.0, max(most, 1.0), "0 to maximum")


def _map(members: Sequence[Member]) -> PoolWindow:
    if _says_enough(members):
        return HEADER
    return _percentiles(members, 0.1, 99.9)


def _other(members: Sequence[Member]) -> PoolWindow:
    """XA and RF too: their headers are trusted and their borders left out, nothing else differs."""
    if _says_enough(members):
        return HEADER
    display = members[0].display
    return _identity(display) if display.bits <= _PALE_BITS else _adaptive(members)


_RULES: dict[str, Callable[[Sequence[Member]], PoolWindow]] = {
    "MR": _mr,
    "CT": _ct,
    "NM": _nm,
    "PT": _pt,
    "RTDOSE": _dose,
    "SEG": _segmentation,
    "MAP": _map,
    **dict.fromkeys(_RADIOGRAPHS, _radiograph),
}


def from_header(display: Display) -> PoolWindow | None:
    """What `decide` would say of such frames without a look at their pixels; None when it needs one."""
    if display.modality == "PT" and display.suv_scale is not None:
        return PoolWindow(0.0, 5 / display.suv_scale, "0 to 5 SUV")
    if display.modality in _MEASURED or not _is_trusted(display):
        return None
    if _preferred(display) is not None:
        return HEADER
    return _identity(display) if display.bits <= _PALE_BITS else None


def full(member: Member) -> Span:
    """The rough window, for comparison: an image's least to its greatest value, whatever they mean."""
    values = member.values[np.isfinite(member.values)]
    return Span(float(values.min()), float(values.max())) if values.size else Span(0.0, 0.0)


def fixed(policy: Policy, *, is_float: bool) -> Window:
    """The window of a policy `C/W`: LINEAR, but not for floating point or a width below 1 (C.11.2.1.2.1)."""
    return Window(policy.centre, policy.width, "LINEAR_EXACT" if is_float or policy.width < 1 else "LINEAR")


def decide(members: Sequence[Member]) -> PoolWindow:
    """The window of all `members`: their common range in modality units, or each one's own header window."""
    if not members:
        return PoolWindow(None, None, "no grey pixels that can be read")
    with np.errstate(all="ignore"):
        decided = _RULES.get(members[0].display.modality, _other)(members)
    if not all(end is None or np.isfinite(end) for end in (decided.low, decided.high)):
        return PoolWindow(0.0, 1.0, "no finite values")
    return decided
