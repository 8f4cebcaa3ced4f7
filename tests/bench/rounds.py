"""Rounds of `crashes.py`: senders at work, a sudden end, and what is there after the next start."""

import hashlib
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian

from dicomfs import importer
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates
from dicomfs.scp import StorageSCP
from tests.disk import Disk, disk, freeze
from tests.made import data_set, encoded, save
from tests.receiving import with_process
from tests.stored import Contents, contents
from tests.support import LOCALHOST, require
from tests.system.programs import NO_DELAY, acknowledged

_DISK_BYTES: Final = 1 << 30
_ROUNDS_A_STORE: Final = 5
_SENDERS: Final = 3
_LONGEST_S: Final = 0.5
_PATIENCE_S: Final = 60.0
_PLACEHOLDER: Final = "2.25." + "1" * 39
_SIZES: Final = (((40, 50), 60), ((256, 256), 25), ((512, 512), 10), ((24, 512, 512), 5))
"""Frames, rows and columns, and how often: 4 kB to 12 MB."""


@dataclass(frozen=True, slots=True)
class _Template:
    head: bytes
    """File meta information; the UID is a placeholder."""
    body: bytes


@dataclass(slots=True)
class Tally:
    """What was found in all rounds."""

    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Nothing lost, nothing found."""
        return not self.lost and not self.findings

    def lines(self) -> list[str]:
        """For people."""
        counted = [f"{number:8} {what}" for what, number in self.counts.items()]
        worst = [f"LOST     {what}" for what in self.lost] + [f"FOUND    {what}" for what in self.findings]
        return [*counted, f"{len(self.lost):8} lost", f"{len(self.findings):8} findings afterwards", *worst]


class Objects:
    """Makes DICOM files: new objects, other versions of earlier ones, equal ones again."""

    def __init__(self, scratch: Path, chance: random.Random) -> None:
        self._chance = chance
        self._templates = [_template(scratch / "template", sides) for sides, _ in _SIZES]
        self._weights = [often for _, often in _SIZES]
        self._earlier: list[tuple[str, int]] = []
        self.digests: dict[Path, str] = {}
        """Of each file that was made: the digest that its original has."""

    def forget(self) -> None:
        """A new store: nothing is known there."""
        self._earlier.clear()
        self.digests.clear()

    def write(self, folder: Path, count: int) -> list[Path]:
        """So many files."""
        folder.mkdir(parents=True)
        return [self._write(folder / f"{number:03}.dcm") for number in range(count)]

    def _write(self, path: Path) -> Path:
        edit = b""
        if self._earlier and self._chance.random() < 0.25:
            uid, kind = self._chance.choice(self._earlier)
            if self._chance.random() < 0.6:
                edit = self._chance.randbytes(8)
        else:
            uid = f"2.25.{self._chance.randrange(10**38, 10**39)}"
            kind = self._chance.choices(range(len(self._templates)), self._weights)[0]
            self._earlier.append((uid, kind))
        template = self._templates[kind]
        body = template.body.replace(_PLACEHOLDER.encode(), uid.encode())
        if edit:
            body = body[: -len(edit)] + edit
        path.write_bytes(template.head.replace(_PLACEHOLDER.encode(), uid.encode()) + body)
        self.digests[path] = hashlib.sha256(ExplicitVRLittleEndian.encode() + b"\0" + body).hexdigest()
        return path


def _template(path: Path, sides: tuple[int, ...]) -> _Template:
    pixels = np.random.default_rng(len(sides)).integers(0, 4096, sides, dtype=np.uint16)
    body = encoded(ds := data_set(SOPInstanceUID=_PLACEHOLDER, pixels=pixels))
    whole = save(path, ds).read_bytes()
    assert whole.endswith(body)
    return _Template(whole[: -len(body)], body)


# Processes that come to a sudden end


def _receive(store: Path, policy: Duplicates, has_process: bool, port: Pipe) -> None:
    """Tells its port, and the committer process (0: as yet there is none)."""
    logging.disable()
    ingest = Ingest.open(store, policy)
    committer = with_process(ingest) if has_process else 0
    port.send((StorageSCP.start(LOCALHOST, 0, "DICOMFS", ingest).port, committer))
    threading.Event().wait()


def _import(store: Path, policy: Duplicates, files: list[Path], log: Path) -> None:
    logging.disable()
    with Ingest.open(store, policy) as ingest, log.open("ab", buffering=0) as said:

        def done(result: importer.Result) -> None:
            if result.outcome is not None:
                said.write(f"{result.path}\n".encode())

        importer.take_in(ingest, files, done)


_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.bench.rounds"])


def _started(work: Callable[..., None], *words: object) -> BaseProcess:
    process = _FORKS.Process(target=work, args=words, daemon=True)
    process.start()
    return process


# Rounds


class Rounds:
    """All rounds on one store after another."""

    def __init__(self, scratch: Path, home: Path, chance: random.Random, power: Disk | None) -> None:
        self._scratch = scratch
        self._home = home
        self._chance = chance
        self._power = power
        self._objects = Objects(scratch, chance)
        self._promised: set[str] = set()
        self._number = 0
        self.tally = Tally()

    def run(self) -> None:
        """One more."""
        if self._number % _ROUNDS_A_STORE == 0:
            for store in self._home.glob("store*"):
                shutil.rmtree(store)
            self._objects.forget()
            self._promised.clear()
            self._store = self._home / f"store{self._number}"
        work = self._scratch / f"round{self._number}"
        self._number += 1
        answered = self._interrupt(work)
        self.tally.counts["objects acknowledged"] += len(answered)
        self._promised |= {self._objects.digests[path] for path in answered}
        self._check()
        shutil.rmtree(work)

    def _interrupt(self, work: Path) -> list[Path]:
        """Senders at work, and a sudden end; what was acknowledged."""
        policy = self._chance.choice(list(Duplicates))
        sets = [self._objects.write(work / str(n), self._chance.randint(4, 16)) for n in range(_SENDERS + 1)]
        logs = [work / f"{n}.log" for n in range(_SENDERS + 1)]
        port, there = _FORKS.Pipe(duplex=False)
        receiver = _started(_receive, self._store, policy, self._chance.random() < 0.5, there)
        number, committer = port.recv()
        senders = [_storescu(number, files, log) for files, log in zip(sets, logs[1:], strict=False)]
        bringer = _started(_import, self._store, policy, sets[-1], logs[0])
        time.sleep(self._chance.random() * _LONGEST_S)
        self.tally.counts["ends while objects were under way"] += any(it.poll() is None for it in senders)
        if self._power is not None:
            for process in (receiver, bringer):
                with suppress(ProcessLookupError):
                    freeze(process.pid or 0)
            self._power.lose_power()
            _kill(receiver, bringer)
        elif committer and self._chance.random() < 0.5:
            with suppress(ProcessLookupError):
                os.kill(committer, signal.SIGKILL)
        else:
            _kill(*self._chance.choice([(receiver,), (bringer,), (receiver, bringer)]))
        for sender in senders:
            sender.wait(_PATIENCE_S)
        bringer.join(_PATIENCE_S)
        _kill(receiver, bringer)
        if self._power is not None:
            self._power.restart()
        brought = logs[0].read_text().splitlines(keepends=True) if logs[0].exists() else []
        answered = [path for log in logs[1:] for path in acknowledged(log)]
        return answered + [Path(line.strip()) for line in brought if line.endswith("\n")]

    def _check(self) -> None:
        tally, before = self.tally, contents(self._store, is_cleaned=False)
        tally.counts["spool files left"] += before.spool
        tally.counts["of them with a name in the archive and no row"] += len(before.orphans)
        with Ingest.open(self._store):
            pass
        now = contents(self._store)
        where = f"round {self._number}"
        tally.lost += [f"{where}: {it}" for it in self._promised - (set(now.rows) & now.archived)]
        tally.findings += [f"{where}: {what}" for what in _findings(now)]


def _findings(now: Contents) -> list[str]:
    return [
        *(f"row without original: {digest}" for digest in now.missing),
        *(f"original without row: {digest}" for digest in now.orphans),
        *([f"{now.spool} files in incoming/"] if now.spool else []),
    ]


def _storescu(port: int, files: list[Path], log: Path) -> "subprocess.Popen[bytes]":
    argv = [require("storescu"), "-v", "--no-halt", "-aec", "DICOMFS", LOCALHOST, str(port), *map(str, files)]
    with log.open("wb") as said:
        return subprocess.Popen(argv, stdout=said, stderr=subprocess.STDOUT, env=NO_DELAY)


def _kill(*processes: BaseProcess) -> None:
    for process in processes:
        process.kill()
        process.join()


def crash(rounds: int, seed: int, scratch: Path, *, power: bool) -> Tally:
    """So many rounds, each with a loss of power or with a kill."""
    scratch.mkdir()
    with ExitStack() as ending:
        lost = ending.enter_context(disk(scratch, _DISK_BYTES)) if power else None
        home = lost.mountpoint if lost else scratch / "home"
        home.mkdir(exist_ok=True)
        work = Rounds(scratch, home, random.Random(seed), lost)
        for number in range(rounds):
            work.run()
            if number % 10 == 9:
                print(f"{number + 1} of {rounds} {'power losses' if power else 'kills'}", file=sys.stderr)
    return work.tally
