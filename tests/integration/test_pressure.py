"""The store in trouble while senders send: refused clearly, told once, and over when the cause is gone."""

import contextlib
import errno
import logging
import os
import resource
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dicomfs.database import BUSY_TIMEOUT_S
from dicomfs.indexfile import LOCKED_TIMEOUT_S
from dicomfs.ingest import Ingest
from dicomfs.scp import StorageSCP
from tests.disk import Disk
from tests.integration.test_power_loss import disk
from tests.integration.test_scp import (
    EXPLICIT,
    MR,
    Door,
    HungUpError,
    Part10,
    Service,
    Wire,
    opened,
    service,
    small_disk,
    synthetic,
)
from tests.support import wait_until

__all__ = ["disk", "service"]  # fixtures
REFUSED = 0xA700
USUAL_DIMSE_TIMEOUT_S = 30.0
DECADE_S = 3.2e8


def objects(first: int, count: int) -> list[Part10]:
    return [
        synthetic(f"1.2.826.0.1.3680043.8.498.{first + n}", InstanceNumber=n, AcquisitionDate="20240301")
        for n in range(count)
    ]


def send(port: int, parts: Sequence[Part10]) -> list[tuple[int, str]]:
    with Wire(port, [(MR, [EXPLICIT])]) as wire:
        return [wire.store(one.data_set, MR, one.sop_uid) for one in parts]


def statuses(port: int, parts: Sequence[Part10]) -> set[int]:
    return {status for status, _ in send(port, parts)}


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an administrator sees of trouble."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def check_refused_and_recovered(
    door: Door, caplog: pytest.LogCaptureFixture, remedy: str, sent: Sequence[Part10]
) -> None:
    """After `sent` was refused and the cause has gone: stored now, told in two lines."""
    assert statuses(door.port, sent) == {0}
    assert {kept.data_set for kept in door.originals()} == {one.data_set for one in sent}
    wait_until(door.is_tidy, "a tidy spool")
    assert door.rows("PRAGMA integrity_check") == [("ok",)]
    trouble, over = lines(caplog)
    assert remedy in trouble
    assert f"objects are stored again; {len(sent)} were refused before" in over


# The index


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Another program that keeps the index to itself."""
    with contextlib.closing(sqlite3.connect(store / "index.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_locked_index_is_answered_at_once_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dicomfs.indexfile.BUSY_TIMEOUT_S", 0.5)
    sent = objects(600, 24)
    with opened(tmp_path / "store") as door:
        with locked(door.store), ThreadPoolExecutor(8) as senders:
            answers = [*senders.map(lambda part: send(door.port, part), [sent[n::8] for n in range(8)])]
        expected = (REFUSED, "Index is locked; object not stored, please send again")
        assert {answer for part in answers for answer in part} == {expected}
        check_refused_and_recovered(door, caplog, "another program keeps the index locked", sent)


def test_a_sender_has_its_answer_before_its_own_time_limit() -> None:
    """The longest: it comes while somebody else's wait begins, then waits itself, as one of many."""
    assert BUSY_TIMEOUT_S + 10 * LOCKED_TIMEOUT_S < USUAL_DIMSE_TIMEOUT_S / 2


# The file system


def lose(one: Disk) -> None:
    """From now on the file system answers everything with an error, as after one of its disk."""
    one.lose_power()


def abort_journal(one: Disk) -> None:
    """What ext4 does by itself after an error (errors=remount-ro): it is read-only from now on."""
    subprocess.run(["mount", "-o", "remount,abort", one.mountpoint], check=False, capture_output=True)
    with pytest.raises(OSError, match="Read-only"):
        (one.mountpoint / "probe").touch()


