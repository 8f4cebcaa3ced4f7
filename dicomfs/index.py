"""The index: all SQL on `index.sqlite3`, and the schema, column by column.

Ids are receipt sequence numbers: an original's row id is its sequence; a patient, exam, series or
instance has the id of the original that created it. Names are decided here, once, inside the write
transaction that stores the row, because only there is it certain what they would collide with.

One writer at a time (`BEGIN IMMEDIATE`), durable at commit (WAL, `synchronous=FULL`); readers never wait
for it. Rows become frozen dataclasses before they leave. Called by `ingest.py` (writes), `tree.py` and
`present.py` (reads) and `cli.py` (counts). Never touches the archive.
"""

import contextlib
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    NullPool,
    Row,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    create_engine,
    event,
    exc,
    func,
    insert,
    select,
    update,
)
from sqlalchemy import Index as TableIndex

from dicomfs.errors import StoreFull, StoreMismatch, StoreUnavailable
from dicomfs.model import Header, Receipt
from dicomfs.naming import (
    EXAM_BYTES,
    PATIENT_BYTES,
    SERIES_BYTES,
    PatientKey,
    exam_folder,
    exam_suffix,
    fold,
    patient_folder,
    patient_key,
    same_patient,
    series_label,
    short_hash,
    suffixed,
)
from dicomfs.recipes import ENCAPSULATED_PDF

INDEX_NAME: Final = "index.sqlite3"
"""Its name in the store."""
SCHEMA_VERSION: Final = 1
PICTURES: Final = 1
PDF: Final = 2
"""Bits of the columns `shows`."""
BUSY_TIMEOUT_S: Final = 30.0
"""How long a writer waits for the others."""
READ_TIMEOUT_S: Final = 2.0
"""Readers of a WAL hardly ever wait; when they must, a mount stands still meanwhile."""
_CLOCK_TOLERANCE_S: Final = 86_400.0

metadata = MetaData()

about = Table(
    "about",
    metadata,
    Column("key", Text, primary_key=True, comment="schema_version, store_id, created"),
    Column("value", Text, nullable=False),
)

counter = Table(
    "counter",
    metadata,
    Column("last_sequence", Integer, nullable=False, comment="highest receipt sequence ever given; one row"),
)

patients = Table(
    "patients",
    metadata,
    Column("id", Integer, primary_key=True, comment="sequence of the original that created the patient"),
    Column("issuer", Text, nullable=False, comment="normalised Issuer of Patient ID, or empty"),
    Column("patient_id", Text, nullable=False, comment="normalised Patient ID, or empty"),
    Column("name", Text, nullable=False, comment="normalised Patient's Name, or empty; for matching only"),
    Column("birth_date", Text, nullable=False, comment="YYYYMMDD or empty; for matching only"),
    Column("folder", Text, nullable=False, comment="name component: what people read"),
    Column("suffix", Text, nullable=False, comment="tells namesakes apart; empty for the first"),
    Column("folder_key", Text, nullable=False, unique=True, comment="folded name with suffix"),
    Column(
        "shows",
        Integer,
        nullable=False,
        comment="all its instances can be shown as: 1 pictures, 2 pdf",
    ),
    Column(
        "updated", Float, nullable=False, comment="receipt of the latest original, seconds since the epoch"
    ),
    TableIndex("patients_by_patient_id", "patient_id", "issuer"),
    TableIndex("patients_by_name", "name"),
)

exams = Table(
    "exams",
    metadata,
    Column("id", Integer, primary_key=True, comment="sequence of the original that created the exam"),
    Column("patient", ForeignKey("patients.id"), nullable=False),
    Column("study_uid", Text, nullable=False, comment="Study Instance UID, derived when missing"),
    Column("folder", Text, nullable=False, comment="name component: the date"),
    Column("suffix", Text, nullable=False, comment="time or hash of a further study of that day; else empty"),
    Column("folder_key", Text, nullable=False, comment="folded name with suffix"),
    Column(
        "shows",
        Integer,
        nullable=False,
        comment="all its instances can be shown as: 1 pictures, 2 pdf",
    ),
    Column(
        "updated", Float, nullable=False, comment="receipt of the latest original, seconds since the epoch"
    ),
    UniqueConstraint("patient", "folder_key"),
    UniqueConstraint("study_uid", "patient"),
    TableIndex("exams_of_patient", "patient", "id"),
)

