"""The file `index.sqlite3`: made, checked, locked against a rebuild, and its transactions.

One writer at a time (`BEGIN IMMEDIATE`), durable at commit (WAL, `synchronous=FULL`); readers never wait
for it. A file that went away with its file system is opened anew when that is back. The schema is in
`schema.py`, what a write transaction does in `writer.py`. Asks for no row: `index.py`, built on this, does.
"""

import contextlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, exc, insert, select

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
from dicomfs.schema import SCHEMA_VERSION, about, counter, metadata
from dicomfs.statement import Statement
from dicomfs.writer import Recollection, Writer

LOCKED_TIMEOUT_S: Final = 0.2
"""How long, once somebody was waited for in vain: whoever comes meanwhile is told at once."""
REBUILD: Final = "rebuild it from the archive with dicomfs reindex"
"""The remedy for an index that is lost, damaged or of another version: the archive has everything."""


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


class IndexFile:
    """One connection to the file; use it from one thread at a time."""

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
            switch_to_wal(self._driver)
            _sync_log(path)
            connection = self._connection
            with immediate(self._driver):
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
    def write(self) -> Iterator[Writer]:
        """A durable write transaction; see `Writer`. Raises StoreFull or StoreUnavailable."""
        with self._watched(), translated():
            try:
                driver = self._driver
                with immediate(driver):
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
                with immediate(self._driver):
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

    # Reading: every statement is its own transaction.

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
