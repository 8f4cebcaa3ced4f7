"""The file of a receiver: whole at any moment, told living from dead, taken over by the next receiver."""

import logging
import os
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dicomfs.activity import Activity
from dicomfs.runfile import SLOT_BYTES, Process, Record, Reporter, records
from dicomfs.slotfile import RUN_FOLDER
from tests.disk import fill, small_disk
from tests.support import wait_until

PROCESS = Process(pid=os.getpid(), started=1.8e9, ae_title="DICOMFS", port=11112, min_free=1 << 30)


def only(store: Path) -> Record:
    (record,) = records(store)
    return record


def opened(store: Path) -> int:
    """Associations opened so far, by all receivers."""
    return sum(record.activity.opened for record in records(store))


def test_others_see_what_is_counted_and_whether_it_runs(tmp_path: Path) -> None:
    activity = Activity()
    assert records(tmp_path) == []
    with Reporter(tmp_path, activity, PROCESS):
        assert only(tmp_path).process == PROCESS
        assert only(tmp_path).is_running
        activity.opened("CT1", "10.0.0.1", 1.8e9)
        wait_until(lambda: opened(tmp_path) == 1, "the next report")
        assert [one.ae_title for one in only(tmp_path).activity.visits] == ["CT1"]
    record = only(tmp_path)
    assert not record.is_running
    assert record.stopped == record.written > 1.7e9
    assert record.activity == activity.snapshot()


def test_nothing_is_written_while_nothing_happens(tmp_path: Path) -> None:
    activity = Activity()
    with Reporter(tmp_path, activity, PROCESS) as reporter:
        written = only(tmp_path).written
        for _ in range(3):
            reporter._report()
        assert only(tmp_path).written == written


def test_each_receiver_has_a_file_and_the_next_one_goes_on_in_it(tmp_path: Path) -> None:
    first, second, third = Activity(), Activity(), Activity()
    with Reporter(tmp_path, first, PROCESS):
        first.opened("CT1", "10.0.0.1", 1.8e9)
        with Reporter(tmp_path, second, replace(PROCESS, pid=2)):
            second.opened("CT2", "10.0.0.2", 1.8e9)
            assert [record.is_running for record in records(tmp_path)] == [True, True]
        assert [(record.process.pid, record.is_running) for record in records(tmp_path)] == [
            (PROCESS.pid, True),
            (2, False),
        ]
        with Reporter(tmp_path, third, replace(PROCESS, pid=3)):
            assert [record.process.pid for record in records(tmp_path)] == [PROCESS.pid, 3]
            assert third.snapshot().opened == 1
    assert opened(tmp_path) == 2
    assert len(list((tmp_path / RUN_FOLDER).iterdir())) == 2


def test_to_look_turns_no_receiver_away(tmp_path: Path) -> None:
    with Reporter(tmp_path, Activity(), PROCESS):
        pass
    path = tmp_path / RUN_FOLDER / "receiver-1"
    with path.open("rb"), Reporter(tmp_path, Activity(), PROCESS):
        assert only(tmp_path).is_running
    assert [one.name for one in path.parent.iterdir()] == ["receiver-1"]


def generations(path: Path) -> list[int]:
    """Of both slots, read by hand."""
    raw = path.read_bytes()
    return [struct.unpack_from("<L", raw, at + 4)[0] for at in (0, SLOT_BYTES)]


@pytest.mark.parametrize("spoiled", [0, 4, 9, 13, 30])
def test_half_a_report_leaves_the_one_before(tmp_path: Path, spoiled: int) -> None:
    activity = Activity()
    with Reporter(tmp_path, activity, PROCESS) as reporter:
        activity.opened("CT1", "10.0.0.1", 1.8e9)
        reporter._report()
    path = tmp_path / RUN_FOLDER / "receiver-1"
    newest = max(range(2), key=lambda slot: generations(path)[slot])
    assert only(tmp_path).stopped
    with path.open("r+b") as file:
        file.seek(newest * SLOT_BYTES + spoiled)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
    record = only(tmp_path)
    assert (record.stopped, record.activity.opened) == (0, 1)
    heir = Activity()
    with Reporter(tmp_path, heir, PROCESS):
        assert heir.snapshot().opened == 1
        assert sum(1 for generation in generations(path) if generation) == 2


@pytest.mark.parametrize("content", [b"", b"{}", bytes(2 * SLOT_BYTES), b"dcfs" + bytes(3 * SLOT_BYTES)])
def test_a_file_that_is_something_else_is_left_out_and_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RUN_FOLDER).mkdir()
    (tmp_path / RUN_FOLDER / "receiver-1").write_bytes(content)
    assert records(tmp_path) == []
    with Reporter(tmp_path, Activity(), PROCESS):
        assert only(tmp_path).is_running


def test_the_most_there_can_be_to_say_fits(tmp_path: Path) -> None:
    activity, now = Activity(), 1.8e9
    visits = [activity.opened("W" * 16, "2001:db8:1234:5678:9abc:def0:1234:5678", now) for _ in range(1000)]
    for minute in range(0, 24 * 60, 5):
        for number in range(30):
            at = now + 60 * minute
            activity.failed(f"reason {number % 10}", f"{'W' * 16} at 2001:db8::{number}", '"' * 300, at)
            activity.refused(visits[number], f"A700 {'w' * 64}", '"' * 300, at, is_trouble=True)
    with Reporter(tmp_path, activity, PROCESS):
        assert only(tmp_path).activity == activity.snapshot()


def test_reception_goes_on_when_it_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / RUN_FOLDER).write_text("in the way")
    activity = Activity()
    with caplog.at_level(logging.WARNING), Reporter(tmp_path, activity, PROCESS) as reporter:
        activity.opened("CT1", "10.0.0.1", 1.8e9)
        reporter._report()
        reporter._report()
        assert records(tmp_path) == []
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "receiving goes on" in caplog.text
        (tmp_path / RUN_FOLDER).unlink()
        wait_until(lambda: opened(tmp_path) == 1, "a report, now that it can be written")


def test_a_full_disk_has_room_for_what_there_is_to_say(tmp_path: Path) -> None:
    activity = Activity()
    with small_disk(tmp_path) as folder, Reporter(folder, activity, PROCESS):
        fill(folder)
        assert os.statvfs(folder).f_bavail == 0
        for number in range(3):
            activity.opened(f"CT{number}", "10.0.0.1", time.time())
        wait_until(lambda: opened(folder) == 3, "a report")
        activity.opened("CT4", "10.0.0.1", time.time())
        wait_until(lambda: opened(folder) == 4, "a report over the other half")
