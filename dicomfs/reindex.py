"""`dicomfs reindex`: the index built anew from the archive, with the same numbers, names and inodes.

Every original says when and how it was received, so all of them, taken in the order of their receipt
sequence numbers by the code that took them in (`writer.py`), give the same rows again. Steps:

    1  every file of the archive is read and its content compared with its name   -> a plan
    2  numbers: who keeps his, who gets a new one (`plan.py`)
    3  rows, in the order of the numbers                                          -> a new file
    4  files whose number is a new one get it as their name; damaged file meta information is written anew
    5  the new index takes the place of the old in one rename

All that is made before 5 lies in `STORE/reindexing/`, so a kill at any moment leaves the old index, or the
new one. Has the store alone. Never prints; `maintenance.py` does.
"""

import errno
import os
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dicomfs import forget
from dicomfs.archive import Archive
from dicomfs.errors import StoreError, StoreFull, StoreMismatch, StoreUnavailable, UnreadableDataSet
from dicomfs.findings import Finding, Kind, Report, Tally, Watch, shown_path, unwatched
from dicomfs.header import read_header
from dicomfs.index import INDEX_NAME, Index
from dicomfs.lock import StoreLock
from dicomfs.model import Header, Receipt
from dicomfs.plan import Plan, Planned
from dicomfs.storage import sync_directory
from dicomfs.verify import Examined, examine, foreign_folders, names, relabel

FORMER_NAME: Final = f"{INDEX_NAME}.before-reindex"
"""The index that was replaced, in the store."""
SCRATCH_NAME: Final = "reindexing"
_JOURNALS: Final = ("-wal", "-shm")
_THREADS: Final = min(8, 2 * (os.cpu_count() or 1))
"""More than processors: they wait for the disk. What they compute for long is done without the GIL."""


@dataclass(frozen=True, slots=True)
class _Surveyed:
    """What one file turned out to be."""

    digest: bytes
    named: int
    """The number in its name."""
    examined: Examined | None
    header: Header | None
    """None when it is not whole."""
    trouble: str


def reindex(
    store: Path, *, watch: Watch = unwatched, found: Callable[[Finding], None] = lambda _: None
) -> Report:
    """Rebuild the index of a store from its archive; the old one is kept as `FORMER_NAME`.

    `found` is told of what is not whole (left out), not ours, no longer there, or got a new number. Raises
    StoreUnavailable when somebody uses the store (it names him), StoreMismatch when it is none, StoreFull.
    Nothing was changed then, but for the numbers in files that the old index does not know.
    """
    archive, scratch = Archive(store), store / SCRATCH_NAME
    if not archive.root.is_dir():
        raise StoreMismatch(f"{store} is not a dicomfs store, or its disk is not mounted: it has no archive")
    _finish_forgetting(archive, store / INDEX_NAME)
    with ExitStack() as ending, _storage_errors(store):
        ending.enter_context(StoreLock(store, alone=True))
        archive.create()
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed one has left
        scratch.mkdir(mode=0o750)
        ending.callback(shutil.rmtree, scratch, ignore_errors=True)
        work = _Rebuild(store, archive, scratch, found)
        with Plan(scratch / "plan.sqlite3", store / INDEX_NAME) as plan:
            work.survey(plan, watch)
            work.build(plan, watch)
        # What a killed receiver has named and not synced would have a row now, and be answered for when it
        # is sent again.
        os.sync()
        _put_in_place(work.fresh, store / INDEX_NAME)
    return work.report()


def _finish_forgetting(archive: Archive, index: Path) -> None:
    """Move aside what the old index has forgotten already: from the archive it would come back."""
    if next(archive.forgotten.glob(f"*/{forget.PENDING}"), None) is not None:
        # An index that cannot be read has forgotten nothing that anybody could know of.
        with suppress(StoreError), closing(Index(index)) as former:
            forget.finish(archive, former)


