"""A process that takes in an object is stopped after each step: what is left, and what the next start does.

Each row of the table in `dicomfs/ARCHITECTURE.md` by each door: once killed there, once with a loss of power
(`tests/disk.py`) where that may leave something else, and, where a kill leaves something behind that counts,
both after each other.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicomfs import cli, exitcodes
from dicomfs.index import Index
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates, Receipt
from dicomfs.scp import StorageSCP
from dicomfs.storage import sync_directory
from tests.disk import Disk, disk
from tests.made import RECEIVED, data_set, save, tree, walk
from tests.steps import STEPS, Door, Scene, Step, Stopping, import_words
from tests.stored import Contents, contents
from tests.support import LOCALHOST, ROOT, require
from tests.system.programs import NO_DELAY, original

DISK_BYTES = 512 << 20
_UID = "2.25.4711"
_SMALL = (10, 10)
_USUAL = (800, 1000)
"""Rows and columns: more than one PDU, and than one chunk of a file."""


@dataclass(frozen=True)
class Stage:
    """A store with what a step needs to be there, the object that comes, and how it comes."""

    step: Step
    door: Door
    store: Path
    object: Path
    digest: str
    """Of the object."""
    earlier: frozenset[str]
    """Digests of what was acknowledged before."""

    @property
    def _policy(self) -> Duplicates:
        return Duplicates.NEWEST if self.step.scene is Scene.OTHER else Duplicates.KEEP_FIRST

    def interrupt(self, power: Disk | None = None) -> bool:
        """Take the object in up to the step, then lose the power, or kill; True when 0000 was received."""
        with Stopping(self.step, self.door, self.store, self.object, self._policy) as stopping:
            sender = None
            if self.step.scene is not Scene.FIRST_START and (port := stopping.port()):
                sender = subprocess.Popen(_storescu(port, self.object), stderr=subprocess.PIPE, env=NO_DELAY)
            stopping.wait()
            if power is not None:
                power.lose_power()
            stopping.kill()
        return sender is not None and _SUCCESS in sender.communicate(timeout=30)[1]

    def send_again(self, power: Disk | None = None) -> bool:
        """By the same door, in this process; True when it was taken. Then the power is lost, before it ends.

        (An import loses it after its end: what it had open is synced by its closing.)
        """
        if self.door is Door.IMPORT:
            code = cli.main([*import_words(self.store, self._policy), str(self.object)])
            if power is not None:
                power.lose_power()
            return code == exitcodes.OK
        with Ingest.open(self.store, self._policy) as ingest:
            scp = StorageSCP.start(LOCALHOST, 0, "DICOMFS", ingest)
            argv = _storescu(scp.port, self.object)
            done = subprocess.run(argv, capture_output=True, check=False, timeout=30, env=NO_DELAY)
            if power is not None:
                power.lose_power()
            scp.stop(5)
        return _SUCCESS in done.stderr

    def restarted(self) -> Contents:
        """What is there after the next start, which has no object to take in."""
        with Ingest.open(self.store):
            pass
        return contents(self.store)


_SUCCESS = b"Store Response (Success)"


def _storescu(port: int, path: Path) -> list[str]:
    return [require("storescu"), "-v", "-aec", "DICOMFS", LOCALHOST, str(port), str(path)]


def _image(path: Path, uid: str, sides: tuple[int, int], comment: str) -> Path:
    pixels = np.arange(sides[0] * sides[1], dtype=np.uint16).reshape(sides)
    return save(path, data_set(SOPInstanceUID=uid, ImageComments=comment, pixels=pixels))


def _stage(step: Step, door: Door, store: Path, scratch: Path) -> Stage:
    path = _image(scratch / "object", _UID, _USUAL, "of interest")
    it = original(path)
    if step.scene is Scene.REFUSED:
        path.write_bytes(path.read_bytes().replace(_UID.encode(), _UID.replace("7", "/").encode()))
    earlier = []
    if step.scene is not Scene.FIRST_START:
        earlier.append(original(_image(scratch / "before", f"{_UID}.1", _SMALL, "before")))
    if step.scene is Scene.OTHER:
        earlier.append(original(_image(scratch / "first", _UID, _SMALL, "first version")))
    if earlier:
        with Ingest.open(store) as ingest:
            for one in [*earlier, *([it] if step.scene is Scene.MISSING else [])]:
                ingest.receive([one.data_set], Receipt(one.syntax, RECEIVED))
    if step.scene is Scene.MISSING:
        (gone,) = store.glob(f"archive/*/{it.digest}-*.dcm")
        gone.unlink()
        sync_directory(gone.parent)
    return Stage(step, door, store, path, it.digest, frozenset(one.digest for one in earlier))


def _check(stage: Stage, *, has_row: bool) -> None:
    """After the next start: all that was acknowledged, and nothing else. Sent again: exactly one original."""
    now = stage.restarted()
    assert frozenset(now.rows) == stage.earlier | ({stage.digest} if has_row else set())
    assert not now.orphans
    assert now.missing <= ({stage.digest} if stage.step.scene is Scene.MISSING else set())
    assert now.spool == 0
    _check_tree(stage, now)
    assert stage.send_again() == (stage.step.scene is not Scene.REFUSED)
    _check_whole(stage)


def _check_whole(stage: Stage) -> None:
    """The object is there, once, beside what was there before."""
    now = contents(stage.store)
    is_refused = stage.step.scene is Scene.REFUSED
    assert frozenset(now.rows) == now.archived == stage.earlier | (set() if is_refused else {stage.digest})
    assert is_refused or stage.digest in now.shown
    assert now.spool == 0
    _check_tree(stage, now)


def _check_tree(stage: Stage, now: Contents) -> None:
    """What a mount shows is what the index has."""
    index = Index(stage.store / "index.sqlite3")
    try:
        view, renditions = tree(stage.object.parent, index, formats=("dcm",))
        renditions.close()
        assert len([entry for entry in walk(view).values() if not entry.is_folder]) == len(now.shown)
    finally:
        index.close()


def _cases(wanted: Callable[[Step, Door], bool] = lambda *_: True) -> list[Any]:
    return [
        pytest.param(step, door, id=f"{step.title}-{door.value}")
        for step in STEPS
        for door in Door
        if step.point(door) is not None and wanted(step, door)
    ]


def _differs_without_power(step: Step, door: Door) -> bool:
    """Not before anything has its name in the archive; the first start is the same by both doors."""
    return step.archived or step.row or (step.scene is Scene.FIRST_START and door is Door.SCP)


@pytest.mark.usefixtures("caplog")
@pytest.mark.parametrize(("step", "door"), _cases())
def test_killed(step: Step, door: Door, tmp_path: Path) -> None:
    stage = _stage(step, door, tmp_path / "store", tmp_path)
    was_answered = stage.interrupt()
    left = contents(stage.store)
    assert left.spool == step.spool
    assert (stage.digest in left.archived) == step.archived
    assert (stage.digest in left.rows) == step.row
    assert was_answered == (step.acknowledged and door is Door.SCP)
    _check(stage, has_row=step.row)


_numbers = count()


@pytest.fixture(scope="module")
def power(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """One for all: each test has its own store there."""
    with disk(tmp_path_factory.mktemp("power"), DISK_BYTES) as made:
        yield made


@pytest.mark.usefixtures("caplog")
@pytest.mark.parametrize(("step", "door"), _cases(_differs_without_power))
def test_power_lost(step: Step, door: Door, power: Disk, tmp_path: Path) -> None:
    stage = _stage(step, door, power.mountpoint / f"store{next(_numbers)}", tmp_path)
    was_answered = stage.interrupt(power)
    power.restart()
    assert was_answered == (step.acknowledged and door is Door.SCP)
    _check(stage, has_row=step.survives(power_loss=True))


@pytest.mark.usefixtures("caplog")
@pytest.mark.parametrize(("step", "door"), _cases(lambda step, _: step.row))
def test_killed_then_sent_again_then_power_lost(step: Step, door: Door, power: Disk, tmp_path: Path) -> None:
    """What the killed process has left in the kernel's memory only is durable before anything is answered."""
    stage = _stage(step, door, power.mountpoint / f"store{next(_numbers)}", tmp_path)
    stage.interrupt()
    assert stage.send_again(power)
    power.restart()
    stage.restarted()
    _check_whole(stage)


def test_the_table_has_these_rows() -> None:
    text = (ROOT / "dicomfs" / "ARCHITECTURE.md").read_text()
    section = text.partition("## If it is killed between two steps\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|", section, re.MULTILINE)
    assert rows[1:] == [step.title for step in STEPS]
