"""The index: the file `index.sqlite3`, its transactions, and everything that is read from it.

One writer at a time (`BEGIN IMMEDIATE`), durable at commit (WAL, `synchronous=FULL`); readers never wait
for it. Rows become frozen dataclasses before they leave. The schema is in `schema.py`, what
a write transaction does in `writer.py`. Called by `ingest.py` (writes), `tree.py` and
`present.py` (reads) and `cli.py` (counts). Never touches the archive.
"""

import contextlib
import heapq
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, TypeVar, cast
from urllib.parse import quote

from sqlalchemy import (
    Connection,
    Engine,
    NullPool,
    Row,
    and_,
    bindparam,
    create_engine,
    event,
    exc,
    func,
    insert,
    literal,
    literal_column,
    select,
    tuple_,
)

from dicomfs.errors import StoreFull, StoreLocked, StoreMismatch, StoreUnavailable
from dicomfs.lock import StoreLock
from dicomfs.model import Layout
from dicomfs.naming import EXAM_UNITS, PATIENT_UNITS, suffixed
from dicomfs.schema import (
    SCHEMA_VERSION,
    about,
    counter,
    days,
    exam_contents,
    exams,
    instances,
    metadata,
    originals,
    patient_contents,
    patients,
    removals,
    series,
)
from dicomfs.selection import Selection
from dicomfs.spelling import PatientKey, PatientName
from dicomfs.statement import Statement
from dicomfs.writer import Recollection, Writer

INDEX_NAME: Final = "index.sqlite3"
"""Its name in the store."""
BUSY_TIMEOUT_S: Final = 10.0
"""How long a writer waits for the others. A sender needs its answer before its own time limit is over: 30 s
are usual, and it may have waited for an earlier object already."""
LOCKED_TIMEOUT_S: Final = 0.2
"""How long, once somebody was waited for in vain: whoever comes meanwhile is told at once."""
REBUILD: Final = "rebuild it from the archive with dicomfs reindex"
"""The remedy for an index that is lost, damaged or of another version: the archive has everything."""
READ_TIMEOUT_S: Final = 2.0
"""Readers of a WAL hardly ever wait; when they must, a mount stands still meanwhile."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PatientRow:
    """A patient, as listings show it."""

    id: int
    name: PatientName
    updated: float
    """Receipt of the latest original, seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class ExamRow:
    """An exam, as listings show it."""

    id: int
    patient: int
    patient_name: PatientName
    date: str
    """`YYYYMMDD` or empty."""
    folder: str
    """Date and suffix, as the index has them."""
    updated: float
    """As `PatientRow.updated`."""


@dataclass(frozen=True, slots=True)
class DayRow:
    """A date of exams, as listings show it."""

    date: str
    """`YYYYMMDD` or empty."""
    updated: float
    """As `PatientRow.updated`."""


class NameRow(NamedTuple):
    """One instance with what a listing of rendered files needs: nothing of its original is read for it."""

    id: int
    label: str
    series_number: int
    number: int
    suffix: str
    frames: int
    shows: int
    """`PICTURES`, `PDF`, both or neither."""
    modality: str
    """Of its series."""
    pool: str
    modified: float
    original: int
    """The one that it shows."""
    size: int
    """Bytes of its data set; 0 when they were not asked for."""


class ImageRow(NamedTuple):
    """One instance with what its file names, sizes and times need."""

    id: int
    exam: int
    patient: int
    label: str
    series_number: int
    number: int
    suffix: str
    frames: int
    shows: int
    """`PICTURES`, `PDF`, both or neither."""
    modality: str
    """Of its series."""
    day: str
    """`YYYYMMDD` of its exam, as `since=` measures."""
    pool: str
    modified: float
    original: int
    hash: bytes
    size: int
    """Bytes of the data set."""
    pixel_offset: int | None
    """First byte of native pixel data, counted from the start of the data set."""
    outline: bytes | None
    """Of a plain image (`outline.py`)."""

    @property
    def layout(self) -> Layout | None:
        """What a renderer can go by instead of parsing the file."""
        if self.outline is None or self.pixel_offset is None:
            return None
        return Layout(self.size, self.pixel_offset, self.outline)


