"""How long the event loop does not look at what is waiting: measured inside, for as long as it runs.

Everybody who uses a mount shares one thread. Between two looks at its descriptors the loop runs all tasks
that can go on; what they take together is what a request that comes in meanwhile waits before anybody knows
of it. Two readings of a clock for each look, and nothing that grows. Put in place by `mount.py`.
"""

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper ends of the buckets of the histogram; what is longer than the last is in one more."""
LIMIT_S: Final = 0.05
"""What nobody notices; longer turns are counted apart."""


@dataclass(frozen=True, slots=True)
class Stalls:
    """What has been measured since the start."""

    turns: int
    """Looks at the descriptors."""
    longest_s: float
    total_s: float
    """In which the loop was busy."""
    above_50_ms: int
    counts: tuple[int, ...]
    """Turns by length, for each of `BOUNDS_S` those that are longer than the one before; then the rest."""

    def __str__(self) -> str:
        return (
            f"longest {1000 * self.longest_s:.1f} ms of {self.turns} turns, "
            f"{self.above_50_ms} above {1000 * LIMIT_S:.0f} ms"
        )


class StallMeter(trio.abc.Instrument):
    """Give it to `trio.lowlevel.add_instrument`; `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since: float | None = None
        self._longest_s = self._total_s = 0.0
        self._turns = 0
        self._counts = [0] * (len(BOUNDS_S) + 1)

    def after_io_wait(self, _timeout: float) -> None:
        """The loop has looked, and begins to run what can go on."""
        self._since = self._clock()

    def before_io_wait(self, _timeout: float) -> None:
        """All have run: the loop looks again."""
        if self._since is None:  # it was put in place in the middle of a turn
            return
        taken_s = self._clock() - self._since
        self._turns += 1
        self._total_s += taken_s
        if taken_s > BOUNDS_S[0]:
            self._counts[bisect_left(BOUNDS_S, taken_s)] += 1
            self._longest_s = max(self._longest_s, taken_s)

    def statistics(self) -> Stalls:
        """Counters of this moment."""
        longer = sum(self._counts)
        return Stalls(
            turns=self._turns,
            longest_s=self._longest_s,
            total_s=self._total_s,
            above_50_ms=sum(self._counts[BOUNDS_S.index(LIMIT_S) + 1 :]),
            counts=(self._turns - longer, *self._counts[1:]),
        )
