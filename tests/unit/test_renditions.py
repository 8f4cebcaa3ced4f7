"""Sizes, windows and failures on record: first decision wins, a lost or foreign file is made anew."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from dicomfs.errors import StoreUnavailable
from dicomfs.model import PoolWindow
from dicomfs.renditions import AT_ONCE, Decision, Key, Renditions, failures_noted

KEY = Key("digest", 3, 0, 1)
FULL_PAGES = "PRAGMA max_page_count = 1"
"""SQLite's own way of having no room: every write that needs a page fails with SQLITE_FULL."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "renditions.sqlite3"


@pytest.fixture
def renditions(path: Path) -> Iterator[Renditions]:
    opened = Renditions(path, "store")
    yield opened
    opened.close()


def decision(version: int, low: float, through: int = 5) -> Decision:
    return Decision(version, through, PoolWindow(low, 100.0, "test"))


def fill_up(renditions: Renditions) -> None:
    assert renditions._writer is not None
    renditions._writer.execute(FULL_PAGES)


def test_sizes(renditions: Renditions) -> None:
    assert renditions.size(KEY) is None
    renditions.announce(KEY, 10, "")
    renditions.announce(Key("digest", 3, 7, 1), 20, "damaged")
    renditions.announce(Key("other", 3, 0, 1), 30, "")
    assert renditions.size(KEY) == 10
    assert renditions.sizes("digest", [3, 4], (0, 7)) == {(3, 0, 1): 10, (3, 7, 1): 20}
    assert renditions.sizes("digest", [3, 4], (1, 7)) == {(3, 7, 1): 20}
    assert renditions.sizes("digest", [], (0, 7)) == {}
    assert renditions.record()
    assert renditions.failures(10) == [(3, 7, "damaged")]
    renditions.announce(KEY, 11, "")
    assert renditions.size(KEY) == 11


def test_first_decision_is_the_one_on_record(path: Path, renditions: Renditions) -> None:
    second = Renditions(path, "store")
    assert renditions.decide("p", "auto", decision(1, 0.0)) == decision(1, 0.0)
    assert second.decide("p", "auto", decision(1, 50.0)) == decision(1, 0.0)
    assert second.decision("p", "auto", 1) == decision(1, 0.0)
    assert second.decision("p", "header", 1) is None
    second.close()


def test_versions_count_up(renditions: Renditions) -> None:
    assert renditions.version("p", "auto") == 0
    for version in (1, 2):
        renditions.decide("p", "auto", decision(version, float(version)))
    renditions.decide("q", "auto", decision(1, 0.0))
    assert renditions.version("p", "auto") == 2
    assert renditions.versions(["p", "q", "r"], "auto") == {"p": 2, "q": 1}
    assert renditions.versions([], "auto") == {}


def test_extend_never_goes_back(renditions: Renditions) -> None:
    renditions.decide("p", "auto", decision(1, 0.0, through=5))
    for through, expected in ((9, 9), (7, 9)):
        renditions.extend("p", "auto", 1, through)
        found = renditions.decision("p", "auto", 1)
        assert found is not None
        assert found.through == expected


def test_followed_never_goes_back(renditions: Renditions) -> None:
    assert renditions.followed("auto") is None
    for sequence, expected in ((9, 9), (10, 10), (2, 10)):
        renditions.note_followed("auto", sequence)
        assert renditions.followed("auto") == expected
    assert renditions.followed("header") is None


def test_all_is_there_after_a_restart(path: Path, renditions: Renditions) -> None:
    renditions.announce(KEY, 10, "")
    renditions.note_followed("auto", 4)
    renditions.close()
    again = Renditions(path, "store")
    assert again.size(KEY) == 10
    again.close()


