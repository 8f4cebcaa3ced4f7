"""The cache: single flight, cancellation, bounds, and the short memory for passing failures."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from dicomfs.cache import Cache
from dicomfs.errors import NotDisplayable, RenderFailed


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


def new_cache(limit_bytes: int = 1000, clock: Callable[[], float] = lambda: 0.0) -> Cache[str, bytes]:
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


def test_least_recently_used_goes_first() -> None:
    async def main() -> None:
        cache, kitchen = new_cache(limit_bytes=300), Kitchen()
        kitchen.gate.set()
        for key in "abc":
            await cache.get(key, kitchen.cook(bytes(100)))
        assert cache.peek("a") == bytes(100)  # a use: now b is the oldest
        await cache.get("d", kitchen.cook(bytes(100)))
        assert [key for key in "abcd" if cache.peek(key) is not None] == ["a", "c", "d"]
        await cache.get("e", kitchen.cook(bytes(250)))
        statistics = cache.statistics()
        assert (statistics.items, statistics.bytes, statistics.evictions) == (1, 250, 4)

    trio.run(main)


def test_larger_than_the_cache_is_returned_and_not_kept() -> None:
    async def main() -> None:
        cache, kitchen = new_cache(limit_bytes=100), Kitchen()
        kitchen.gate.set()
        await cache.get("small", kitchen.cook(bytes(100)))
        assert await cache.get("large", kitchen.cook(bytes(101))) == bytes(101)
        assert cache.peek("large") is None
        assert cache.peek("small") == bytes(100)

    trio.run(main)


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
