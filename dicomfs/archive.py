"""The flat archive: original SOP instances as files, immutable, named by their content.

    STORE/archive/ab/<sha256>-<sequence>.dcm    originals; ab: the first byte of the hash
    STORE/incoming/                             spool of what is being received, same file system
    STORE/quarantine/                           refused data sets, bounded
    STORE/forgotten/                            originals that were taken out on purpose (`forget.py`)
    STORE/damaged/                              originals that a scrub found damaged and was told to set aside

The receipt sequence number is in the name and not in the file, because it is known last: giving it then
costs no second write and no second sync of the file.

A published file keeps its name in the spool until its row is committed: so a start after a crash finds at
once which originals of the archive have no row, however many others there are.

Knows no SQL and no DICOM beyond file meta information. Called by `batch.py` and `ingest.py`, which decide the
order of the durable steps, and by what repairs a store; readers need only `Archive.path`.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from dicomfs.errors import UnreadableDataSet
from dicomfs.filemeta import DATA_SET_OFFSET, file_meta
from dicomfs.model import Receipt
from dicomfs.spool import Spool, Whole, content_hash
from dicomfs.storage import sync_directory

_NAME: Final = re.compile(r"([0-9a-f]{64})-([1-9][0-9]{0,17})\.dcm")
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a file system without hard links says."""
_CHUNK_BYTES: Final = 1 << 20
_DIRECTORY_MODE: Final = 0o750
_FILE_MODE: Final = 0o440


