"""What a metric gives back, and the tables that are printed."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dicomfs.model import PoolWindow
from tests.quality.contestants import NAMES, Contestants, Pictures
from tests.quality.images import Image, Pool

WORST = 3
"""Cases that are named for each figure."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A demand on one of our figures, and whether it is met; None: there was nothing to measure."""

    demand: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    metric: str
    count: int
    """Images, pools or slices that the figures are about."""
    figures: Mapping[str, str]
    """Contestant -> figure."""
    gate: Gate | None = None
    notes: Sequence[str] = ()
    """The worst cases, one a line."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One pool, seen by every contestant."""

    pool: Pool
    window: PoolWindow
    images: Sequence[Image]
    """Those whose pixels can be read independently."""
    pictures: Sequence[Pictures]
    """For each of them; all have the image's own size."""
    copies: frozenset[str]
    """Names of images whose pixels were seen before in this run."""
    contestants: Contestants

    def new(self) -> Iterator[tuple[Image, Pictures]]:
        """Images and pictures, every set of pixels once."""
        for image, pictures in zip(self.images, self.pictures, strict=True):
            if image.name not in self.copies:
                yield image, pictures


class Metric(Protocol):
    """One file each. Looks at every pool, and then says what it saw."""

    def look(self, shown: Shown) -> None:
        """Measure one pool; nothing of its pixels may be kept."""

    def rows(self) -> Iterator[Row]:
        """What was measured."""


@dataclass(slots=True)
class Tally:
    """Figures of one kind: contestant -> case -> value."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, contestant: str, case: str, value: float) -> None:
        """One figure."""
        self.values.setdefault(contestant, {})[case] = value

    def append(self, contestant: str, case: str, value: float) -> None:
        """One of several figures of which the case gets the mean."""
        self._counts[contestant, case] += 1
        mean = self.of(contestant).get(case, 0.0)
        self.add(contestant, case, mean + (value - mean) / self._counts[contestant, case])

    def of(self, contestant: str) -> dict[str, float]:
        """All figures of one."""
        return self.values.get(contestant, {})

    def medians(self, digits: int = 1, scale: float = 1.0) -> dict[str, str]:
        """Median of each, as text."""
        return self._each(lambda found: f"{scale * statistics.median(found):.{digits}f}")

    def greatest(self, digits: int = 1, scale: float = 1.0) -> dict[str, str]:
        """Maximum of each, as text."""
        return self._each(lambda found: f"{scale * max(found):.{digits}f}")

    def least(self, digits: int = 1) -> dict[str, str]:
        """Minimum of each, as text."""
        return self._each(lambda found: f"{min(found):.{digits}f}")

    def _each(self, figure: "_Figure") -> dict[str, str]:
        most = max(map(len, self.values.values()), default=0)
        texts = {}
        for name, found in self.values.items():
            texts[name] = figure(list(found.values())) + (f" ({len(found)})" if len(found) < most else "")
        return texts


class _Figure(Protocol):
    def __call__(self, found: list[float], /) -> str: ...


def worst(
    found: Mapping[str, float], form: str = "{:.2f}", *, smallest: bool = False, most: int = WORST
) -> list[str]:
    """The worst cases with their figures."""
    order = sorted(found.items(), key=lambda item: item[1], reverse=not smallest)
    return [f"{form.format(value)}  {case}" for case, value in order[:most]]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Columns under their headings; contestants that showed nothing at all are left out."""
    names = [name for name in NAMES if any(name in row.figures for row in rows)]
    headings = ["metric", "n", *names, "gate", ""]
    body = [
        [row.metric, str(row.count), *(row.figures.get(name, "-") for name in names), *_verdict(row.gate)]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [headings, *body]) for column in range(len(headings))]
    for line in [headings, *body]:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _verdict(gate: Gate | None) -> tuple[str, str]:
    if gate is None:
        return "", ""
    return gate.demand, {True: "holds", False: "FAILS", None: "not measured"}[gate.holds]


def remarks(rows: Sequence[Row]) -> Iterator[str]:
    """The worst cases, named."""
    for row in rows:
        if row.notes:
            yield f"{row.metric}:"
            yield from (f"    {note}" for note in row.notes)
