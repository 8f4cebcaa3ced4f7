"""The index: the file `index.sqlite3`, its transactions, and everything that is read from it.

One writer at a time (`BEGIN IMMEDIATE`), durable at commit (WAL, `synchronous=FULL`); readers never wait
for it. Rows become frozen values (`rows.py`) before they leave. The schema is in `schema.py`, what
a write transaction does in `writer.py`. Called by `ingest.py` (writes), `tree.py` and
`present.py` (reads) and `cli.py` (counts). Never touches the archive.
"""

import contextlib
import heapq
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, exc, func, insert, select

from dicomfs import queries
from dicomfs.database import (
    BUSY_TIMEOUT_S,
    FOREIGN,
    READ_TIMEOUT_S,
    connect,
    driver_of,
    immediate,
    sqlite_code,
    switch_to_wal,
    translated,
)
from dicomfs.errors import StoreLocked, StoreMismatch, StoreUnavailable
from dicomfs.lock import StoreLock
from dicomfs.rows import (
    Arrival,
    Counts,
    DayRow,
    ExamRow,
    ImageRow,
    KeptOriginal,
    NameRow,
    PatientRow,
    RecordedOriginal,
    Removal,
    StoredOriginal,
    exam_row,
    image_row,
    patient_row,
    removal_row,
)
from dicomfs.schema import (
    SCHEMA_VERSION,
    about,
    counter,
    exams,
    instances,
    metadata,
    originals,
    patients,
    series,
)
from dicomfs.selection import Selection
from dicomfs.spelling import PatientKey
from dicomfs.statement import Statement
from dicomfs.writer import Recollection, Writer

INDEX_NAME: Final = "index.sqlite3"
"""Its name in the store."""
LOCKED_TIMEOUT_S: Final = 0.2
"""How long, once somebody was waited for in vain: whoever comes meanwhile is told at once."""
REBUILD: Final = "rebuild it from the archive with dicomfs reindex"
"""The remedy for an index that is lost, damaged or of another version: the archive has everything."""

T = TypeVar("T")


def _limits(selection: Selection) -> dict[str, Any]:
    """What statements on `exam_contents` need, but for the modality."""
    return {
        "shows": selection.shows,
        "first_day": selection.first_day,
        "through": selection.through,
    }


def _taken(rows: Iterable[NameRow], selection: Selection) -> list[NameRow]:
    """Those of a selection; asked once for all of a kind, since a page is waited for."""
    taken: dict[tuple[str, int], bool] = {}
    found: list[NameRow] = []
    for row in rows:
        kind = row.modality, row.shows
        if (takes := taken.get(kind)) is None:
            takes = taken[kind] = selection.takes(*kind)
        if takes:
            found.append(row)
    return found


def _tables(connection: Connection) -> set[str]:
    rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")
    return set(rows.scalars())