def unmounts(one: Disk) -> bool:
    return subprocess.run(["umount", one.mountpoint], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("harm", [lose, abort_journal], ids=["input/output error", "read-only"])
def test_file_system_that_fails_is_unmounted_mended_and_used_again(
    disk: Disk, caplog: pytest.LogCaptureFixture, harm: Callable[[Disk], None]
) -> None:
    before, after = objects(610, 3), objects(620, 3)
    with opened(disk.mountpoint / "store") as door:
        assert statuses(door.port, before) == {0}
        harm(disk)
        assert statuses(door.port, after) == {REFUSED}
        # It is not held by the receiver, so that somebody can mend it.
        wait_until(lambda: unmounts(disk), "the end of its last use")
        assert statuses(door.port, after) == {REFUSED}
        assert not list(disk.mountpoint.iterdir()), "no new store on the bare mount point"
        disk.mount()
        assert statuses(door.port, after) == {0}
        assert {kept.data_set for kept in door.originals()} == {one.data_set for one in before + after}
        assert door.rows("SELECT count(*) FROM originals") == [(6,)]
        assert "kernel's log" in lines(caplog)[0]
        assert len(lines(caplog)) <= 3


def test_store_that_is_taken_away_is_not_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sent, store, elsewhere = objects(630, 5), tmp_path / "store", tmp_path / "elsewhere"
    with opened(store) as door:
        store.rename(elsewhere)
        store.mkdir()
        assert statuses(door.port, sent) == {REFUSED}
        assert not list(store.iterdir())
        store.rmdir()
        elsewhere.rename(store)
        check_refused_and_recovered(door, caplog, "is its file system mounted?", sent)


@pytest.mark.parametrize("fails", [stat.S_ISREG, stat.S_ISDIR], ids=["file", "folder"])
def test_failed_fsync_is_never_success(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: Callable[[int], bool],
) -> None:
    real, sent = os.fsync, objects(640, 4)

    def fsync(fd: int) -> None:
        if fails(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with opened(tmp_path / "store") as door:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            assert statuses(door.port, sent) == {REFUSED}
            assert not door.originals()
        check_refused_and_recovered(door, caplog, "errors of the disk in the kernel's log", sent)


def test_an_object_that_would_pass_the_watermark_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its size is not known before its end; there would be space for it if the disk were to be filled."""
    monkeypatch.setattr("dicomfs.ingest._LOOK_BYTES", 100_000)
    large = synthetic("1.2.826.0.1.3680043.8.498.650", PixelData=bytes(4_000_000))
    small = objects(651, 1)
    with small_disk(tmp_path / "disk", "7m") as folder:
        with Ingest.open(folder / "store", keep_free=lambda disk_bytes: disk_bytes // 2) as ingest:
            scp = StorageSCP.start("127.0.0.1", 0, "DICOMFS", ingest)
            try:
                assert statuses(scp.port, [large]) == {REFUSED}
                assert statuses(scp.port, small) == {0}
            finally:
                scp.stop(drain_seconds=5)
        assert len(list(folder.glob("store/archive/*/*.dcm"))) == 1
    assert "nothing is taken in below" in caplog.text


# Descriptors and threads


def test_without_descriptors_senders_are_refused_or_wait(service: Service, tmp_path: Path) -> None:
    pid, first, second = service.program.process.pid, objects(660, 1), objects(661, 1)
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(Wire(service.port, [(MR, [EXPLICIT])]))
        assert wire.store(first[0].data_set, MR, first[0].sop_uid) == (0, "")
        # None left, whichever number is free.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, most))
        answer = wire.store(second[0].data_set, MR, second[0].sop_uid)
        assert answer == (REFUSED, "Archive unavailable; object not stored, send again")
        # The listener has a number for the next one already, but not for the one after.
        idle = stack.enter_context(Wire(service.port, [(MR, [EXPLICIT])]))
        answers: list[tuple[int, str]] = []
        waiting = threading.Thread(target=lambda: answers.extend(send(service.port, second)))
        waiting.start()
        wait_until(lambda: "no further connection" in service.program.output(), "the complaint")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        waiting.join()
        assert answers == [(0, "")], "who waited is served"
        for one in (wire, idle):
            assert one.store(second[0].data_set, MR, second[0].sop_uid) == (0, "")
    assert len(list(tmp_path.glob("store/archive/*/*.dcm"))) == 2
    said = service.program.output()
    assert said.count("raise LimitNOFILE (ulimit -n)") == 1
    assert said.count("no further connection can be accepted now") == 1
    assert said.count("connections are accepted again") == 1


def test_without_threads_connections_are_closed_and_served_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start

    def no_start(thread: threading.Thread) -> None:
        if thread.name.startswith("association"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with opened(tmp_path / "store") as door:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_start)
            for _ in range(3):
                with pytest.raises((HungUpError, ConnectionError)):
                    send(door.port, objects(670, 1))
            assert not door.scp.connections
        assert statuses(door.port, objects(670, 1)) == {0}
    assert [line.partition(":")[0] for line in lines(caplog)] == [
        "a connection could not be served",
        "connections are accepted again",
    ]


# The clock


def test_clock_that_jumps_by_decades_changes_neither_order_nor_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, real = objects(680, 8), time.time
    shifts = [0.0, DECADE_S, -DECADE_S, 2 * DECADE_S, -3 * DECADE_S, 0.0, DECADE_S, -DECADE_S]

    def names(door: Door) -> list[tuple[object, ...]]:
        return door.rows(
            "SELECT i.sop_uid, p.folder, p.suffix, e.folder, e.suffix, s.label, i.number, i.suffix"
            " FROM instances i JOIN series s ON s.id = i.series JOIN exams e ON e.id = i.exam"
            " JOIN patients p ON p.id = e.patient ORDER BY i.id"
        )

    with opened(tmp_path / "quiet") as door:
        assert statuses(door.port, sent) == {0}
        expected = names(door)
    with opened(tmp_path / "jumps") as door, Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        for one, shift in zip(sent, shifts, strict=True):
            monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
            assert wire.store(one.data_set, MR, one.sop_uid) == (0, "")
        assert names(door) == expected
        received = [float(str(row[0])) for row in door.rows("SELECT received FROM originals ORDER BY id")]
        assert [round((moment - real()) / DECADE_S) for moment in received] == [
            round(s / DECADE_S) for s in shifts
        ]
        wait_until(door.is_tidy, "a tidy spool")
