"""The file through which other processes see what a mount does: STORE/run/mount-N, gone when the mount is.

A `slotfile.SlotFile` with what `figures.py` describes, and where it is mounted; no name of a file or patient.
A mount that may not write into the store works without. One that runs as root gives what it makes to the
owner of the store: the receiver keeps its own file in the same folder, and people who are not root ask for
`status`. Written by `mount.py`, read by `status.py`.
"""

import errno
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dicomfs import slotfile
from dicomfs.figures import MountFigures
from dicomfs.slotfile import FOLDER_MODE, RUN_FOLDER, SlotFile

REPORT_S: Final = 1.0
"""Between two reports of a mount that has anything new to say."""
SLOT_BYTES: Final = 1 << 16
"""More than the longest path takes, each of its characters escaped."""
_FORMAT: Final = 1
_KIND: Final = "mount"
_CLOSE_S: Final = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountRecord:
    """What a running mount has written of itself."""

    mountpoint: str
    pid: int
    started: float
    """Seconds since the epoch."""
    figures: MountFigures


def mounts(store: Path) -> list[MountRecord]:
    """Every running mount of a store that has told of itself, the oldest first.

    A file that cannot be read, or was written by another version, is left out.
    """
    records = [_record(facts) for facts, runs in slotfile.found(store, _KIND, SLOT_BYTES) if runs]
    return sorted((one for one in records if one is not None), key=lambda one: one.started)


def _record(facts: Mapping[str, Any]) -> MountRecord | None:
    try:
        if facts["format"] != _FORMAT:
            return None
        known = {name: facts[name] for name in ("mountpoint", "pid", "started")}
        return MountRecord(**known, figures=MountFigures.of(facts["figures"]))
    except (TypeError, KeyError):
        return None


class MountReporter:
    """One mount's file. Its functions may take as long as the disk does, and never raise."""

    def __init__(self, store: Path, mountpoint: Path, started: float) -> None:
        """`started`: seconds since the epoch."""
        self._store = store
        # As people may read it, whatever bytes the path is made of.
        self._mountpoint = os.fsencode(mountpoint).decode("utf-8", "replace")
        self._started = started
        self._file: SlotFile | None = None
        self._said: MountFigures | None = None
        self._is_troubled = False
        self._writing = threading.Lock()

    def report(self, figures: MountFigures) -> None:
        """Write this down, if it is news."""
        with self._writing:
            if figures == self._said:
                return
            try:
                if self._file is None:
                    self._file = self._taken()
                record = MountRecord(self._mountpoint, os.getpid(), self._started, figures)
                self._file.write({"format": _FORMAT, **asdict(record)})
                self._said = figures
                self._is_troubled = False
            except OSError as error:
                if not self._is_troubled:
                    log.info("`dicomfs status` cannot tell of this mount: %s", error.strerror or error)
                self._is_troubled = True

    def close(self) -> None:
        """The mount has ended: nobody need know of it any more."""
        # Whoever still writes does so to a disk that hangs: the lock goes with the process.
        if self._writing.acquire(timeout=_CLOSE_S):
            try:
                if self._file is not None:
                    self._file.remove()
            except OSError as error:
                log.info("the figures of this mount stay behind: %s", error.strerror)
            finally:
                self._file = None
                self._writing.release()

    def _taken(self) -> SlotFile:
        folder, store = self._store / RUN_FOLDER, self._store.stat()
        is_root = os.geteuid() == 0
        try:
            if is_root or store.st_uid == os.geteuid():
                folder.mkdir(mode=FOLDER_MODE)
                if is_root:
                    os.chown(folder, store.st_uid, store.st_gid, follow_symlinks=False)
        except FileExistsError:
            pass
        if folder.is_symlink():
            raise OSError(errno.ELOOP, f"{folder} is a symbolic link")
        file = SlotFile.take(folder, _KIND, SLOT_BYTES)
        if is_root:
            file.give_to(store.st_uid, store.st_gid)
        return file
