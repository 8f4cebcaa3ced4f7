"""`dicomfs scrub`: is every original there, and is it what was received?

Walks the archive folder by folder, and with it the index in the order of the content hashes, which name
the folders; so what has to be remembered is one folder of names. It may run beside receivers: a file is in
its place before its row is there, so whatever is there without a row is looked at again while nobody can
be between the two (`_is_settled`). Changes nothing unless told to repair. Names originals by file, receipt
sequence number and SOP Instance UID. Never prints; `maintenance.py` does.
"""

import errno
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

from dicomfs import forget
from dicomfs.archive import Archive, digest_and_sequence
from dicomfs.database import BUSY_TIMEOUT_S
from dicomfs.errors import BadInstance, StoreUnavailable, UnreadableDataSet
from dicomfs.filemeta import plain_ae
from dicomfs.findings import Finding, Kind, Report, Tally, Watch, shown_path, unwatched
from dicomfs.index import INDEX_NAME, Index
from dicomfs.ingest import Ingest
from dicomfs.lock import mending
from dicomfs.model import Duplicates, Receipt, Stored
from dicomfs.rows import RecordedOriginal
from dicomfs.verify import Examined, content, examine, foreign_folders, identity, names, relabel

_PAGE: Final = 1000
_MOST_FAULTS: Final = 100


def scrub(
    store: Path,
    *,
    quick: bool = False,
    repair: bool = False,
    watch: Watch = unwatched,
    found: Callable[[Finding], None] = lambda _: None,
) -> Report:
    """Check every original of a store, and look for what should not be there.

    `quick`: all but the content of data sets. `repair`: damaged originals are moved to `damaged/`, so that
    sending them again repairs them (as it does when they are missing); orphans are taken in as if they
    were received now, with the time and sender that they bear; wrong numbers in names are put right; file
    meta information is written anew; abandoned spool files are removed; meanwhile nothing can be forgotten.
    `found` is told of each finding at once.

    Raises StoreMismatch, StoreUnavailable, StoreFull.
    """
    archive = Archive(store)
    with ExitStack() as ending:
        index = Index(store / INDEX_NAME, timeout_s=BUSY_TIMEOUT_S)
        ending.callback(index.close)
        if not archive.root.is_dir():
            raise StoreUnavailable(f"{archive.root} is not there: is its disk mounted?")
        if repair:
            ending.enter_context(mending(archive.root))
            # Or what is half forgotten would look like an orphan, and be taken in again.
            forget.finish(archive, index)
        work = _Scrub(store, archive, index, ending, quick=quick, repair=repair, found=found)
        try:
            with watch("scrubbing", index.counts().originals) as advance:
                work.run(advance)
        except OSError as error:
            where = error.filename or archive.root
            raise StoreUnavailable(f"{where} cannot be used: {error.strerror}") from error
    return work.report()


