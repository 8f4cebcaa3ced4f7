"""The file through which other processes see what a receiver does: STORE/run/receiver-N.

    0          slot 0: head, JSON        each head: magic, generation, length and CRC-32 of the JSON
    256 KiB    slot 1: head, JSON

Written in place, each time over the older slot, so a reader always finds the other one whole: nothing is
renamed, and on a disk that has become full, where one wants to know most, there is still room for it. Never
fsynced: after a power loss a history of refusals may be missing. The receiver holds a lock on its file; who
finds it free knows that the receiver is gone, however it went. The next receiver takes the first file that
is free and goes on counting there, so there are never more files than receivers at once. Deleting `run/`
costs that history and nothing else. Written by `cli.py`'s receiver, read by `status.py`.
"""

import fcntl
import json
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dicomfs.activity import Activity, Snapshot

RUN_FOLDER: Final = "run"
"""Its name in the store."""
REPORT_S: Final = 1.0
"""Between two reports of a busy receiver; an idle one writes nothing."""
SLOT_BYTES: Final = 1 << 18
_FORMAT: Final = 1
_MAGIC: Final = b"dcfs"
_HEAD: Final = struct.Struct("<4sLLL")
_FLOCK: Final = "hhqqi4x"
"""struct flock of Linux on 64 bits: type, whence, start, length, process id (fcntl(2))."""
_MOST_RECEIVERS: Final = 64
_FOLDER_MODE: Final = 0o750
_FILE_MODE: Final = 0o640

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
    found = []
    try:
        paths = sorted((store / RUN_FOLDER).glob("receiver-*"))
    except OSError:  # Python before 3.12 says so when this user may not look there
        paths = []
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            record = _read(fd)
            if record is not None:
                found.append(replace(record, is_running=_is_locked(fd)))
        except OSError as error:
            log.debug("%s cannot be read: %s", path, error.strerror)
        finally:
            os.close(fd)
    return found


class Reporter:
    """Writes down what an `Activity` has counted, from a thread of its own; never fails the receiver."""

    def __init__(self, store: Path, activity: Activity, process: Process) -> None:
        self._folder = store / RUN_FOLDER
        self._activity = activity
        self._process = process
        self._file: _File | None = None
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
                self._file = _File.take(self._folder)
                if self._file.former is not None:
                    self._activity.inherit(self._file.former.activity)
            said = self._activity.snapshot()
            if is_end or said != self._said:
                now = time.time()
                self._file.write(Record(self._process, said, written=now, stopped=now if is_end else 0.0))
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


class _File:
    """One receiver's file, locked as long as it is open."""

    def __init__(self, fd: int) -> None:
        """Use `take`."""
        self._fd = fd
        self.former = _read(fd)
        """What the receiver before this one has left."""
        self._generation = max((generation for generation, _ in _slots(fd)), default=0)

    @classmethod
    def take(cls, folder: Path) -> Self:
        """The first file that no other receiver has. Raises OSError."""
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        for number in range(1, _MOST_RECEIVERS + 1):
            path = folder / f"receiver-{number}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
            try:
                # Of this open file and not of the process: closing another descriptor of it loses nothing.
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0))
                size = os.fstat(fd).st_size
                if size < 2 * SLOT_BYTES:
                    # Its room is taken now, while there is some.
                    os.pwrite(fd, bytes(2 * SLOT_BYTES - size), size)
                return cls(fd)
            except BlockingIOError:
                os.close(fd)
            except BaseException:
                os.close(fd)
                raise
        raise OSError(0, f"{_MOST_RECEIVERS} receivers have one already")

    def write(self, record: Record) -> None:
        """Over the older slot. Raises OSError."""
        body = json.dumps({"format": _FORMAT, **asdict(record)}, separators=(",", ":")).encode()
        if len(body) > SLOT_BYTES - _HEAD.size:
            raise OSError(0, f"what there is to say is {len(body)} bytes long")
        generation = self._generation + 1
        head = _HEAD.pack(_MAGIC, generation, len(body), _checksum(generation, body))
        os.pwrite(self._fd, head + body, generation % 2 * SLOT_BYTES)
        # Not before: after a failure the same slot is tried again, and the other one stays whole.
        self._generation = generation

    def close(self) -> None:
        """Let go of it, for others to read."""
        os.close(self._fd)


def _checksum(generation: int, body: bytes) -> int:
    return zlib.crc32(body, generation)


def _slots(fd: int) -> Iterator[tuple[int, bytes]]:
    """Generation and JSON of the slots that are whole."""
    for at in (0, SLOT_BYTES):
        slot = os.pread(fd, SLOT_BYTES, at)
        if len(slot) < _HEAD.size:
            continue
        magic, generation, length, checksum = _HEAD.unpack_from(slot)
        body = slot[_HEAD.size : _HEAD.size + length]
        if magic == _MAGIC and len(body) == length and checksum == _checksum(generation, body):
            yield generation, body


def _read(fd: int) -> Record | None:
    """The newest record of a file; None when there is none that this version understands. Raises OSError."""
    _, body = max(_slots(fd), default=(0, b""))
    try:
        facts: dict[str, Any] = json.loads(body)
        if facts.pop("format") != _FORMAT:
            return None
        made = {"process": Process(**facts["process"]), "activity": Snapshot.of(facts["activity"])}
        return Record(**{**facts, **made})
    except (ValueError, TypeError, KeyError):
        return None


def _is_locked(fd: int) -> bool:
    """Whether its receiver lives. Asks only: a lock taken to find out would turn a starting one away."""
    asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, 0, 0, 0, 0))
    return bool(struct.unpack(_FLOCK, asked)[0] != fcntl.F_UNLCK)
