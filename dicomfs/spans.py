"""A set of ids as few spans: what is still to be looked at, whatever the archive's size.

Pure. Bounded: when there are too many spans, the two nearest become one, so that the set may grow by ids
that nobody has put in, and never loses one. Used by `ahead.py`; as text it is kept in the renditions.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

MOST_SPANS: Final = 64

_TEXT: Final = re.compile(r"(?:[0-9]+-[0-9]+(?: [0-9]+-[0-9]+)*)?", re.ASCII)


class Spans:
    """Ids (integers, at least 0); `most`: how many spans are told apart."""

    def __init__(self, spans: Iterable[tuple[int, int]] = (), *, most: int = MOST_SPANS) -> None:
        self._most = most
        self._spans: list[tuple[int, int]] = []
        """First and last id of each, ascending, at least one id apart."""
        for first, last in spans:
            self.add(first, last)

    @classmethod
    def of(cls, text: str) -> "Spans | None":
        """The set that was written as `str`; None for any other text."""
        if not _TEXT.fullmatch(text):
            return None
        pairs = [tuple(map(int, part.split("-"))) for part in text.split()]
        return cls((first, last) for first, last in pairs)

    def __str__(self) -> str:
        return " ".join(f"{first}-{last}" for first, last in self._spans)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """First and last id of each span, ascending."""
        return iter(tuple(self._spans))

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __contains__(self, number: int) -> bool:
        place = bisect_left(self._spans, (number + 1,)) - 1
        return place >= 0 and number <= self._spans[place][1]

    def copy(self) -> "Spans":
        """Another set of the same ids."""
        return Spans(self._spans, most=self._most)

    def add(self, first: int, last: int) -> None:
        """Put in all ids from `first` to `last`, both included; none when `last` is less."""
        if last < first:
            return
        # Those that overlap or touch it become one with it.
        low = bisect_left(self._spans, (first,))
        if low and self._spans[low - 1][1] >= first - 1:
            low -= 1
        high = bisect_left(self._spans, (last + 2,))
        if low < high:
            first, last = min(first, self._spans[low][0]), max(last, self._spans[high - 1][1])
        self._spans[low:high] = [(first, last)]
        if len(self._spans) > self._most:
            self._join_nearest()

    def _join_nearest(self) -> None:
        gaps = [after[0] - before[1] for before, after in zip(self._spans, self._spans[1:], strict=False)]
        place = gaps.index(min(gaps))
        self._spans[place : place + 2] = [(self._spans[place][0], self._spans[place + 1][1])]

    def highest(self) -> tuple[int, int] | None:
        """The span of the highest ids; None when there is none."""
        return self._spans[-1] if self._spans else None

    def cut(self, number: int) -> None:
        """Take out every id from `number` upwards."""
        while self._spans and self._spans[-1][0] >= number:
            self._spans.pop()
        if self._spans and self._spans[-1][1] >= number:
            self._spans[-1] = (self._spans[-1][0], number - 1)
