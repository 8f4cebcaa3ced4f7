"""The committer process: the same outcomes as without it, whatever becomes of it, and never in the way."""

import errno
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from dicomfs import committerprocess
from dicomfs import ingest as module
from dicomfs.committerprocess import CommitterProcess
from dicomfs.errors import StoreFull, StoreUnavailable
from dicomfs.ingest import Ingest, Prepared
from dicomfs.lock import StoreLock
from dicomfs.model import Duplicates, Header, Outcome, Receipt, Stored
from dicomfs.scp import StorageSCP
from dicomfs.writer import Writer
from tests.disk import states
from tests.made import data_set, encoded
from tests.receiving import with_process
from tests.stops import Point
from tests.stored import contents
from tests.support import LOCALHOST, ROOT, wait_until
from tests.system.programs import acknowledged, original, sending, series, taken
from tests.system.test_kill_receiver import in_store
from tests.unit.test_archive import image, numbers, take

_SQL = "tests.stops:Statements.execute"


def _after(target: str, nth: int = 1, text: str = "") -> Point:
    return Point(target, nth=nth, text=text)


STEPS = {
    "write transaction begun": _after(_SQL, text="BEGIN IMMEDIATE"),
    "first named in the archive": _after("dicomfs.archive:Archive.publish"),
    "second named in the archive": _after("dicomfs.archive:Archive.publish", nth=2),
    "rows written": _after("dicomfs.writer:Writer.add", nth=2),
    "folders synced": _after("dicomfs.batch:sync_directory"),
    "before COMMIT": Point(_SQL, is_before=True, text="COMMIT"),
    "COMMIT": _after(_SQL, text="COMMIT"),
    "answered": _after("multiprocessing.connection:Connection.send", nth=2),
}
"""The first message is that the process is ready."""


def put_in_place(monkeypatch: pytest.MonkeyPatch, how: str, detail: str = "") -> None:
    command = (sys.executable, "-m", "tests.committers", how, detail)
    monkeypatch.setattr(committerprocess, "COMMAND", command)


@contextmanager
def opened(
    store: Path,
    policy: Duplicates = Duplicates.KEEP_FIRST,
    *,
    alone: bool = False,
    silence_s: float = committerprocess.SILENCE_S,
) -> Iterator[Ingest]:
    """A store whose committer process is ready; `alone`: that has none."""
    with Ingest.open(store, policy) as ingest:
        ingest._process = CommitterProcess(store, silence_s)
        if not alone:
            with_process(ingest)
        yield ingest


def together(ingest: Ingest, sent: Sequence[bytes]) -> list[Outcome | BaseException]:
    """Take these in, each by a sender of its own, as one batch."""
    commit, waiting = ingest.commit, []

    def noted(prepared: Prepared) -> "Future[Outcome]":
        done = commit(prepared)
        waiting.append(prepared)
        return done

    with patch.object(ingest, "commit", noted), ThreadPoolExecutor(len(sent)) as threads:
        with ingest._turn:
            taken = [threads.submit(take, ingest, one) for one in sent]
            wait_until(lambda: len(waiting) == len(sent), "all wait for the committer", poll_seconds=0.002)
        return [future.exception() or future.result() for future in taken]


def stored(outcomes: Sequence[Outcome | BaseException]) -> list[Stored | type]:
    return [it.stored if isinstance(it, Outcome) else type(it) for it in outcomes]


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or states(pid) == {"Z"}


def test_it_commits_what_several_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("committed by the parent")

    with opened(tmp_path) as ingest:
        monkeypatch.setattr(Ingest, "_commit", never)
        pid = ingest._process.pid
        for first in (0, 5):
            outcomes = together(ingest, [image(number) for number in range(first, first + 5)])
            assert stored(outcomes) == [Stored.NEW] * 5
        assert stored(together(ingest, [image(0), image(1)])) == [Stored.ALREADY_THERE] * 2
        assert ingest._process.pid == pid
    assert gone(pid)
    assert numbers(tmp_path) == list(range(1, 11))
    assert not list((tmp_path / "incoming").iterdir())


def test_it_has_nothing_of_its_parents(tmp_path: Path) -> None:
    with opened(tmp_path) as ingest, ingest.archive.spool("1.2"):
        links = [str(path.readlink()) for path in Path(f"/proc/{ingest._process.pid}/fd").iterdir()]
    files = {Path(link).name for link in links if link.startswith(str(tmp_path))}
    assert files == {"index.sqlite3", "index.sqlite3-wal", "index.sqlite3-shm", "lock"}
    assert len([link for link in links if link.startswith("socket:")]) == 1


def test_who_wants_the_store_alone_is_not_sent_to_it(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StoreUnavailable, match="is in use: stop") as refused:
        StoreLock(tmp_path, alone=True)
    assert re.findall(r"process (\d+)", str(refused.value)) == [str(os.getpid())]