def _sync_log(path: Path) -> None:
    """Make durable what a process that was killed in the middle of a COMMIT has written.

    SQLite reads it as committed, whether it was synced or not; we would answer for it to whoever sends the
    same object again. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        # Another descriptor of this file does no harm: SQLite's locks are on the others.
        fd = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of its name; None when there is none, or nobody can tell."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Index:
    """One connection to the index; use it from one thread at a time."""

    def __init__(
        self, path: Path, *, create: bool = False, immutable: bool = False, timeout_s: float | None = None
    ) -> None:
        """Open, or with `create` make, the index file; the store is locked against a rebuild until `close`.

        `immutable`: it lies where nobody can change it.

        `timeout_s`: how long to wait for others that write; None: 10 s with `create`, else 2 s. Raises
        StoreMismatch when it is of another version, is missing or is no index, StoreUnavailable
        when it cannot be opened.
        """
        try:
            there = path.exists()
        except PermissionError:
            raise StoreUnavailable(f"this user may not look into {path.parent}") from None
        if not create and not there:
            raise StoreMismatch(
                f"{path.parent} is not a dicomfs store: it has no {path.name}; if that was lost, {REBUILD}"
            )
        self._path = path
        self._recollection = Recollection()
        self._seen_version = -1
        if timeout_s is None:
            timeout_s = BUSY_TIMEOUT_S if create else READ_TIMEOUT_S
        self._timeout_s = self._patience_s = timeout_s
        self._is_suspect = False
        self._lock = StoreLock(path.parent)
        how = "mode=rwc" if create else "immutable=1" if immutable else "mode=rw"
        self._engine = connect(path, timeout_s, how)
        try:
            self._connection: Connection = self._engine.connect()
            self.store_id = self._prepare(path, create=create)
            self._file = _identity(path)
        except (exc.DatabaseError, sqlite3.Error) as error:
            self.close()
            with translated():
                if sqlite_code(error) not in FOREIGN:
                    raise
            cause = error.orig if isinstance(error, exc.DatabaseError) else error
            raise StoreMismatch(f"{path} is not a dicomfs index: {cause}; {REBUILD}") from error
        except BaseException:
            self.close()
            raise

    def _prepare(self, path: Path, *, create: bool) -> str:
        """Make the tables if need be, check the version; returns the id of the store."""
        if create:
            switch_to_wal(self._connection)
            _sync_log(path)
            connection = self._connection
            with immediate(connection):
                if not _tables(connection):
                    metadata.create_all(connection)
                    facts = {"schema_version": str(SCHEMA_VERSION), "store_id": uuid.uuid4().hex}
                    facts["created"] = str(time.time())
                    connection.execute(insert(about), [{"key": k, "value": v} for k, v in facts.items()])
                    connection.execute(insert(counter).values(last_sequence=0))
        tables = _tables(self._connection)
        if not tables:
            raise StoreMismatch("the index file is empty; receive or import something first")
        if not tables >= set(metadata.tables):
            raise StoreMismatch(
                f"the index file is a database of something else, not a dicomfs index; {REBUILD}"
            )
        facts = {row.key: row.value for row in self._connection.execute(select(about))}
        self._connection.rollback()
        found = facts.get("schema_version", "(none)")
        if found != str(SCHEMA_VERSION) or "store_id" not in facts:
            raise StoreMismatch(
                f"the index has schema version {found}, this dicomfs reads {SCHEMA_VERSION}: "
                f"use the dicomfs version that made it, or {REBUILD}"
            )
        return facts["store_id"]

    def close(self) -> None:
        """Let go of the file."""
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        self._engine.dispose()
        # Last: closing may write the journal back into the file.
        self._lock.close()

    @property
    def _driver(self) -> sqlite3.Connection:
        """The driver's connection under SQLAlchemy's, for what must be quick."""
        return driver_of(self._connection)

    @contextlib.contextmanager
    def write(self) -> Iterator["Writer"]:
        """A durable write transaction; see `Writer`. Raises StoreFull or StoreUnavailable."""
        with self._watched(), translated():
            try:
                with immediate(self._connection) as driver:
                    self._forget_if_others_wrote(driver)
                    writer = Writer(driver, self._recollection)
                    yield writer
                    writer.finish()
            except BaseException:
                self._recollection.clear()
                raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A durable write transaction that is not about an object that comes in.

        Raises StoreFull or StoreUnavailable.
        """
        with self._watched(), translated():
            try:
                with immediate(self._connection):
                    yield self._connection
            finally:
                self._connection.rollback()  # SQLAlchemy's bookkeeping: the driver's transaction has ended
                self._recollection.clear()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """See to it that what is written is the file under our path, and learn from what goes wrong.

        A file system that was taken away, or went read-only by an error, comes back as another one, and the
        connection would hold on to the former for ever; nor could that be unmounted and mended meanwhile.
        """
        if self._is_suspect or _identity(self._path) != self._file:
            self.let_go()
            self._reopen()
        try:
            yield
        except StoreLocked:
            self._wait_at_most(LOCKED_TIMEOUT_S)
            raise
        except StoreUnavailable:
            self.let_go()
            raise
        self._wait_at_most(self._timeout_s)

    def _wait_at_most(self, seconds: float) -> None:
        if seconds != self._patience_s:
            self._driver.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            self._patience_s = seconds

    def let_go(self) -> None:
        """Close the file, so that its file system can be mended; the next transaction opens what is there."""
        self._is_suspect = True
        with contextlib.suppress(exc.DBAPIError, sqlite3.Error):
            self._connection.close()
        self._lock.close()
        self._recollection.clear()
        self._seen_version = -1

    def _reopen(self) -> None:
        """Use the file that is there now, if it is the same store. Raises StoreUnavailable."""
        identity = _identity(self._path)
        if identity is None:
            raise StoreUnavailable(f"{self._path} is missing: is its file system mounted?")
        self._engine.dispose()
        self._lock.close()
        self._lock = StoreLock(self._path.parent)
        self._engine = connect(self._path, self._timeout_s, "mode=rw")
        with translated():
            _sync_log(self._path)
            self._connection = self._engine.connect()
            try:
                is_same = self._prepare(self._path, create=False) == self.store_id
            except StoreMismatch:
                is_same = False
            except BaseException:
                self.let_go()
                raise
        if not is_same:
            self.let_go()
            raise StoreUnavailable(f"{self._path} is another store's: is the right file system mounted?")
        self._file, self._patience_s, self._is_suspect = identity, self._timeout_s, False

    def _forget_if_others_wrote(self, driver: sqlite3.Connection) -> None:
        version = int(driver.execute("PRAGMA data_version").fetchone()[0])
        if version != self._seen_version:
            self._recollection.clear()
            self._seen_version = version

    # What follows reads; every statement is its own transaction.

    def _rows(self, statement: Any, **values: Any) -> Sequence[Any]:
        with translated():
            if isinstance(statement, Statement):
                return statement.all(self._driver, **values)
            try:
                return self._connection.execute(statement, values).all()
            finally:
                # The kept connection must not go on holding a read transaction's bookkeeping.
                self._connection.rollback()

    def _row(self, statement: Any, **values: Any) -> Any:
        """The first row, None when there is none."""
        rows = self._rows(statement, **values)
        return rows[0] if rows else None

    def data_version(self) -> int:
        """Changes whenever another connection has committed; costs microseconds."""
        with translated():
            try:
                return int(self._driver.execute("PRAGMA data_version").fetchone()[0])
            finally:
                self._connection.rollback()

    def last_sequence(self) -> int:
        """The highest receipt sequence number given so far."""
        row = self._row(select(counter.c.last_sequence))
        return int(row.last_sequence) if row else 0

    def last_received(self) -> float:
        """Time of the newest receipt, seconds since the epoch; 0 when there is none."""
        row = self._row(queries.LAST_ORIGINAL)
        return float(row.received) if row else 0.0

    def _page(
        self, selection: Selection, most: int, fetch: Callable[[str], list[T]], place: Callable[[T], Any]
    ) -> list[T]:
        """The first `most` of what `fetch` gives for each modality, in order of `place`, each once."""
        if len(selection.modalities) == 1:
            return fetch(selection.modalities[0])
        page: list[T] = []
        for item in heapq.merge(*map(fetch, selection.modalities), key=place):
            if not page or place(page[-1]) != place(item):
                page.append(item)
        return page[:most]

    def patient_page(self, after: int, most: int, selection: Selection) -> list[PatientRow]:
        """Patients with an id above `after` who have such, in order of id."""

        def fetch(modality: str) -> list[PatientRow]:
            of = {"modality": modality, "shows": selection.shows, "first_day": selection.first_day}
            page: list[PatientRow] = []
            last = after
            # What came lately may not be shown yet. A page that is short for that would be filled up with
            # another modality's patients, in front of those who follow here.
            while len(page) < most:
                rows = self._rows(queries.PATIENT_PAGE, after=last, most=most, **of)
                page += [
                    patient_row(row)
                    for row in rows
                    if row.risen <= selection.through or self._has_shown(row.id, modality, selection)
                ]
                if len(rows) < most:
                    break
                last = rows[-1].id
            return page[:most]

        return self._page(selection, most, fetch, lambda patient: patient.id)

    def patient_by_key(self, key: PatientKey) -> PatientRow | None:
        """The patient of that name or Patient ID, whatever is there of him."""
        row = self._row(queries.PATIENT_BY_ID_KEY if key.by_id else queries.PATIENT_BY_KEY, key=key.key)
        return patient_row(row) if row else None

    def has_such(self, patient: int, selection: Selection) -> bool:
        """Whether a patient has anything of a selection."""
        for modality in selection.modalities:
            row = self._row(queries.PATIENT_HOLDS, modality=modality, shows=selection.shows, patient=patient)
            if row is None or row.latest < selection.first_day:
                continue
            if row.risen <= selection.through or self._has_shown(patient, modality, selection):
                return True
        return False

    def _has_shown(self, patient: int, modality: str, selection: Selection) -> bool:
        row = self._row(queries.PATIENT_SHOWS, patient=patient, modality=modality, **_limits(selection))
        return row is not None

    def patient(self, patient_id: int) -> PatientRow | None:
        """One patient by id."""
        row = self._row(queries.PATIENT_BY_ID, id=patient_id)
        return patient_row(row) if row else None

    def exam_page(self, patient: int, after: int, most: int, selection: Selection) -> list[ExamRow]:
        """Exams of a patient with an id above `after` that hold such, in order of id."""
        return self._exam_page(queries.EXAM_PAGE, after, most, selection, patient=patient)

    def exams_of_day(self, date: str, after: int, most: int, selection: Selection) -> list[ExamRow]:
        """Exams of a date (`YYYYMMDD` or empty) with an id above `after` that hold such, in order of id."""
        return self._exam_page(queries.EXAMS_OF_DAY, after, most, selection, date=date)

    def _exam_page(
        self, statement: Any, after: int, most: int, selection: Selection, **of: object
    ) -> list[ExamRow]:
        of = {"after": after, "most": most, **of, **_limits(selection)}

        def fetch(modality: str) -> list[ExamRow]:
            return [exam_row(row) for row in self._rows(statement, modality=modality, **of)]

        return self._page(selection, most, fetch, lambda exam: exam.id)

    def exam_by_key(self, patient: int, key: str, selection: Selection) -> ExamRow | None:
        """The exam of this patient whose folded folder name is `key`, if it holds such."""
        of = {"patient": patient, "key": key, **_limits(selection)}
        for modality in selection.modalities:
            row = self._row(queries.EXAM_BY_KEY, modality=modality, **of)
            if row is not None:
                return exam_row(row)
        return None

    def exam(self, exam_id: int) -> ExamRow | None:
        """One exam by id."""
        row = self._row(queries.EXAM_BY_ID, id=exam_id)
        return exam_row(row) if row else None

    def exams_between(self, after: tuple[str, int], before: str, most: int) -> list[tuple[str, ExamRow]]:
        """Exams behind `after` (day, id) whose `day` is less than `before`, with it, in that order."""
        rows = self._rows(queries.EXAMS_BETWEEN, day=after[0], after=after[1], before=before, most=most)
        return [(row.day, exam_row(row)) for row in rows]

    def day_page(self, after: str | None, most: int, selection: Selection) -> list[DayRow]:
        """Dates later than `after` with exams that hold such, in order.

        None: from the start, which is the empty date.
        """

        def fetch(modality: str) -> list[str]:
            """Dates of one modality: one step through its index for each, and not for each exam."""
            of = {"modality": modality, **_limits(selection)}
            found = []
            if after is None and self._row(queries.IN_DAY, date="", **of) is not None:
                found.append("")
            # The day behind a day; none before the limit needs to be looked at, but those without a date.
            first = max(f"{after or ''} ", selection.first_day)
            while len(found) < most and (row := self._row(queries.NEXT_DAY, first=first, **of)) is not None:
                found.append(row.date)
                first = f"{row.date} "
            return found

        dates = self._page(selection, most, fetch, lambda date: date)
        return [row for row in map(self.day, dates) if row is not None]

    def day(self, date: str) -> DayRow | None:
        """One date of exams, `YYYYMMDD` or empty."""
        row = self._row(queries.DAY, date=date)
        return DayRow(row.date, row.updated) if row else None

    def day_has_such(self, date: str, selection: Selection) -> bool:
        """Whether a date has anything of a selection."""
        of = {"date": date, **_limits(selection)}
        return any(self._row(queries.IN_DAY, modality=m, **of) is not None for m in selection.modalities)

    def exam_has_such(self, exam: int, date: str, selection: Selection) -> bool:
        """Whether an exam of this date holds anything of a selection."""
        of = {"date": date, "exam": exam, "shows": selection.shows}
        rows = [self._row(queries.EXAM_HOLDS, modality=modality, **of) for modality in selection.modalities]
        return any(
            row is not None and row.day >= selection.first_day and row.since <= selection.through
            for row in rows
        )

    def name_page(
        self, exam: int, first: int, most: int, selection: Selection, *, sized: bool
    ) -> list[NameRow]:
        """Instances of an exam with an id of at least `first` that are such, in order of id.

        `sized`: with the sizes of their data sets.
        """
        page: list[NameRow] = []
        statement = queries.NAME_PAGE[sized, False]
        while len(page) < most:
            rows = self._rows(statement, exam=exam, first=first, last=selection.through, most=most)
            page += _taken(rows, selection)
            if len(rows) < most:
                break
            first = rows[-1].id + 1
        return page[:most]

    def name_page_back(
        self, exam: int, last: int, most: int, selection: Selection, *, sized: bool
    ) -> list[NameRow]:
        """Instances of an exam with an id of at most `last` that are such, the newest first."""
        page: list[NameRow] = []
        statement = queries.NAME_PAGE[sized, True]
        last = min(last, selection.through)
        while len(page) < most:
            rows = self._rows(statement, exam=exam, first=0, last=last, most=most)
            page += _taken(rows, selection)
            if len(rows) < most:
                break
            last = rows[-1].id - 1
        return page[:most]

    def instances_before(self, before: int, most: int) -> list[int]:
        """Ids of instances below `before`, the newest first."""
        return [int(row.id) for row in self._rows(queries.INSTANCES_BEFORE, before=before, most=most)]

    def image_by_name(
        self, exam: int, label_key: str, series_number: int, number: int, suffix: str
    ) -> ImageRow | None:
        """The instance that bears these name components in an exam."""
        row = self._row(
            queries.IMAGE_BY_NAME,
            exam=exam,
            label_key=label_key,
            series_number=series_number,
            number=number,
            suffix=suffix,
        )
        return image_row(row) if row else None

    def image(self, instance_id: int) -> ImageRow | None:
        """One instance by id."""
        row = self._row(queries.IMAGE_BY_ID, id=instance_id)
        return image_row(row) if row else None

    def image_shown(self, original: int) -> ImageRow | None:
        """The instance that shows this original; None when no instance does (any more)."""
        row = self._row(queries.IMAGE_SHOWN, original=original)
        return image_row(row) if row else None

    def pool_members(self, pool: str) -> list[ImageRow]:
        """All instances that share a grey scale, in order of the originals they show."""
        return [image_row(row) for row in self._rows(queries.POOL_MEMBERS, pool=pool)]

    def pool_through(self, pool: str) -> int:
        """The highest id of an original shown in a pool; 0 when it is empty."""
        row = self._row(queries.POOL_THROUGH, pool=pool)
        return int(row[0] or 0) if row else 0

    def pool_span(self, pool: str) -> tuple[int, int] | None:
        """The least and the highest id of the instances of a pool; None when it is empty."""
        row = self._row(queries.POOL_SPAN, pool=pool)
        return (row.first, row.last) if row and row.first is not None else None

    def arrivals(self, after: int, most: int) -> list[Arrival]:
        """Originals received after this sequence number, in order."""
        rows = self._rows(queries.ARRIVALS, after=after, most=most)
        return [
            Arrival(row.id, row.instance, row.pool, row.id == row.shown and row.id != row.instance)
            for row in rows
        ]

    def last_removal(self) -> int:
        """Number of the latest removal; 0 when there is none."""
        row = self._row(queries.LAST_REMOVAL)
        return int(row[0] or 0) if row else 0

    def removals(self, after: int, most: int) -> list[Removal]:
        """What was forgotten after this removal, in order; what was in a folder comes before the folder."""
        return [removal_row(row) for row in self._rows(queries.REMOVALS, after=after, most=most)]

    def originals_of(self, instance_id: int) -> list[StoredOriginal]:
        """Every original that is kept of an instance, in order of receipt."""
        rows = self._rows(queries.ORIGINALS_OF, id=instance_id)
        return [StoredOriginal(**{**row._mapping, "shown": row.sequence == row.shown}) for row in rows]

    def kept_under(self, sop_uid: str) -> list[KeptOriginal]:
        """Every original of a SOP Instance UID, whatever its series, in order of receipt."""
        rows = self._rows(queries.KEPT_UNDER, sop_uid=sop_uid)
        return sorted((KeptOriginal(**row._mapping) for row in rows), key=lambda kept: kept.sequence)

    def recorded(self, after: bytes, last: bytes, most: int) -> list[RecordedOriginal]:
        """Originals whose hash is above `after` and at most `last`, in order of the hash."""
        rows = self._rows(queries.RECORDED, after=after, last=last, most=most)
        return [RecordedOriginal(**{**row._mapping, "sop_uid": row.sop_uid or ""}) for row in rows]

    def faults(self, most: int, *, quick: bool = False) -> list[str]:
        """What is wrong inside the index itself, in words without any value of a row; empty: nothing.

        SQLite's own checks (`quick`: without comparing tables with their indices), foreign keys, and what
        no foreign key says. Reads the whole file.
        """
        check = "quick_check" if quick else "integrity_check"
        with translated():
            try:
                said = self._connection.exec_driver_sql(f"PRAGMA {check}({most})").scalars().all()
                keys = self._connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(most)
            finally:
                self._connection.rollback()
        found = [line for line in said if line != "ok"]
        found += [f"row {row[1]} of {row[0]} points to a row of {row[2]} that is not there" for row in keys]
        lost = self._rows(queries.NOT_SHOWN, most=most)
        found += [f"instance {row.id} shows an original that has no row" for row in lost]
        if (self._rows(queries.HIGHEST)[0][0] or 0) > self.last_sequence():
            found.append("the counter of receipt sequence numbers is below a number that was given")
        return found

    def conflicts(self) -> int:
        """Originals that bear another patient's identity than an earlier one of the same UIDs."""
        return int(self._rows(queries.CONFLICTS)[0][0])

    def counts(self) -> Counts:
        """How many rows of each kind; grows with the index, so for `status` only."""
        tables = (patients, exams, series, instances, originals)
        numbers = [self._rows(select(func.count()).select_from(table))[0][0] for table in tables]
        return Counts(*numbers)
