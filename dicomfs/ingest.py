"""The one way in: spool -> header -> names -> archive -> index, the same for SCP and import.

`Ingest.receive` may be called from any number of threads. Each caller writes its own spool file, reads
its own header and makes the file durable; then one committer thread takes all that are waiting, gives them
their receipt sequence numbers inside one index transaction, makes the directory entries durable, commits,
and only then lets the callers go on. While several are at it, it has a process do that (`committer.py`), for
which nobody has to wait who needs the interpreter. A caller who is alone does all this itself, with no thread
between, and syncs its file when it has its name: one commit of the file system's journal holds both. So the
order of sequence numbers is the order of commits, whatever the number of senders and processes. Never decodes
pixels, never changes a byte of a data set.
"""

import errno
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from dicomfs import forget
from dicomfs.archive import Archive
from dicomfs.batch import commit, withdraw
from dicomfs.committerprocess import CommitterProcess
from dicomfs.errors import (
    BadInstance,
    IdentityMismatch,
    StoreLocked,
    StoreMismatch,
    StoreUnavailable,
)
from dicomfs.filemeta import file_meta, plain_ae
from dicomfs.header import read_header
from dicomfs.index import INDEX_NAME, Index
from dicomfs.indexfile import REBUILD
from dicomfs.lane import Lane
from dicomfs.logtext import uid_text, where
from dicomfs.model import Duplicates, Header, Outcome, Receipt
from dicomfs.pressure import Space
from dicomfs.spool import Spool
from dicomfs.storage import storage_errors

QUARANTINE_LIMIT: Final = 1000
"""Refused data sets that are kept aside; the oldest go."""
WORTH_A_PROCESS: Final = 32
"""Objects that several send at once, before a process is started to commit them."""
_BATCH: Final = 64
_AT_ONCE_BYTES: Final = 4 << 20
"""Longer objects are synced before they are committed: others must not wait for that."""
_IDLE_S: Final = 300.0
"""After which the committer process is ended; it has some memory of its own."""
_LOOK_BYTES: Final = 32 << 20
"""Of an object that arrives; after so many it is looked again whether there is space for more."""

log = logging.getLogger(__name__)


def _nothing(_disk_bytes: int) -> int:
    return 0


@dataclass(slots=True)
class Prepared:
    """A data set that is in the spool and only waits for its number."""

    spool: Spool
    header: Header
    receipt: Receipt
    is_new: bool = False
    """It was given a number, by a transaction that may yet come to nothing."""
    done: "Future[Outcome]" = field(default_factory=Future)


