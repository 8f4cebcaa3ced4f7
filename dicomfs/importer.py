"""`dicomfs import`: files on disk -> the store, the same way in as the SCP. Never prints; `cli.py` does."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from dicomfs.errors import BadInstance, NotDicom, UsageError
from dicomfs.header import read_file_meta
from dicomfs.ingest import Ingest, Prepared
from dicomfs.model import Outcome, Receipt

_CHUNK_BYTES: Final = 1 << 20
_THREADS: Final = 8
"""More than processors: they wait for the disk, and what waits together is committed together."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one file."""

    path: Path
    outcome: Outcome | None
    """None when it was not taken in."""
    reason: str = ""
    """Why it was not taken in."""
    is_dicom: bool = True
    """False when leaving it out loses nothing: it is a file of another kind."""


def find(paths: Iterable[Path]) -> list[Path]:
    """All regular files under these paths, sorted, folders walked, symbolic links to folders not followed.

    Raises UsageError for a path that does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            for folder, names, files in os.walk(path):
                names.sort()
                found += [Path(folder, name) for name in sorted(files)]
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"no such file or folder: {path}")
    return found


def take_in(ingest: Ingest, files: Iterable[Path], done: Callable[[Result], None]) -> None:
    """Take in every file; `done` is told of each, in order.

    Numbers are given in the order of the files, so equal imports into equal stores give equal trees.
    Raises StoreFull or StoreUnavailable: what was reported before is durable, the rest is not stored.
    """
    reading: deque[tuple[Path, Future[Prepared | Result]]] = deque()
    waiting: deque[tuple[Path, Prepared | Result]] = deque()

    def advance() -> None:
        path, future = reading.popleft()
        read = future.result()
        waiting.append((path, read))
        if isinstance(read, Prepared):
            ingest.commit(read)

    def report() -> None:
        path, read = waiting.popleft()
        if isinstance(read, Prepared):
            with read.spool:
                read = _result(path, read.done)
        done(read)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="import") as threads:
        try:
            for path in files:
                reading.append((path, threads.submit(_read, ingest, path)))
                if len(reading) >= 2 * _THREADS:
                    advance()
                if len(waiting) >= 2 * _THREADS:
                    report()
            while reading:
                advance()
            while waiting:
                report()
        finally:
            left = [
                future.result() for _, future in reading if not future.cancel() and not future.exception()
            ]
            committed = [read for _, read in waiting if isinstance(read, Prepared)]
            wait([read.done for read in committed])
            for read in committed + [read for read in left if isinstance(read, Prepared)]:
                read.spool.close()


def _result(path: Path, outcome: Future[Outcome]) -> Result:
    """What became of a file that was committed. Raises StoreFull, StoreUnavailable."""
    try:
        return Result(path, outcome.result())
    except BadInstance as error:  # as a duplicate
        return Result(path, None, str(error))


def _read(ingest: Ingest, path: Path) -> Prepared | Result:
    """A file ready to be committed, or why it is not taken in. Raises StoreFull, StoreUnavailable."""
    try:
        if not path.is_file():
            return Result(path, None, "not a regular file", is_dicom=False)
        with path.open("rb") as file:
            meta = read_file_meta(file)
            # UIDs of the file meta are not checked: files are edited, and the data set is what counts.
            receipt = Receipt(meta.transfer_syntax, time.time(), meta.source_ae)
            file.seek(meta.data_set_offset)
            # What is refused stays where it is, so it need not be kept aside.
            return ingest.prepare(_chunks(file), receipt, keep_refused=False)
    except NotDicom as error:
        return Result(path, None, str(error), is_dicom=False)
    except BadInstance as error:
        return Result(path, None, str(error))
    except OSError as error:
        return Result(path, None, f"cannot be read: {error.strerror}")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