def test_it_is_started_when_several_send_much_and_ended_when_nobody_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = module.WORTH_A_PROCESS // 2
    with Ingest.open(tmp_path) as ingest:
        for number in range(2 * half):
            assert take(ingest, image(number)).stored is Stored.NEW
        together(ingest, [image(100 + number) for number in range(half)])
        assert ingest._process.pid == 0
        together(ingest, [image(200 + number) for number in range(half)])
        pid = ingest._process.pid
        assert pid
        monkeypatch.setattr(module, "_IDLE_S", 0.01)
        take_part = together(ingest, [image(300), image(301)])  # the wait that has begun is still a long one
        assert stored(take_part) == [Stored.NEW] * 2
        wait_until(lambda: not ingest._process.pid, "nobody has sent anything for a while")
        assert gone(pid)
        together(ingest, [image(400), image(401)])
        assert not ingest._process.pid
    assert len(numbers(tmp_path)) == 4 * half + 4


def test_the_map_has_a_row_for_each_step() -> None:
    text = (ROOT / "dicomfs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("| the committer process killed after |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (.+?) \|", table, re.MULTILINE) == list(STEPS)


HANGS = ("second named in the archive", "answered")


@pytest.mark.parametrize(
    ("step", "is_killed"),
    [*((step, True) for step in STEPS), *((step, False) for step in HANGS)],
    ids=lambda value: {True: "killed", False: "hangs"}.get(value, value),
)
@pytest.mark.usefixtures("expected_warnings")
def test_stopped_after_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, is_killed: bool
) -> None:
    """Everybody has the answer that he would have had, and everything is there once."""
    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(0))
    put_in_place(monkeypatch, "stop", json.dumps(asdict(STEPS[step])))
    silence_s = committerprocess.SILENCE_S if is_killed else 0.5
    with opened(tmp_path, silence_s=silence_s) as ingest, ThreadPoolExecutor(1) as threads:
        pid = ingest._process.pid
        taken = threads.submit(together, ingest, [image(1), image(2), image(0)])
        wait_until(lambda: gone(pid) or states(pid) == {"T"}, step, poll_seconds=0.002)
        if is_killed:
            os.kill(pid, signal.SIGKILL)
        assert stored(taken.result(30)) == [Stored.NEW, Stored.NEW, Stored.ALREADY_THERE]
        # Where it had answered, this is where its end is found out.
        assert stored(together(ingest, [image(3), image(4)])) == [Stored.NEW] * 2
        assert gone(pid)
        assert not list((tmp_path / "incoming").iterdir())
    assert len(numbers(tmp_path)) == 5


@pytest.mark.usefixtures("expected_warnings")
@pytest.mark.parametrize("policy", [Duplicates.KEEP_FIRST, Duplicates.NEWEST, Duplicates.BOTH])
def test_what_was_committed_by_one_that_was_killed_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Duplicates
) -> None:
    with Ingest.open(tmp_path, policy) as ingest:
        take(ingest, image(1))
        take(ingest, image(2))
    put_in_place(monkeypatch, "stop", json.dumps(asdict(STEPS["COMMIT"])))
    with opened(tmp_path, policy) as ingest, ThreadPoolExecutor(1) as threads:
        pid = ingest._process.pid
        other = [image(1, text="another version"), stranger(2), image(3)]
        taken = threads.submit(together, ingest, other)
        wait_until(lambda: states(pid) == {"T"}, "it has committed", poll_seconds=0.002)
        os.kill(pid, signal.SIGKILL)
        outcomes = taken.result(30)
    assert stored(outcomes) == [Stored.OTHER_VERSION, Stored.OTHER_VERSION, Stored.NEW]
    said = [" ".join(it.warnings) if isinstance(it, Outcome) else "" for it in outcomes]
    assert ["another patient" in text for text in said] == [False, True, False]
    assert ["differs from" in text for text in said] == [True, True, False]


def stranger(number: int) -> bytes:
    """An image of that number that is of somebody else."""
    return encoded(
        data_set(
            SOPInstanceUID=f"2.25.77{number}",
            InstanceNumber=number,
            PatientName="Roe^Richard",
            PatientID="another",
            PatientBirthDate="19310101",
        )
    )


@pytest.mark.parametrize("policy", Duplicates)
def test_outcomes_are_those_without_it(tmp_path: Path, policy: Duplicates) -> None:
    batches = [
        [image(number) for number in range(6)],
        [image(0), image(1, text="another"), stranger(2), image(6), image(6)],
        [image(1, text="another"), image(1, text="a third"), stranger(2), image(7)],
    ]

    def all_of(name: str, *, alone: bool) -> tuple[object, ...]:
        with opened(tmp_path / name, policy, alone=alone) as ingest:
            outcomes = [
                # Two that are equal come in any order.
                sorted(str(it) if isinstance(it, Outcome) else repr(it) for it in together(ingest, batch))
                for batch in batches
            ]
            assert bool(ingest._process.pid) != alone
        there = contents(tmp_path / name)
        assert not there.orphans
        return outcomes, there.rows.keys(), there.shown, there.spool

    assert all_of("with", alone=False) == all_of("without", alone=True)