@dataclass(frozen=True, slots=True)
class StoredOriginal:
    """One original of an instance, as `status` tells it."""

    sequence: int
    hash: bytes
    transfer_syntax: str
    received: float
    source_ae: str
    sop_uid: str
    shown: bool
    """False when it is kept beside the one that is shown."""


@dataclass(frozen=True, slots=True)
class KeptOriginal:
    """One original that is kept under a SOP Instance UID, shown or not."""

    sequence: int
    hash: bytes
    size: int
    """Bytes of the data set."""
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class RecordedOriginal:
    """What the index says of one original, to be compared with its file."""

    sequence: int
    hash: bytes
    size: int
    """Bytes of the data set."""
    transfer_syntax: str
    received: float
    source_ae: str
    duplicates: str
    sop_uid: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """One original in order of receipt, for those who follow what comes in."""

    sequence: int
    instance: int
    pool: str
    replaces: bool
    """It is shown in the place of an earlier original."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something that an exam held: instances of a modality that can be shown in one way."""

    modality: str
    """As `modality_key` writes it, or `selection.ANY`."""
    shows: int
    """`PICTURES`, `PDF`, or 0 for the stored file."""
    day: str
    """`exams.day`."""
    since: int
    """Receipt sequence number of the first of such."""

    def is_of(self, selection: Selection) -> bool:
        """Whether a selection takes it."""
        return (
            self.modality in selection.modalities
            and self.shows == selection.shows
            and self.day >= selection.first_day
            and self.since <= selection.through
        )


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that was forgotten, as it was: an image, or afterwards what all of an exam held."""

    id: int
    patient: PatientRow
    exam: ExamRow
    image: ImageRow | None
    """None: this is about the folders that it was in."""
    held: tuple[Held, ...]
    """What the exam held before, some of which may be left; empty for an image."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of each kind, for `status`."""

    patients: int
    exams: int
    series: int
    instances: int
    originals: int


_IMAGE = (
    select(
        instances.c.id,
        instances.c.exam,
        exams.c.patient,
        series.c.label,
        series.c.number.label("series_number"),
        instances.c.number,
        instances.c.suffix,
        instances.c.frames,
        instances.c.shows,
        series.c.modality,
        exams.c.day,
        instances.c.pool,
        instances.c.modified,
        originals.c.id.label("original"),
        originals.c.hash,
        originals.c.size,
        originals.c.pixel_offset,
        originals.c.outline,
    )
    .join(series, series.c.id == instances.c.series)
    .join(exams, exams.c.id == instances.c.exam)
    .join(originals, originals.c.id == instances.c.shown)
)

