"""What a mount counts of itself, for others to see: caches, renders, and how long they took. Pure.

Frozen values that go through JSON (`mountfile.py`) and back, and a counter of times in bounded memory. No
name of a file or patient comes in here. Counted by `cache.py`, `diskcache.py`, `present.py`; for `status.py`.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

BUCKETS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 60.0),
)
"""Upper bounds of the classes that times are counted in; above them there is one more."""


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, each time."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    """How often, by class."""
    seconds: float = 0.0
    """All of them together."""

    @property
    def count(self) -> int:
        """How often in all."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Seconds within which this share of them came to an end; None: there was none, or no bound is known.

        The upper bound of a class: what is told is never better than it was.
        """
        wanted, passed = share * self.count, 0
        for bound, number in zip(BUCKETS_S, self.counts, strict=False):
            passed += number
            if number and passed >= wanted:
                return bound
        return None

    def __add__(self, other: Self) -> "Times":
        """Both together."""
        counts = tuple(ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True))
        return Times(counts, self.seconds + other.seconds)


class Stopwatch:
    """Counts times; not thread-safe."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._seconds = 0.0

    def note(self, seconds: float) -> None:
        """It took so long, once."""
        self._counts[bisect_left(BUCKETS_S, seconds)] += 1
        self._seconds += seconds

    def times(self) -> Times:
        """Up to now."""
        return Times(tuple(self._counts), self._seconds)


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """Counters since the start of the mount; bytes and items are of the moment."""

    hits: int
    misses: int
    evictions: int
    """Pictures that had to go for others."""
    bytes: int
    limit_bytes: int
    items: int


@dataclass(frozen=True, slots=True)
class DiskFigures(CacheFigures):
    """The same of a disk cache; bytes and items are those of all mounts that use its folder."""

    written: int
    dropped: int
    """Pictures that were not written: the disk was too slow, or in trouble."""
    damaged: int
    """Files that were not what they should have been, and were removed."""
    trouble: str
    """Why nothing is read or written at present; empty: all is well."""


@dataclass(frozen=True, slots=True)
class MountFigures:
    """All that a mount tells of itself."""

    memory: CacheFigures
    disk: DiskFigures | None
    """None: there is no disk cache."""
    rendered: Times
    """Renders that somebody waited for, from the question to the picture."""
    ahead: Times
    """Renders that nobody waited for."""
    failed: int
    """Renders without a result: out of time, out of memory, trouble with the archive."""
    crashed: int
    """Render processes that died in a job."""
    timed_out: int
    loop: Mapping[str, float]
    """What the event loop says of its own delays: name of a gauge, with its unit, and value."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Back from `asdict` and JSON. Raises TypeError or KeyError when that was another version's."""
        times = {
            name: Times(tuple(facts[name]["counts"]), facts[name]["seconds"])
            for name in ("rendered", "ahead")
        }
        if any(len(one.counts) != len(BUCKETS_S) + 1 for one in times.values()):
            raise TypeError("other classes of times")
        disk = facts["disk"]
        made = {
            "memory": CacheFigures(**facts["memory"]),
            "disk": None if disk is None else DiskFigures(**disk),
        }
        return cls(**{**facts, **times, **made})
