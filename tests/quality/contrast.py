"""Used range, clipping and entropy in the body: what one picture makes of its 256 grey levels.

The gates are for MR of more than 8 bits whose header says nothing (`window_class` other than
informative), and for images whose window came from their pixels: that is where an adaptive window acts.
Used range and entropy are compared series by series (means of its images): one window for all phases gives
a dim phase less than its own extremes would, on purpose.
"""

import statistics
from collections.abc import Iterator

from tests.quality.contestants import OURS, ROUGH
from tests.quality.images import minmax
from tests.quality.pictures import clipped, entropy, used_range
from tests.quality.report import Gate, Row, Shown, Tally, worst

MEDIAN_GAIN, LEAST_GAIN = 1.1, 0.95
HIGH, LOW = 0.005, 0.02
LESS_ENTROPY = 0.15
LEAST_PIXELS = 256
"""Of body; percentiles and shares of fewer mean nothing."""


class Contrast:
    """Three metrics of the same pictures."""

    def __init__(self) -> None:
        self._used, self._all_used, self._entropy = Tally(), Tally(), Tally()
        self._high, self._low = Tally(), Tally()
        self._series: dict[str, str] = {}

    def look(self, shown: Shown) -> None:
        """Every distinct grey image of more than 8 bits."""
        adaptive = shown.window.reason.startswith(("P", "minimum", "0 to P"))
        for image, pictures in shown.new():
            small = image.body.sum() < LEAST_PIXELS
            if small or image.bits <= 8 or image.values.min() == image.values.max():
                continue
            series = f"{image.name} and its series"
            series = self._series.setdefault(str(image.ds.get("SeriesInstanceUID") or image.name), series)
            extremes = clipped(minmax(image.values), image.body)
            speechless = image.modality == "MR" and image.window_class != "informative"
            for name, picture in pictures.items():
                if picture is None or picture.shape != image.body.shape:
                    continue
                grey = image.shown(picture)
                used = used_range(grey, image.body)
                self._all_used.add(name, image.name, used)
                if speechless:
                    self._used.append(name, series, used)
                    self._entropy.append(name, series, entropy(grey, image.body))
                if adaptive:
                    high, low = clipped(grey, image.body)
                    self._high.add(name, image.name, high - extremes[0])
                    self._low.add(name, image.name, low - extremes[1])

    def rows(self) -> Iterator[Row]:
        """Used range twice, clipping at both ends, entropy."""
        yield Row("used range, > 8 bit: median", len(self._all_used.of(OURS)), self._all_used.medians())
        gains = _against(self._used, ROUGH)
        median = statistics.median(gains.values()) if gains else 0.0
        held = median >= MEDIAN_GAIN and min(gains.values()) >= LEAST_GAIN if gains else None
        demand = f"x min-max: median >= {MEDIAN_GAIN}, never < {LEAST_GAIN}"
        notes = [
            f"{median:.2f} x min-max in the median; least:",
            *worst(gains, smallest=True, most=len(gains)),
        ]
        yield Row("used range, MR series, no telling header: median", len(gains), self._used.medians(),
                  Gate(demand, held), notes)  # fmt: skip
        for what, tally, limit in (("high", self._high, HIGH), ("low", self._low, LOW)):
            found = tally.of(OURS)
            gate = Gate(f"<= {100 * limit:g} %", max(found.values()) <= limit if found else None)
            notes = worst({case: 100 * value for case, value in found.items()}, "{:.2f} %")
            yield Row(f"clipped {what} in body, adaptive: greatest, %", len(found),
                      tally.greatest(2, 100), gate, notes)  # fmt: skip
        losses = _minus(self._entropy, ROUGH)
        held = min(losses.values()) >= -LESS_ENTROPY if losses else None
        yield Row("entropy, MR series, no telling header: median, bit", len(losses), self._entropy.medians(2),
                  Gate(f">= min-max - {LESS_ENTROPY}", held), worst(losses, smallest=True))  # fmt: skip


def _against(tally: Tally, name: str) -> dict[str, float]:
    """Ours as a multiple of another's figure, image by image."""
    theirs = tally.of(name)
    return {case: value / max(theirs[case], 1.0) for case, value in tally.of(OURS).items() if case in theirs}


def _minus(tally: Tally, name: str) -> dict[str, float]:
    theirs = tally.of(name)
    return {case: value - theirs[case] for case, value in tally.of(OURS).items() if case in theirs}
