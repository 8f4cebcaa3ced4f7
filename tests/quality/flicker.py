"""Flicker: how much more the brightness of a cine moves from phase to phase than the signal itself does.

    M    pixels of the body mask of the mean of all phases that are neither 0 nor 255 in any phase
    g_k  mean grey value in M of phase k;  r_k: mean modality value there
    s, t least squares line, grey = s * value + t, through the pixels in M of all phases
    flicker = sd_k(g_k) - |s| * sd_k(r_k)    in grey levels
    pumping = sd_k(g_k - s * r_k)

A linear window that is the same for all phases has flicker and pumping 0 but for rounding, whatever the heart
does. Flicker can be negative, when a window moves against the signal; pumping cannot. Clipped pixels have
figures of their own.
"""

from collections.abc import Iterator

import numpy as np

from tests.quality.contestants import NAMES, OURS
from tests.quality.images import Floats, Picture, body_mask
from tests.quality.report import Gate, Row, Shown, Tally, worst

LIMIT = 0.1
LEAST_PHASES = 5
LEAST_SHARE = 0.1


class Flicker:
    """MR pools of at least five images."""

    def __init__(self) -> None:
        self._flicker, self._pumping = Tally(), Tally()

    def look(self, shown: Shown) -> None:
        """One pool, if it is a cine."""
        first = shown.images[0] if shown.images else None
        if first is None or first.modality != "MR" or len(shown.images) < LEAST_PHASES:
            return
        if len({image.values.shape for image in shown.images}) > 1 or shown.copies:
            return  # copies with edited headers are no cine
        values = np.stack([image.values for image in shown.images])
        padding = np.logical_and.reduce([image.padding for image in shown.images])
        inside = body_mask(values.mean(axis=0), padding)
        raw = values[:, inside]
        for name in NAMES:
            grey = _all([pictures.get(name) for pictures in shown.pictures])
            if grey is not None and grey.shape == values.shape:
                shown_grey = np.stack([first.shown(one) for one in grey])[:, inside].astype(np.float64)
                found = measure(shown_grey, raw)
                if found is None:
                    continue
                case = f"{shown.pool.name} and {len(values) - 1} more: {shown.window.reason}"
                self._flicker.add(name, case, found[0])
                self._pumping.add(name, case, found[1])

    def rows(self) -> Iterator[Row]:
        """Both figures, the greatest of all pools."""
        found = self._flicker.of(OURS)
        gate = Gate(f"<= {LIMIT} in every pool", max(found.values()) <= LIMIT if found else None)
        notes = worst(found, "{:.3f}")
        yield Row("flicker: greatest, grey levels", len(found), self._flicker.greatest(2), gate, notes)
        yield Row("pumping: greatest, grey levels", len(found), self._pumping.greatest(2))


def measure(grey: Floats, raw: Floats) -> tuple[float, float] | None:
    """Flicker and pumping of pixels of shape (phases, pixels); None when nearly all are black or white."""
    graded = ((grey > 0) & (grey < 255)).all(axis=0)
    grey, raw = grey[:, graded], raw[:, graded]
    if graded.mean() < LEAST_SHARE or raw.min() == raw.max():
        return None
    slope = float(np.cov(raw.ravel(), grey.ravel())[0, 1] / raw.var(ddof=1))
    brightness, signal = grey.mean(axis=1), slope * raw.mean(axis=1)
    return float(brightness.std() - signal.std()), float((brightness - signal).std())


def _all(pictures: list[Picture | None]) -> Picture | None:
    found = [picture for picture in pictures if picture is not None]
    if len(found) < len(pictures) or len({picture.shape for picture in found}) != 1:
        return None
    return np.stack(found)
