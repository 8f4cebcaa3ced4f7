"""The index: the file `index.sqlite3`, its transactions, and everything that is read from it.

One writer at a time (`BEGIN IMMEDIATE`), durable at commit (WAL, `synchronous=FULL`); readers never wait
for it. Rows become frozen dataclasses before they leave. The schema is in `schema.py`, what
a write transaction does in `writer.py`. Called by `ingest.py` (writes), `tree.py` and
`present.py` (reads) and `cli.py` (counts). Never touches the archive.
"""

import contextlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Integer,
    NullPool,
    Row,
    Table,
    bindparam,
    create_engine,
    event,
    exc,
    func,
    insert,
    select,
)

from dicomfs.errors import StoreFull, StoreLocked, StoreMismatch, StoreUnavailable
from dicomfs.lock import StoreLock
from dicomfs.naming import EXAM_UNITS, PATIENT_UNITS, suffixed
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


@dataclass(frozen=True, slots=True)
class Folder:
    """A patient or an exam, as listings show it."""

    id: int
    name: str
    updated: float


@dataclass(frozen=True, slots=True)
class ImageRow:
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
    pool: str
    modified: float
    original: int
    hash: bytes
    size: int
    """Bytes of the data set."""


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
class Counts:
    """Rows of each kind, for `status`."""

    patients: int
    exams: int
    series: int
    instances: int
    originals: int


def _can_show(table: Table) -> ColumnElement[bool]:
    """Rows that can be shown as all of `shows`; 0: every row."""
    wanted = bindparam("shows", type_=Integer)
    return table.c.shows.op("&")(wanted) == wanted


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
        instances.c.pool,
        instances.c.modified,
        originals.c.id.label("original"),
        originals.c.hash,
        originals.c.size,
    )
    .join(series, series.c.id == instances.c.series)
    .join(exams, exams.c.id == instances.c.exam)
    .join(originals, originals.c.id == instances.c.shown)
)

# Built once: constructing a statement costs more than running it.
_PATIENT_PAGE = (
    select(patients.c.id, patients.c.folder, patients.c.suffix, patients.c.updated)
    .where(patients.c.id > bindparam("after"), _can_show(patients))
    .order_by(patients.c.id)
    .limit(bindparam("most"))
)
_PATIENT_BY_KEY = select(patients.c.id, patients.c.folder, patients.c.suffix, patients.c.updated).where(
    patients.c.folder_key == bindparam("key"), _can_show(patients)
)
_PATIENT_BY_ID = select(patients.c.id, patients.c.folder, patients.c.suffix, patients.c.updated).where(
    patients.c.id == bindparam("id")
)
_EXAM_PAGE = (
    select(exams.c.id, exams.c.folder, exams.c.suffix, exams.c.updated)
    .where(
        exams.c.patient == bindparam("patient"),
        exams.c.id > bindparam("after"),
        _can_show(exams),
    )
    .order_by(exams.c.id)
    .limit(bindparam("most"))
)
_EXAM_BY_KEY = select(exams.c.id, exams.c.folder, exams.c.suffix, exams.c.updated).where(
    exams.c.patient == bindparam("patient"),
    exams.c.folder_key == bindparam("key"),
    _can_show(exams),
)
_EXAM_BY_ID = select(exams.c.id, exams.c.folder, exams.c.suffix, exams.c.updated).where(
    exams.c.id == bindparam("id")
)
_IMAGE_PAGE = (
    _IMAGE.where(
        instances.c.exam == bindparam("exam"),
        instances.c.id >= bindparam("first"),
        _can_show(instances),
    )
    .order_by(instances.c.id)
    .limit(bindparam("most"))
)
_INSTANCES_BEFORE = (
    select(instances.c.id)
    .where(instances.c.id < bindparam("before"))
    .order_by(instances.c.id.desc())
    .limit(bindparam("most"))
)
_IMAGE_BY_NAME = _IMAGE.where(
    series.c.exam == bindparam("exam"),
    series.c.label_key == bindparam("label_key"),
    series.c.number == bindparam("series_number"),
    instances.c.number == bindparam("number"),
    instances.c.suffix == bindparam("suffix"),
    _can_show(instances),
)
_IMAGE_BY_ID = _IMAGE.where(instances.c.id == bindparam("id"))
_IMAGE_SHOWN = _IMAGE.where(originals.c.id == bindparam("original"))
_POOL_MEMBERS = _IMAGE.where(instances.c.pool == bindparam("pool")).order_by(instances.c.id)
_POOL_THROUGH = select(func.max(instances.c.shown)).where(instances.c.pool == bindparam("pool"))
_ARRIVALS = (
    select(originals.c.id, originals.c.instance, instances.c.pool, instances.c.shown)
    .join(instances, instances.c.id == originals.c.instance)
    .where(originals.c.id > bindparam("after"))
    .order_by(originals.c.id)
    .limit(bindparam("most"))
)
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
    .order_by(originals.c.id)
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
_LAST_ORIGINAL = select(originals.c.received).order_by(originals.c.id.desc()).limit(1)
_PATIENT_OF_EXAM = select(exams.c.patient).where(exams.c.id == bindparam("id"))


def _folder(row: Row[Any] | None, limit: int) -> Folder | None:
    if row is None:
        return None
    name = suffixed(row.folder, row.suffix, limit) if row.suffix else row.folder
    return Folder(row.id, name, row.updated)


