"""A SQLite file as all of ours are used: durable, in WAL, its errors translated; transactions begun at once.

Knows no table. Used by `indexfile.py`, `renditionsfile.py` and `commitments.py`.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, exc

from dicomfs.errors import StoreFull, StoreLocked, StoreUnavailable

BUSY_TIMEOUT_S: Final = 10.0
"""How long a writer waits for the others. A sender needs its answer before its own time limit is over: 30 s
are usual, and it may have waited for an earlier object already."""
READ_TIMEOUT_S: Final = 2.0
"""Readers of a WAL hardly ever wait; when they must, a mount stands still meanwhile."""

FOREIGN: Final = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR})
"""What SQLite says of a file that is no database, or has other tables or columns than ours."""


def sqlite_code(error: exc.DBAPIError | sqlite3.Error) -> int:
    """SQLite's primary result code."""
    cause = error.orig if isinstance(error, exc.DBAPIError) else error
    return int(getattr(cause, "sqlite_errorcode", 0)) & 0xFF


def switch_to_wal(driver: sqlite3.Connection) -> None:
    """For ever, as it is a property of the file.

    While another process does the same, SQLite answers "locked" at once instead of waiting.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            driver.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


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


def _uri(path: Path, how: str) -> str:
    """SQLite's name for a file, whatever bytes are in its path; `how` as for `connect`."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{how}"


def open_driver(path: Path, timeout_s: float, how: str) -> sqlite3.Connection:
    """A connection of SQLite's driver that leaves transactions to us; `how` as for `connect`."""
    # The driver would begin them deferred, and a deferred one that comes to write can fail where one that is
    # begun immediately waits.
    return sqlite3.connect(
        _uri(path, how), uri=True, timeout=timeout_s, check_same_thread=False, isolation_level=None
    )


def connect(path: Path, timeout_s: float, how: str = "mode=rwc") -> Engine:
    """A durable SQLite file, whose transactions are begun by `immediate`; opened when it is connected.

    `how`: parameters of SQLite's URI; `mode=rw` never makes a file.
    """
    engine = create_engine(
        "sqlite://",
        creator=partial(open_driver, path, timeout_s, how),
        poolclass=NullPool,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -32768")

    return engine


def driver_of(connection: Connection) -> sqlite3.Connection:
    """The driver's connection under SQLAlchemy's, for what must be quick."""
    driver: Any = connection.connection.dbapi_connection
    return cast(sqlite3.Connection, driver)


@contextlib.contextmanager
def immediate(driver: sqlite3.Connection) -> Iterator[None]:
    """A write transaction: waits for other writers, commits at the end, rolls back on any error."""
    driver.execute("BEGIN IMMEDIATE")
    try:
        yield
        # Within: a COMMIT that fails leaves the transaction open, and no other could ever begin.
        driver.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        raise