def test_a_missing_original_is_repaired(tmp_path: Path) -> None:
    """Which only the parent can do, and with it the whole batch."""
    with opened(tmp_path) as ingest:
        together(ingest, [image(0), image(1)])
        pid = ingest._process.pid
        (gone_file,) = tmp_path.glob("archive/*/*-1.dcm")
        gone_file.unlink()
        outcomes = together(ingest, [image(0), image(1), image(2)])
        assert set(stored(outcomes)) == {Stored.REPAIRED, Stored.ALREADY_THERE, Stored.NEW}
        assert ingest._process.pid == pid
    assert len(numbers(tmp_path)) == 3


def test_a_full_disk_is_told_by_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreFull("no space")

    put_in_place(monkeypatch, "full")
    with opened(tmp_path) as ingest:
        pid = ingest._process.pid
        assert stored(together(ingest, [image(0), image(1)])) == [Stored.NEW] * 2
        with monkeypatch.context() as broken:
            broken.setattr(Writer, "add", full)
            assert stored(together(ingest, [image(2), image(3)])) == [StoreFull] * 2
        assert ingest._process.pid == pid
    assert len(numbers(tmp_path)) == 2
    assert not list((tmp_path / "incoming").iterdir())


def test_a_bug_of_it_is_one_line_and_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_in_place(monkeypatch, "bug", "Doe^Jane")
    with opened(tmp_path) as ingest:
        assert stored(together(ingest, [image(0), image(1)])) == [Stored.NEW] * 2
    (record,) = caplog.records
    assert "internal error of the committer process: RuntimeError" in record.getMessage()
    assert "Doe" not in caplog.text


def test_a_locked_index_is_waited_for_by_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Ingest._settle
    with opened(tmp_path) as ingest:
        blocker = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None, check_same_thread=False)
        blocker.execute("BEGIN IMMEDIATE")

        def settled(self: Ingest, batch: list[Prepared]) -> None:
            blocker.execute("ROLLBACK")
            settle(self, batch)

        monkeypatch.setattr(Ingest, "_settle", settled)
        assert stored(together(ingest, [image(0), image(1)])) == [Stored.NEW] * 2
        blocker.close()
    assert numbers(tmp_path) == [1, 2]


@pytest.mark.usefixtures("expected_warnings")
def test_an_answer_that_is_not_understood_is_never_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    with opened(tmp_path) as ingest:
        pid = ingest._process.pid
        with monkeypatch.context() as broken:
            broken.setattr("multiprocessing.connection.Connection.recv", no_memory)
            # Whether it had committed them or not.
            assert stored(together(ingest, [image(0), image(1)])) == [Stored.NEW] * 2
        assert gone(pid)
        assert stored(together(ingest, [image(2), image(3)])) == [Stored.NEW] * 2
    assert len(numbers(tmp_path)) == 4
    assert not list((tmp_path / "incoming").iterdir())


def test_without_a_descriptor_for_it_the_parent_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("socket.socketpair", none_left)
    with Ingest.open(tmp_path) as ingest:
        ingest._together = module.WORTH_A_PROCESS
        for number in (0, 2):
            assert stored(together(ingest, [image(number), image(number + 1)])) == [Stored.NEW] * 2
    (record,) = caplog.records
    assert "cannot be started: Too many open files; receiving goes on" in record.getMessage()


def test_one_of_another_version_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The package may have been replaced since the receiver was started."""
    monkeypatch.setattr(committerprocess, "READY", ("ready", "0.0.9"))
    with Ingest.open(tmp_path) as ingest:
        ingest._together = module.WORTH_A_PROCESS
        assert stored(together(ingest, [image(0), image(1)])) == [Stored.NEW] * 2
        wait_until(lambda: not ingest._process.is_ready() and not ingest._process.pid, "it is given up")
    (record,) = caplog.records
    assert "is of another version: restart the receiver" in record.getMessage()


@pytest.mark.usefixtures("expected_warnings")
def test_a_bug_of_the_committer_thread_is_an_answer_and_not_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    with opened(tmp_path) as ingest:
        with monkeypatch.context() as broken:
            broken.setattr(CommitterProcess, "is_ready", bug)
            assert stored(together(ingest, [image(0), image(1)])) == [ZeroDivisionError] * 2
        assert stored(together(ingest, [image(0), image(1)])) == [Stored.NEW] * 2


@pytest.mark.usefixtures("expected_warnings")
def test_one_that_commits_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as ingest:
        pid = ingest._process.pid
        values = [(None,) * len(fields(kind)) for kind in (Header, Receipt)]
        monkeypatch.setattr(committerprocess, "message", lambda _: [("nowhere", b"", 0, *values)])
        for number in range(0, 10, 2):
            assert not gone(pid)
            assert stored(together(ingest, [image(number), image(number + 1)])) == [Stored.NEW] * 2
        assert gone(pid)
        assert stored(together(ingest, [image(20), image(21)])) == [Stored.NEW] * 2


def test_an_archive_in_trouble_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file system may have to be unmounted, so nobody may have a file of it open."""

    def gone_read_only(*_: object) -> None:
        raise StoreUnavailable("on purpose")

    with opened(tmp_path) as ingest:
        pid = ingest._process.pid
        monkeypatch.setattr(Writer, "add", gone_read_only)
        with pytest.raises(StoreUnavailable):
            take(ingest, image(0))
        assert gone(pid)
        assert not ingest._process.is_ready()
        assert not ingest._process.pid  # nor is it started again at once


