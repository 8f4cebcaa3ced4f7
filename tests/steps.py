"""The steps on the way of an object into the store, and a process that stops after any of them.

`STEPS` is the one list of them: `dicomfs/ARCHITECTURE.md` has a row for each ("If it is killed between two
steps"), and `tests/integration/test_crash_table.py` tests each. A step is found by the function that does it,
so that nothing in the product knows of this. The process comes from a fork server that has everything
imported; at its point it stops itself (SIGSTOP), for the test to kill it there.
"""

import logging
import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final, Self

from dicomfs import cli
from dicomfs.errors import StoreUnavailable
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates
from dicomfs.scp import StorageSCP
from dicomfs.writer import Writer
from tests.disk import states
from tests.stops import Point, Statements, stop_at, watch_statements
from tests.support import LOCALHOST, wait_until


class Door(Enum):
    """How an object comes in."""

    SCP = "scp"
    IMPORT = "import"


class Scene(Enum):
    """What is there already, and what comes."""

    FIRST_START = auto()
    """No store at all, and nothing comes."""
    NEW = auto()
    """An object that is new."""
    REFUSED = auto()
    """An object without valid UIDs."""
    FAILED = auto()
    """A new one, for which no row can be made."""
    MISSING = auto()
    """One that has a row, but whose original is gone."""
    OTHER = auto()
    """Another version of one that is shown, with `duplicates=newest`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the crash table."""

    title: str
    """As in the first column."""
    scp: Point | None
    imported: Point | None
    """The same for `dicomfs import`; None: that door does not do that, or not at once."""
    spool: int = 0
    """Files in incoming/ when it was killed there."""
    archived: bool = False
    """Whether the object's original is in the archive when it was killed there."""
    row: bool = False
    """Whether the object has a row when it was killed there; so it has one for ever."""
    durable: bool | None = None
    """Whether it has one after a loss of power; None: the same."""
    acknowledged: bool = False
    """The sender was told."""
    scene: Scene = Scene.NEW
    is_synced: bool = True
    """False: SQLite does not sync what it commits, as if it were killed before it does."""

    def point(self, door: Door) -> Point | None:
        """Where a process of that door stops."""
        return self.scp if door is Door.SCP else self.imported

    def survives(self, *, power_loss: bool) -> bool:
        """Whether the object is in the index afterwards."""
        return self.row if not power_loss or self.durable is None else self.durable


def _after(target: str, nth: int = 1, text: str = "") -> tuple[Point, Point]:
    point = Point(target, nth=nth, text=text)
    return point, point


def _before(target: str, nth: int = 1, text: str = "") -> tuple[Point, Point]:
    point = Point(target, is_before=True, nth=nth, text=text)
    return point, point


_ARCHIVE: Final = "dicomfs.archive:"
_SQL: Final = "tests.stops:Statements.execute"
_SEND: Final = "dicomfs.connection:Connection.send"
"""The first call answers the association request, the second the C-STORE request."""
_TELL: Final = "dicomfs.filescommand:Tally.note"