series = Table(
    "series",
    metadata,
    Column("id", Integer, primary_key=True, comment="sequence of the original that created the series"),
    Column("exam", ForeignKey("exams.id"), nullable=False),
    Column("series_uid", Text, nullable=False, comment="Series Instance UID, derived when missing"),
    Column("modality", Text, nullable=False, comment="Modality, as sent"),
    Column("label", Text, nullable=False, comment="name component: the series' name, suffix included"),
    Column("label_key", Text, nullable=False, comment="folded label"),
    Column("number", Integer, nullable=False, comment="Series Number; 0 when missing"),
    UniqueConstraint("exam", "series_uid"),
    UniqueConstraint("exam", "label_key", "number"),
)

instances = Table(
    "instances",
    metadata,
    Column("id", Integer, primary_key=True, comment="sequence of the original that created the instance"),
    Column("series", ForeignKey("series.id"), nullable=False),
    Column("exam", ForeignKey("exams.id"), nullable=False, comment="copy of the series' exam, for listings"),
    Column("sop_uid", Text, nullable=False, comment="SOP Instance UID"),
    Column("sop_class_uid", Text, nullable=False, comment="SOP Class UID of the shown original"),
    Column("number", Integer, nullable=False, comment="Instance Number; 0 when missing"),
    Column(
        "suffix",
        Text,
        nullable=False,
        comment="hash of the SOP Instance UID where the number is taken; else empty",
    ),
    Column("frames", Integer, nullable=False, comment="Number of Frames, at least 1"),
    Column("rows", Integer, nullable=False, comment="Rows; 0 when missing"),
    Column("columns", Integer, nullable=False, comment="Columns; 0 when missing"),
    Column("shows", Integer, nullable=False, comment="what it can be shown as: 1 pictures, 2 pdf; a sum"),
    Column(
        "pool", Text, nullable=False, comment="images of one grey scale share it: SERIES:KEY; empty: alone"
    ),
    Column(
        "modified", Float, nullable=False, comment="acquisition, else receipt: mtime, seconds since the epoch"
    ),
    Column("shown", Integer, nullable=False, comment="id of the original that is shown"),
    UniqueConstraint("series", "number", "suffix"),
    TableIndex("instances_of_exam", "exam", "id"),
    TableIndex("instances_by_sop_uid", "sop_uid"),
)
TableIndex("instances_of_pool", instances.c.pool, instances.c.id, sqlite_where=instances.c.pool != "")