class _Scrub:
    """One run."""

    def __init__(
        self,
        store: Path,
        archive: Archive,
        index: Index,
        ending: ExitStack,
        *,
        quick: bool,
        repair: bool,
        found: Callable[[Finding], None],
    ) -> None:
        self._store = store
        self._archive = archive
        self._index = index
        self._ending = ending
        self._quick = quick
        self._repair = repair
        self._tally = Tally(found)
        self._leaving: set[int] = set()
        """Inodes of abandoned spool files that have a name in the archive, too."""

    def report(self) -> Report:
        """What was found so far."""
        return self._tally.report()

    def run(self, advance: Callable[[], None]) -> None:
        # First: an `Ingest` that is opened for repairs would remove them unsaid.
        self._abandoned()
        for fault in self._index.faults(_MOST_FAULTS, quick=self._quick):
            self._tally.note(Finding(Kind.INDEX, INDEX_NAME, fault))
        for path in foreign_folders(self._archive):
            self._tally.note(Finding(Kind.FOREIGN, self._name(path), "is none of the archive's folders"))
        for byte in range(256):
            self._folder(byte, advance)

    def _name(self, path: Path) -> str:
        return shown_path(path, self._store)

    def _abandoned(self) -> None:
        for path in self._archive.abandoned():
            status = path.stat()
            if not status.st_size and status.st_nlink == 1:
                continue  # it may have been made this moment
            if self._repair:
                with self._index.write() as writer:
                    self._archive.discard([path], writer.has_row)
            elif status.st_nlink > 1:
                self._leaving.add(status.st_ino)
            detail = "left by a process that was killed, and never acknowledged"
            self._tally.note(Finding(Kind.ABANDONED, self._name(path), detail, repaired=self._repair))

    def _folder(self, byte: int, advance: Callable[[], None]) -> None:
        # Names before rows: what comes in meanwhile has a row and no name here, and its file is looked for.
        numbers, others = names(self._archive.folder(byte))
        for path in others:
            self._tally.note(
                Finding(Kind.FOREIGN, self._name(path), "is not named as an original of this folder")
            )
        after = bytes([byte])
        while page := self._index.recorded(after, after[:1] + b"\xff" * 31, _PAGE):
            for row in page:
                wrong = numbers.get(row.hash, set())
                wrong.discard(row.sequence)
                self._tally.originals += 1
                self._original(row, wrong)
                advance()
            after = page[-1].hash
        for digest in sorted(numbers):
            for number in sorted(numbers[digest]):
                self._unrecorded(digest, number)

    # With a row

    def _original(self, row: RecordedOriginal, wrong: set[int]) -> None:
        """`wrong`: other numbers that files of this content bear; one that is its own is taken out."""
        path = self._archive.path(row.hash, row.sequence)
        before = identity(path)
        examined, trouble = self._examine(path, row.transfer_syntax)
        if identity(path) != before:
            # It was repaired by a resend while we read it.
            before = identity(path)
            examined, trouble = self._examine(path, row.transfer_syntax)
        kind, detail = _compare(row, examined, trouble)
        if kind is None:
            return
        finding = Finding(kind, self._name(path), detail, row.sequence, row.sop_uid)
        if kind in (Kind.MISSING, Kind.DAMAGED) and (number := self._number_of(row, wrong)):
            wrong.remove(number)
            self._misnumbered(finding, row, number, before)
            return
        if self._repair and kind is Kind.DAMAGED:
            finding = self._set_aside(finding, path, before)
        elif self._repair and kind is Kind.MISLABELLED and examined is not None:
            finding = self._relabel(finding, row, examined)
        self._tally.note(finding)

    def _number_of(self, row: RecordedOriginal, wrong: set[int]) -> int:
        """The number under which the file of a row lies, if it is whole; 0: it does not."""
        for number in sorted(wrong):
            path = self._archive.path(row.hash, number)
            examined, _ = self._examine(path, row.transfer_syntax, whole=True)
            if examined is not None and examined.digest == row.hash:
                return number
        return 0

    def _misnumbered(
        self, finding: Finding, row: RecordedOriginal, number: int, seen: tuple[int, int] | None
    ) -> None:
        """A whole file of this content bears another number, and what bears the right one is not whole."""
        finding = replace(finding, detail=f"{finding.detail}; a whole one bears the number {number}")
        if finding.kind is Kind.MISSING:
            name = self._name(self._archive.path(row.hash, number))
            finding = replace(finding, kind=Kind.MISLABELLED, path=name)
        if not self._repair:
            self._tally.note(finding)
            return
        with self._index.write():  # so nobody publishes anything now
            if identity(self._archive.path(row.hash, row.sequence)) == seen:
                self._archive.renumber(row.hash, number, row.sequence)
        self._tally.note(replace(finding, detail=f"{finding.detail}; it was given its own", repaired=True))
        self._original(row, set())  # what it says of its receipt

    def _examine(self, path: Path, syntax: str = "", *, whole: bool = False) -> tuple[Examined | None, str]:
        """What is found, or None and what kept us from it; that is empty when there is no file."""
        try:
            return examine(path, syntax, quick=self._quick and not whole), ""
        except FileNotFoundError:
            return None, ""
        except UnreadableDataSet as error:
            return None, str(error)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise  # somebody else's store, and no damage
            return None, f"it cannot be read: {error.strerror}"

    def _set_aside(self, finding: Finding, path: Path, seen: tuple[int, int] | None) -> Finding:
        """Out of the way of a resend; not what a receiver has put there meanwhile."""
        with self._index.write():  # so nobody publishes anything now
            if identity(path) != seen:
                return replace(finding, detail=f"{finding.detail}; it was repaired meanwhile", repaired=True)
            aside = self._archive.set_aside(path)
        return replace(finding, detail=f"{finding.detail}; moved to {self._name(aside)}")

    def _relabel(self, finding: Finding, row: RecordedOriginal, examined: Examined) -> Finding:
        """Write what the row says of the receipt into the file of a whole original."""
        receipt = Receipt(
            row.transfer_syntax, row.received, row.source_ae, duplicates=Duplicates(row.duplicates)
        )
        if examined.receipt is not None:
            receipt = replace(receipt, receiving_ae=examined.receipt.receiving_ae)
        try:
            relabel(self._archive, row.hash, examined.offset, receipt, row.sequence)
        except BadInstance as error:
            return replace(finding, detail=f"{finding.detail}; it cannot be written anew: {error}")
        return replace(finding, detail=f"{finding.detail}; written anew", repaired=True)

    # Without a row

    def _unrecorded(self, digest: bytes, number: int) -> None:
        path = self._archive.path(digest, number)
        if not self._is_settled(digest, number):
            return
        seen = identity(path)
        if seen is not None and seen[0] in self._leaving:
            detail = "has no row, and goes with its name in incoming/"
            self._tally.note(Finding(Kind.ABANDONED, self._name(path), detail))
            return
        examined, trouble = self._examine(path, whole=True)
        if examined is None and not trouble:
            return
        if examined is not None and examined.digest == digest:
            finding = Finding(Kind.ORPHANED, self._name(path), "is whole, but has no row")
            if self._repair:
                finding = self._take_in(finding, path, examined)
        else:
            finding = Finding(Kind.BROKEN, self._name(path), trouble or "has no row and is not whole")
            if self._repair:
                finding = replace(self._set_aside(finding, path, seen), repaired=True)
        self._tally.note(finding)

    def _is_settled(self, digest: bytes, number: int) -> bool:
        """True when there is a file without a row while nobody can be between publishing and committing."""
        path = self._archive.path(digest, number)
        with self._index.write() as writer:
            is_known = writer.has_row(digest, number)
            is_there = identity(path) is not None
        if is_known:  # it was just coming in
            for row in self._rows_of(digest):
                self._tally.originals += 1
                self._original(row, set())
            return False
        try:
            return is_there and not self._archive.is_held(path)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # whoever examines it says what is wrong

    def _rows_of(self, digest: bytes) -> list[RecordedOriginal]:
        return self._index.recorded(digest[:-1], digest, 1)

    def _take_in(self, finding: Finding, path: Path, examined: Examined) -> Finding:
        """By the ordinary way in, under the next number: its own may be somebody else's by now."""
        if examined.receipt is not None:
            receipt = replace(examined.receipt, sop_class_uid=None, sop_instance_uid=None)
        else:
            receipt = Receipt(examined.transfer_syntax, path.stat().st_mtime)
        try:
            outcome = self._ingest.receive(content(path, examined.offset), receipt, keep_refused=False)
        except BadInstance as error:
            return replace(finding, detail=f"{finding.detail}; it cannot be taken in: {error}")
        digest, number = digest_and_sequence(path.name)
        (row,) = self._rows_of(digest)
        finding = replace(finding, sop_instance_uid=outcome.sop_instance_uid)
        if row.sequence != number:
            # It goes only when its content is read back from where it is kept now.
            kept, _ = self._examine(self._archive.path(digest, row.sequence), whole=True)
            if kept is None or kept.digest != digest:
                detail = (
                    f"{finding.detail}; it stays, since original {row.sequence} of its content is damaged"
                )
                return replace(finding, detail=detail)
            self._archive.remove(path)
        how = "is kept" if outcome.stored is Stored.ALREADY_THERE else "was taken in"
        return replace(
            finding,
            detail=f"{finding.detail}; its content {how} as original {row.sequence}",
            repaired=True,
        )

    @cached_property
    def _ingest(self) -> Ingest:
        """Opened when there is something to take in. It keeps the first of equal UIDs: an orphan was never
        acknowledged, so it takes nobody's place.
        """
        return self._ending.enter_context(Ingest.open(self._store, Duplicates.KEEP_FIRST))


def _compare(row: RecordedOriginal, examined: Examined | None, trouble: str) -> tuple[Kind | None, str]:
    """What is wrong with the file of a row, and in words; None: nothing."""
    if examined is None:
        return (Kind.DAMAGED, trouble) if trouble else (Kind.MISSING, "its file is not there")
    if examined.size != row.size:
        return Kind.DAMAGED, f"its data set has {max(0, examined.size)} bytes and not {row.size}"
    if examined.digest not in (None, row.hash):
        return Kind.DAMAGED, "its content is not what was received"
    receipt = examined.receipt
    if receipt is None:
        return Kind.MISLABELLED, "its file meta information is damaged"
    said = (receipt.transfer_syntax, receipt.received, receipt.source_ae, receipt.duplicates.value)
    if said != (row.transfer_syntax, row.received, plain_ae(row.source_ae), row.duplicates):
        return Kind.MISLABELLED, "its file meta information says other than the index of its receipt"
    return None, ""
