"""One archived file, looked at: how long it is, what its content hashes to, what it says of its receipt.

Judges nothing and trusts nothing: a file may be damaged, or not of ours. Changes only file meta information
(`relabel`), and never a data set. Called by
`scrub.py`, which compares it with its row, and by `reindex.py`, which has nothing to compare it with.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from dicomfs.archive import Archive, digest_and_sequence
from dicomfs.errors import BadInstance, UnreadableDataSet
from dicomfs.filemeta import DATA_SET_OFFSET, file_meta, parse_file_meta
from dicomfs.header import read_file_meta, read_header
from dicomfs.model import Receipt
from dicomfs.spool import content_hash

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Examined:
    """What is to be known of one file."""

    size: int
    """Bytes of the data set; less than 0 when even the file meta information is cut short."""
    offset: int
    """First byte of the data set: `DATA_SET_OFFSET`, but in a file that somebody else wrote."""
    transfer_syntax: str
    """The one that `digest` was made with; empty when nobody knows it."""
    digest: bytes | None
    """Hash of the content; None when it was not asked for, or the transfer syntax is not known."""
    receipt: Receipt | None
    """What the file says of it; None when the file meta information is damaged or not ours."""


def examine(path: Path, transfer_syntax: str = "", *, quick: bool = False, forget: bool = True) -> Examined:
    """Read one archived file. `transfer_syntax`: what the index says; empty: as the file itself says.

    `quick`: without reading the data set. `forget`: what was read does not stay in the page cache, where
    it would take the place of what people look at. Raises FileNotFoundError, OSError, and
    UnreadableDataSet when it is no regular file.
    """
    # Not blocking: it may be a pipe that somebody put there.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with FileIO(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableDataSet("it is not a regular file")
        receipt, offset = None, DATA_SET_OFFSET
        try:
            receipt = parse_file_meta(file.read(DATA_SET_OFFSET))
            transfer_syntax = transfer_syntax or receipt.transfer_syntax
        except UnreadableDataSet:
            if not transfer_syntax:
                transfer_syntax, offset = _foreign(file)
        digest = None
        if transfer_syntax and not quick:
            digest = _digest(file, offset, transfer_syntax)
        if forget:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return Examined(info.st_size - offset, offset, transfer_syntax, digest, receipt)


def identity(path: Path) -> tuple[int, int] | None:
    """Stays the same as long as it is the same file with the same content; None: there is none.

    Not its change time: that changes when its second name goes from the spool. Raises OSError.
    """
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_mtime_ns


def content(path: Path, offset: int) -> Iterator[bytes]:
    """The data set of a file, part by part. Raises OSError."""
    with path.open("rb") as file:
        file.seek(offset)
        while part := file.read(_CHUNK_BYTES):
            yield part


def _foreign(file: FileIO) -> tuple[str, int]:
    """Transfer syntax and offset of the data set in a DICOM file that is not ours."""
    file.seek(0)
    with contextlib.suppress(BadInstance), open(file.fileno(), "rb", closefd=False) as buffered:
        found = read_file_meta(buffered)
        return found.transfer_syntax, found.data_set_offset
    return "", DATA_SET_OFFSET


def _digest(file: FileIO, offset: int, transfer_syntax: str) -> bytes:
    found = content_hash(transfer_syntax)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    file.seek(offset)
    while length := file.readinto(buffer):
        found.update(buffer[:length])
    return found.digest()


def relabel(archive: Archive, digest: bytes, offset: int, receipt: Receipt, sequence: int) -> None:
    """Give a whole original other file meta information, durably: a new file takes the place of the old.

    `offset`: of the data set in the old one. Raises UnreadableDataSet, also when the content is not that
    of this hash, and OSError; then the old one stays.
    """
    path = archive.path(digest, sequence)
    with archive.spool(receipt.transfer_syntax) as spool:
        for part in content(path, offset):
            spool.write(part)
        if spool.digest != digest:
            raise UnreadableDataSet("its content is not what was received")
        with spool.reader() as file:
            header = read_header(file, spool.size, receipt.transfer_syntax)
        meta = file_meta(receipt, header.sop_class_uid, header.sop_instance_uid)
        spool.seal(meta)
        spool.sync()
        archive.replace(spool, sequence)


def foreign_folders(archive: Archive) -> Iterator[Path]:
    """What lies in `archive/` and is none of its 256 folders. Raises OSError."""
    ours = {f"{byte:02x}" for byte in range(256)}
    with os.scandir(archive.root) as entries:
        for entry in entries:
            if entry.name not in ours or not entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def names(folder: Path) -> tuple[dict[bytes, set[int]], list[Path]]:
    """What is named as an original in one folder of the archive, as numbers by content hash, and what is not.

    A content has more than one number only after a crash. Both empty when there is no such folder. Raises
    OSError.
    """
    numbers: dict[bytes, set[int]] = {}
    others = []
    try:
        for entry in os.scandir(folder):
            try:
                digest, sequence = digest_and_sequence(entry.name)
            except UnreadableDataSet:
                others.append(Path(entry.path))
                continue
            if digest.hex()[:2] == folder.name:
                numbers.setdefault(digest, set()).add(sequence)
            else:
                others.append(Path(entry.path))
    except FileNotFoundError:
        pass
    return numbers, sorted(others)
