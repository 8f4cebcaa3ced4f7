"""Used range, clipping and entropy in the body: what one picture makes of its 256 grey levels.

The gates are for MR of more than 8 bits whose header says nothing (`window_class` other than
informative), and for images whose window came from their pixels: that is where an adaptive window acts.
Used range: the median over all images is to gain; the least gain and the entropy are of series (means of
its images), since one window for all phases gives a dim phase less than its own extremes would, on purpose.
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


class Contrast:
    """Three metrics of the same pictures."""

    def __init__(self) -> None:
        self._used, self._all_used, self._mute, self._entropy = Tally(), Tally(), Tally(), Tally()
        self._high, self._low = Tally(), Tally()
        self._series: dict[str, str] = {}

    def look(self, shown: Shown) -> None:
        """Every distinct measurable image."""
        adaptive = shown.window.reason.startswith(("P", "minimum", "0 to P"))
        for image, pictures in shown.new():
            if not image.is_measurable:
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
                    self._mute.add(name, image.name, used)
                    self._used.append(name, series, used)
                    self._entropy.append(name, series, entropy(grey, image.body))
                if adaptive:
                    high, low = clipped(grey, image.body)
                    self._high.add(name, image.name, max(high - extremes[0], 0.0))
                    self._low.add(name, image.name, max(low - extremes[1], 0.0))

    def rows(self) -> Iterator[Row]:
        """Used range twice, clipping at both ends, entropy."""
        yield Row("used range, > 8 bit: median", len(self._all_used.of(OURS)), self._all_used.medians())
        count, gains = len(self._mute.of(OURS)), _against(self._used, ROUGH)
        gain = statistics.median(self._mute.of(OURS).values()) if count else 0.0
        gate = Gate(f">= {MEDIAN_GAIN} x min-max", None)
        if rough := self._mute.of(ROUGH):
            gate = Gate(gate.demand, gain >= MEDIAN_GAIN * statistics.median(rough.values()))
        yield Row("used range, MR, no telling header: median", count, self._mute.medians(), gate)
        gate = Gate(
            f"no series < {LEAST_GAIN} x min-max", min(gains.values()) >= LEAST_GAIN if gains else None
        )
        notes = [f"{note}, x min-max" for note in worst(gains, smallest=True, most=len(gains))]
        yield Row("used range, MR series: median", len(gains), self._used.medians(), gate, notes)
        for what, tally, limit in (("high", self._high, HIGH), ("low", self._low, LOW)):
            found = tally.of(OURS)
            gate = Gate(f"<= {100 * limit:g} %", max(found.values()) <= limit if found else None)
            notes = worst({case: 100 * value for case, value in found.items()}, "{:.2f} %")
            yield Row(f"clipped {what} in body, adaptive: greatest, %", len(found),
                      tally.greatest(2, 100), gate, notes)  # fmt: skip
        losses = _minus(self._entropy, ROUGH)
        held = min(losses.values()) >= -LESS_ENTROPY if losses else None
        yield Row("entropy, MR series: median, bit", len(losses), self._entropy.medians(2),
                  Gate(f">= min-max - {LESS_ENTROPY}", held), worst(losses, smallest=True))  # fmt: skip


def _against(tally: Tally, name: str) -> dict[str, float]:
    """Ours as a multiple of another's figure, image by image."""
    theirs = tally.of(name)
    return {case: value / max(theirs[case], 1.0) for case, value in tally.of(OURS).items() if case in theirs}


def _minus(tally: Tally, name: str) -> dict[str, float]:
    theirs = tally.of(name)
    return {case: value - theirs[case] for case, value in tally.of(OURS).items() if case in theirs}