class Ingest:
    """Takes data sets into a store, durably. Close it, or use it as a context manager."""

    def __init__(
        self,
        store: Path,
        archive: Archive,
        index: Index,
        duplicates: Duplicates = Duplicates.KEEP_FIRST,
        keep_free: Callable[[int], int] = _nothing,
    ) -> None:
        self.store = store
        self.archive = archive
        self._duplicates = duplicates
        self.space = Space(archive.incoming, keep_free)
        """Of the disk; its `state` for whoever shows it."""
        self._index = index
        self._queue: queue.SimpleQueue[Prepared | Callable[[], None] | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        """Held by the one thread that uses the index, or the committer process."""
        self._process = CommitterProcess(store)
        self._together = 0
        """Objects that came to the committer thread while several were receiving."""
        self._closing = threading.Lock()
        self._receiving = 0
        """How many are in `receive`."""
        self._closed = False
        self._committer = threading.Thread(target=self._run, name="committer", daemon=True)
        self._committer.start()

    @classmethod
    def open(
        cls,
        store: Path,
        duplicates: Duplicates = Duplicates.KEEP_FIRST,
        keep_free: Callable[[int], int] = _nothing,
    ) -> Self:
        """Open a store for receiving, making it if the folder is new or empty.

        `keep_free`: of the size of a disk in bytes, how many have to stay free; below that nothing is
        taken in, so that the disk is never really full.

        Raises StoreMismatch (not a store, or of another version), StoreFull, StoreUnavailable.
        """
        with storage_errors(f"the store {store}"):
            store.mkdir(mode=0o750, parents=True, exist_ok=True)
            index_path = store / INDEX_NAME
            if not index_path.exists() and any(store.iterdir()) and not (store / "archive").exists():
                raise StoreMismatch(f"{store} is neither empty nor a dicomfs store: choose another folder")
            archive = Archive(store)
            archive.create()
            if not index_path.exists() and not archive.is_empty():
                # An empty index would give the numbers of these originals to others.
                raise StoreMismatch(
                    f"the archive of {store} holds originals, but {INDEX_NAME} is missing: "
                    f"{REBUILD}; nothing was changed"
                )
            if not index_path.exists():
                log.info("%s becomes a new store", store)
            index = Index(index_path, create=True)
            with index.write() as writer:
                removed = archive.clean(writer.has_row)
            try:
                forget.finish(archive, index)
            except BaseException:
                index.close()
                raise
        if removed:
            log.info("removed %d spool files that a killed process had left", removed)
        return cls(store, archive, index, duplicates, keep_free)

    def lane(self) -> Lane:
        """For a sender of many objects, to be given to `receive`."""
        return Lane(self.archive)

    def receive(
        self,
        parts: Iterable[bytes | memoryview],
        receipt: Receipt,
        lane: Lane | None = None,
        *,
        keep_refused: bool = True,
    ) -> Outcome:
        """Take in one encoded data set; when this returns, file, directory entry and index row are durable.

        `lane`: gets the spool file of what is stored, to be closed when there is time.

        Raises UnreadableDataSet or IdentityMismatch (with `keep_refused` the data set is then kept aside
        in quarantine), StoreFull or StoreUnavailable (nothing is kept). Blocks; call it from a thread.
        """
        if lane is None:
            with self.lane() as own:
                return self.receive(parts, receipt, own, keep_refused=keep_refused)
        with self._counted():
            prepared = self._spooled(parts, receipt, lane, keep_refused=keep_refused)
            with ExitStack() as undo:
                undo.push(prepared.spool)
                if prepared.spool.size > _AT_ONCE_BYTES or not self._commit_now(prepared):
                    with self._archive_errors():
                        prepared.spool.sync()
                    self.commit(prepared)
                outcome = prepared.done.result()
                undo.pop_all()
            lane.leave(prepared.spool)
            return outcome

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._closing:
            self._receiving += 1
        try:
            yield
        finally:
            with self._closing:
                self._receiving -= 1

    def _commit_now(self, prepared: Prepared) -> bool:
        """`commit`, done by this thread; False, and nothing is done, when it would have to wait.

        Also False when somebody else is receiving: several sync their files side by side, and not in turn.
        """
        if self._receiving > 1 or not self._turn.acquire(blocking=False):
            return False
        try:
            if self._closed or not self._queue.empty():
                return False
            self._settle([prepared])
        finally:
            self._turn.release()
        return True

    def prepare(
        self,
        parts: Iterable[bytes | memoryview],
        receipt: Receipt,
        *,
        keep_refused: bool = True,
    ) -> Prepared:
        """The first half of `receive`: spool and judge one data set, which nobody sees yet.

        Hand the result to `commit`, or close its spool. Raises as `receive`.
        """
        prepared = self._spooled(parts, receipt, self.lane(), keep_refused=keep_refused)
        with self._archive_errors(), ExitStack() as undo:
            undo.push(prepared.spool)
            # Here, where those who wait do so side by side, and not in the committer's turn.
            prepared.spool.sync()
            undo.pop_all()
        return prepared

    def _spooled(
        self, parts: Iterable[bytes | memoryview], receipt: Receipt, lane: Lane, *, keep_refused: bool
    ) -> Prepared:
        """As `prepare`, and not yet durable."""
        # As the file meta information will have it, so that the index says the same.
        source_ae = plain_ae(receipt.source_ae)
        receipt = replace(receipt, duplicates=self._duplicates, source_ae=source_ae)
        with self._archive_errors(), ExitStack() as undo:
            self.space.check()
            spool = undo.enter_context(lane.spool(receipt.transfer_syntax))
            looked_at = 0
            for part in parts:
                spool.write(part)
                if spool.size - looked_at > _LOOK_BYTES:
                    looked_at = spool.size
                    self.space.check()
            try:
                header = self._header(spool, receipt)
                meta = file_meta(receipt, header.sop_class_uid, header.sop_instance_uid)
            except BadInstance as error:
                if keep_refused:
                    kept = self.archive.keep_aside(spool, receipt, str(error), QUARANTINE_LIMIT)
                    log.warning(
                        "refused SOP instance '%s': %s; %s",
                        uid_text(receipt.sop_instance_uid or ""),
                        error,
                        f"kept aside as {kept.name}" if kept else "it could not be kept aside",
                    )
                raise
            spool.seal(meta)
            undo.pop_all()
        return Prepared(spool, header, receipt)

    def commit(self, prepared: Prepared) -> "Future[Outcome]":
        """The second half of `receive`: the outcome, or StoreFull, StoreUnavailable, in a future.

        Sequence numbers are given in the order of these calls. Whoever has the outcome closes the spool:
        not the committer, for which all wait.
        """
        with self._closing:
            if not self._closed:
                self._queue.put(prepared)
                return prepared.done
        prepared.done.set_exception(
            StoreUnavailable("the store is being closed: nothing is taken in any more")
        )
        return prepared.done

    @contextmanager
    def _archive_errors(self) -> Iterator[None]:
        """Translate; and where the file system failed or has gone, have the index let go of it as well."""
        try:
            with storage_errors(f"the archive of {self.store}"):
                yield
        except StoreUnavailable as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _GONE:
                self._queue.put(self._let_go)  # of what is the committer's
            raise

    @staticmethod
    def _header(spool: Spool, receipt: Receipt) -> Header:
        with spool.reader() as file:
            header = read_header(file, spool.size, receipt.transfer_syntax)
        for announced, found, what in (
            (receipt.sop_class_uid, header.sop_class_uid, "SOP Class UID"),
            (receipt.sop_instance_uid, header.sop_instance_uid, "SOP Instance UID"),
        ):
            if announced is not None and announced != found:
                raise IdentityMismatch(
                    f"{what} announced as {uid_text(announced)}, the data set says {found}"
                )
        return header

    def close(self) -> None:
        """Finish what is waiting, then close the index; who comes later gets StoreUnavailable."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._committer.join()
        with self._turn:
            self._process.end()
            self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The committer thread.

    def _run(self) -> None:
        while True:
            try:
                first = self._queue.get(timeout=_IDLE_S if self._process.pid else None)
            except queue.Empty:
                with self._turn:
                    self._process.end()
                self._together = 0
                continue
            if first is None:
                return
            with self._turn:
                if not self._serve(first):
                    return

    def _let_go(self) -> None:
        self._process.rest()
        self._index.let_go()

    def _serve(self, first: "Prepared | Callable[[], None]") -> bool:
        """Do what is in the queue, `first` and what has come after it; False when it has ended."""
        batch: list[Prepared] = []
        further: Prepared | Callable[[], None] | None = first
        try:
            while further is not None:
                if isinstance(further, Prepared):
                    batch.append(further)
                else:
                    further()
                if len(batch) == _BATCH or self._queue.empty():
                    break
                further = self._queue.get()
            if batch and not self._hand_over(batch):
                self._settle(batch)
        except BaseException as error:  # noqa: BLE001  every caller must be answered, and the next ones served
            log.error("internal error of the committer: %s", where(error))  # noqa: TRY400  it may quote a name
            for pending in batch:
                if not pending.done.done():
                    pending.spool.is_left = True
                    pending.done.set_exception(error)
        return further is not None

    def _hand_over(self, batch: list[Prepared]) -> bool:
        """Have the committer process settle a batch; False: it is still to be settled.

        For one sender alone its start would not pay, nor for a few objects of several.
        """
        if self._receiving > 1:
            self._together += len(batch)
        if self._together < WORTH_A_PROCESS or not self._process.is_ready():
            return False
        outcomes = self._process.commit(batch)
        if outcomes is not None:
            self._answer(batch, outcomes)
            return True
        try:
            self._take_back(batch)
        except BaseException as error:  # noqa: BLE001  every caller must be answered, whatever happened
            if isinstance(error, StoreUnavailable):
                self._process.rest()
            for pending in batch:
                pending.spool.is_left = True
                pending.done.set_exception(error)
            return True
        return False

    def _take_back(self, batch: list[Prepared]) -> None:
        """Make a batch be as after a transaction of our own that has failed. Raises StoreUnavailable."""
        with self._archive_errors():
            for pending in batch:
                pending.spool.published = self.archive.find_published(pending.spool)
                pending.is_new = pending.spool.published is not None
        if not self._withdraw(batch):
            raise StoreUnavailable(f"the archive of {self.store} cannot be put in order now")

    def _settle(self, batch: list[Prepared]) -> None:
        """Commit a batch or, if that fails, each member alone, so that one cannot fail the others."""
        try:
            outcomes = self._commit(batch)
        except StoreLocked as error:
            # Nobody's fault, and each alone would wait again, while the senders' patience runs out.
            self._withdraw(batch)
            for pending in batch:
                pending.done.set_exception(error)
        except BaseException as error:  # noqa: BLE001  every caller must be answered, whatever happened
            if isinstance(error, StoreUnavailable):
                self._process.rest()
            if self._withdraw(batch) and len(batch) > 1:
                for pending in batch:
                    self._settle([pending])
            else:
                for pending in batch:
                    pending.done.set_exception(error)
        else:
            self._answer(batch, outcomes)

    @staticmethod
    def _answer(batch: list[Prepared], outcomes: list[Outcome | BadInstance]) -> None:
        for pending, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Outcome):
                pending.done.set_result(outcome)
            else:
                pending.done.set_exception(outcome)

    def _commit(self, batch: list[Prepared]) -> list[Outcome | BadInstance]:
        with self._archive_errors():
            return commit(self.archive, self._index, batch)

    def _withdraw(self, batch: list[Prepared]) -> bool:
        """Undo what a failed transaction has published; False when the store does not let us."""
        try:
            with self._archive_errors():
                withdraw(self.archive, self._index, batch)
        except BaseException as error:  # noqa: BLE001  every caller must be answered, whatever happened
            new = [pending for pending in batch if pending.is_new]
            for pending in new:
                pending.spool.is_left = True
            log.warning(
                "%d files without a row stay in the archive until the next start: %s", len(new), error
            )
            return False
        return True


_GONE: Final = frozenset({errno.EROFS, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESTALE})
