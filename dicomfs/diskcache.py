"""Pictures that outlive a restart: the optional second cache, on a disk that may fail unnoticed.

Reads happen in threads of their own and have a time limit; writes in one more, behind a bounded queue that
drops what does not fit. Whatever goes wrong (disk full, read-only, gone, hanging) is told once, is a missing
picture to whoever asks, and is tried again after a while. It never renders and never raises.

What a picture belongs to is in its name: store, rendition key (with the digest of the encoder), this version
and those of the decoders. Its tag is the window that it was made with. So an update, or a window decided anew
after `renditions.sqlite3` was deleted, finds nothing rather than an old picture. Used by `present.py`.
"""

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from types import TracebackType
from typing import Final, Self

import trio

from dicomfs import __version__
from dicomfs.cachefolder import COMPARTMENTS, CacheFolder, file_name
from dicomfs.figures import DiskFigures
from dicomfs.model import PoolWindow
from dicomfs.renditions import Key

READ_LIMIT_S: Final = 2.0
"""A picture that takes longer to read than to render is no help."""
RETRY_S: Final = 60.0
"""Between two tries of a disk that gives trouble."""
CLOSE_S: Final = 5.0
"""What is still queued at the end may take so long."""
READERS: Final = 4
MOST_QUEUED: Final = 1024
MOST_QUEUED_BYTES: Final = 32 * 1024**2
_DECODERS: Final = (
    *("pydicom", "numpy", "Pillow", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
    *("pyjpegls", "av", "python-gdcm"),
)
_WRITES_ONLY: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""With these, what is there can still be read."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Picture:
    """One to be written; without data, a use to be noted."""

    name: str
    tag: bytes
    data: bytes
    is_use: bool


class DiskCache:
    """The pictures of one store in a folder of files. Enter it to have pictures written."""

    def __init__(
        self, folder: CacheFolder, store_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._belongs_to = f"{store_id} {__version__} {_decoders()}"
        self._clock = clock
        self._limiter = trio.CapacityLimiter(READERS)
        self._queue: deque[_Picture] = deque()
        self._queued_bytes = 0
        self._wake = threading.Condition()
        self._is_ending = False
        self._thread = threading.Thread(target=self._write_all, name="disk cache", daemon=True)
        self._telling = threading.Lock()
        self._trouble: OSError | None = None
        self._retry_at = 0.0
        self._hits = self._misses = self._written = self._dropped = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._wake:
            self._is_ending = True
            self._wake.notify()
        self._thread.join(CLOSE_S)  # a disk that hangs must not keep the mount from ending
        self._folder.close()

    def statistics(self) -> DiskFigures:
        """Counters and gauges of this moment."""
        totals = self._folder.totals()
        return DiskFigures(
            hits=self._hits,
            misses=self._misses,
            evictions=totals.evictions,
            bytes=totals.bytes,
            limit_bytes=self._folder.limit_bytes,
            items=totals.files,
            written=self._written,
            dropped=self._dropped,
            damaged=totals.damaged,
            trouble=_why(self._trouble) if self._trouble else "",
        )

    # On trio's thread

    async def get(self, key: Key, window: PoolWindow | None, *, is_use: bool = True) -> bytes | None:
        """A picture that was made with this window; None when there is none, or none within the time limit.

        `is_use`: somebody has asked for it.
        *Cancellation*: at once; a thread that hangs in the disk is left behind, and only a few can be.
        """
        data, has_begun = None, False
        name, tag = self._name(key), _tag(window)

        def read() -> bytes | None:
            nonlocal has_begun
            has_begun = True
            return self._read(name, tag, is_use=is_use)

        if self._may_read():
            with trio.move_on_after(READ_LIMIT_S) as limit:
                data = await trio.to_thread.run_sync(read, limiter=self._limiter, abandon_on_cancel=True)
            # Else it was the crowd before it, and no fault of the disk; but in trouble, nobody came back.
            if limit.cancelled_caught and (has_begun or not self._is_readable()):
                self._note(TimeoutError(errno.ETIMEDOUT, f"no answer within {READ_LIMIT_S:g} s"))
        self._hits += data is not None
        self._misses += data is None
        return data

    def keep(self, key: Key, window: PoolWindow | None, data: bytes, *, is_use: bool) -> None:
        """Have a picture written, soon; `is_use`: somebody has asked for it."""
        if len(data) <= self._folder.largest:
            self._enqueue(_Picture(self._name(key), _tag(window), data, is_use))

    def touch(self, key: Key) -> None:
        """Note that a picture was used again that came from elsewhere."""
        self._enqueue(_Picture(self._name(key), b"", b"", is_use=True))

    def _name(self, key: Key) -> str:
        return file_name(f"{self._belongs_to} {key.recipe} {key.original} {key.frame} {key.version}")

    def _enqueue(self, picture: _Picture) -> None:
        with self._wake:
            size = self._queued_bytes + len(picture.data)
            if len(self._queue) >= MOST_QUEUED or size > MOST_QUEUED_BYTES or not self._may_write():
                self._dropped += bool(picture.data)
                return
            self._queue.append(picture)
            self._queued_bytes = size
            self._wake.notify()

    # Trouble

    def _may_read(self) -> bool:
        return self._is_readable() or self._clock() >= self._retry_at

    def _is_readable(self) -> bool:
        trouble = self._trouble
        return trouble is None or trouble.errno in _WRITES_ONLY

    def _may_write(self) -> bool:
        return self._trouble is None or self._clock() >= self._retry_at

    def _note(self, error: OSError) -> None:
        with self._telling:
            if self._trouble is None:
                log.warning(
                    "no disk cache for now, pictures are kept in memory only: %s: %s",
                    self._folder.folder,
                    _why(error),
                )
            self._trouble, self._retry_at = error, self._clock() + RETRY_S

    def _well(self, *, written: bool) -> None:
        if self._trouble is not None:
            self._tell_well(written=written)

    def _tell_well(self, *, written: bool) -> None:
        with self._telling:
            trouble = self._trouble
            if trouble is None or (trouble.errno in _WRITES_ONLY and not written):
                return  # that it can be read says nothing of a disk that was full
            self._trouble = None
        log.warning("the disk cache %s is in use again", self._folder.folder)

    # In threads

    def _read(self, name: str, tag: bytes, *, is_use: bool) -> bytes | None:
        try:
            data = self._folder.read(name, tag, is_use=is_use)
        except OSError as error:
            self._note(error)
            return None
        self._well(written=False)
        return data

    def _write_all(self) -> None:
        """The writer's thread: pictures first, then what the folder holds already."""
        unknown = list(COMPARTMENTS)
        while True:
            with self._wake:
                while not self._queue and not self._is_ending and not (unknown and self._may_write()):
                    self._wake.wait(RETRY_S if unknown else None)
                if not self._queue and self._is_ending:
                    return
                picture = self._queue.popleft() if self._queue else None
                self._queued_bytes -= len(picture.data) if picture else 0
            try:
                if picture is None:
                    self._folder.survey(unknown[-1])
                    unknown.pop()
                elif not picture.data:
                    self._folder.touch(picture.name)
                else:
                    self._folder.write(picture.name, picture.tag, picture.data, is_use=picture.is_use)
                    self._written += 1
            except OSError as error:
                self._note(error)
                self._drop_all(picture)
            else:
                self._well(written=bool(picture and picture.data))

    def _drop_all(self, failed: _Picture | None) -> None:
        """What waits for a disk in trouble would only wait for it to fail again."""
        with self._wake:
            self._dropped += sum(bool(one.data) for one in [*self._queue, *([failed] if failed else [])])
            self._queue.clear()
            self._queued_bytes = 0


def _tag(window: PoolWindow | None) -> bytes:
    text = "" if window is None else f"{window.low!r} {window.high!r}"
    return sha256(text.encode()).digest()[:16]


def _decoders() -> str:
    """Versions of all that turns pixels into other pixels; encoders are seen by what they make."""
    return " ".join(map(_version, _DECODERS))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _why(error: OSError) -> str:
    return error.strerror or str(error)