# Built once: constructing a statement costs more than running it. What the kernel waits for goes to SQLite's
# driver: SQLAlchemy's share of an execution is several times SQLite's own.
# `patient_contents` and `exam_contents` are asked for one modality at a time: their keys begin with it, so
# that neither a page nor a name is searched for.
_PATIENT = select(
    patients.c.id,
    patients.c.folder,
    patients.c.suffix,
    patients.c.id_folder,
    patients.c.id_suffix,
    patients.c.updated,
)
_PATIENT_PAGE = Statement(
    _PATIENT.add_columns(patient_contents.c.risen)
    .join(patient_contents, patient_contents.c.patient == patients.c.id)
    .where(
        patient_contents.c.modality == bindparam("modality"),
        patient_contents.c.shows == bindparam("shows"),
        patient_contents.c.latest >= bindparam("first_day"),
        patient_contents.c.patient > bindparam("after"),
    )
    .order_by(patient_contents.c.patient)
    .limit(bindparam("most"))
)
_PATIENT_BY_KEY = Statement(_PATIENT.where(patients.c.folder_key == bindparam("key")))
_PATIENT_BY_ID_KEY = Statement(_PATIENT.where(patients.c.id_key == bindparam("key")))
_PATIENT_BY_ID = Statement(_PATIENT.where(patients.c.id == bindparam("id")))
_PATIENT_HOLDS = Statement(
    select(patient_contents.c.latest, patient_contents.c.risen).where(
        patient_contents.c.modality == bindparam("modality"),
        patient_contents.c.shows == bindparam("shows"),
        patient_contents.c.patient == bindparam("patient"),
    )
)
_PATIENT_SHOWS = Statement(
    select(exams.c.id)
    .join(
        exam_contents,
        and_(
            exam_contents.c.modality == bindparam("modality"),
            exam_contents.c.shows == bindparam("shows"),
            exam_contents.c.date == exams.c.date,
            exam_contents.c.exam == exams.c.id,
        ),
    )
    .where(
        exams.c.patient == bindparam("patient"),
        exam_contents.c.day >= bindparam("first_day"),
        exam_contents.c.since <= bindparam("through"),
    )
    .limit(1)
)
_EXAM = select(
    exams.c.id,
    exams.c.patient,
    exams.c.date,
    exams.c.folder.label("exam_folder"),
    exams.c.suffix.label("exam_suffix"),
    exams.c.updated,
    patients.c.folder,
    patients.c.suffix,
    patients.c.id_folder,
    patients.c.id_suffix,
).join(patients, patients.c.id == exams.c.patient)
_EXAM_HELD = _EXAM.join(
    exam_contents,
    and_(
        exam_contents.c.modality == bindparam("modality"),
        exam_contents.c.shows == bindparam("shows"),
        exam_contents.c.date == exams.c.date,
        exam_contents.c.exam == exams.c.id,
    ),
).where(exam_contents.c.day >= bindparam("first_day"), exam_contents.c.since <= bindparam("through"))
_EXAM_PAGE = Statement(
    _EXAM_HELD.where(exams.c.patient == bindparam("patient"), exams.c.id > bindparam("after"))
    .order_by(exams.c.id)
    .limit(bindparam("most"))
)
_EXAM_BY_KEY = Statement(
    _EXAM_HELD.where(exams.c.patient == bindparam("patient"), exams.c.folder_key == bindparam("key"))
)
_EXAM_BY_ID = Statement(_EXAM.where(exams.c.id == bindparam("id")))
_EXAMS_OF_DAY = Statement(
    _EXAM_HELD.where(exam_contents.c.date == bindparam("date"), exam_contents.c.exam > bindparam("after"))
    .order_by(exam_contents.c.exam)
    .limit(bindparam("most"))
)
# A step over all exams of a day at once, so that a listing of days costs what it has days.
_NEXT_DAY = Statement(
    select(exam_contents.c.date)
    .where(
        exam_contents.c.modality == bindparam("modality"),
        exam_contents.c.shows == bindparam("shows"),
        exam_contents.c.date >= bindparam("first"),
        exam_contents.c.day >= bindparam("first_day"),
        exam_contents.c.since <= bindparam("through"),
    )
    .order_by(exam_contents.c.date)
    .limit(1)
)
_IN_DAY = Statement(
    select(exam_contents.c.exam)
    .where(
        exam_contents.c.modality == bindparam("modality"),
        exam_contents.c.shows == bindparam("shows"),
        exam_contents.c.date == bindparam("date"),
        exam_contents.c.day >= bindparam("first_day"),
        exam_contents.c.since <= bindparam("through"),
    )
    .limit(1)
)
_EXAM_HOLDS = Statement(
    select(exam_contents.c.day, exam_contents.c.since).where(
        exam_contents.c.modality == bindparam("modality"),
        exam_contents.c.shows == bindparam("shows"),
        exam_contents.c.date == bindparam("date"),
        exam_contents.c.exam == bindparam("exam"),
    )
)
_DAY = Statement(select(days.c.date, days.c.updated).where(days.c.date == bindparam("date")))
_EXAMS_BETWEEN = (
    _EXAM.add_columns(exams.c.day)
    .where(
        tuple_(exams.c.day, exams.c.id) > tuple_(bindparam("day"), bindparam("after")),
        exams.c.day < bindparam("before"),
    )
    .order_by(exams.c.day, exams.c.id)
    .limit(bindparam("most"))
)
_NAME = (
    select(
        instances.c.id,
        series.c.label,
        series.c.number.label("series_number"),
        instances.c.number,
        instances.c.suffix,
        instances.c.frames,
        instances.c.shows,
        series.c.modality,
        instances.c.pool,
        instances.c.modified,
        instances.c.shown.label("original"),
    )
    .join(series, series.c.id == instances.c.series)
    .where(
        instances.c.exam == bindparam("exam"),
        instances.c.id.between(bindparam("first"), bindparam("last")),
    )
    .limit(bindparam("most"))
)
_NAME_UNSIZED = _NAME.add_columns(literal(0).label("size"))
_NAME_SIZED = _NAME.add_columns(originals.c.size).join(originals, originals.c.id == instances.c.shown)
_NAME_PAGE = {
    (is_sized, is_back): Statement(
        name.order_by(instances.c.id.desc() if is_back else instances.c.id.asc()), NameRow
    )
    for is_sized, name in ((False, _NAME_UNSIZED), (True, _NAME_SIZED))
    for is_back in (False, True)
}
_INSTANCES_BEFORE = (
    select(instances.c.id)
    .where(instances.c.id < bindparam("before"))
    .order_by(instances.c.id.desc())
    .limit(bindparam("most"))
)
_IMAGE_BY_NAME = Statement(
    _IMAGE.where(
        series.c.exam == bindparam("exam"),
        series.c.label_key == bindparam("label_key"),
        series.c.number == bindparam("series_number"),
        instances.c.number == bindparam("number"),
        instances.c.suffix == bindparam("suffix"),
    )
)
IMAGE_BY_ID = _IMAGE.where(instances.c.id == bindparam("id"))
# From the original to its instance, which has one that it shows: there is no way back without a search.
_IMAGE_SHOWN = Statement(
    _IMAGE.where(
        instances.c.id
        == select(originals.c.instance).where(originals.c.id == bindparam("original")).scalar_subquery(),
        instances.c.shown == bindparam("original"),
    )
)
# In the words of the partial index: of a parameter SQLite cannot know that it is not empty.
_IN_POOL = and_(instances.c.pool == bindparam("pool"), instances.c.pool != literal_column("''"))
_POOL_MEMBERS = _IMAGE.where(_IN_POOL).order_by(instances.c.shown)
_POOL_THROUGH = select(func.max(instances.c.shown)).where(_IN_POOL)
_POOL_SPAN = select(func.min(instances.c.id).label("first"), func.max(instances.c.id).label("last")).where(
    _IN_POOL
)
_ARRIVALS = (
    select(originals.c.id, originals.c.instance, instances.c.pool, instances.c.shown)
    .join(instances, instances.c.id == originals.c.instance)
    .where(originals.c.id > bindparam("after"))
    .order_by(originals.c.id)
    .limit(bindparam("most"))
)
_REMOVALS = (
    select(removals)
    .where(removals.c.id > bindparam("after"))
    .order_by(removals.c.id)
    .limit(bindparam("most"))
)
_LAST_REMOVAL = select(func.max(removals.c.id))
_ORIGINALS_OF = (
    select(
        originals.c.id.label("sequence"),
        originals.c.hash,
        originals.c.transfer_syntax,
        originals.c.received,
        originals.c.source_ae,
        instances.c.sop_uid,
        instances.c.shown,
    )
    .join(instances, instances.c.id == originals.c.instance)
    .where(originals.c.instance == bindparam("id"))
    .order_by(originals.c.id)
)
_KEPT_UNDER = (
    select(originals.c.id.label("sequence"), originals.c.hash, originals.c.size, originals.c.transfer_syntax)
    .join(instances, instances.c.id == originals.c.instance)
    .where(instances.c.sop_uid == bindparam("sop_uid"))
)
_RECORDED = (
    select(
        originals.c.id.label("sequence"),
        originals.c.hash,
        originals.c.size,
        originals.c.transfer_syntax,
        originals.c.received,
        originals.c.source_ae,
        originals.c.duplicates,
        instances.c.sop_uid,
    )
    # Outer: the row of an original whose instance is lost must not hide its file.
    .outerjoin(instances, instances.c.id == originals.c.instance)
    .where(originals.c.hash > bindparam("after"), originals.c.hash <= bindparam("last"))
    .order_by(originals.c.hash)
    .limit(bindparam("most"))
)
_NOT_SHOWN = (
    select(instances.c.id)
    .outerjoin(originals, originals.c.id == instances.c.shown)
    .where(originals.c.id.is_(None))
    .limit(bindparam("most"))
)
_HIGHEST = select(func.max(originals.c.id))
_CONFLICTS = select(func.count()).select_from(originals).where(originals.c.conflict == 1)
_LAST_ORIGINAL = Statement(
    select(originals.c.received).where(originals.c.id == select(func.max(originals.c.id)).scalar_subquery())
)


