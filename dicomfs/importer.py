"""`dicomfs import`: files on disk -> the store, the same way in as the SCP. Never prints; `cli.py` does."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from dicomfs.errors import BadInstance, NotDicom, UsageError
from dicomfs.header import read_file_meta
from dicomfs.ingest import Ingest
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

    Raises StoreFull or StoreUnavailable: what was reported before is durable, the rest is not stored.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="import") as threads:
        try:
            for path in files:
                waiting.append(threads.submit(_take_in_one, ingest, path))
                if len(waiting) >= 4 * _THREADS:
                    done(waiting.popleft().result())
            while waiting:
                done(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()


def _take_in_one(ingest: Ingest, path: Path) -> Result:
    try:
        if not path.is_file():
            return Result(path, None, "not a regular file", is_dicom=False)
        with path.open("rb") as file:
            meta = read_file_meta(file)
            receipt = Receipt(
                transfer_syntax=meta.transfer_syntax,
                received=time.time(),
                # UIDs of the file meta are not checked: files are edited, and the data set is what counts.
                source_ae=meta.source_ae,
            )
            file.seek(meta.data_set_offset)
            # What is refused stays where it is, so it need not be kept aside.
            return Result(path, ingest.receive(_chunks(file), receipt, keep_refused=False))
    except NotDicom as error:
        return Result(path, None, str(error), is_dicom=False)
    except BadInstance as error:
        return Result(path, None, str(error))
    except OSError as error:
        return Result(path, None, f"cannot be read: {error.strerror}")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