def _image(row: Row[Any]) -> ImageRow:
    return ImageRow(**row._mapping)


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


def connect(path: Path, timeout_s: float, how: str = "mode=rwc") -> Engine:
    """A durable SQLite file, whose transactions are begun by `immediate`; opened when it is connected.

    `how`: parameters of SQLite's URI; `mode=rw` never makes a file.
    """
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(
            f"file:{quote(os.fsencode(path.absolute()))}?{how}",
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

    def _rows(self, statement: Any, **values: Any) -> Sequence[Row[Any]]:
        with translated():
            try:
                return self._connection.execute(statement, values).all()
            finally:
                # The kept connection must not go on holding a read transaction's bookkeeping.
                self._connection.rollback()

    def _row(self, statement: Any, **values: Any) -> Row[Any] | None:
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

    def patient_of_exam(self, exam_id: int) -> int | None:
        """Id of the patient whose exam this is."""
        row = self._row(_PATIENT_OF_EXAM, id=exam_id)
        return int(row.patient) if row else None

    def patient_page(self, after: int, most: int, *, shows: int) -> list[Folder]:
        """Patients with an id above `after`, in order of id; `shows`: only those that have such."""
        rows = self._rows(_PATIENT_PAGE, after=after, most=most, shows=shows)
        return [f for f in (_folder(row, PATIENT_UNITS) for row in rows) if f]

    def patient_by_key(self, key: str, *, shows: int) -> Folder | None:
        """The patient whose folded folder name is `key`."""
        return _folder(self._row(_PATIENT_BY_KEY, key=key, shows=shows), PATIENT_UNITS)

    def patient(self, patient_id: int) -> Folder | None:
        """One patient by id."""
        return _folder(self._row(_PATIENT_BY_ID, id=patient_id), PATIENT_UNITS)

    def exam_page(self, patient: int, after: int, most: int, *, shows: int) -> list[Folder]:
        """Exams of a patient with an id above `after`, in order of id."""
        rows = self._rows(_EXAM_PAGE, patient=patient, after=after, most=most, shows=shows)
        return [f for f in (_folder(row, EXAM_UNITS) for row in rows) if f]

    def exam_by_key(self, patient: int, key: str, *, shows: int) -> Folder | None:
        """The exam of this patient whose folded folder name is `key`."""
        row = self._row(_EXAM_BY_KEY, patient=patient, key=key, shows=shows)
        return _folder(row, EXAM_UNITS)

    def exam(self, exam_id: int) -> Folder | None:
        """One exam by id."""
        return _folder(self._row(_EXAM_BY_ID, id=exam_id), EXAM_UNITS)

    def image_page(self, exam: int, first: int, most: int, *, shows: int) -> list[ImageRow]:
        """Instances of an exam with an id of at least `first`, in order of id."""
        rows = self._rows(_IMAGE_PAGE, exam=exam, first=first, most=most, shows=shows)
        return [_image(row) for row in rows]

    def instances_before(self, before: int, most: int) -> list[int]:
        """Ids of instances below `before`, the newest first."""
        return [int(row.id) for row in self._rows(_INSTANCES_BEFORE, before=before, most=most)]

    def image_by_name(
        self, exam: int, label_key: str, series_number: int, number: int, suffix: str, *, shows: int
    ) -> ImageRow | None:
        """The instance that bears these name components in an exam."""
        row = self._row(
            _IMAGE_BY_NAME,
            exam=exam,
            label_key=label_key,
            series_number=series_number,
            number=number,
            suffix=suffix,
            shows=shows,
        )
        return _image(row) if row else None

    def image(self, instance_id: int) -> ImageRow | None:
        """One instance by id."""
        row = self._row(_IMAGE_BY_ID, id=instance_id)
        return _image(row) if row else None

    def image_shown(self, original: int) -> ImageRow | None:
        """The instance that shows this original; None when no instance does (any more)."""
        row = self._row(_IMAGE_SHOWN, original=original)
        return _image(row) if row else None

    def pool_members(self, pool: str) -> list[ImageRow]:
        """All instances that share a grey scale, in order of id."""
        return [_image(row) for row in self._rows(_POOL_MEMBERS, pool=pool)]

    def pool_through(self, pool: str) -> int:
        """The highest id of an original shown in a pool; 0 when it is empty."""
        row = self._row(_POOL_THROUGH, pool=pool)
        return int(row[0] or 0) if row else 0

    def arrivals(self, after: int, most: int) -> list[Arrival]:
        """Originals received after this sequence number, in order."""
        rows = self._rows(_ARRIVALS, after=after, most=most)
        return [
            Arrival(row.id, row.instance, row.pool, row.id == row.shown and row.id != row.instance)
            for row in rows
        ]

    def originals_of(self, instance_id: int) -> list[StoredOriginal]:
        """Every original that is kept of an instance, in order of receipt."""
        rows = self._rows(_ORIGINALS_OF, id=instance_id)
        return [StoredOriginal(**{**row._mapping, "shown": row.sequence == row.shown}) for row in rows]

    def kept_under(self, sop_uid: str) -> list[KeptOriginal]:
        """Every original of a SOP Instance UID, whatever its series, in order of receipt."""
        return [KeptOriginal(**row._mapping) for row in self._rows(_KEPT_UNDER, sop_uid=sop_uid)]

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