def test_path_of_any_bytes(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/no UTF-8: \xe9 ?#%41"))
    folder.mkdir()
    path = folder / "renditions.sqlite3"
    made = Renditions(path, "store")
    made.announce(KEY, 10, "damaged")
    assert made.record()
    made.close()
    assert failures_noted(path, "store", 10) == [(3, 0, "damaged")]
    assert [one.name for one in tmp_path.iterdir()] == [folder.name]
    assert path.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no database" * 500, b"SQLite format 3\0" + b"\xff" * 5000],
    ids=["empty", "text", "torn"],
)
def test_damaged_file_is_made_anew(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    made = Renditions(path, "store")
    made.announce(KEY, 10, "")
    assert made.size(KEY) == 10
    made.close()


def test_file_of_another_store_is_made_anew(path: Path, renditions: Renditions) -> None:
    renditions.announce(KEY, 10, "")
    renditions.close()
    other = Renditions(path, "another store")
    assert other.size(KEY) is None
    other.close()


def test_file_of_another_version_is_made_anew(path: Path, renditions: Renditions) -> None:
    renditions.announce(KEY, 10, "")
    renditions.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE about SET value = '0' WHERE key = 'schema_version'")
    raw.close()
    made = Renditions(path, "store")
    assert made.size(KEY) is None
    made.close()


def test_locked_file_is_not_thrown_away(
    path: Path, renditions: Renditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    renditions.announce(KEY, 10, "")
    renditions.record()
    monkeypatch.setattr("dicomfs.renditionsfile.OPEN_TIMEOUT_S", 0.05)
    with sqlite3.connect(path, isolation_level=None) as raw:
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            Renditions(path, "store")
        raw.execute("ROLLBACK")
    raw.close()
    again = Renditions(path, "store")
    assert again.size(KEY) == 10
    again.close()


def test_many_mounts_may_start_at_once(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda _: Renditions(path, "store"), range(8)))
    for number, one in enumerate(opened):
        one.announce(Key("digest", number, 0, 0), number, "")
        one.record()
    assert len(opened[0].sizes("digest", range(8), (0, 0))) == 8
    for one in opened:
        one.close()


def test_sizes_are_written_many_at_a_time(path: Path, renditions: Renditions) -> None:
    second = Renditions(path, "store")
    keys = [Key("digest", number, 0, 1) for number in range(AT_ONCE)]
    for key in keys:
        renditions.announce(key, 10, "")
        assert renditions.size(key) == 10
    assert second.sizes("digest", range(AT_ONCE), (0, 0)) == {}  # what a crash would lose now
    assert renditions.record()
    assert set(second.sizes("digest", range(AT_ONCE), (0, 0))) == {(key.original, 0, 1) for key in keys}
    renditions.announce(KEY, 11, "")
    assert renditions.sizes("digest", [3], (0, 0)) == {(3, 0, 1): 11}
    assert renditions.sizes("digest", [3], (1, 9)) == {}
    renditions.record()
    assert second.size(KEY) == 11
    second.close()


def test_nobody_who_announces_waits_for_the_disk(path: Path, renditions: Renditions) -> None:
    """However many there are: the kernel waits for him, and another process may hold the lock of writers."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(65 * AT_ONCE):
            renditions.announce(Key("digest", number, 0, 1), 10, "damaged" if not number else "")
        other.execute("ROLLBACK")
    assert failures_noted(path, "store", 10) == []
    assert len(renditions._unrecorded) == 65 * AT_ONCE


def test_who_has_no_thread_that_writes_writes_many_at_a_time(path: Path, renditions: Renditions) -> None:
    """Who renders to files follows nothing, and closes at the end."""
    for number in range(AT_ONCE):
        assert failures_noted(path, "store", 10) == []
        renditions.announce(Key("digest", number, 0, 1), 10, "damaged" if not number else "")
        renditions.record_many()
    assert failures_noted(path, "store", 10) == [(0, 0, "damaged")]
    assert not renditions._unrecorded


def test_readers_go_on_while_a_batch_is_written_in_a_thread(path: Path, renditions: Renditions) -> None:
    """Another process holds the lock of those who write: nobody who reads waits for it."""
    renditions.announce(KEY, 10, "")
    batch = renditions.unwritten()
    assert batch is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as threads:
        other.execute("BEGIN IMMEDIATE")
        writing = threads.submit(renditions.write, batch)
        assert renditions.size(Key("digest", 77, 0, 1)) is None
        assert renditions.size(KEY) == 10
        renditions.announce(KEY, 11, "")
        assert not writing.done()
        other.execute("COMMIT")
        assert writing.result()
    assert renditions.written(batch, is_done=True)
    # What was announced anew meanwhile is still to be written.
    assert renditions.size(KEY) == 11
    assert renditions.record()
    with closing(Renditions(path, "store")) as second:
        assert second.size(KEY) == 11


def test_what_is_still_to_be_warmed_is_never_written_before_sizes(path: Path, renditions: Renditions) -> None:
    second = Renditions(path, "store")
    for number in range(AT_ONCE - 1):
        renditions.announce(Key("digest", number, 0, 1), 10, "")
    renditions.note_unwarmed("jpg", "1-7")
    assert renditions.unwarmed("jpg") == "1-7"
    assert second.unwarmed("jpg") is None
    renditions.record()
    assert second.unwarmed("jpg") == "1-7"
    assert len(second.sizes("digest", range(AT_ONCE), (0, 0))) == AT_ONCE - 1
    second.close()


def test_sizes_that_could_not_be_written_are_written_later(
    path: Path,
    renditions: Renditions,
    expected_warnings: list[logging.LogRecord],
) -> None:
    fill_up(renditions)
    numbers = range(2 * AT_ONCE)
    for number in numbers:
        renditions.announce(Key("digest " + "x" * 200, number, 0, 1), 10, "")
    renditions.note_unwarmed("jpg", "1-7")
    assert not renditions.record()
    assert renditions._writer is not None
    renditions._writer.execute("PRAGMA max_page_count = 100000")
    assert not renditions.record()  # not tried so soon again
    renditions._next_try = 0.0
    assert renditions.record()
    assert renditions.record()
    second = Renditions(path, "store")
    assert len(second.sizes("digest " + "x" * 200, numbers, (0, 0))) == len(numbers)
    assert second.unwarmed("jpg") == "1-7"
    second.close()
    assert len(expected_warnings) == 1


def test_full_disk_costs_no_picture(renditions: Renditions, caplog: pytest.LogCaptureFixture) -> None:
    renditions.announce(KEY, 10, "")
    fill_up(renditions)
    pools = [f"{number}:{'x' * 200}" for number in range(200)]
    for number, pool in enumerate(pools):
        renditions.announce(Key("digest " + "x" * 200, number, 0, 0), number, "")
        assert renditions.decide(pool, "auto", decision(1, 0.0)) == decision(1, 0.0)
        renditions.record()
    assert renditions.size(KEY) == 10
    recipe = "digest " + "x" * 200
    assert renditions.sizes(recipe, range(200), (0, 0)) == {(n, 0, 0): n for n in range(200)}
    assert all(renditions.decision(pool, "auto", 1) == decision(1, 0.0) for pool in pools)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2  # one for sizes, one for windows; not one for each picture
    with pytest.raises(StoreUnavailable):
        renditions.decide("x" * 5000, "auto", decision(2, 0.0))


def test_first_decision_stays_on_a_full_disk_and_after_it(
    path: Path, renditions: Renditions, expected_warnings: list[logging.LogRecord]
) -> None:
    """Somebody waits for what is being decided in the background, too: two decide, and one was shown."""
    fill_up(renditions)
    pool = "p" * 5000
    assert renditions.decide(pool, "auto", decision(1, 0.0)) == decision(1, 0.0)
    assert renditions.decide(pool, "auto", decision(1, 50.0)) == decision(1, 0.0)
    assert renditions.decision(pool, "auto", 1) == decision(1, 0.0)
    assert renditions._writer is not None
    renditions._writer.execute("PRAGMA max_page_count = 100000")
    assert renditions.decide(pool, "auto", decision(1, 50.0)) == decision(1, 0.0)
    with closing(Renditions(path, "store")) as second:
        assert second.decision(pool, "auto", 1) == decision(1, 0.0)
    assert len(expected_warnings) == 1


def test_what_another_mount_has_decided_holds_while_nothing_can_be_written(
    path: Path, renditions: Renditions
) -> None:
    with closing(Renditions(path, "store")) as second:
        second.decide("p", "auto", decision(1, 0.0))
    assert renditions._writer is not None
    renditions._writer.execute("PRAGMA query_only = on")
    assert renditions.decide("p", "auto", decision(1, 50.0)) == decision(1, 0.0)


def test_who_decides_in_a_thread_leaves_the_connection_of_readers_alone(renditions: Renditions) -> None:
    asked: list[str] = []
    renditions._reader.set_trace_callback(asked.append)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(renditions.decide, "p", "auto", decision(1, 0.0)).result() == decision(1, 0.0)
    assert asked == []
    assert renditions.decision("p", "auto", 1) == decision(1, 0.0)
    assert len(asked) == 1


def test_memory_for_what_cannot_be_written_is_bounded(
    renditions: Renditions, monkeypatch: pytest.MonkeyPatch, expected_warnings: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr("dicomfs.renditions.UNRECORDED", 10)
    fill_up(renditions)
    for number in range(500):
        renditions.announce(Key("x" * 500, number, 0, 0), 1, "")
        renditions.record()
    assert len(renditions._unrecorded) == 10
    assert renditions.size(Key("x" * 500, 499, 0, 0)) == 1
