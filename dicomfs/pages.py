"""Pages of folders as they were handed out, kept while nothing has changed.

A listing costs the index some microseconds a name, and smbd asks for the same folder again and again. Knows
neither what a page holds nor what its version means: equal versions stand for equal pages. Bounded by names,
the pages that were asked for longest ago go first. Used by `folders.py`, on trio's thread.
"""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class Pages(Generic[T]):
    """Pages of one version, by folder and by the cookie that they come after."""

    def __init__(self, most: int) -> None:
        """`most`: names that are kept in all."""
        self._kept: LRUCache[tuple[Hashable, int], Sequence[T]] = LRUCache(most, getsizeof=_names)
        self._version: Hashable = None

    def get(self, folder: Hashable, after: int, version: Hashable) -> Sequence[T] | None:
        """The page of this version, if it is kept; what is kept of another version is forgotten."""
        if version != self._version:
            self._kept.clear()
            self._version = version
        return self._kept.get((folder, after))

    def keep(self, folder: Hashable, after: int, page: Sequence[T]) -> None:
        """Keep a page of the version that was asked for last."""
        if _names(page) <= self._kept.maxsize:
            self._kept[folder, after] = page

    def clear(self) -> None:
        """Forget all, whatever its version."""
        self._kept.clear()


def _names(page: Sequence[object]) -> int:
    """What a page counts for; the empty one at the end of a folder takes memory, too."""
    return len(page) + 1
