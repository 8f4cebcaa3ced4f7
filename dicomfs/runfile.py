"""The file through which other processes see what a receiver does: STORE/run/receiver-N.

A `slotfile.SlotFile`; after a power loss a history of refusals may be missing from it. The next receiver
takes the first file that is free and goes on counting there. Deleting `run/` costs that history and nothing
else. Written by `cli.py`'s receiver, read by `status.py`.
"""

import logging
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dicomfs import slotfile
from dicomfs.activity import Activity, Snapshot
from dicomfs.slotfile import FOLDER_MODE, RUN_FOLDER, SlotFile

REPORT_S: Final = 1.0
"""Between two reports of a busy receiver; an idle one writes nothing."""
SLOT_BYTES: Final = 1 << 18
_FORMAT: Final = 1
_KIND: Final = "receiver"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Process:
    """A receiver."""

    pid: int
    started: float
    """Seconds since the epoch."""
    ae_title: str
    port: int
    min_free: int
    """Bytes of the disk that have to stay free."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a receiver has written of itself."""

    process: Process
    activity: Snapshot
    written: float
    """When it last had anything new to say."""
    stopped: float = 0.0
    """When it ended in good order; 0: it did not, or runs."""
    is_running: bool = False


def records(store: Path) -> list[Record]:
    """What is known of every receiver of a store, running or not; in no particular order.

    A file that cannot be read, or was written by another version, is left out.
    """
    known = []
    for facts, runs in slotfile.found(store, _KIND, SLOT_BYTES):
        record = _record(facts)
        if record is not None:
            known.append(replace(record, is_running=runs))
    return known


class Reporter:
    """Writes down what an `Activity` has counted, from a thread of its own; never fails the receiver."""

    def __init__(self, store: Path, activity: Activity, process: Process) -> None:
        self._folder = store / RUN_FOLDER
        self._activity = activity
        self._process = process
        self._file: SlotFile | None = None
        self._said: Snapshot | None = None
        self._is_troubled = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def __enter__(self) -> Self:
        self._report()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._report(is_end=True)
        if self._file is not None:
            self._file.close()

    def _run(self) -> None:
        while not self._stop.wait(REPORT_S):
            self._report()

    def _report(self, *, is_end: bool = False) -> None:
        try:
            if self._file is None:
                self._folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
                self._file = SlotFile.take(self._folder, _KIND, SLOT_BYTES)
                former = None if self._file.former is None else _record(self._file.former)
                if former is not None:
                    self._activity.inherit(former.activity)
            said = self._activity.snapshot()
            if is_end or said != self._said:
                now = time.time()
                record = Record(self._process, said, written=now, stopped=now if is_end else 0.0)
                self._file.write({"format": _FORMAT, **asdict(record)})
                self._said = said
        except OSError as error:
            if not self._is_troubled:
                log.warning(
                    "%s cannot be written (%s): receiving goes on, but `dicomfs status` cannot tell of it",
                    self._folder,
                    error.strerror,
                )
            self._is_troubled = True
        else:
            self._is_troubled = False


def _record(facts: dict[str, Any]) -> Record | None:
    """None when another version has written it."""
    try:
        if facts.pop("format") != _FORMAT:
            return None
        made = {"process": Process(**facts["process"]), "activity": Snapshot.of(facts["activity"])}
        return Record(**{**facts, **made})
    except (TypeError, KeyError):
        return None