def shown_name(row: Any, limit: int) -> str:
    """The name of a folder: its component and the suffix that tells it from another of that name."""
    name: str = row.folder
    return suffixed(name, row.suffix, limit) if row.suffix else name


def _patient_name(row: Any) -> PatientName:
    return PatientName(shown_name(row, PATIENT_UNITS), row.id_folder, row.id_suffix)


def _patient(row: Any) -> PatientRow:
    return PatientRow(row.id, _patient_name(row), row.updated)


def _exam(row: Row[Any]) -> ExamRow:
    folder = row.exam_folder
    if row.exam_suffix:
        folder = suffixed(folder, row.exam_suffix, EXAM_UNITS)
    return ExamRow(row.id, row.patient, _patient_name(row), row.date, folder, row.updated)


def _removal(row: Row[Any]) -> Removal:
    of_patient, of_exam = (SimpleNamespace(**json.loads(text)) for text in (row.patient, row.exam))
    patient = _patient(of_patient)
    folder = shown_name(of_exam, EXAM_UNITS)
    exam = ExamRow(of_exam.id, patient.id, patient.name, of_exam.date, folder, of_exam.updated)
    image = ImageRow(**json.loads(row.image) | {"hash": b"", "outline": None}) if row.image else None
    return Removal(row.id, patient, exam, image, tuple(Held(*one) for one in json.loads(row.held)))