originals = Table(
    "originals",
    metadata,
    Column("id", Integer, primary_key=True, comment="receipt sequence number"),
    Column("instance", ForeignKey("instances.id"), nullable=False),
    Column("hash", LargeBinary(32), nullable=False, unique=True, comment="SHA-256, names the archived file"),
    Column("size", Integer, nullable=False, comment="bytes of the data set, without file meta information"),
    Column("transfer_syntax", Text, nullable=False, comment="Transfer Syntax UID"),
    Column("received", Float, nullable=False, comment="seconds since the epoch"),
    Column("source_ae", Text, nullable=False, comment="AE title of the sender, or empty"),
    Column("pixel_offset", Integer, comment="native pixel data: first byte, from the start of the data set"),
    Column("pixel_length", Integer, comment="native pixel data: bytes"),
    TableIndex("originals_of_instance", "instance"),
)


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
class KnownOriginal:
    """An original that is already in the index."""

    sequence: int
    size: int
    sop_uid: str
    sop_class_uid: str
    received: float
    source_ae: str


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
class Arrival:
    """One original in order of receipt, for those who follow what comes in."""

    sequence: int
    instance: int
    pool: str


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
_POOL_MEMBERS = _IMAGE.where(instances.c.pool == bindparam("pool")).order_by(instances.c.id)
_POOL_THROUGH = select(func.max(instances.c.id)).where(instances.c.pool == bindparam("pool"))
_ARRIVALS = (
    select(originals.c.id, originals.c.instance, instances.c.pool)
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
_LAST_ORIGINAL = select(originals.c.received).order_by(originals.c.id.desc()).limit(1)
_PATIENT_OF_EXAM = select(exams.c.patient).where(exams.c.id == bindparam("id"))
_KNOWN = (
    select(
        originals.c.id,
        originals.c.size,
        instances.c.sop_uid,
        instances.c.sop_class_uid,
        originals.c.received,
        originals.c.source_ae,
    )
    .join(instances, instances.c.id == originals.c.instance)
    .where(originals.c.hash == bindparam("hash"))
)
_SAME_IDENTITY = (
    select(instances.c.id, exams.c.patient)
    .join(series, series.c.id == instances.c.series)
    .join(exams, exams.c.id == instances.c.exam)
    .where(
        instances.c.sop_uid == bindparam("sop_uid"),
        series.c.series_uid == bindparam("series_uid"),
        exams.c.study_uid == bindparam("study_uid"),
    )
)


def _folder(row: Row[Any] | None, limit_bytes: int) -> Folder | None:
    if row is None:
        return None
    name = suffixed(row.folder, row.suffix, limit_bytes) if row.suffix else row.folder
    return Folder(row.id, name, row.updated)


def _image(row: Row[Any]) -> ImageRow:
    return ImageRow(**row._mapping)


FOREIGN: Final = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR})
"""What SQLite says of a file that is no database, or has other tables or columns than ours."""


