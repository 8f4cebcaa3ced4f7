"""`kill -9` the receiver while DCMTK's senders send: whatever was acknowledged is there after a restart."""

import fcntl
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support import LOCALHOST, Running, command_line, connects, free_port, require, running
from tests.system.programs import (
    Original,
    acknowledged,
    dicomfs,
    original,
    sending,
    series,
    storescu,
    taken,
)

ROUNDS = 10
SENDERS = 2
IMAGES = 40
"""Of each sender in each round."""


@dataclass(frozen=True, slots=True)
class Receiver:
    running: Running
    port: int


@contextmanager
def receiving(store: Path, log: Path) -> Iterator[Receiver]:
    port = free_port()
    argv = command_line("scp", "--open", "--host", LOCALHOST, "--port", str(port), "--store", store)
    with running(argv, log, lambda: connects(port), "the receiver answers") as process:
        yield Receiver(process, port)


def in_store(store: Path) -> dict[str, Original]:
    """SOP Instance UID -> original, of every row of the index; each must be whole and called what it is."""
    with closing(sqlite3.connect(f"file:{store}/index.sqlite3?mode=ro", uri=True)) as index:
        rows = index.execute(
            "SELECT i.sop_uid, lower(hex(o.hash)), o.id "
            "FROM originals o JOIN instances i ON i.id = o.instance"
        ).fetchall()
        assert index.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found = {}
    for uid, digest, sequence in rows:
        found[uid] = original(store / "archive" / digest[:2] / f"{digest}-{sequence}.dcm")
        assert (found[uid].sop_uid, found[uid].digest) == (uid, digest)
    assert len(found) == len(rows)
    return found


def test_what_was_acknowledged_survives(tmp_path: Path) -> None:
    store, chance = tmp_path / "store", random.Random(917)
    promised: list[Path] = []
    everything: list[Path] = []
    interrupted = 0
    for number in range(ROUNDS):
        sets = [series(tmp_path / f"sent-{number}-{sender}", IMAGES) for sender in range(SENDERS)]
        everything += [path for files in sets for path in files]
        logs = [tmp_path / f"sender-{number}-{sender}.log" for sender in range(SENDERS)]
        with receiving(store, tmp_path / "scp.log") as receiver:
            senders = [sending(receiver.port, files, log) for files, log in zip(sets, logs, strict=True)]
            enough = chance.randrange(SENDERS * IMAGES)
            receiver.running.wait_until(partial(taken, logs, enough), "some objects were taken")
            receiver.running.process.kill()
            receiver.running.process.wait()
        for sender in senders:
            sender.wait(timeout=60)
        now = [path for log in logs for path in acknowledged(log)]
        interrupted += len(now) < SENDERS * IMAGES
        promised += now
        kept = in_store(store)
        for path in promised:
            assert original(path).sop_uid in kept, f"round {number}: {path.name} was acknowledged and is lost"
    assert interrupted  # else it was never killed at work
    assert promised

    with receiving(store, tmp_path / "scp.log") as receiver:
        assert not list((store / "incoming").iterdir())
        storescu(receiver.port, *everything)
    kept = in_store(store)
    assert kept.keys() == {original(path).sop_uid for path in everything}
    assert json.loads(dicomfs("status", "--json", "--store", store).stdout)["quarantined"] == 0
    on_disk = sorted(path.stem.split("-")[0] for path in (store / "archive").rglob("*.dcm"))
    assert on_disk == sorted(it.digest for it in kept.values())
    assert "Traceback" not in (tmp_path / "scp.log").read_text()


def test_spool_files_are_removed_unless_somebody_writes_them(tmp_path: Path) -> None:
    """Of two old spool files, one is held by a process that is slow: only the other one goes."""
    store = tmp_path / "store"
    with receiving(store, tmp_path / "one.log"):
        pass
    left, held = store / "incoming" / "left", store / "incoming" / "held"
    for path in (left, held):
        path.write_bytes(bytes(2000))
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with receiving(store, tmp_path / "two.log") as receiver:
            files = series(tmp_path / "sent", 2)
            storescu(receiver.port, *files)
            assert [path.name for path in (store / "incoming").iterdir()] == ["held"]
    assert in_store(store).keys() == {original(path).sop_uid for path in files}


@pytest.fixture(autouse=True)
def _tools() -> None:
    require("storescu")
