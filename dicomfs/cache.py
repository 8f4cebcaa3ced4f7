"""Rendered bytes in memory, kept by `twoqueue.py`, and one production per key at a time.

However many tasks ask for a key at once, it is produced once. What failed in passing is remembered for
a short while, so that a file that hangs does not cost its time limit on every ask. It never renders,
knows no processes and no files; what a key means is the caller's affair (a rendition key: equal keys
stand for equal bytes). Used by the mount; everything here belongs to trio's thread.
"""

import sys
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import trio
from cachetools import TTLCache

from dicomfs.errors import RenderFailed
from dicomfs.twoqueue import TwoQueue

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

FAILURES_KEPT: Final = 4_096
ENTRY_BYTES: Final = 512
"""What a picture takes in memory besides its own bytes: key, entry, two tables; measured, and rounded up."""


def bytes_in_memory(data: bytes) -> int:
    """What a picture takes in memory when it is kept."""
    return sys.getsizeof(data) + ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the start; `bytes` and `items` are of this moment."""

    hits: int
    misses: int
    """Productions begun."""
    joined: int
    """Asks that waited for the production of another."""
    evictions: int
    bytes: int
    limit_bytes: int
    items: int


@dataclass(eq=False, slots=True)
class _Flight(Generic[V]):
    """One production under way. Landed with neither value nor error: its producer was cancelled."""

    value: V | None = None
    error: Exception | None = None
    is_use: bool = False
    """Whether anybody who waits for it means to use it."""
    landed: trio.Event = field(default_factory=trio.Event)


class Cache(Generic[K, V]):
    """At most `limit_bytes` of values, measured by `size_of`; values are never None.

    A value of more than a quarter of that is not kept. `on_use` is called with a key when a use is
    counted (`twoqueue.SECOND_USE_S`), but not for the one that a value was produced for.
    A passing failure is repeated to everybody who asks within `retry_after_s`; `clock` is in seconds.
    """

    def __init__(
        self,
        limit_bytes: int,
        size_of: Callable[[V], int],
        *,
        on_use: Callable[[K], None] | None = None,
        retry_after_s: float = 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept: TwoQueue[K, V] = TwoQueue(limit_bytes, size_of, on_use=on_use, clock=clock)
        self._failures: TTLCache[K, str] = TTLCache(maxsize=FAILURES_KEPT, ttl=retry_after_s, timer=clock)
        self._flights: dict[K, _Flight[V]] = {}
        self._hits = self._misses = self._joined = 0

    async def get(
        self,
        key: K,
        produce: Callable[[], Awaitable[V]],
        *,
        joining: Callable[[], None] | None = None,
        is_use: bool = True,
    ) -> V:
        """The value of a key: kept, or produced now, or awaited from whoever is producing it.

        `joining` is called when the production of another is awaited, e.g. to hurry what was begun as
        background work. `is_use`: somebody means to use it; background work does not, and must not have
        a file that nobody opened taken for one that somebody did. An error of `produce` reaches everybody
        who waits and is then forgotten, but RenderFailed is remembered for `retry_after_s`.

        *Cancellation*: a waiter that is cancelled disturbs nobody. When the producing task is cancelled,
        its `produce` is cancelled with it and one of the waiters begins anew with its own `produce`:
        no task outlives its caller, none is shielded. A hit is returned without a checkpoint.
        """
        while True:
            if (value := self.peek(key, is_use=is_use)) is not None:
                return value
            if (failure := self._failures.get(key)) is not None:
                self._hits += 1
                raise RenderFailed(failure)
            if (flight := self._flights.get(key)) is None:
                return await self._produce(key, produce, is_use=is_use)
            self._joined += 1
            flight.is_use |= is_use
            if joining is not None:
                joining()
            await flight.landed.wait()
            if flight.value is not None:
                return flight.value
            if flight.error is not None:
                raise flight.error

    async def _produce(self, key: K, produce: Callable[[], Awaitable[V]], *, is_use: bool) -> V:
        flight: _Flight[V] = _Flight(is_use=is_use)
        self._flights[key] = flight
        self._misses += 1
        try:
            value = await produce()
            flight.value = value
        except RenderFailed as error:
            self._failures[key] = str(error)  # the text alone: a traceback would keep its frames alive
            flight.error = error
            raise
        except BaseException as error:
            # Whatever it is goes on to our caller. The waiters get errors, but not our own cancellation.
            flight.error = error if isinstance(error, Exception) else None
            raise
        finally:
            del self._flights[key]
            flight.landed.set()
        self._kept.put(key, value, is_use=is_use)
        if flight.is_use and not is_use:
            self._kept.get(key)  # by those who have joined, so that `on_use` hears of them
        return value

    def __contains__(self, key: K) -> bool:
        """Whether it is kept now; no use, and no hit."""
        return key in self._kept

    def peek(self, key: K, *, is_use: bool = True) -> V | None:
        """The value if it is kept now, which counts as a use of it, if it is one; never produces."""
        value = self._kept.get(key, is_use=is_use)
        self._hits += value is not None
        return value

    def statistics(self) -> Statistics:
        """Counters and gauges of this moment."""
        return Statistics(
            hits=self._hits,
            misses=self._misses,
            joined=self._joined,
            evictions=self._kept.evictions,
            bytes=self._kept.cost,
            limit_bytes=self._kept.limit,
            items=len(self._kept),
        )