def sqlite_code(error: exc.DBAPIError) -> int:
    """SQLite's primary result code."""
    return int(getattr(error.orig, "sqlite_errorcode", 0)) & 0xFF


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


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn database errors into ours: the disk may be full, the file locked, read-only or damaged."""
    try:
        yield
    except exc.DBAPIError as error:
        if sqlite_code(error) == sqlite3.SQLITE_FULL:
            raise StoreFull("no space left for the index; free some space, then send again") from error
        raise StoreUnavailable(f"the index cannot be used now: {error.orig}") from error


def _connect(path: Path, timeout_s: float) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": timeout_s, "check_same_thread": False},
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


class Index:
    """One connection to the index; use it from one thread at a time."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open, or with `create` make, the index file.

        Raises StoreMismatch when it is of another version, is missing or is no index, StoreUnavailable
        when it cannot be opened.
        """
        try:
            there = path.exists()
        except PermissionError:
            raise StoreUnavailable(f"this user may not look into {path.parent}") from None
        if not create and not there:
            raise StoreMismatch(f"{path.parent} is not a dicomfs store: it has no {path.name}")
        self._engine = _connect(path, BUSY_TIMEOUT_S if create else READ_TIMEOUT_S)
        try:
            self._connection: Connection = self._engine.connect()
            self.store_id = self._prepare(create=create)
        except exc.DatabaseError as error:
            self.close()
            with _translated():
                if sqlite_code(error) not in FOREIGN:
                    raise
            raise StoreMismatch(f"{path} is not a dicomfs index: {error.orig}") from error
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, create: bool) -> str:
        """Make the tables if need be, check the version; returns the id of the store."""
        if create:
            switch_to_wal(self._connection)
            with self._immediate() as connection:
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
            raise StoreMismatch("the index file is a database of something else, not a dicomfs index")
        facts = {row.key: row.value for row in self._connection.execute(select(about))}
        self._connection.rollback()
        found = facts.get("schema_version", "(none)")
        if found != str(SCHEMA_VERSION) or "store_id" not in facts:
            raise StoreMismatch(
                f"the index has schema version {found}, this dicomfs reads "
                f"{SCHEMA_VERSION}: use the dicomfs version that made it"
            )
        return facts["store_id"]

    def close(self) -> None:
        """Let go of the file."""
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        self._engine.dispose()

    @contextlib.contextmanager
    def _immediate(self) -> Iterator[Connection]:
        """A write transaction: waits for other writers, commits at the end, rolls back on any error."""
        connection = self._connection
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
            # Within: a COMMIT that fails leaves the transaction open, and no other could ever begin.
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself.
            driver: Any = connection.connection.dbapi_connection
            if driver is not None and driver.in_transaction:
                driver.execute("ROLLBACK")
            connection.rollback()
            raise
        connection.commit()

    @contextlib.contextmanager
    def write(self) -> Iterator["Writer"]:
        """A durable write transaction; see `Writer`. Raises StoreFull or StoreUnavailable."""
        with _translated(), self._immediate() as connection:
            yield Writer(connection)

    # What follows reads; every statement is its own transaction.

    def _rows(self, statement: Any, **values: Any) -> Sequence[Row[Any]]:
        with _translated():
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
        with _translated():
            try:
                return int(self._connection.exec_driver_sql("PRAGMA data_version").scalar_one())
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
        return [f for f in (_folder(row, PATIENT_BYTES) for row in rows) if f]

    def patient_by_key(self, key: str, *, shows: int) -> Folder | None:
        """The patient whose folded folder name is `key`."""
        return _folder(self._row(_PATIENT_BY_KEY, key=key, shows=shows), PATIENT_BYTES)

    def patient(self, patient_id: int) -> Folder | None:
        """One patient by id."""
        return _folder(self._row(_PATIENT_BY_ID, id=patient_id), PATIENT_BYTES)

    def exam_page(self, patient: int, after: int, most: int, *, shows: int) -> list[Folder]:
        """Exams of a patient with an id above `after`, in order of id."""
        rows = self._rows(_EXAM_PAGE, patient=patient, after=after, most=most, shows=shows)
        return [f for f in (_folder(row, EXAM_BYTES) for row in rows) if f]

    def exam_by_key(self, patient: int, key: str, *, shows: int) -> Folder | None:
        """The exam of this patient whose folded folder name is `key`."""
        row = self._row(_EXAM_BY_KEY, patient=patient, key=key, shows=shows)
        return _folder(row, EXAM_BYTES)

    def exam(self, exam_id: int) -> Folder | None:
        """One exam by id."""
        return _folder(self._row(_EXAM_BY_ID, id=exam_id), EXAM_BYTES)

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

    def pool_members(self, pool: str) -> list[ImageRow]:
        """All instances that share a grey scale, in order of id."""
        return [_image(row) for row in self._rows(_POOL_MEMBERS, pool=pool)]

    def pool_through(self, pool: str) -> int:
        """The highest instance id in a pool; 0 when it is empty."""
        row = self._row(_POOL_THROUGH, pool=pool)
        return int(row[0] or 0) if row else 0

    def arrivals(self, after: int, most: int) -> list[Arrival]:
        """Originals received after this sequence number, in order."""
        rows = self._rows(_ARRIVALS, after=after, most=most)
        return [Arrival(row.id, row.instance, row.pool) for row in rows]

    def originals_of(self, instance_id: int) -> list[StoredOriginal]:
        """Every original that is kept of an instance, in order of receipt."""
        rows = self._rows(_ORIGINALS_OF, id=instance_id)
        return [StoredOriginal(**{**row._mapping, "shown": row.sequence == row.shown}) for row in rows]

    def counts(self) -> Counts:
        """How many rows of each kind; grows with the index, so for `status` only."""
        tables = (patients, exams, series, instances, originals)
        numbers = [self._rows(select(func.count()).select_from(table))[0][0] for table in tables]
        return Counts(*numbers)


class Writer:
    """What may be done inside one write transaction of the index."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def next_sequence(self) -> int:
        """A receipt sequence number that was never given before."""
        statement = (
            update(counter)
            .values(last_sequence=counter.c.last_sequence + 1)
            .returning(counter.c.last_sequence)
        )
        return int(self._connection.execute(statement).scalar_one())

    def known(self, digest: bytes) -> KnownOriginal | None:
        """The original with this content hash."""
        row = self._connection.execute(_KNOWN, {"hash": digest}).first()
        return KnownOriginal(*row) if row else None

    def add(self, header: Header, receipt: Receipt, sequence: int, digest: bytes, size: int) -> list[str]:
        """Store one new original and whatever it is the first of; returns warnings for the log.

        An original whose identity (Study, Series and SOP Instance UID) is known is kept beside the one
        that is shown, and changes nothing that anybody sees.
        """
        warnings: list[str] = []
        owner = self._patient(header)
        same = self._connection.execute(
            _SAME_IDENTITY,
            {
                "sop_uid": header.sop_instance_uid,
                "series_uid": header.series_uid,
                "study_uid": header.study_uid,
            },
        ).first()
        if same is not None:
            instance = int(same.id)
            warnings.append(
                "differs from an earlier original of the same UIDs, which stays the one that is shown"
            )
            if owner != same.patient:
                warnings.append(
                    "bears another patient's identity than the earlier original: check who is right"
                )
        else:
            instance = sequence
            self._instance(header, receipt, sequence, self._owner(owner, header, sequence, receipt))
        self._connection.execute(
            insert(originals).values(
                id=sequence,
                instance=instance,
                hash=digest,
                size=size,
                transfer_syntax=receipt.transfer_syntax,
                received=receipt.received,
                source_ae=receipt.source_ae,
                pixel_offset=header.pixel_offset,
                pixel_length=header.pixel_length,
            )
        )
        return warnings

    def _exists(self, table: Table, **values: object) -> bool:
        where = [table.c[name] == value for name, value in values.items()]
        return self._connection.execute(select(table.c.id).where(*where).limit(1)).first() is not None

    def _patient(self, header: Header) -> int | None:
        """The patient this data set belongs to, if known; `naming.same_patient` has the rule."""
        key = patient_key(header.issuer, header.patient_id, header.patient_name, header.birth_date)
        columns = (
            patients.c.id,
            patients.c.issuer,
            patients.c.patient_id,
            patients.c.name,
            patients.c.birth_date,
        )
        statement = select(*columns).order_by(patients.c.id)
        if key.patient_id:
            statement = statement.where(
                patients.c.patient_id == key.patient_id, patients.c.issuer == key.issuer
            )
        elif key.name:
            statement = statement.where(patients.c.name == key.name, patients.c.patient_id == "")
        else:
            # Nothing is known of this person: only the study itself can hold its images together.
            statement = statement.join(exams, exams.c.patient == patients.c.id).where(
                exams.c.study_uid == header.study_uid, patients.c.patient_id == "", patients.c.name == ""
            )
            row = self._connection.execute(statement).first()
            return int(row.id) if row else None
        for row in self._connection.execute(statement):
            if same_patient(key, PatientKey(row.issuer, row.patient_id, row.name, row.birth_date)):
                return int(row.id)
        return None

    def _owner(self, patient: int | None, header: Header, sequence: int, receipt: Receipt) -> int:
        """Id of the patient, made now if `patient` is None."""
        if patient is not None:
            self._touch(patients, patient, header, receipt)
            return patient
        key = patient_key(header.issuer, header.patient_id, header.patient_name, header.birth_date)
        folder = patient_folder(header.patient_name, header.patient_id)
        suffix = _first_free(
            [
                "",
                key.patient_id,
                *_hashes(f"{key.issuer}\n{key.patient_id}\n{header.study_uid}\n{sequence}", 4),
            ],
            lambda s: self._exists(patients, folder_key=_folder_key(folder, s, PATIENT_BYTES)),
        )
        self._connection.execute(
            insert(patients).values(
                id=sequence,
                issuer=key.issuer,
                patient_id=key.patient_id,
                name=key.name,
                birth_date=key.birth_date,
                folder=folder,
                suffix=suffix,
                folder_key=_folder_key(folder, suffix, PATIENT_BYTES),
                shows=_shows(header),
                updated=receipt.received,
            )
        )
        return sequence

    def _touch(self, table: Table, row_id: int, header: Header, receipt: Receipt) -> None:
        self._connection.execute(
            update(table)
            .where(table.c.id == row_id)
            .values(
                shows=table.c.shows.op("|")(_shows(header)),
                updated=func.max(table.c.updated, receipt.received),
            )
        )

    def _exam(self, header: Header, receipt: Receipt, sequence: int, patient: int) -> int:
        row = self._connection.execute(
            select(exams.c.id).where(exams.c.study_uid == header.study_uid, exams.c.patient == patient)
        ).first()
        if row is not None:
            self._touch(exams, row.id, header, receipt)
            return int(row.id)
        folder = exam_folder(header.study_date)
        suffix = _first_free(
            ["", exam_suffix(header.study_time), *_hashes(header.study_uid, 4)],
            lambda s: self._exists(exams, patient=patient, folder_key=_folder_key(folder, s, EXAM_BYTES)),
        )
        self._connection.execute(
            insert(exams).values(
                id=sequence,
                patient=patient,
                study_uid=header.study_uid,
                folder=folder,
                suffix=suffix,
                folder_key=_folder_key(folder, suffix, EXAM_BYTES),
                shows=_shows(header),
                updated=receipt.received,
            )
        )
        return sequence

    def _series(self, header: Header, sequence: int, exam: int) -> int:
        row = self._connection.execute(
            select(series.c.id).where(series.c.exam == exam, series.c.series_uid == header.series_uid)
        ).first()
        if row is not None:
            return int(row.id)
        base, number = series_label(header.series_name), header.series_number or 0

        def label(suffix: str) -> str:
            return suffixed(base, suffix, SERIES_BYTES) if suffix else base

        suffix = _first_free(
            ["", *_hashes(header.series_uid, 4)],
            lambda s: self._exists(series, exam=exam, label_key=fold(label(s)), number=number),
        )
        self._connection.execute(
            insert(series).values(
                id=sequence,
                exam=exam,
                series_uid=header.series_uid,
                modality=header.modality,
                label=label(suffix),
                label_key=fold(label(suffix)),
                number=number,
            )
        )
        return sequence

    def _instance(self, header: Header, receipt: Receipt, sequence: int, patient: int) -> None:
        exam = self._exam(header, receipt, sequence, patient)
        series_id = self._series(header, sequence, exam)
        number = header.instance_number or 0
        suffix = _first_free(
            ["", *_hashes(header.sop_instance_uid, 6)],
            lambda s: self._exists(instances, series=series_id, number=number, suffix=s),
        )
        # A time after receipt is a wrong clock; what cannot be is replaced by what is known.
        acquired = header.acquired
        plausible = acquired is not None and acquired <= receipt.received + _CLOCK_TOLERANCE_S
        self._connection.execute(
            insert(instances).values(
                id=sequence,
                series=series_id,
                exam=exam,
                sop_uid=header.sop_instance_uid,
                sop_class_uid=header.sop_class_uid,
                number=number,
                suffix=suffix,
                frames=header.frames,
                rows=header.rows,
                columns=header.columns,
                shows=_shows(header),
                pool=f"{series_id}:{header.pool}" if header.pool else "",
                modified=acquired if plausible else receipt.received,
                shown=sequence,
            )
        )


def _first_free(suffixes: Sequence[str], taken: Callable[[str], bool]) -> str:
    """The first suffix that is not taken; an empty one counts only in first place.

    The last candidates are whole hashes of UIDs, so that one is always free.
    """
    for place, suffix in enumerate(suffixes):
        if (suffix or place == 0) and not taken(suffix):
            return suffix
    raise StoreUnavailable("no free name could be found")


def _shows(header: Header) -> int:
    return PICTURES * header.has_pixels | PDF * (header.sop_class_uid == ENCAPSULATED_PDF)


def _hashes(uid: str, shortest: int) -> list[str]:
    """Hashes of growing length, all of the object itself: a name does not depend on what else is there."""
    return [short_hash(uid, digits) for digits in (shortest, shortest + 4, shortest + 8, 32)]


def _folder_key(folder: str, suffix: str, limit_bytes: int) -> str:
    return fold(suffixed(folder, suffix, limit_bytes) if suffix else folder)
