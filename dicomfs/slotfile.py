"""A small file in STORE/run/ through which one process is seen by others: whole at any moment.

    0        slot 0: head, JSON        each head: magic, generation, length and CRC-32 of the JSON
    half     slot 1: head, JSON

Written in place, each time over the older slot, so a reader always finds the other one whole: nothing is
renamed, and on a disk that has become full, where one wants to know most, there is still room for it. Never
fsynced. Its process holds a lock on the file; who finds it free knows that the process is gone, however it
went. Each process takes the first file of its kind that is free, so there are never more than processes at
once. Knows nothing of what is written. Used by `runfile.py` and `mountfile.py`.
"""

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

RUN_FOLDER: Final = "run"
"""Its name in the store."""
FOLDER_MODE: Final = 0o750
_MOST_FILES: Final = 64
"""Of one kind."""
_MAGIC: Final = b"dcfs"
_HEAD: Final = struct.Struct("<4sLLL")
_FLOCK: Final = "hhqqi4x"
"""struct flock of Linux on 64 bits: type, whence, start, length, process id (fcntl(2))."""
_FILE_MODE: Final = 0o640


class SlotFile:
    """One process's file, locked as long as it is open."""

    def __init__(self, path: Path, fd: int, slot_bytes: int) -> None:
        """Use `take`."""
        self._path = path
        self._fd = fd
        self._slot_bytes = slot_bytes
        self.former = read(fd, slot_bytes)
        """What the process before this one has left."""
        self._generation = max((generation for generation, _ in _slots(fd, slot_bytes)), default=0)

    @classmethod
    def take(cls, folder: Path, kind: str, slot_bytes: int) -> Self:
        """The first file of a kind that no other process has. Raises OSError."""
        for number in range(1, _MOST_FILES + 1):
            path = folder / f"{kind}-{number}"
            while (fd := _locked(path)) is not None:
                if _is_still(path, fd):
                    return cls._made(path, fd, slot_bytes)
                os.close(fd)  # removed by the one that had it, between our opening and our lock
        raise OSError(0, f"{_MOST_FILES} processes have one already")

    @classmethod
    def _made(cls, path: Path, fd: int, slot_bytes: int) -> Self:
        try:
            size = os.fstat(fd).st_size
            if size < 2 * slot_bytes:
                # Its room is taken now, while there is some.
                os.pwrite(fd, bytes(2 * slot_bytes - size), size)
            return cls(path, fd, slot_bytes)
        except BaseException:
            os.close(fd)
            raise

    def give_to(self, uid: int, gid: int) -> None:
        """Make somebody else its owner. Raises OSError."""
        os.fchown(self._fd, uid, gid)

    def write(self, facts: Mapping[str, Any]) -> None:
        """Over the older slot. Raises OSError."""
        body = json.dumps(facts, separators=(",", ":")).encode()
        if len(body) > self._slot_bytes - _HEAD.size:
            raise OSError(0, f"what there is to say is {len(body)} bytes long")
        generation = self._generation + 1
        head = _HEAD.pack(_MAGIC, generation, len(body), _checksum(generation, body))
        os.pwrite(self._fd, head + body, generation % 2 * self._slot_bytes)
        # Not before: after a failure the same slot is tried again, and the other one stays whole.
        self._generation = generation

    def close(self) -> None:
        """Let go of it, for others to read."""
        os.close(self._fd)

    def remove(self) -> None:
        """Nobody need know of this process any more. Raises OSError; it is closed in any case."""
        try:
            self._path.unlink(missing_ok=True)
        finally:
            os.close(self._fd)


def _locked(path: Path) -> int | None:
    """A descriptor of a file that is locked by it; None: another process has it. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
    try:
        # Of this open file and not of the process: closing another descriptor of it loses nothing.
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0))
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_still(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def found(store: Path, kind: str, slot_bytes: int) -> Iterator[tuple[dict[str, Any], bool]]:
    """What each process of a kind has written of itself last, and whether it runs; in no particular order.

    A file that cannot be read is left out.
    """
    try:
        paths = sorted((store / RUN_FOLDER).glob(f"{kind}-*"))
    except OSError:  # Python before 3.12 says so when this user may not look there
        paths = []
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            facts = read(fd, slot_bytes)
            runs = _is_locked(fd)
        except OSError:
            continue
        finally:
            os.close(fd)
        if facts is not None:
            yield facts, runs


def read(fd: int, slot_bytes: int) -> dict[str, Any] | None:
    """What was written last; None when nothing was. Raises OSError."""
    _, body = max(_slots(fd, slot_bytes), default=(0, b"null"))
    try:
        facts = json.loads(body)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def _checksum(generation: int, body: bytes) -> int:
    return zlib.crc32(body, generation)


def _slots(fd: int, slot_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Generation and JSON of the slots that are whole."""
    for at in (0, slot_bytes):
        slot = os.pread(fd, slot_bytes, at)
        if len(slot) < _HEAD.size:
            continue
        magic, generation, length, checksum = _HEAD.unpack_from(slot)
        body = slot[_HEAD.size : _HEAD.size + length]
        if magic == _MAGIC and len(body) == length and checksum == _checksum(generation, body):
            yield generation, body


def _is_locked(fd: int) -> bool:
    """Whether its process lives. Asks only: a lock taken to find out would turn a starting one away."""
    asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, 0, 0, 0, 0))
    return bool(struct.unpack(_FLOCK, asked)[0] != fcntl.F_UNLCK)
