"""The disk cache: what a picture belongs to, and a disk that is full, gone or silent."""

import errno
import logging
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio

from dicomfs import diskcache
from dicomfs.cachefolder import COMPARTMENTS, CacheFolder, Totals
from dicomfs.diskcache import MOST_QUEUED, RETRY_S, DiskCache
from dicomfs.model import PoolWindow
from dicomfs.renditions import Key
from tests.support import wait_until

KEY = Key("digest", 7, 0, 1)
WINDOW = PoolWindow(0.0, 100.0, "percentiles")
PICTURE = b"picture" * 1000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Disk:
    """Stands for a folder: fails or hangs as it is told, and knows what it was asked."""

    folder = Path("/cache")
    limit_bytes = 1 << 30
    largest = 1 << 20

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.asked: list[str] = []

    def _act(self, what: str) -> None:
        self.asked.append(what)
        self.goes_on.wait()
        if self.error is not None:
            raise self.error

    def read(self, _name: str, _tag: bytes, *, is_use: bool) -> bytes | None:  # noqa: ARG002  as there
        self._act("read")
        return PICTURE

    def write(self, _name: str, _tag: bytes, _data: bytes, *, is_use: bool) -> None:  # noqa: ARG002  as there
        self._act("write")

    def touch(self, _name: str) -> None:
        self._act("touch")

    def survey(self, _where: str) -> None:
        self.goes_on.wait()

    def totals(self) -> Totals:
        return Totals(0, 0, 0, 0)

    def close(self) -> None:
        self.goes_on.set()


def ask(
    cache: DiskCache, key: Key = KEY, window: PoolWindow | None = WINDOW, *, times: int = 1
) -> bytes | None:
    async def main() -> bytes | None:
        for _ in range(times):
            found = await cache.get(key, window)
        return found

    return trio.run(main)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextmanager
def standing_for(disk: Disk, clock: Callable[[], float]) -> Iterator[DiskCache]:
    with DiskCache(cast(CacheFolder, disk), "store", clock=clock) as cache:
        yield cache
        disk.goes_on.set()


@contextmanager
def real(folder: Path, store: str = "store") -> Iterator[DiskCache]:
    with DiskCache(CacheFolder(folder, 1 << 30), store) as cache:
        yield cache


def test_a_picture_outlives_a_restart(tmp_path: Path) -> None:
    with real(tmp_path) as cache:
        assert ask(cache) is None
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
    with real(tmp_path) as cache:
        assert ask(cache) == PICTURE
        wait_until(lambda: cache.statistics().items, "a look at what is there")
        found = cache.statistics()
    assert (found.hits, found.misses, found.items, found.bytes) == (1, 0, 1, 8192)
    assert (found.written, found.trouble) == (0, "")