@pytest.mark.parametrize(
    ("how", "says"), [("end", r"does not start \(exit code 3\)"), ("silent", "is not ready")]
)
def test_one_that_cannot_start_is_tried_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str, says: str
) -> None:
    now = 0.0
    put_in_place(monkeypatch, how)
    with Ingest.open(tmp_path) as ingest:
        ingest._process = process = CommitterProcess(tmp_path, clock=lambda: now)
        ingest._together = module.WORTH_A_PROCESS
        for pause_s in (1, 2):
            assert stored(together(ingest, [image(pause_s), image(10 + pause_s)])) == [Stored.NEW] * 2
            assert process.pid
            if how == "silent":
                now += committerprocess.START_S + 1
            wait_until(lambda: not process.is_ready() and not process.pid, "it is given up")
            now += pause_s - 0.1
            assert not process.is_ready()
            assert not process.pid
            now += 0.2
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all(re.search(says, message) for message in messages)
    assert len(numbers(tmp_path)) == 4


def test_a_program_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(committerprocess, "COMMAND", (str(tmp_path / "nothing"),))
    with Ingest.open(tmp_path / "store") as ingest:
        ingest._together = module.WORTH_A_PROCESS
        for number in range(0, 6, 2):
            assert stored(together(ingest, [image(number), image(number + 1)])) == [Stored.NEW] * 2
    (record,) = caplog.records
    assert "cannot be started: No such file" in record.getMessage()


@pytest.mark.usefixtures("expected_warnings")
def test_killed_while_senders_are_at_work(tmp_path: Path) -> None:
    senders, images = 4, 25
    logs: list[Path] = []
    for number, enough in enumerate((20, 60)):
        files = [series(tmp_path / f"sent-{number}-{sender}", images) for sender in range(senders)]
        now = [tmp_path / f"log-{number}-{sender}" for sender in range(senders)]
        logs += now
        with opened(tmp_path / "store") as ingest:
            scp = StorageSCP.start(LOCALHOST, 0, "DICOMFS", ingest)
            running = [sending(scp.port, *one) for one in zip(files, now, strict=True)]
            wait_until(partial(taken, now, enough), "some are taken", poll_seconds=0.005)
            if pid := ingest._process.pid:
                os.kill(pid, signal.SIGKILL)
            assert [process.wait(60) for process in running] == [0] * senders
            scp.stop(5)
    answered = [original(path).sop_uid for log in logs for path in acknowledged(log)]
    assert len(answered) == 2 * senders * images
    assert in_store(tmp_path / "store").keys() == set(answered)
    there = contents(tmp_path / "store")
    assert not there.orphans
    assert there.spool == 0


PARENT = """
import sys
from pathlib import Path
from dicomfs import committerprocess, ingest
from tests.integration.test_committer import opened, together
from tests.system.test_kill_receiver import in_store
from tests.unit.test_archive import image

committerprocess.COMMAND = tuple(sys.argv[2:])
with opened(Path(sys.argv[1])) as ingest:
    print(ingest._process.pid, flush=True)
    together(ingest, [image(1), image(2)])
    Event().wait()
"""


@pytest.mark.parametrize("step", ["second named in the archive", "COMMIT"])
def test_it_ends_with_its_parent_and_the_next_start_finds_what_it_left(tmp_path: Path, step: str) -> None:
    stopping = (sys.executable, "-m", "tests.committers", "stop", json.dumps(asdict(STEPS[step])))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "store"), *stopping],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: states(pid) == {"T"}, step)
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: gone(pid), "it has ended with its parent")
    with Ingest.open(tmp_path / "store"):
        pass
    there = contents(tmp_path / "store")
    assert len(there.rows) == (2 if step == "COMMIT" else 0)
    assert not there.orphans
    assert there.spool == 0
