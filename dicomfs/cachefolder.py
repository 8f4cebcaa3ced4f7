"""Rendered pictures as files of a bounded folder that anybody may delete, damage or fill at any moment.

    FOLDER/dicomfs/0 … f/<name>         one picture; the name is a SHA-256, its first digit the compartment
    FOLDER/dicomfs/0 … f/<name>.PID-N   one that is being written

A file is believed only when its owner, its length and its SHA-256 are right: nothing is synced, and after a
loss of power it may hold anything. What is not whole is removed and counts as missing. FOLDER itself has to
exist and is never made: an empty mount point must not fill the disk below it. `FOLDER/dicomfs` is ours
alone (0700), and everything is opened relative to its descriptor, without following links.

How often a picture was asked for is in its permissions, and when last in its time of modification; so the
order of eviction outlives a restart, and nothing has to be read at a start. Each compartment has a sixteenth
of the limits. It is surveyed when it is first written to, and again after each sixteenth of its own limits,
because other mounts may write there too; what is over goes, by the rule of `twoqueue.py`: what was used
twice stays while the rest has more than its quarter. Two mounts together stay within the limits; each
further one may add a sixteenth.

Every function may take as long as the disk does, and raises OSError where that fails. Thread-safe: any number
of readers, one writer. Knows no tasks and logs nothing. Called by `diskcache.py`.
"""

import contextlib
import errno
import os
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Final

from dicomfs.twoqueue import ONCE_SHARE, SECOND_USE_S

OWN_FOLDER: Final = "dicomfs"
"""What we make in the folder that we are given."""
COMPARTMENTS: Final = "0123456789abcdef"
ALLOWANCE: Final = 16
"""A compartment is surveyed again when so manieth a part of its limits was written to it."""
BYTES_PER_FILE: Final = 16 * 1024
"""There may be one file for so much of the limit: as many as ext4 makes inodes for."""
FREE_SHARE: Final = 20
"""So manieth a part of the disk is left to others: a cache never takes the last of it."""
LEFTOVER_S: Final = 3600.0
"""A file that is being written for so long was left behind by a process that was killed."""
_BLOCK: Final = 4096
_MAGIC: Final = b"dcfspic1"
_HEAD: Final = struct.Struct("<8s32s16sQ32s")
"""Magic, name, tag, length of the picture, SHA-256 of what is before it here and of the picture."""
_NEVER, _ONCE, _OFTEN = 0o600, 0o400, 0o500
"""How often it was asked for."""


class UnsafeFolder(OSError):
    """Others could read or alter what is there."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What all compartments hold, as far as they were surveyed, and what went from them."""

    bytes: int
    files: int
    evictions: int
    damaged: int
    """Files that were not what they should have been, and were removed."""


@dataclass(slots=True)
class _Compartment:
    """What is known of one; only the writer alters it."""

    bytes: int = 0
    files: int = 0
    new_bytes: int = 0
    """Written since the last survey."""
    new_files: int = 0
    is_surveyed: bool = False


@dataclass(slots=True)
class _Found:
    """A picture, in a survey."""

    name: str
    bytes: int
    used_ns: int
    is_often: bool


class _Queue:
    """Pictures in a survey, the longest unused first."""

    def __init__(self) -> None:
        self._found: deque[_Found] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._found)

    def append(self, one: _Found) -> None:
        self._found.append(one)
        self.bytes += one.bytes

    def pop_oldest(self) -> _Found:
        one = self._found.popleft()
        self.bytes -= one.bytes
        return one


@dataclass(slots=True)
class _Root:
    """A descriptor of our own folder, open as long as somebody uses it."""

    fd: int

    def __del__(self) -> None:
        os.close(self.fd)


def file_name(identity: str) -> str:
    """The name of the file of whatever this text stands for."""
    return sha256(identity.encode()).hexdigest()