def _limits(selection: Selection) -> dict[str, Any]:
    """What statements on `exam_contents` need, but for the modality."""
    return {
        "shows": selection.shows,
        "first_day": selection.first_day,
        "through": selection.through,
    }


def _image(row: Any) -> ImageRow:
    return ImageRow(*row)  # as they are selected


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


FOREIGN: Final = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR})
"""What SQLite says of a file that is no database, or has other tables or columns than ours."""


def sqlite_code(error: exc.DBAPIError | sqlite3.Error) -> int:
    """SQLite's primary result code."""
    cause = error.orig if isinstance(error, exc.DBAPIError) else error
    return int(getattr(cause, "sqlite_errorcode", 0)) & 0xFF


def _tables(connection: Connection) -> set[str]:
    rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")
    return set(rows.scalars())


def switch_to_wal(connection: Connection) -> None:
    """For ever, as it is a property of the file.

    While another process does the same, SQLite answers "locked" at once instead of waiting.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        except exc.OperationalError as error:
            if sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
        finally:
            connection.rollback()


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


@contextlib.contextmanager
def translated(what: str = "the index") -> Iterator[None]:
    """Turn database errors into ours: the disk may be full, the file locked, read-only or damaged."""
    try:
        yield
    except (exc.DBAPIError, sqlite3.Error) as error:
        code = sqlite_code(error)
        if code == sqlite3.SQLITE_FULL:
            raise StoreFull(f"no space left for {what}; free some space, then send again") from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreLocked(
                f"another program keeps {what} locked (a backup? sqlite3?): end it, or wait for it"
            ) from error
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        remedy = _REMEDIES.get(code, "")
        raise StoreUnavailable(f"{what} cannot be used now: {cause}{remedy}") from error


_REMEDIES: Final = {
    sqlite3.SQLITE_READONLY: "; make it and its folder writable for this user",
    sqlite3.SQLITE_PERM: "; make it and its folder writable for this user",
    sqlite3.SQLITE_CANTOPEN: "; is its file system mounted, and open to this user?",
    sqlite3.SQLITE_IOERR: "; look for errors of the disk in the kernel's log",
}


def uri(path: Path, how: str) -> str:
    """SQLite's name for a file, whatever bytes are in its path; `how` as for `connect`."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{how}"