STEPS: Final = (
    Step(
        "some folders of a new store made",
        *_after("pathlib:Path.mkdir", nth=100),
        scene=Scene.FIRST_START,
    ),
    Step(
        "all folders made, not synced",
        *_before(f"{_ARCHIVE}sync_directory"),
        scene=Scene.FIRST_START,
    ),
    Step("folders synced", *_before("dicomfs.indexfile:IndexFile.__init__"), scene=Scene.FIRST_START),
    Step("index file made", *_after("dicomfs.indexfile:switch_to_wal"), scene=Scene.FIRST_START),
    Step("tables of the index written", *_before(_SQL, text="COMMIT"), scene=Scene.FIRST_START),
    Step("tables committed", *_after(_SQL, text="COMMIT"), scene=Scene.FIRST_START),
    Step("spool file opened", *_after(f"{_ARCHIVE}Archive.spool"), spool=1),
    Step("partly written", *_after(f"{_ARCHIVE}Spool.write"), spool=1),
    Step("wholly written", *_before("dicomfs.ingest:read_header"), spool=1),
    Step("header read", *_after("dicomfs.ingest:read_header"), spool=1),
    Step(
        "header refused",
        Point(f"{_ARCHIVE}Archive.keep_aside", is_before=True),
        Point(f"{_ARCHIVE}Spool.close", is_before=True),
        spool=1,
        scene=Scene.REFUSED,
    ),
    Step(
        "moved to quarantine, without its reason",
        Point("pathlib:Path.write_text", is_before=True),
        None,
        scene=Scene.REFUSED,
    ),
    Step("file meta written", *_after(f"{_ARCHIVE}Spool.seal"), spool=1),
    Step("spool file synced", None, Point(f"{_ARCHIVE}Spool.sync"), spool=1),
    Step("write transaction begun", *_after(_SQL, text="BEGIN IMMEDIATE"), spool=1),
    Step("named in the archive", *_after(f"{_ARCHIVE}Archive.publish"), spool=1, archived=True),
    Step("rows written", *_after("dicomfs.writer:Writer.add"), spool=1, archived=True),
    Step("synced under its name", Point(f"{_ARCHIVE}Spool.sync"), None, spool=1, archived=True),
    Step("folder synced", *_after("dicomfs.batch:sync_directory"), spool=1, archived=True),
    Step("before COMMIT", *_before(_SQL, text="COMMIT"), spool=1, archived=True),
    Step(
        "COMMIT written, not synced",
        *_after(_SQL, text="COMMIT"),
        spool=1,
        archived=True,
        row=True,
        durable=False,
        is_synced=False,
    ),
    Step("COMMIT", *_after(_SQL, text="COMMIT"), spool=1, archived=True, row=True),
    Step(
        "caller told, before 0000",
        Point(_SEND, is_before=True, nth=2),
        None,
        spool=1,
        archived=True,
        row=True,
    ),
    Step("0000 sent", Point(_SEND, nth=2), None, spool=1, archived=True, row=True, acknowledged=True),
    Step(
        "second name removed",
        Point(f"{_ARCHIVE}Spool.close"),
        Point(_TELL, is_before=True),
        archived=True,
        row=True,
        acknowledged=True,
    ),
    Step("an import: told", None, Point(_TELL), archived=True, row=True, acknowledged=True),
    Step(
        "next spool file made",
        Point(f"{_ARCHIVE}Archive.spool", nth=2),
        None,
        spool=1,
        archived=True,
        row=True,
        acknowledged=True,
    ),
    Step(
        "rolled back",
        *_before(f"{_ARCHIVE}Archive.withdraw"),
        spool=1,
        archived=True,
        scene=Scene.FAILED,
    ),
    Step("withdrawn from the archive", *_after(f"{_ARCHIVE}Archive.withdraw"), spool=1, scene=Scene.FAILED),
    Step(
        "a missing original: its file meta written",
        *_after(f"{_ARCHIVE}Spool.seal", nth=2),
        spool=1,
        row=True,
        scene=Scene.MISSING,
    ),
    Step(
        "a missing original: synced again",
        Point(f"{_ARCHIVE}Spool.sync"),
        Point(f"{_ARCHIVE}Spool.sync", nth=2),
        spool=1,
        row=True,
        scene=Scene.MISSING,
    ),
    Step(
        "a missing original: back in the archive",
        *_after(f"{_ARCHIVE}Archive.publish"),
        spool=1,
        archived=True,
        row=True,
        scene=Scene.MISSING,
    ),
    Step(
        "a missing original: folder synced",
        *_after("dicomfs.batch:sync_directory"),
        spool=1,
        archived=True,
        row=True,
        scene=Scene.MISSING,
    ),
    Step(
        "newest version, before COMMIT",
        *_before(_SQL, text="COMMIT"),
        spool=1,
        archived=True,
        scene=Scene.OTHER,
    ),
    Step(
        "newest version, COMMIT",
        *_after(_SQL, text="COMMIT"),
        spool=1,
        archived=True,
        row=True,
        scene=Scene.OTHER,
    ),
)


# The process that stops


def _when_open(then: Callable[[], None]) -> None:
    """Call that when the store is open: what its opening does is not what is meant."""
    whole = Ingest.open

    def opened(*args: Any) -> Ingest:
        ingest = whole(*args)
        then()
        return ingest

    Ingest.open = opened  # type: ignore[method-assign,assignment]


def _refuse_rows(*_: object) -> None:
    raise StoreUnavailable("on purpose")


def import_words(store: Path, policy: Duplicates) -> list[str]:
    """`dicomfs import` into a small disk, but for the files."""
    return ["import", "-q", "--store", str(store), "--min-free=0", f"--duplicates={policy.value}"]


def work(step: Step, door: Door, store: Path, file: Path, policy: Duplicates, *, port: Pipe) -> None:
    """Take in a file from disk, or receive until killed; stop at the step. Runs in a process of its own."""
    logging.disable()
    point = step.point(door)
    assert point is not None
    if step.scene is Scene.FAILED:
        Writer.add = _refuse_rows  # type: ignore[method-assign,assignment]
    watch_statements()
    Statements.is_synced = step.is_synced
    arm = stop_at(point)
    if step.scene is Scene.FIRST_START:
        arm()
    else:
        _when_open(arm)
    if door is Door.IMPORT:
        port.send(0)
        cli.main([*import_words(store, policy), str(file)])
        return
    scp = StorageSCP.start(LOCALHOST, 0, "DICOMFS", Ingest.open(store, policy))
    port.send(scp.port)
    threading.Event().wait()


_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.steps"])


class Stopping:
    """A process that takes in objects until it comes to a step. A context manager; killed at its end."""

    def __init__(self, step: Step, door: Door, store: Path, file: Path, policy: Duplicates) -> None:
        self._step = step
        self._port, there = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(
            target=work, args=(step, door, store, file, policy), kwargs={"port": there}, daemon=True
        )
        self._process.start()
        there.close()

    def port(self) -> int:
        """Where it listens; 0: it does not."""
        return int(self._port.recv())

    def wait(self) -> None:
        """Until it stands at its step. Fails when it ends without."""

        def stands() -> bool:
            assert self._process.is_alive(), f"it never came to: {self._step.title}"
            return states(self._process.pid or 0) == {"T"}

        wait_until(stands, self._step.title, poll_seconds=0.002)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._port.close()
