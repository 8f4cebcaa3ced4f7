"""`dicomfs render`: a whole view written out as ordinary files, with the names and bytes a mount would show.

Never mounts and never prints. Called by `cli.py` with a store of its own.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import trio

from dicomfs.config import MountOptions
from dicomfs.entries import Entry
from dicomfs.errors import RenderFailed, UsageError
from dicomfs.index import INDEX_NAME, Index
from dicomfs.inode import STORED, Inode
from dicomfs.present import Presenter
from dicomfs.selection import ANY
from dicomfs.view import open_view, run_tasks

_PAGE: Final = 500


@dataclass(slots=True)
class Written:
    """What was written."""

    files: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Files that are notices, or are missing, with the reason."""


def count(store: Path, options: MountOptions) -> int | None:
    """How many instances the store holds, times the formats: for a progress bar. None: a part of them."""
    if ANY not in options.modality or options.since.text:
        return None
    index = Index(store / INDEX_NAME)
    try:
        return index.counts().instances * len(options.formats)
    finally:
        index.close()


def write_out(store: Path, output: Path, options: MountOptions, done: Callable[[], None]) -> Written:
    """Write every file of the view of a store under `output`; `done` is called after each instance's last.

    Raises StoreError, WorkerStartFailed, UsageError (the output cannot be written).
    """
    return run_tasks(_write_out, store, output, replace(options, warm=False, disk_cache=None), done)


async def _write_out(store: Path, output: Path, options: MountOptions, done: Callable[[], None]) -> Written:
    written = Written()
    async with open_view(store, options) as presenter:
        # Twice as many as processes, so that none of them waits for a file to be written.
        limiter = trio.CapacityLimiter(2 * (options.workers or os.cpu_count() or 1))
        async with trio.open_nursery() as nursery:
            for folder, entry in _files(presenter, presenter.tree.root, Path()):
                await limiter.acquire_on_behalf_of(entry)
                nursery.start_soon(_write_one, presenter, output / folder, entry, written, limiter)
                if entry.inode.frame <= 1:
                    done()
    return written


def _files(presenter: Presenter, folder: Inode, path: Path) -> Iterator[tuple[Path, Entry]]:
    """Every file below a folder of the tree, with the path of the folder it is in."""
    cookie = 0
    while True:
        page = list(presenter.tree.listing(folder, cookie, _PAGE))
        if not page:
            return
        for item in page:
            if item.entry.is_folder:
                yield from _files(presenter, item.entry.inode, path / item.entry.name)
            else:
                yield path, item.entry
        cookie = page[-1].cookie


async def _write_one(
    presenter: Presenter, folder: Path, entry: Entry, written: Written, limiter: trio.CapacityLimiter
) -> None:
    target = folder / entry.name
    content: Path | bytes | None
    try:
        if entry.inode.format == STORED:
            stored = presenter.tree.stored_file(entry.inode)
            content = stored[0] if stored else None
        else:
            content = await presenter.contents(entry.inode)
            presenter.record_sizes()
            if why := presenter.failure(entry.inode):
                written.failed.append((target, why))
        if content is not None:
            await trio.to_thread.run_sync(_put, target, content, entry.modified)
            written.files += 1
    except RenderFailed as error:
        written.failed.append((target, str(error)))
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    finally:
        limiter.release_on_behalf_of(entry)


def _put(target: Path, content: Path | bytes, modified: float) -> None:
    """Write a file, or copy one, and give it its time. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, target)
    else:
        target.write_bytes(content)
    os.utime(target, (modified, modified))