def digest_and_sequence(name: str) -> tuple[bytes, int]:
    """What the name of an archived file says. Raises UnreadableDataSet when it is not one of ours."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise UnreadableDataSet(f"{name!r} is not the name of an archived original")
    return bytes.fromhex(found[1]), int(found[2])


class Archive:
    """The folders of originals under one store."""

    def __init__(self, store: Path) -> None:
        self.root = store / "archive"
        self.incoming = store / "incoming"
        self.quarantine = store / "quarantine"
        self.forgotten = store / "forgotten"
        self.damaged = store / "damaged"

    def create(self) -> None:
        """Make the folders that are missing, durably. Raises OSError."""
        for folder in (self.root, self.incoming, self.quarantine):
            folder.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        # All of them now: an object that made its own would cost two syncs more.
        for byte in range(256):
            (self.root / f"{byte:02x}").mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        # Also when they exist: whoever made them may have been killed before they were durable.
        sync_directory(self.root)
        sync_directory(self.root.parent)

    def is_empty(self) -> bool:
        """True when there is no original. Raises OSError."""
        return next(self.root.rglob("*.dcm"), None) is None

    def path(self, digest: bytes, sequence: int) -> Path:
        """Where the original with this content hash and receipt sequence number lies, or would lie."""
        name = digest.hex()
        return self.root / name[:2] / f"{name}-{sequence}.dcm"

    def spool(self, transfer_syntax: str) -> Spool:
        """Open a new spool file. Raises OSError."""
        while True:
            path = self.incoming / f"{os.getpid()}-{secrets.token_hex(8)}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
            try:
                # The lock tells `clean` of any process that somebody is still writing here.
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:
                    return Spool(path, fd, transfer_syntax)
            except BaseException:
                os.close(fd)
                path.unlink(missing_ok=True)
                raise
            os.close(fd)  # it was cleaned away before it was locked

    def publish(self, spool: Whole, sequence: int) -> Path:
        """Give a sealed spool file its place, under its number; the folder it is in.

        Its name is durable when `sync_directory` has been called for that folder. Until then, and until it is
        synced itself, `clean` finds it by its name in the spool; where there is none, or something is
        replaced, it is synced before. What has that name already is damaged, or of a process that was killed,
        or more than the index knows. Called within a write transaction of the index. Raises OSError.
        """
        target = self.path(spool.digest, sequence)
        spool.published = target  # first: whatever fails now, `withdraw` looks there
        try:
            target.hardlink_to(spool.path)
        except FileExistsError:
            spool.sync()
            self._replace(spool.path, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            spool.sync()
            spool.path.replace(target)
        return target.parent

    @staticmethod
    def _replace(path: Path, target: Path) -> None:
        """Put a spool file in the place of what is there; it keeps its name if the file system has links."""
        second = path.with_name(f"{path.name}+")
        second.unlink(missing_ok=True)  # of a process that was killed here
        try:
            second.hardlink_to(path)
        except OSError as error:
            # Without links the answer to the first try was that there is such a name already.
            if error.errno not in _NO_LINKS:
                raise
            path.replace(target)
            return
        second.replace(target)
        second.unlink(missing_ok=True)  # two names of one file are left as they are

    def withdraw(self, spool: Spool) -> None:
        """Undo `publish`: the file is a spool file again. Nothing happens when it was not published.

        Called within a write transaction of the index, but not that of `publish`: another process may have
        published the same object since, under the same number, and that one stays. Raises OSError.
        """
        if spool.published is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(spool.published.stat(), os.fstat(spool.fd)):
                    if spool.path.exists():
                        spool.published.unlink()
                    else:
                        spool.published.rename(spool.path)
            spool.published = None

    def find_published(self, spool: Spool) -> Path | None:
        """Where a spool file lies in the archive, whoever has put it there; None when it does not.

        Raises OSError.
        """
        own = os.fstat(spool.fd)
        if own.st_nlink > 1 or not spool.path.exists():
            prefix = f"{spool.digest.hex()}-"
            with os.scandir(self.folder(spool.digest[0])) as entries:
                for entry in entries:
                    # Not `entry.inode()`: where file systems are stacked, it may be another number.
                    if entry.name.startswith(prefix) and os.path.samestat(
                        entry.stat(follow_symlinks=False), own
                    ):
                        return Path(entry.path)
        return None

    def intact(self, digest: bytes, sequence: int, size: int) -> bool:
        """True when the original is there with its full length (no checksum: that is a scrub's work)."""
        try:
            return self.path(digest, sequence).stat().st_size == DATA_SET_OFFSET + size
        except OSError:
            return False

    def read_back(self, digest: bytes, sequence: int, size: int, transfer_syntax: str) -> Path:
        """Read a whole original again, and compare length and checksum with what was received; its file.

        Raises FileNotFoundError when it is not there, UnreadableDataSet when it is damaged, another OSError
        when it cannot be read. Bounded memory, whatever its size.
        """
        path = self.path(digest, sequence)
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != DATA_SET_OFFSET + size:
                raise UnreadableDataSet(f"{path.name} has not the length that was received")
            file.seek(DATA_SET_OFFSET)
            found = content_hash(transfer_syntax)
            buffer = memoryview(bytearray(_CHUNK_BYTES))
            while count := file.readinto(buffer):
                found.update(buffer[:count])
        if found.digest() != digest:
            raise UnreadableDataSet(f"{path.name} does not have the checksum that is its name")
        return path

    def folder(self, byte: int) -> Path:
        """The folder of the originals whose hash begins with this byte."""
        return self.root / f"{byte:02x}"

    def replace(self, spool: Spool, sequence: int) -> None:
        """Put a sealed and synced spool file in the place of an original of its content, durably.

        Unlike `publish` it leaves no second name in the spool, which would be taken for that of an original
        without a row where the index is rebuilt. Raises OSError.
        """
        target = self.path(spool.digest, sequence)
        spool.path.replace(target)
        sync_directory(target.parent)

    def renumber(self, digest: bytes, old: int, new: int) -> None:
        """Give an original another number, durably; what has that name already is set aside.

        Raises OSError.
        """
        source, target = self.path(digest, old), self.path(digest, new)
        if os.path.lexists(target):
            self.set_aside(target)
        source.rename(target)
        sync_directory(target.parent)

    def remove(self, path: Path) -> None:
        """Take a file out of the archive, durably. Raises OSError."""
        path.unlink()
        sync_directory(path.parent)

    def set_aside(self, source: Path) -> Path:
        """Move a damaged original to `damaged/`, durably; the next object of the same content is taken in.

        Under the name that it had, with the time in front. Raises OSError.
        """
        if not self.damaged.exists():
            self.damaged.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
            sync_directory(self.damaged.parent)
        target = self.damaged / f"{time.time_ns()}-{source.name}"
        source.rename(target)
        # There before it is gone from where it was.
        sync_directory(self.damaged)
        sync_directory(source.parent)
        return target

    def keep_aside(self, spool: Spool, receipt: Receipt, reason: str, limit: int) -> Path | None:
        """Move a refused data set to `quarantine/`, its reason beside it; the oldest over `limit` go.

        It becomes a DICOM file with the UIDs that were announced, so that any program, and `dicomfs import`,
        can read it once somebody has mended it. None when it could not be kept.
        """
        try:
            held = sorted(self.quarantine.glob("*.dcm"))
            # Ordered by name, whatever the clock says meanwhile.
            number = max(time.time_ns(), 1 + _number(held[-1]) if held else 0)
            target = self.quarantine / f"{number:020}-{spool.digest.hex()[:16]}.dcm"
            sop_class, sop_instance = _proper(receipt.sop_class_uid), _proper(receipt.sop_instance_uid)
            spool.seal(file_meta(receipt, sop_class, sop_instance, refused=reason))
            spool.path.rename(target)
            target.with_suffix(".txt").write_text(f"{receipt.transfer_syntax}\n{reason}\n")
            for old in [*held, target][:-limit]:
                old.unlink(missing_ok=True)
                old.with_suffix(".txt").unlink(missing_ok=True)
        except (OSError, UnreadableDataSet):
            return None
        return target

    def clean(self, has_row: Callable[[bytes, int], bool]) -> int:
        """Remove spool files that nobody writes any more (a process was killed); returns how many.

        `has_row`: whether an original of this content hash and number is in the index. One that is not
        was published and never committed, so never acknowledged either: its name in the archive goes too.
        Called within a write transaction of the index: so nobody publishes anything meanwhile.
        """
        return self.discard(self.abandoned(), has_row)

    def abandoned(self) -> Iterator[Path]:
        """Spool files that nobody writes any more, each locked for as long as the caller looks at it.

        An empty one may as well be one that was made this moment and is not yet locked. Raises OSError.
        """
        for path in list(self.incoming.iterdir()):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists():  # else its writer has just finished with it
                    yield path
            except BlockingIOError:
                pass
            finally:
                os.close(fd)

    def discard(self, paths: Iterable[Path], has_row: Callable[[bytes, int], bool]) -> int:
        """Remove abandoned spool files, and their names in the archive if these have no row; how many.

        Raises OSError.
        """
        count = 0
        torn: dict[int, Path] = {}
        for path in paths:
            count += 1
            status = path.stat()
            likely = self._folder_of(path) if status.st_nlink > 1 else None
            if status.st_nlink > 1 and not self._retract([likely], {status.st_ino}, has_row):
                torn[status.st_ino] = path
            else:
                path.unlink(missing_ok=True)
        if torn:
            # They had their names before they were durable, and a loss of power has left nothing else.
            self._retract(map(self.folder, range(256)), torn, has_row)
            for path in torn.values():
                path.unlink(missing_ok=True)
        return count

    def is_held(self, path: Path) -> bool:
        """True when whoever published this file is still about it: its row is to come. Raises OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _retract(
        self, folders: Iterable[Path | None], inodes: Collection[int], has_row: Callable[[bytes, int], bool]
    ) -> bool:
        """Take files of these inodes out of the archive if they have no row; whether all were found there."""
        left = set(inodes)
        for folder in folders:
            if folder is None or not left:
                continue
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.inode() not in left:
                        continue
                    left.discard(entry.inode())
                    if _NAME.fullmatch(entry.name) and not has_row(*digest_and_sequence(entry.name)):
                        # Durably, before the spool's name goes: else a loss of power could leave the one
                        # that has no row.
                        self.remove(Path(entry.path))
        return not left

    def _folder_of(self, path: Path) -> Path | None:
        """Where a whole spool file belongs, found by hashing it; None when it is not whole."""
        # Only after a crash; without pydicom the committer process is started sooner, and smaller.
        from pydicom.errors import InvalidDicomError  # noqa: PLC0415
        from pydicom.filereader import read_file_meta_info  # noqa: PLC0415

        try:
            content = content_hash(str(read_file_meta_info(path).TransferSyntaxUID))
            with path.open("rb") as file:
                file.seek(DATA_SET_OFFSET)
                while chunk := file.read(_CHUNK_BYTES):
                    content.update(chunk)
        except (InvalidDicomError, AttributeError, OSError):
            return None
        return self.path(content.digest(), 1).parent


def _number(kept: Path) -> int:
    """When a data set was kept aside, in nanoseconds, as its name has it."""
    digits = kept.name.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _proper(uid: str | None) -> str:
    """A UID as the standard has it, else nothing: what a peer announced may be anything, even a name."""
    return uid if uid and re.fullmatch(r"[0-9.]{1,64}", uid, re.ASCII) else ""
