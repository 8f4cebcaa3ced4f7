"""What is kept when not everything can be: two queues, so that no scan evicts a working set.

The policy is full 2Q (T. Johnson and D. Shasha, VLDB 1994). A new value joins `once`, first in, first out.
When it is used a second time it moves to `often`, least recently used out first. Who goes out of `once`
leaves its key behind for a while, so that a second use after that counts too. `once` may use whatever
`often` leaves, but `often` is cut only while `once` holds no more than its share. So, whatever is used once
only, and however much of it: what was used twice stays, up to the limit less that share. That is the whole
proof, and there is nothing to tune. (LRU has no such bound; TinyLFU has one for frequencies that a sketch
estimates and that age, which is more to explain and to get wrong.)

Opening one file is several uses in a row (a thumbnail, attributes, the copy itself), by crawlers too. So
uses that are less than `SECOND_USE_S` apart count as one: the paper's correlated references, by the clock.

Pure: no tasks, no files. Used by `cache.py`; not thread-safe.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from cachetools import FIFOCache, LRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SECOND_USE_S: Final = 30.0
"""Uses that follow each other sooner are one."""
ONCE_SHARE: Final = 4
"""The share of `once` is the limit divided by this (Kin of the paper: a quarter). No value may cost more."""
COST_PER_GHOST: Final = 16 * 1024
"""One key is remembered for so much of the limit: as many as there may be pictures, and some 2 % of it."""
FEWEST_GHOSTS: Final = 256


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    cost: int
    used: float | None
    """When a use was counted last; None: it was put here before anybody asked."""


class TwoQueue(Generic[K, V]):
    """Values that cost at most `limit` together, each measured once by `cost_of`; values are never None.

    `on_use` is called with a key when a use is counted that was not the reason for the first `put`; `clock`
    is in seconds.
    """

    def __init__(
        self,
        limit: int,
        cost_of: Callable[[V], int],
        *,
        on_use: Callable[[K], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._share = limit // ONCE_SHARE
        self._cost_of = cost_of
        self._on_use = on_use
        self._clock = clock
        # Their own limits are never reached: room is made before anything is put there.
        self._once: FIFOCache[K, _Entry[V]] = FIFOCache(limit, lambda entry: entry.cost)
        self._often: LRUCache[K, _Entry[V]] = LRUCache(limit, lambda entry: entry.cost)
        self._ghosts: FIFOCache[K, float] = FIFOCache(max(FEWEST_GHOSTS, limit // COST_PER_GHOST))
        """Keys that went out of `once`, with the time of their first use."""
        self.evictions = 0
        """Values that had to go for others."""

    def __len__(self) -> int:
        """How many values are kept."""
        return len(self._once) + len(self._often)

    def __contains__(self, key: K) -> bool:
        """Whether a value is kept; no use of it."""
        return key in self._often or key in self._once

    @property
    def limit(self) -> int:
        """What all values may cost together."""
        return self._limit

    @property
    def cost(self) -> int:
        """What is kept costs."""
        return int(self._once.currsize + self._often.currsize)

    def get(self, key: K, *, is_use: bool = True) -> V | None:
        """The value, if it is kept; this counts as a use of it, if it is one."""
        entry = self._often.get(key)
        is_known = entry is not None
        if entry is None:
            entry = self._once.get(key)
        if entry is None:
            return None
        if is_use and self._is_another(entry.used):
            if not is_known:
                del self._once[key]
                self._often[key] = entry
            self._count(key, entry)
        elif is_use and entry.used is None:
            self._count(key, entry)
        return entry.value

    def put(self, key: K, value: V, *, is_use: bool = True) -> None:
        """Keep a value, which nobody may alter any more; `is_use`: somebody has asked for it.

        One that costs more than the share of `once` would evict everything else there, and is not kept.
        """
        for queue in (self._once, self._often):
            queue.pop(key, None)
        cost = self._cost_of(value)
        if cost > self._share:
            return
        first = self._ghosts.pop(key, None)
        if is_use and self._is_another(first):
            self._make_room(cost, in_once=0)
            entry = self._often[key] = _Entry(value, cost, first)
            self._count(key, entry)
        else:
            self._make_room(cost, in_once=cost)
            now = self._clock() if is_use else None
            self._once[key] = _Entry(value, cost, now if first is None else first)

    def _is_another(self, former: float | None) -> bool:
        return former is not None and self._clock() - former >= SECOND_USE_S

    def _count(self, key: K, entry: _Entry[V]) -> None:
        entry.used = self._clock()
        if self._on_use is not None:
            self._on_use(key)

    def _make_room(self, cost: int, *, in_once: int) -> None:
        """For a value of this cost, of which so much goes to `once`."""
        while self.cost + cost > self._limit:
            if self._once and self._once.currsize + in_once > self._share:
                key, entry = self._once.popitem()
                if entry.used is not None:
                    self._ghosts[key] = entry.used
            else:
                self._often.popitem()
            self.evictions += 1
