"""What is committed together: whole spool files get numbers, names and rows, all of them or none.

One `BEGIN IMMEDIATE` transaction of the index holds every step, so that the order of numbers is the order
of commits, whatever the number of threads and processes. Used by `ingest.py`, whose process has the spool
files open, and by `committer.py`, a process that has not and does the same for it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from dicomfs.archive import Archive
from dicomfs.errors import BadInstance, DuplicateRefused, StrangerRefused
from dicomfs.filemeta import file_meta
from dicomfs.index import Index
from dicomfs.model import Duplicates, Header, Outcome, Receipt, Stored
from dicomfs.spool import Spool, Whole
from dicomfs.storage import sync_directory
from dicomfs.writer import DIFFERS, STRANGER, Writer


class Pending(Protocol):
    """A data set that only waits for its number."""

    is_new: bool
    """It was given a number, by a transaction that may yet come to nothing, or whose end is not known."""

    @property
    def spool(self) -> Whole: ...

    @property
    def header(self) -> Header: ...

    @property
    def receipt(self) -> Receipt: ...


class Held(Pending, Protocol):
    """The same, by the process that has its spool file open."""

    @property
    def spool(self) -> Spool: ...


def commit(archive: Archive, index: Index, batch: Sequence[Pending]) -> list[Outcome | BadInstance]:
    """Commit, durably: the outcome of each, or why the store's policy refuses it.

    Raises StoreFull, StoreUnavailable, OSError, or whatever a member of the batch causes: then the
    transaction is rolled back, and `withdraw` has to undo what it has published.
    """
    folders: set[Path] = set()
    with index.write() as writer:
        outcomes = []
        for pending in batch:
            outcome = _known(archive, writer, pending, folders)
            if outcome is None:
                sequence = writer.next_sequence()
                pending.is_new = True
                folders.add(archive.publish(pending.spool, sequence))
                outcome = _add(writer, pending, sequence)
            outcomes.append(outcome)
        for pending in batch:
            # Whole before its row is: its name may well be durable first (`Archive.clean`).
            if pending.is_new:
                pending.spool.sync()
        for folder in folders:
            sync_directory(folder)
    return outcomes


def withdraw(archive: Archive, index: Index, batch: Sequence[Held]) -> None:
    """Undo what a failed transaction has published: they become spool files again, and none `is_new`.

    But for those that have come into the index all the same: `commit` tells them so. The numbers of that
    transaction will be given again: no file may go on bearing them. Raises StoreFull, StoreUnavailable,
    OSError.
    """
    new = [pending for pending in batch if pending.is_new]
    if not new:
        return
    # Under the lock again: meanwhile another process may have stored the same object.
    with index.write() as writer:
        for pending in new:
            spool, known = pending.spool, writer.known(pending.spool.digest)
            # A COMMIT that failed may be found done once the index has been opened anew.
            if known is None or archive.path(spool.digest, known.sequence) != spool.published:
                archive.withdraw(spool)
                pending.is_new = False


def _known(
    archive: Archive, writer: Writer, pending: Pending, folders: set[Path]
) -> Outcome | BadInstance | None:
    """The outcome of what is there already, or is not to be taken; None for what is new."""
    spool, header, receipt = pending.spool, pending.header, pending.receipt
    uid = header.sop_instance_uid
    known = writer.known(spool.digest)
    if known is not None:
        if archive.intact(spool.digest, known.sequence, known.size):
            # Who put it there may have been killed before that was durable.
            folders.add(archive.path(spool.digest, known.sequence).parent)
            return (
                _told_late(writer, header, known.sequence)
                if pending.is_new
                else Outcome(Stored.ALREADY_THERE, uid)
            )
        first = replace(
            receipt,
            received=known.received,
            source_ae=known.source_ae,
            duplicates=Duplicates(known.duplicates),
        )
        spool.seal(file_meta(first, header.sop_class_uid, uid))
        # Before it takes the place of what is left of the original: that may be all there is.
        spool.sync()
        folders.add(archive.publish(spool, known.sequence))
        return Outcome(Stored.REPAIRED, uid, ("its original was missing or damaged and is now repaired",))
    if receipt.duplicates is Duplicates.REJECT and (earlier := writer.earlier(header)) is not None:
        text = "another object of the same UIDs is stored already"
        if earlier.is_same_patient:
            return DuplicateRefused(text)
        return StrangerRefused(f"{text}, and it bears another patient's identity")
    return None


def _told_late(writer: Writer, header: Header, sequence: int) -> Outcome:
    """The outcome of a commit that nobody was told of."""
    earlier = writer.earlier(header)
    if earlier is None or earlier.instance == sequence:
        return Outcome(Stored.NEW, header.sop_instance_uid, _derived(header))
    warnings = (DIFFERS,) if earlier.is_same_patient else (STRANGER, DIFFERS)
    return Outcome(Stored.OTHER_VERSION, header.sop_instance_uid, warnings + _derived(header))


def _derived(header: Header) -> tuple[str, ...]:
    return tuple(f"has no {keyword}: one was derived" for keyword in header.derived_uids)


def _add(writer: Writer, pending: Pending, sequence: int) -> Outcome:
    spool, header = pending.spool, pending.header
    added = writer.add(header, pending.receipt, sequence, spool.digest, spool.size)
    return Outcome(added.stored, header.sop_instance_uid, added.warnings + _derived(header))
