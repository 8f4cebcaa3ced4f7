"""Who uses a store: an advisory lock that everybody shares who has the index open, and a rebuild has alone.

Another one, on the folder of originals, is held by whoever takes some out or repairs them, one at a time. A
lock belongs to the open file, so that the kernel lets go of it whatever becomes of the process; the file
`lock` itself is empty and stays. Called by `indexfile.py` (shared) and `reindex.py` (alone); the other one by
`scrub.py` and `forget.py`.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from dicomfs.errors import StoreUnavailable

LOCK_NAME: Final = "lock"
"""Its name in the store."""
_LOCKS: Final = Path("/proc/locks")


class StoreLock:
    """Held from its making until `close`, or the end of the process."""

    def __init__(self, store: Path, *, alone: bool = False) -> None:
        """Take the lock of a store, or raise StoreUnavailable at once: it never waits.

        Who may not write to a store that was never locked goes without: nothing can be rebuilt there
        by somebody who could do it any harm.
        """
        path = store / LOCK_NAME
        self._fd = _open(path)
        if self._fd < 0:
            if alone:
                raise StoreUnavailable(f"this user may not write to {store}")
            return
        try:
            holders = _lock(self._fd, path, alone=alone)
        except StoreUnavailable:
            self.close()
            raise
        if holders is not None:
            self.close()
            raise StoreUnavailable(_in_use(store, holders, alone=alone))

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def mending(originals: Path) -> Iterator[None]:
    """Around what takes originals out of that folder or repairs them: alone, or StoreUnavailable at once."""
    try:
        fd = os.open(originals, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreUnavailable(f"{originals} cannot be opened: {error.strerror}") from error
    try:
        holders = _lock(fd, originals, alone=True)
        if holders is not None:
            raise StoreUnavailable(f"{_named(holders)} is at work in {originals}: try again when it is done")
        yield
    finally:
        os.close(fd)


def _lock(fd: int, path: Path, *, alone: bool) -> list[str] | None:
    """Lock it; or who holds it, as far as that can be seen. Raises StoreUnavailable if that fails."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise StoreUnavailable(f"{path} cannot be locked: {error.strerror}") from error
        return _holders(fd)
    return None


def _open(path: Path) -> int:
    """A descriptor, or -1 when there is no such file and this user may not make it."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # It says nothing, and whoever may come into the store must be able to lock it, whoever made it.
        os.fchmod(fd, 0o644)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return -1
        raise StoreUnavailable(f"{path} cannot be made: {error.strerror}") from error
    return fd


def _in_use(store: Path, holders: list[str], *, alone: bool) -> str:
    if alone:
        return f"the store {store} is in use: stop {_named(holders)} first"
    return f"the index of {store} is being rebuilt by {_named(holders)}: try again when it is done"


def _named(holders: list[str]) -> str:
    return ", ".join(holders) or "a process that this user may not see"


def _holders(fd: int) -> list[str]:
    """Command and number of every process that holds a lock on this file, as far as it can be seen.

    Not of those that end with another one that holds it, as the committer process does with its receiver.
    """
    info = os.fstat(fd)
    place = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    try:
        fields = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return []
    found = {int(words[4]) for words in fields if len(words) > 5 and words[5] == place}
    return [_command(pid) for pid in sorted(found) if pid > 0 and _parent(pid) not in found]


def _parent(pid: int) -> int:
    """Its process id; 0 when nobody knows."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        words = []
    # `python -m dicomfs.cli mount …`, `/usr/bin/dicomfs mount …`
    names = [os.fsdecode(word) for word in words if word]
    start = next((at for at, name in enumerate(names) if "dicomfs" in Path(name).name), None)
    command = names[start + 1 : start + 2] if start is not None else []
    return f"dicomfs {command[0]} (process {pid})" if command else f"process {pid}"