class CacheFolder:
    """At most `limit_bytes` of files in `folder`; `clock` is in seconds since the epoch."""

    def __init__(self, folder: Path, limit_bytes: int, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._clock = clock
        self._most_bytes = limit_bytes // len(COMPARTMENTS)
        self._most_files = max(self._most_bytes // BYTES_PER_FILE, ALLOWANCE)
        self._root: _Root | None = None
        self._opening = threading.Lock()
        self._known = {name: _Compartment() for name in COMPARTMENTS}
        self._numbers = count()
        self._evictions = self._damaged = 0

    @property
    def largest(self) -> int:
        """Bytes of the largest picture that is taken: a larger one would cost too many others."""
        return self._most_bytes // ONCE_SHARE - _HEAD.size

    def totals(self) -> Totals:
        """Of this moment."""
        known = self._known.values()
        return Totals(
            bytes=sum(one.bytes for one in known),
            files=sum(one.files for one in known),
            evictions=self._evictions,
            damaged=self._damaged,
        )

    # Reading

    def read(self, name: str, tag: bytes, *, is_use: bool = True) -> bytes | None:
        """The picture of that name and tag (16 bytes), whole; None when there is none.

        `is_use`: somebody has asked for it, and it is not only read ahead.
        """
        root = self._open()
        opened = self._opened_file(root, name)
        if opened is None:
            return None
        fd, found = opened
        try:
            whole = self._whole(fd, found, name)
            if whole is None:
                self._discard(root, name)
                return None
            kept_tag, data = whole
            if kept_tag != tag:
                return None  # of another decision: the next picture of this name takes its place
            if is_use:
                self._use(fd, found)
            return data
        finally:
            os.close(fd)

    def _opened_file(self, root: _Root, name: str) -> tuple[int, os.stat_result] | None:
        """Descriptor and attributes of a file of ours; what is none is removed."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(_path(name), flags, dir_fd=root.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise
        else:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                return fd, found
            os.close(fd)
        self._discard(root, name)
        return None

    def _whole(self, fd: int, found: os.stat_result, name: str) -> tuple[bytes, bytes] | None:
        """Tag and picture of an open file, if all about it is right."""
        length = found.st_size - _HEAD.size
        if not 0 <= length <= self.largest:
            return None
        head = os.pread(fd, _HEAD.size, 0)
        data = os.pread(fd, length, _HEAD.size)
        if len(head) != _HEAD.size or len(data) != length:
            return None
        magic, of, tag, told, digest = _HEAD.unpack(head)
        if (magic, of, told, digest) != (_MAGIC, bytes.fromhex(name), length, _digest(head, data)):
            return None
        return tag, data

    def _use(self, fd: int, found: os.stat_result) -> None:
        """Note a use, unless it belongs to the one before (`twoqueue.SECOND_USE_S`)."""
        now = self._clock()
        mode = stat.S_IMODE(found.st_mode)
        if mode == _NEVER:
            mode = _ONCE
        elif abs(now - found.st_mtime) < SECOND_USE_S:
            return
        else:
            mode = _OFTEN
        try:
            os.fchmod(fd, mode)
            os.utime(fd, (now, now))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise

    def _discard(self, root: _Root, name: str) -> None:
        self._damaged += 1
        try:
            os.unlink(_path(name), dir_fd=root.fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EISDIR, errno.EROFS):
                raise

    # Writing

    def touch(self, name: str) -> None:
        """Note a use of a picture that was not read from here."""
        opened = self._opened_file(self._open(), name)
        if opened is not None:
            fd, found = opened
            try:
                self._use(fd, found)
            finally:
                os.close(fd)

    def write(self, name: str, tag: bytes, data: bytes, *, is_use: bool) -> None:
        """Keep a picture of at most `largest` bytes; `is_use`: somebody has asked for it."""
        self._in_own_folder(lambda root: self._write(root, name, tag, data, is_use=is_use))

    def _write(self, root: _Root, name: str, tag: bytes, data: bytes, *, is_use: bool) -> None:
        size = _on_disk(_HEAD.size + len(data))
        self._admit(root, name[0], size)
        part = f"{_path(name)}.{os.getpid()}-{next(self._numbers)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(part, flags, _NEVER, dir_fd=root.fd)
        try:
            try:
                head = _head(name, tag, data)
                if os.writev(fd, [head, data]) != len(head) + len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fchmod(fd, _ONCE if is_use else _NEVER)
                now = self._clock()
                os.utime(fd, (now, now))
            finally:
                os.close(fd)
            os.rename(part, _path(name), src_dir_fd=root.fd, dst_dir_fd=root.fd)
        except BaseException:
            self._remove(root, part)
            raise
        known = self._known[name[0]]
        known.bytes += size
        known.files += 1
        known.new_bytes += size
        known.new_files += 1

    def _admit(self, root: _Root, where: str, size: int) -> None:
        """Make room for a file of so many bytes. Raises OSError (ENOSPC) when there is none."""
        known = self._known[where]
        is_due = known.new_bytes + size > self._most_bytes // ALLOWANCE
        if not known.is_surveyed or is_due or known.new_files >= self._most_files // ALLOWANCE:
            self._survey(root, where, self._most_bytes, incoming=size)
        if not _has_space(root.fd, size):
            # Either we fill this disk, or others do: in both cases we give way, bit by bit.
            self._survey(root, where, min(known.bytes, self._most_bytes), incoming=size)
            if not _has_space(root.fd, size):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def survey(self, where: str) -> None:
        """Look through a compartment; from then on `totals` has it, and its limits are kept."""
        self._in_own_folder(lambda root: self._survey(root, where, self._most_bytes))

    def _survey(self, root: _Root, where: str, most_bytes: int, *, incoming: int = 0) -> None:
        """What is over the limits goes, the longest unused first; one file of `incoming` bytes is to come.

        Over 14 of 16 parts, that is, and down to 13: two writers may add one each before they look again.
        """
        once, often = _Queue(), _Queue()
        for one in sorted(self._listed(root, where), key=lambda one: one.used_ns):
            (often if one.is_often else once).append(one)

        def is_over(parts: int) -> bool:
            files = len(once) + len(often)
            too_large = once.bytes + often.bytes + incoming > most_bytes * parts // 16
            return files > 0 and (too_large or files + bool(incoming) > self._most_files * parts // 16)

        if is_over(14):
            while is_over(13):
                within = once.bytes * ONCE_SHARE <= most_bytes and len(once) * ONCE_SHARE <= self._most_files
                self._remove(root, f"{where}/{(often if within and often else once).pop_oldest().name}")
                self._evictions += 1
        known = self._known[where]
        known.bytes, known.files = once.bytes + often.bytes, len(once) + len(often)
        known.new_bytes = known.new_files = 0
        known.is_surveyed = True

    def _listed(self, root: _Root, where: str) -> list[_Found]:
        """The pictures of a compartment; leftovers are removed, and what is not ours is left alone."""
        found = []
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root.fd)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name, _, part = entry.name.partition(".")
                    if len(name) != 2 * sha256().digest_size:
                        continue
                    try:
                        it = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # another mount was quicker
                    if part and abs(self._clock() - it.st_mtime) > LEFTOVER_S:
                        self._remove(root, f"{where}/{entry.name}")
                    elif stat.S_ISREG(it.st_mode):
                        is_often = stat.S_IMODE(it.st_mode) == _OFTEN
                        found.append(_Found(entry.name, _on_disk(it.st_size), it.st_mtime_ns, is_often))
        finally:
            os.close(fd)
        return found

    @staticmethod
    def _remove(root: _Root, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=root.fd)

    # Our own folder

    def _in_own_folder(self, act: Callable[[_Root], None]) -> None:
        try:
            act(self._open())
        except FileNotFoundError:  # somebody has deleted it while we had it open
            self.close()
            act(self._open())

    def close(self) -> None:
        """Let go of the folder; who asks for anything opens it anew. Waits for nothing, not even the disk."""
        self._root = None

    def _open(self) -> _Root:
        with self._opening:  # never in `close`: whoever opens may hang
            root = self._root
            if root is None:
                root = self._root = self._opened()
            return root

    def _opened(self) -> _Root:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            above = os.open(self.folder, flags)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "it is missing: make it, or mount its disk") from None
        try:
            root = _Root(_private(above, OWN_FOLDER))
        finally:
            os.close(above)
        for name in COMPARTMENTS:
            os.close(_private(root.fd, name))
            self._known[name].is_surveyed = False
        return root


def _private(above: int, name: str) -> int:
    """A descriptor of a folder of ours that nobody else may look into; made if it is missing."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=above)
    except FileNotFoundError:
        os.mkdir(name, 0o700, dir_fd=above)
        fd = os.open(name, flags, dir_fd=above)
    found = os.fstat(fd)
    if found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077:
        return fd
    os.close(fd)
    raise UnsafeFolder(
        errno.EPERM, f"{name} in it must belong to this user alone, with permissions 0700: remove it"
    )


def _path(name: str) -> str:
    """Where a picture is, seen from our own folder."""
    return f"{name[0]}/{name}"


def _head(name: str, tag: bytes, data: bytes) -> bytes:
    fields = (_MAGIC, bytes.fromhex(name), tag, len(data))
    return _HEAD.pack(*fields, _digest(_HEAD.pack(*fields, b""), data))


def _digest(head: bytes, data: bytes) -> bytes:
    digest = sha256(head[:-32])
    digest.update(data)
    return digest.digest()


def _on_disk(size: int) -> int:
    """What a file of so many bytes takes."""
    return -(-size // _BLOCK) * _BLOCK


def _has_space(fd: int, size: int) -> bool:
    disk = os.fstatvfs(fd)
    return (disk.f_bavail * disk.f_frsize - size) * FREE_SHARE >= disk.f_blocks * disk.f_frsize