def connect(path: Path, timeout_s: float, how: str = "mode=rwc") -> Engine:
    """A durable SQLite file, whose transactions are begun by `immediate`; opened when it is connected.

    `how`: parameters of SQLite's URI; `mode=rw` never makes a file.
    """
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(
            uri(path, how),
            uri=True,
            timeout=timeout_s,
            check_same_thread=False,
        ),
        poolclass=NullPool,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        # Transactions are begun by us, explicitly: the driver would begin them deferred, and a deferred
        # transaction that comes to write can fail where an immediate one waits.
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -32768")

    return engine


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of its name; None when there is none, or nobody can tell."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _driver_of(connection: Connection) -> sqlite3.Connection:
    driver: Any = connection.connection.dbapi_connection
    return cast(sqlite3.Connection, driver)


@contextlib.contextmanager
def immediate(connection: Connection) -> Iterator[sqlite3.Connection]:
    """A write transaction: waits for other writers, commits at the end, rolls back on any error.

    Gives the driver's connection, for what must be quick.
    """
    driver = _driver_of(connection)
    driver.execute("BEGIN IMMEDIATE")
    try:
        yield driver
        # Within: a COMMIT that fails leaves the transaction open, and no other could ever begin.
        driver.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        raise


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
        return _driver_of(self._connection)

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
        row = self._row(_LAST_ORIGINAL)
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
            while not page:
                rows = self._rows(_PATIENT_PAGE, after=last, most=most, **of)
                # What came lately may not be shown yet, and be all that there is.
                page = [
                    _patient(row)
                    for row in rows
                    if row.risen <= selection.through or self._has_shown(row.id, modality, selection)
                ]
                if len(rows) < most:
                    break
                last = rows[-1].id
            return page

        return self._page(selection, most, fetch, lambda patient: patient.id)

    def patient_by_key(self, key: PatientKey) -> PatientRow | None:
        """The patient of that name or Patient ID, whatever is there of him."""
        row = self._row(_PATIENT_BY_ID_KEY if key.by_id else _PATIENT_BY_KEY, key=key.key)
        return _patient(row) if row else None

    def has_such(self, patient: int, selection: Selection) -> bool:
        """Whether a patient has anything of a selection."""
        for modality in selection.modalities:
            row = self._row(_PATIENT_HOLDS, modality=modality, shows=selection.shows, patient=patient)
            if row is None or row.latest < selection.first_day:
                continue
            if row.risen <= selection.through or self._has_shown(patient, modality, selection):
                return True
        return False

    def _has_shown(self, patient: int, modality: str, selection: Selection) -> bool:
        row = self._row(_PATIENT_SHOWS, patient=patient, modality=modality, **_limits(selection))
        return row is not None

    def patient(self, patient_id: int) -> PatientRow | None:
        """One patient by id."""
        row = self._row(_PATIENT_BY_ID, id=patient_id)
        return _patient(row) if row else None

    def exam_page(self, patient: int, after: int, most: int, selection: Selection) -> list[ExamRow]:
        """Exams of a patient with an id above `after` that hold such, in order of id."""
        return self._exam_page(_EXAM_PAGE, after, most, selection, patient=patient)

    def exams_of_day(self, date: str, after: int, most: int, selection: Selection) -> list[ExamRow]:
        """Exams of a date (`YYYYMMDD` or empty) with an id above `after` that hold such, in order of id."""
        return self._exam_page(_EXAMS_OF_DAY, after, most, selection, date=date)

    def _exam_page(
        self, statement: Any, after: int, most: int, selection: Selection, **of: object
    ) -> list[ExamRow]:
        of = {"after": after, "most": most, **of, **_limits(selection)}

        def fetch(modality: str) -> list[ExamRow]:
            return [_exam(row) for row in self._rows(statement, modality=modality, **of)]

        return self._page(selection, most, fetch, lambda exam: exam.id)

    def exam_by_key(self, patient: int, key: str, selection: Selection) -> ExamRow | None:
        """The exam of this patient whose folded folder name is `key`, if it holds such."""
        of = {"patient": patient, "key": key, **_limits(selection)}
        for modality in selection.modalities:
            row = self._row(_EXAM_BY_KEY, modality=modality, **of)
            if row is not None:
                return _exam(row)
        return None

    def exam(self, exam_id: int) -> ExamRow | None:
        """One exam by id."""
        row = self._row(_EXAM_BY_ID, id=exam_id)
        return _exam(row) if row else None

    def exams_between(self, after: tuple[str, int], before: str, most: int) -> list[tuple[str, ExamRow]]:
        """Exams behind `after` (day, id) whose `day` is less than `before`, with it, in that order."""
        rows = self._rows(_EXAMS_BETWEEN, day=after[0], after=after[1], before=before, most=most)
        return [(row.day, _exam(row)) for row in rows]

    def day_page(self, after: str | None, most: int, selection: Selection) -> list[DayRow]:
        """Dates later than `after` with exams that hold such, in order.

        None: from the start, which is the empty date.
        """

        def fetch(modality: str) -> list[str]:
            """Dates of one modality: one step through its index for each, and not for each exam."""
            of = {"modality": modality, **_limits(selection)}
            found = []
            if after is None and self._row(_IN_DAY, date="", **of) is not None:
                found.append("")
            # The day behind a day; none before the limit needs to be looked at, but those without a date.
            first = max(f"{after or ''} ", selection.first_day)
            while len(found) < most and (row := self._row(_NEXT_DAY, first=first, **of)) is not None:
                found.append(row.date)
                first = f"{row.date} "
            return found

        dates = self._page(selection, most, fetch, lambda date: date)
        return [row for row in map(self.day, dates) if row is not None]

    def day(self, date: str) -> DayRow | None:
        """One date of exams, `YYYYMMDD` or empty."""
        row = self._row(_DAY, date=date)
        return DayRow(row.date, row.updated) if row else None

    def day_has_such(self, date: str, selection: Selection) -> bool:
        """Whether a date has anything of a selection."""
        of = {"date": date, **_limits(selection)}
        return any(self._row(_IN_DAY, modality=m, **of) is not None for m in selection.modalities)

    def exam_has_such(self, exam: int, date: str, selection: Selection) -> bool:
        """Whether an exam of this date holds anything of a selection."""
        of = {"date": date, "exam": exam, "shows": selection.shows}
        rows = [self._row(_EXAM_HOLDS, modality=modality, **of) for modality in selection.modalities]
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
        statement = _NAME_PAGE[sized, False]
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
        statement = _NAME_PAGE[sized, True]
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
        return [int(row.id) for row in self._rows(_INSTANCES_BEFORE, before=before, most=most)]

    def image_by_name(
        self, exam: int, label_key: str, series_number: int, number: int, suffix: str
    ) -> ImageRow | None:
        """The instance that bears these name components in an exam."""
        row = self._row(
            _IMAGE_BY_NAME,
            exam=exam,
            label_key=label_key,
            series_number=series_number,
            number=number,
            suffix=suffix,
        )
        return _image(row) if row else None

    def image(self, instance_id: int) -> ImageRow | None:
        """One instance by id."""
        row = self._row(IMAGE_BY_ID, id=instance_id)
        return _image(row) if row else None

    def image_shown(self, original: int) -> ImageRow | None:
        """The instance that shows this original; None when no instance does (any more)."""
        row = self._row(_IMAGE_SHOWN, original=original)
        return _image(row) if row else None

    def pool_members(self, pool: str) -> list[ImageRow]:
        """All instances that share a grey scale, in order of the originals they show."""
        return [_image(row) for row in self._rows(_POOL_MEMBERS, pool=pool)]

    def pool_through(self, pool: str) -> int:
        """The highest id of an original shown in a pool; 0 when it is empty."""
        row = self._row(_POOL_THROUGH, pool=pool)
        return int(row[0] or 0) if row else 0

    def pool_span(self, pool: str) -> tuple[int, int] | None:
        """The least and the highest id of the instances of a pool; None when it is empty."""
        row = self._row(_POOL_SPAN, pool=pool)
        return (row.first, row.last) if row and row.first is not None else None

    def arrivals(self, after: int, most: int) -> list[Arrival]:
        """Originals received after this sequence number, in order."""
        rows = self._rows(_ARRIVALS, after=after, most=most)
        return [
            Arrival(row.id, row.instance, row.pool, row.id == row.shown and row.id != row.instance)
            for row in rows
        ]

    def last_removal(self) -> int:
        """Number of the latest removal; 0 when there is none."""
        row = self._row(_LAST_REMOVAL)
        return int(row[0] or 0) if row else 0

    def removals(self, after: int, most: int) -> list[Removal]:
        """What was forgotten after this removal, in order; what was in a folder comes before the folder."""
        return [_removal(row) for row in self._rows(_REMOVALS, after=after, most=most)]

    def originals_of(self, instance_id: int) -> list[StoredOriginal]:
        """Every original that is kept of an instance, in order of receipt."""
        rows = self._rows(_ORIGINALS_OF, id=instance_id)
        return [StoredOriginal(**{**row._mapping, "shown": row.sequence == row.shown}) for row in rows]

    def kept_under(self, sop_uid: str) -> list[KeptOriginal]:
        """Every original of a SOP Instance UID, whatever its series, in order of receipt."""
        rows = self._rows(_KEPT_UNDER, sop_uid=sop_uid)
        return sorted((KeptOriginal(**row._mapping) for row in rows), key=lambda kept: kept.sequence)

    def recorded(self, after: bytes, last: bytes, most: int) -> list[RecordedOriginal]:
        """Originals whose hash is above `after` and at most `last`, in order of the hash."""
        rows = self._rows(_RECORDED, after=after, last=last, most=most)
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
        lost = self._rows(_NOT_SHOWN, most=most)
        found += [f"instance {row.id} shows an original that has no row" for row in lost]
        if (self._rows(_HIGHEST)[0][0] or 0) > self.last_sequence():
            found.append("the counter of receipt sequence numbers is below a number that was given")
        return found

    def conflicts(self) -> int:
        """Originals that bear another patient's identity than an earlier one of the same UIDs."""
        return int(self._rows(_CONFLICTS)[0][0])

    def counts(self) -> Counts:
        """How many rows of each kind; grows with the index, so for `status` only."""
        tables = (patients, exams, series, instances, originals)
        numbers = [self._rows(select(func.count()).select_from(table))[0][0] for table in tables]
        return Counts(*numbers)
