"""Which pictures somebody who steps through a series asks for next; pure.

A series is stepped through by its numbers: forwards, backwards, or by a step of any length that stays the
same. What is likely to come is kept as a short list of wishes, the latest viewer's first and his next picture
first of all; it grows as long as he goes on, and is dropped when he turns round. Nothing is wished for twice
on the same way. Used by `prefetch.py`.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

S = TypeVar("S", bound=Hashable)

FIRST: Final = 2
"""Pictures ahead once a step has been seen; twice as many with each further one."""
MOST: Final = 16
"""Pictures ahead at most."""
LONGEST: Final = 64
"""A longer step is a jump, and says nothing of the next."""
SERIES_KEPT: Final = 128


@dataclass(slots=True)
class _Way:
    """How a series is being stepped through."""

    at: int
    step: int = 0
    run: int = 0
    """Steps of this length so far, one after the other."""
    through: int = 0
    """The last number that was wished for."""
    wishes: list[int] = field(default_factory=list)
    """Nearest first."""


class Stepping(Generic[S]):
    """Follows the opens of all viewers; a series is whatever its caller tells apart."""

    def __init__(self) -> None:
        self._ways: OrderedDict[S, _Way] = OrderedDict()
        """Latest last."""

    def opened(self, series: S, number: int) -> None:
        """Somebody opens this number of a series."""
        way = self._ways.pop(series, None) or _Way(number)
        self._ways[series] = way
        if len(self._ways) > SERIES_KEPT:
            self._ways.popitem(last=False)
        step, way.at = number - way.at, number
        if not step:
            return
        if step != way.step or abs(step) > LONGEST:
            way.step, way.run, way.wishes = step, 0, []
            way.through = number
        way.run += 1
        if abs(step) > LONGEST or (abs(step) > 1 and way.run < 2):
            return
        way.wishes = [wish for wish in way.wishes if (wish - number) * step > 0]
        ahead = min(FIRST << min(way.run - 1, MOST), MOST)
        end = number + ahead * step
        # From where the last wish was, or from here if he has got past it.
        start = way.through if (way.through - number) * step > 0 else number
        way.wishes += [wish for wish in range(start + step, end + step, step) if wish >= 0]
        way.through = end

    def take(self) -> tuple[S, int] | None:
        """The series and number that is wished for most; None when nothing is."""
        for series in reversed(self._ways):
            wishes = self._ways[series].wishes
            if wishes:
                return series, wishes.pop(0)
        return None

    def gave_up(self, series: S) -> None:
        """There is nothing where the last wish of this series was: it ends there, or has a gap."""
        if series in self._ways:
            self._ways[series].wishes.clear()
