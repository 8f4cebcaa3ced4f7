"""One data set on its way in: an open, locked file in `incoming/`, hashed while it is written.

Made by `archive.py`, which also gives it its place; written by `ingest.py`.
"""

import contextlib
import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from dicomfs.filemeta import DATA_SET_OFFSET


def content_hash(transfer_syntax: str) -> "hashlib._Hash":
    """SHA-256 of an original, begun with its transfer syntax; feed it the data set as received."""
    return hashlib.sha256(transfer_syntax.encode("ascii", "replace") + b"\0")


class Whole(Protocol):
    """A sealed spool file, as far as a commit needs it: its own process's (`Spool`) or another's."""

    path: Path
    size: int
    published: Path | None

    @property
    def digest(self) -> bytes: ...

    def seal(self, meta: bytes) -> None: ...

    def sync(self) -> None: ...


@dataclass(slots=True)
class Spool:
    """One data set on its way in: an open, locked file in `incoming/`.

    Closing it removes its name here: what was not published is gone.
    """

    path: Path
    fd: int
    transfer_syntax: str
    size: int = 0
    """Bytes of data set so far."""
    published: Path | None = None
    """Where it lies in the archive; None while it is in the spool."""
    is_synced: bool = False
    """All that was written is durable."""
    is_left: bool = False
    """It could not be withdrawn from there: the next start has to find it."""
    _hash: "hashlib._Hash" = field(init=False)
    _digest: bytes = b""
    _whole: bytes | memoryview = b""
    """The data set, if it was written in one part."""

    def __post_init__(self) -> None:
        self._hash = content_hash(self.transfer_syntax)
        os.lseek(self.fd, DATA_SET_OFFSET, os.SEEK_SET)

    def expect(self, transfer_syntax: str) -> None:
        """What will be written is in this transfer syntax; nothing has been yet."""
        if transfer_syntax != self.transfer_syntax:
            self.transfer_syntax = transfer_syntax
            self._hash = content_hash(transfer_syntax)

    def write(self, part: bytes | memoryview) -> None:
        """Append to the data set. Raises OSError."""
        self._hash.update(part)
        self._digest = b""
        view = memoryview(part)
        self.is_synced = False
        self._whole = b"" if self.size else part
        self.size += len(view)
        while view:
            view = view[os.write(self.fd, view) :]

    def seal(self, meta: bytes) -> None:
        """Write the file meta in front of the data set. Raises OSError."""
        os.pwrite(self.fd, meta, 0)
        self.is_synced = False

    def sync(self) -> None:
        """Make the content durable, unless it is. Raises OSError."""
        if not self.is_synced:
            os.fsync(self.fd)
            self.is_synced = True

    @property
    def digest(self) -> bytes:
        """32 bytes: SHA-256 of transfer syntax and data set so far."""
        self._digest = self._digest or self._hash.digest()
        return self._digest

    def reader(self) -> BinaryIO:
        """The data set from its first byte; nothing is written to the spool after this.

        If it was written in one part, that must still be unchanged: it is read without asking the disk.
        """
        if len(self._whole) == self.size:
            return io.BytesIO(self._whole)
        file = open(self.fd, "rb", closefd=False)  # noqa: SIM115  a descriptor; the caller closes
        file.seek(DATA_SET_OFFSET)
        return file

    def close(self) -> None:
        """Remove the spool file if it is still there. Never raises: what cannot be removed now is later."""
        if self.fd >= 0:
            if not self.is_left:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
