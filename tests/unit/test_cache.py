"""The cache: single flight, cancellation, bounds, and the short memory for passing failures."""

import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from dicomfs.cache import Cache, bytes_in_memory
from dicomfs.errors import NotDisplayable, RenderFailed
from dicomfs.renditions import Key


class Kitchen:
    """Produces values by name; counts, and holds them back until the gate opens."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate = trio.Event()
        self.error: Exception | None = None

    def cook(self, value: bytes, by: str = "") -> Callable[[], Awaitable[bytes]]:
        async def produce() -> bytes:
            self.begun.append(by)
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            return value

        return produce


def new_cache(limit_bytes: int = 4000, clock: Callable[[], float] = lambda: 0.0) -> Cache[str, bytes]:
    return Cache(limit_bytes, len, retry_after_s=10, clock=clock)


def test_200_callers_one_production() -> None:
    async def main() -> None:
        cache, kitchen, got = new_cache(), Kitchen(), []

        async def ask() -> None:
            got.append(await cache.get("a", kitchen.cook(b"picture")))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            kitchen.gate.set()
        assert got == [b"picture"] * 200
        assert len(kitchen.begun) == 1
        assert await cache.get("a", kitchen.cook(b"other")) == b"picture"
        statistics = cache.statistics()
        assert (statistics.misses, statistics.joined, statistics.hits) == (1, 199, 1)
        assert (statistics.items, statistics.bytes, statistics.evictions) == (1, 7, 0)

    trio.run(main)


def test_different_keys_do_not_wait_for_each_other() -> None:
    async def main() -> None:
        cache, slow, quick = new_cache(), Kitchen(), Kitchen()
        quick.gate.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.get, "slow", slow.cook(b"1"))
            await trio.testing.wait_all_tasks_blocked()
            assert await cache.get("quick", quick.cook(b"2")) == b"2"
            slow.gate.set()

    trio.run(main)


@pytest.mark.parametrize("cancelled", ["producer", "waiter"])
def test_cancelled_caller_takes_nobody_along(cancelled: str) -> None:
    async def main() -> None:
        cache, kitchen, got = new_cache(), Kitchen(), {}
        scopes = {name: trio.CancelScope() for name in ("producer", "waiter", "other")}

        async def ask(name: str) -> None:
            with scopes[name]:
                got[name] = await cache.get("a", kitchen.cook(name.encode(), name))

        async with trio.open_nursery() as nursery:
            for name in scopes:
                nursery.start_soon(ask, name)
                await trio.testing.wait_all_tasks_blocked()
            scopes[cancelled].cancel()
            await trio.testing.wait_all_tasks_blocked()
            kitchen.gate.set()
        assert got.keys() == scopes.keys() - {cancelled}
        assert len(set(got.values())) == 1
        # A cancelled producer is replaced by exactly one of those who waited; a waiter by nobody.
        assert len(kitchen.begun) == (2 if cancelled == "producer" else 1)
        assert cache.statistics().items == 1

    trio.run(main)


def test_all_cancelled_leaves_nothing_behind() -> None:
    async def main() -> None:
        cache, kitchen = new_cache(), Kitchen()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(cache.get, "a", kitchen.cook(b"x"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        kitchen.gate.set()
        assert await cache.get("a", kitchen.cook(b"y")) == b"y"

    trio.run(main)


@pytest.mark.parametrize("error", [NotDisplayable("no decoder"), OSError(5, "I/O"), RenderFailed("memory")])
def test_error_reaches_everybody_who_waits(error: Exception) -> None:
    async def main() -> None:
        cache, kitchen, errors = new_cache(), Kitchen(), []
        kitchen.error = error

        async def ask() -> None:
            with pytest.raises(type(error)) as caught:
                await cache.get("a", kitchen.cook(b""))
            errors.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            kitchen.gate.set()
        assert errors == [str(error)] * 5
        assert len(kitchen.begun) == 1

    trio.run(main)


def test_other_errors_are_forgotten_at_once() -> None:
    async def main() -> None:
        cache, kitchen = new_cache(), Kitchen()
        kitchen.gate.set()
        kitchen.error = OSError(5, "I/O")
        with pytest.raises(OSError, match="I/O"):
            await cache.get("a", kitchen.cook(b""))
        kitchen.error = None
        assert await cache.get("a", kitchen.cook(b"now")) == b"now"

    trio.run(main)


def test_passing_failure_is_remembered_for_its_time_only() -> None:
    async def main() -> None:
        now = [100.0]
        cache, kitchen = new_cache(clock=lambda: now[0]), Kitchen()
        kitchen.gate.set()
        kitchen.error = RenderFailed("took longer than 20 s")
        for now[0] in (100.0, 109.9):
            with pytest.raises(RenderFailed, match="took longer"):
                await cache.get("a", kitchen.cook(b""))
        assert len(kitchen.begun) == 1
        now[0] = 110.1
        kitchen.error = None
        assert await cache.get("a", kitchen.cook(b"now")) == b"now"
        assert len(kitchen.begun) == 2

    trio.run(main)


def test_a_large_value_is_returned_and_not_kept_at_the_price_of_all_others() -> None:
    async def main() -> None:
        cache, kitchen = new_cache(limit_bytes=400), Kitchen()
        kitchen.gate.set()
        await cache.get("small", kitchen.cook(bytes(100)))
        assert await cache.get("large", kitchen.cook(bytes(101))) == bytes(101)
        assert cache.peek("large") is None
        assert cache.peek("small") == bytes(100)

    trio.run(main)


def test_looking_whether_it_is_kept_is_neither_a_use_nor_a_hit() -> None:
    async def main() -> None:
        again = list[str]()
        cache: Cache[str, bytes] = Cache(4000, len, on_use=again.append)
        kitchen = Kitchen()
        kitchen.gate.set()
        assert "a" not in cache
        await cache.get("a", kitchen.cook(b"x"), is_use=False)
        assert "a" in cache
        assert (cache.statistics().hits, again) == (0, [])

    trio.run(main)


@pytest.mark.parametrize(("joined", "times"), [(False, 2), (True, 3)])
def test_what_was_produced_ahead_is_used_when_somebody_opens_it(joined: bool, times: int) -> None:
    """The use of one who waits for background work counts, and the background work itself does not."""

    async def main() -> None:
        now, again = [0.0], list[str]()
        cache: Cache[str, bytes] = Cache(4000, len, on_use=again.append, clock=lambda: now[0])
        kitchen = Kitchen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(cache.get, "a", kitchen.cook(b"x"), is_use=False))
            await trio.testing.wait_all_tasks_blocked()
            if joined:
                nursery.start_soon(cache.get, "a", kitchen.cook(b"y"))
                await trio.testing.wait_all_tasks_blocked()
            kitchen.gate.set()
        for now[0] in (100.0, 200.0):
            assert cache.peek("a", is_use=False) == b"x"
            assert cache.peek("a") == b"x"
        assert again == ["a"] * times

    trio.run(main)


def test_a_peek_that_finds_is_a_hit() -> None:
    async def main() -> None:
        cache, kitchen = new_cache(), Kitchen()
        kitchen.gate.set()
        assert cache.peek("a") is None
        await cache.get("a", kitchen.cook(b"x"))
        cache.peek("a")
        statistics = cache.statistics()
        assert (statistics.hits, statistics.misses, statistics.limit_bytes) == (1, 1, 4000)

    trio.run(main)


def test_what_a_picture_takes_in_memory_is_not_more_than_is_counted() -> None:
    count, length = 4000, 100
    cache: Cache[Key, bytes] = Cache(1 << 30, bytes_in_memory)
    recipe = "digest"

    async def main() -> int:
        async def produce() -> bytes:
            return bytes(length)

        await cache.get(Key(recipe, 10_000, 300, 0), produce)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            await cache.get(Key(recipe, 20_000 + number, 300, 0), produce)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    try:
        taken = trio.run(main)
    finally:
        tracemalloc.stop()
    assert count * length < taken <= cache.statistics().bytes


def test_whoever_joins_is_told_so() -> None:
    async def main() -> None:
        cache, kitchen, hurried = new_cache(), Kitchen(), []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.get, "a", kitchen.cook(b"x"))
            await trio.testing.wait_all_tasks_blocked()

            async def join() -> None:
                await cache.get("a", kitchen.cook(b"y"), joining=lambda: hurried.append("a"))

            nursery.start_soon(join)
            await trio.testing.wait_all_tasks_blocked()
            assert hurried == ["a"]
            kitchen.gate.set()
        await cache.get("a", kitchen.cook(b"z"), joining=lambda: hurried.append("hit"))
        assert hurried == ["a"]

    trio.run(main)