def test_what_is_only_read_ahead_is_not_used(tmp_path: Path) -> None:
    with real(tmp_path) as cache:
        cache.keep(KEY, WINDOW, PICTURE, is_use=False)
        wait_until(lambda: cache.statistics().written, "a write")
        (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
        for is_use in (False, True):
            assert trio.run(partial(cache.get, KEY, WINDOW, is_use=is_use)) == PICTURE
            assert (stat.S_IMODE(file.stat().st_mode) != 0o600) is is_use


@pytest.mark.parametrize(
    "key",
    [Key("other", 7, 0, 1), Key("digest", 8, 0, 1), Key("digest", 7, 1, 1), Key("digest", 7, 0, 2)],
)
def test_a_picture_belongs_to_its_rendition(tmp_path: Path, key: Key) -> None:
    with real(tmp_path) as cache:
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
    with real(tmp_path) as cache:
        assert ask(cache, key) is None
        assert ask(cache) == PICTURE


@pytest.mark.parametrize("window", [None, PoolWindow(0.0, 101.0, ""), PoolWindow(None, None, "header")])
def test_and_to_its_window(tmp_path: Path, window: PoolWindow | None) -> None:
    with real(tmp_path) as cache:
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
    with real(tmp_path) as cache:
        assert ask(cache, KEY, window) is None
        assert ask(cache, KEY, PoolWindow(0.0, 100.0, "the same, by other words")) == PICTURE


def test_and_to_its_store_and_to_the_versions_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with real(tmp_path) as cache:
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
    with real(tmp_path, "another store") as cache:
        assert ask(cache) is None
    with monkeypatch.context() as patch:
        patch.setattr(diskcache, "__version__", "0.0.0")
        with real(tmp_path) as cache:
            assert ask(cache) is None
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "1" if name == "pydicom" else "0")
        with real(tmp_path) as cache:
            assert ask(cache) is None
    with real(tmp_path) as cache:
        assert ask(cache) == PICTURE


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_disk_that_fails_is_told_once_and_tried_again(
    clock: Clock, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    disk = Disk()
    with standing_for(disk, clock) as cache, caplog.at_level(logging.INFO, "dicomfs"):
        disk.error = OSError(number, "broken")
        assert ask(cache, times=5) is None
        assert disk.asked == ["read"]
        assert cache.statistics().trouble == "broken"
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
        assert cache.statistics().dropped == 1
        clock.now += RETRY_S
        assert ask(cache, times=5) is None
        assert disk.asked == ["read", "read"]
        clock.now += RETRY_S
        disk.error = None
        assert ask(cache) == PICTURE
        found = cache.statistics()
    assert (found.hits, found.misses, found.trouble) == (1, 10, "")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "no disk cache for now, pictures are kept in memory only: /cache: broken",
        "the disk cache /cache is in use again",
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_cannot_be_written_can_be_read(
    clock: Clock, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    disk = Disk()
    with standing_for(disk, clock) as cache:
        disk.error = OSError(number, "full")
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
        wait_until(lambda: cache.statistics().trouble, "a write that failed")
        disk.error = None
        assert ask(cache, times=3) == PICTURE
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
        assert (cache.statistics().dropped, cache.statistics().trouble) == (2, "full")
        clock.now += RETRY_S
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
        wait_until(lambda: cache.statistics().written, "a write after the retry")
        assert cache.statistics().trouble == ""
    assert len(caplog.records) == 2


def test_a_disk_that_hangs_is_a_picture_that_is_missing(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskcache, "READ_LIMIT_S", 0.02)
    disk = Disk()

    async def main(cache: DiskCache) -> None:
        disk.goes_on.clear()
        for _ in range(20):
            assert await cache.get(KEY, WINDOW) is None
        assert disk.asked == ["read"]
        for _ in range(20):  # and so for whoever tries again, though no thread is left
            clock.now += RETRY_S
            assert await cache.get(KEY, WINDOW) is None
            assert not cache._may_read()  # whoever asks next does not wait
        assert len(disk.asked) == diskcache.READERS
        disk.goes_on.set()
        idle = partial(wait_until, lambda: not cache._limiter.borrowed_tokens, "threads that come back")
        await trio.to_thread.run_sync(idle)
        monkeypatch.undo()
        assert await cache.get(KEY, WINDOW) == PICTURE

    with standing_for(disk, clock) as cache:
        trio.run(main, cache)
    assert "no answer within" in caplog.messages[0]
    assert len(caplog.messages) == 2


def test_what_waits_to_be_written_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskcache, "MOST_QUEUED_BYTES", 10 * len(PICTURE))
    disk = Disk()
    with standing_for(disk, clock) as cache:
        disk.goes_on.clear()
        for _ in range(30):
            cache.keep(KEY, WINDOW, PICTURE, is_use=True)
        # One is in the writer's hands, at most.
        assert 30 - 11 <= cache.statistics().dropped <= 30 - 10
        for _ in range(2 * MOST_QUEUED):
            cache.touch(KEY)
        assert len(cache._queue) == MOST_QUEUED
        disk.goes_on.set()
        wait_until(lambda: not cache._queue, "an empty queue")
        assert cache._queued_bytes == 0


def test_a_picture_that_is_too_large_is_not_queued(clock: Clock) -> None:
    disk = Disk()
    with standing_for(disk, clock) as cache:
        cache.keep(KEY, WINDOW, bytes(disk.largest + 1), is_use=True)
        cache.touch(KEY)
        wait_until(lambda: disk.asked, "the touch")
    assert disk.asked == ["touch"]


def test_the_end_does_not_wait_for_a_disk_that_hangs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskcache, "CLOSE_S", 0.05)
    disk = Disk()
    with DiskCache(cast(CacheFolder, disk), "store", clock=clock) as cache:
        disk.goes_on.clear()
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
        assert cache._thread.is_alive()
    assert disk.goes_on.is_set()  # by the end itself, which it came to


def test_what_is_there_is_looked_through_in_the_background(tmp_path: Path) -> None:
    with real(tmp_path) as cache:
        for number in range(100):
            cache.keep(Key("digest", number, 0, 0), None, PICTURE, is_use=True)
    assert len(list((tmp_path / "dicomfs").iterdir())) == len(COMPARTMENTS)
    with real(tmp_path) as cache:
        wait_until(lambda: cache.statistics().items == 100, "all compartments")


def test_a_folder_that_is_missing_may_come_later(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "not mounted"
    with DiskCache(CacheFolder(place, 1 << 30), "store", clock=clock) as cache:
        wait_until(lambda: "make it, or mount its disk" in cache.statistics().trouble, "the first look")
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
        assert ask(cache) is None
        place.mkdir()
        clock.now += RETRY_S
        cache.keep(KEY, WINDOW, PICTURE, is_use=True)
        wait_until(lambda: cache.statistics().written, "a write")
        assert ask(cache) == PICTURE
        shutil.rmtree(place / "dicomfs")
        assert ask(cache) is None
        assert cache.statistics().trouble == ""
    assert len(caplog.records) == 2