class _Rebuild:
    """One run."""

    def __init__(
        self, store: Path, archive: Archive, scratch: Path, found: Callable[[Finding], None]
    ) -> None:
        self._store = store
        self._archive = archive
        self.fresh = scratch / INDEX_NAME
        self._tally = Tally(found)

    def report(self) -> Report:
        """What was found; `originals`: those that have a row now."""
        return self._tally.report()

    def _note(self, kind: Kind, path: Path, detail: str, **facts: Any) -> None:
        self._tally.note(Finding(kind, shown_path(path, self._store), detail, **facts))

    # 1

    def survey(self, plan: Plan, watch: Watch) -> None:
        """Every file of the archive into the plan."""
        folders = [self._archive.folder(byte) for byte in range(256)]
        for path in foreign_folders(self._archive):
            self._note(Kind.FOREIGN, path, "is none of the archive's folders")
        total = sum(len(found) for folder in folders for found in names(folder)[0].values())
        with watch("reading the archive", total) as advance:
            for surveyed in self._surveyed(folders):
                self._enter(plan, surveyed)
                advance()
        if not plan.count() and plan.former_originals:
            raise StoreUnavailable(
                f"{self._archive.root} holds no whole original, but the index knows "
                f"{plan.former_originals}: is its disk mounted?"
            )

    def _surveyed(self, folders: list[Path]) -> Iterator[_Surveyed]:
        """Of every file, in order; several are read at once."""
        reading: deque[Future[_Surveyed]] = deque()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="survey") as threads:
            for folder in folders:
                numbers, others = names(folder)
                for path in others:
                    self._note(Kind.FOREIGN, path, "is not named as an original of this folder")
                for digest, number in sorted((d, n) for d, found in numbers.items() for n in found):
                    reading.append(threads.submit(_survey, self._archive, digest, number))
                    if len(reading) > 2 * _THREADS:
                        yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()

    def _enter(self, plan: Plan, surveyed: _Surveyed) -> None:
        digest, named = surveyed.digest, surveyed.named
        receipt = surveyed.examined.receipt if surveyed.examined else None
        is_labelled = receipt is not None
        if receipt is None and (receipt := plan.former_receipt(digest)) is not None:
            # Its file meta information is damaged: the former index knows how to read it.
            surveyed = _survey(self._archive, digest, named, receipt.transfer_syntax)
        examined, header = surveyed.examined, surveyed.header
        if examined is None or header is None:
            plan.add_broken(digest, named, surveyed.trouble)
            return
        if receipt is None:
            changed = self._archive.path(digest, named).stat().st_mtime
            receipt = Receipt(examined.transfer_syntax, changed)
        plan.add(Planned(digest, named, examined.size, examined.offset, receipt, is_labelled, header))

    # 2, 3, 4

    def build(self, plan: Plan, watch: Watch) -> None:
        """The new index, and what has to be changed in files so that they agree with it."""
        last = plan.decide()
        index = Index(self.fresh, create=True)
        try:
            plan.keep_retired(self.fresh)
            with watch("indexing", plan.count()) as advance:
                for page in plan.in_order():
                    with index.write() as writer:
                        for one in page:
                            writer.add(one.header, one.receipt, one.number, one.hash, one.size)
                            self._tally.originals += 1
                            advance()
            with index.write() as writer:
                writer.count_from(last)
        finally:
            index.close()
        plan.keep_identity(self.fresh)
        for page in plan.to_correct():
            for one in page:
                self._correct(one)
        for digest, named, number in plan.spare():
            path = self._archive.path(digest, named)
            self._note(Kind.ORPHANED, path, f"its content is kept as original {number}")
        for lost in plan.lost():
            kind = Kind.BROKEN if lost.sequence is None else Kind.DAMAGED if lost.detail else Kind.MISSING
            self._note(
                kind,
                self._archive.path(lost.hash, lost.named),
                f"{lost.detail or 'its file is not there'}; it is left out of the index",
                sequence=lost.sequence,
                sop_instance_uid=lost.sop_instance_uid,
            )

    def _correct(self, one: Planned) -> None:
        kind, details = Kind.MISLABELLED, []
        if one.named != one.number:
            self._archive.renumber(one.hash, one.named, one.number)
            if one.former is None:
                kind = Kind.ORPHANED
            got = "in vain and got a new one" if one.former is None else "and got that of its row"
            details.append(f"it bore the number {one.named} {got}")
        if not one.is_labelled:
            # Its UIDs do not matter: those of the data set are written.
            relabel(self._archive, one.hash, one.offset, one.receipt, one.number)
            details.append("its file meta information was damaged or not ours and was written anew")
        self._note(
            kind,
            self._archive.path(one.hash, one.number),
            "; ".join(details),
            sequence=one.number,
            sop_instance_uid=one.header.sop_instance_uid,
            repaired=True,
        )


def _survey(archive: Archive, digest: bytes, named: int, transfer_syntax: str = "") -> _Surveyed:
    """Read one file. Raises OSError when that is not the file's fault."""
    path = archive.path(digest, named)
    examined = None
    try:
        # It stays in the page cache for the header, which is at its beginning; nobody else uses the store.
        examined = examine(path, transfer_syntax, forget=False)
        if examined.digest != digest:
            return _Surveyed(digest, named, examined, None, "its content is not what its name says")
        with path.open("rb") as file:
            file.seek(examined.offset)
            header = read_header(file, examined.size, examined.transfer_syntax)
    except UnreadableDataSet as error:
        return _Surveyed(digest, named, examined, None, str(error))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise
        return _Surveyed(digest, named, examined, None, f"it cannot be read: {error.strerror}")
    return _Surveyed(digest, named, examined, header, "")


# 5


def _put_in_place(fresh: Path, index: Path) -> None:
    """Durably. Raises OSError.

    Journals belong to a file by name alone, so that one of the old index would be played into the new one:
    the old index takes in what its journal holds, and if it cannot, the journal goes where its copy goes.
    """
    store = index.parent
    _settle(fresh)
    if Path(f"{fresh}-wal").exists():
        raise StoreUnavailable(f"the journal of {fresh} could not be written back: the index is as it was")
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    if index.exists():
        fresh.chmod(index.stat().st_mode & 0o777)
        _settle(index)
        _keep(index, store / FORMER_NAME)
    for journal in _JOURNALS:
        store.joinpath(INDEX_NAME + journal).unlink(missing_ok=True)
    sync_directory(store)
    fresh.replace(index)
    sync_directory(store)


def _settle(index: Path) -> None:
    """Have SQLite write the journal back into the file, if it still can."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(index)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _keep(index: Path, former: Path) -> None:
    """A second name for the old index, and for a journal that could not be written back."""
    for suffix in ("", *_JOURNALS):
        old, new = Path(f"{index}{suffix}"), Path(f"{former}{suffix}")
        new.unlink(missing_ok=True)
        if old.exists() and suffix != "-shm":
            os.link(old, new)
    sync_directory(index.parent)


@contextmanager
def _storage_errors(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no space left on the device of {store}: the index is as it was") from error
        raise StoreUnavailable(f"{error.filename or store} cannot be used: {error.strerror}") from error
