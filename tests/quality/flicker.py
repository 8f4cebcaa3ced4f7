"""Flicker: how much more the brightness of a cine moves from phase to phase than the signal itself does.

    M    body mask of the mean of all phases, the same for all
    g_k  mean grey value in M of phase k;  r_k: mean modality value there
    s, t least squares line, grey = s * value + t, through the pixels in M of all phases that are not 0 or 255
    flicker = sd_k(g_k) - |s| * sd_k(r_k)                          in grey levels
    pumping = sd_k of the mean of grey - (s * value + t) over the same pixels of phase k

A linear window that is the same for all phases has flicker and pumping 0, whatever the heart does. Flicker
can be negative, when a window moves against the signal or clips what moves; pumping cannot.
"""

from collections.abc import Iterator

import numpy as np

from tests.quality.contestants import NAMES, OURS
from tests.quality.images import Floats, Picture, body_mask
from tests.quality.report import Gate, Row, Shown, Tally, worst

LIMIT = 0.1
LEAST_PHASES = 5


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
                flicker, pumping = measure(shown_grey, raw)
                case = f"{shown.pool.name} and {len(values) - 1} more: {shown.window.reason}"
                self._flicker.add(name, case, flicker)
                self._pumping.add(name, case, pumping)

    def rows(self) -> Iterator[Row]:
        """Both figures, the greatest of all pools."""
        found = self._flicker.of(OURS)
        gate = Gate(f"<= {LIMIT} in every pool", max(found.values()) <= LIMIT if found else None)
        notes = worst(found, "{:.3f}")
        yield Row("flicker: greatest, grey levels", len(found), self._flicker.greatest(2), gate, notes)
        yield Row("pumping: greatest, grey levels", len(found), self._pumping.greatest(2))


def measure(grey: Floats, raw: Floats) -> tuple[float, float]:
    """Flicker and pumping of pixels of shape (phases, pixels)."""
    graded = (grey > 0) & (grey < 255)
    x, y = raw[graded], grey[graded]
    if x.size < 2 or x.min() == x.max():
        return 0.0, 0.0
    slope = float(np.cov(x, y)[0, 1] / x.var(ddof=1))
    offset = float(y.mean() - slope * x.mean())
    rest = np.where(graded, grey - (slope * raw + offset), 0.0)
    pumping = rest.sum(axis=1) / np.maximum(graded.sum(axis=1), 1)
    return float(grey.mean(axis=1).std() - abs(slope) * raw.mean(axis=1).std()), float(pumping.std())


def _all(pictures: list[Picture | None]) -> Picture | None:
    found = [picture for picture in pictures if picture is not None]
    if len(found) < len(pictures) or len({picture.shape for picture in found}) != 1:
        return None
    return np.stack(found)
