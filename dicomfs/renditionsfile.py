"""The file `renditions.sqlite3`: its tables and statements, and how it is opened, or made anew.

It can be deleted at any time: so one that is damaged, or of another store or version, is made anew. All SQL
on it is here; what is kept there, and when it is written, is the business of `renditions.py`. Called by that.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy import Index as TableIndex
from sqlalchemy.dialects.sqlite import dialect, insert
from sqlalchemy.schema import CreateIndex, CreateTable

from dicomfs.database import FOREIGN, immediate, open_driver, sqlite_code, switch_to_wal
from dicomfs.errors import StoreUnavailable
from dicomfs.statement import Statement

SCHEMA_VERSION: Final = 1
OPEN_TIMEOUT_S: Final = 30.0
"""How long to wait for another mount that is making the file."""
BUSY_TIMEOUT_S: Final = 2.0
"""Writes are single rows; whoever waits longer than this has met something that hangs."""

_SYNCHRONOUS: Final = "PRAGMA synchronous = NORMAL"
"""Not FULL: losing the last rows in a power cut only means rendering once more."""

log = logging.getLogger(__name__)

metadata = MetaData()

about = Table(
    "about",
    metadata,
    Column("key", Text, primary_key=True, comment="schema_version, store_id, followed POLICY, unwarmed VIEW"),
    Column("value", Text, nullable=False),
)

pools = Table(
    "pools",
    metadata,
    Column("pool", Text, primary_key=True, comment="instances.pool of the index"),
    Column("policy", Text, primary_key=True, comment="window policy of the recipe"),
    Column("version", Integer, primary_key=True, comment="1 for the first decision, then counting"),
    Column("through", Integer, nullable=False, comment="highest instance id that was there at the decision"),
    Column("window", Text, nullable=False, comment="PoolWindow as JSON"),
    Column("decided", Integer, nullable=False, comment="seconds since the epoch"),
    sqlite_with_rowid=False,
)

sizes = Table(
    "sizes",
    metadata,
    Column("recipe", Text, primary_key=True, comment="digest of recipe and encoder"),
    Column("original", Integer, primary_key=True, comment="originals.id of the index"),
    Column("frame", Integer, primary_key=True, comment="counted from 0"),
    Column("version", Integer, primary_key=True, comment="pool version; 0 for images that decide alone"),
    Column("size", Integer, nullable=False, comment="bytes of the rendered file, exactly"),
    Column("failure", Text, nullable=False, comment="why a notice is shown instead; empty: a picture"),
    sqlite_with_rowid=False,
)
TableIndex("failures", sizes.c.original, sqlite_where=sizes.c.failure != "")

# Sizes

_OF_FRAMES = select(sizes.c.original, sizes.c.frame, sizes.c.version, sizes.c.size).where(
    sizes.c.recipe == bindparam("recipe"),
    sizes.c.frame.between(bindparam("first"), bindparam("last")),
)


def _given(parameter: str) -> Any:
    """The values of a parameter that is a JSON array: one statement, however many they are."""
    return select(func.json_each(bindparam(parameter)).table_valued("value", name="given").c.value)


SIZE = Statement(
    select(sizes.c.size, sizes.c.failure).where(
        sizes.c.recipe == bindparam("recipe"),
        sizes.c.original == bindparam("original"),
        sizes.c.frame == bindparam("frame"),
        sizes.c.version == bindparam("version"),
    )
)
SIZES = Statement(_OF_FRAMES.where(sizes.c.original.in_(_given("originals"))))
SIZES_BETWEEN = Statement(
    _OF_FRAMES.where(sizes.c.original.between(bindparam("least"), bindparam("greatest")))
)
_NEW_SIZE = insert(sizes)
ANNOUNCE = Statement(
    _NEW_SIZE.on_conflict_do_update(
        index_elements=sizes.primary_key,
        set_={"size": _NEW_SIZE.excluded.size, "failure": _NEW_SIZE.excluded.failure},
    )
)
# A literal and no parameter, so that SQLite can tell that the partial index has all of them.
FAILURES = Statement(
    select(sizes.c.original, sizes.c.frame, sizes.c.failure)
    .where(sizes.c.failure != literal_column("''"))
    .distinct()
    .order_by(sizes.c.original)
    .limit(bindparam("most"))
)

# Windows

VERSION = Statement(
    select(func.max(pools.c.version).label("latest")).where(
        pools.c.pool == bindparam("pool"), pools.c.policy == bindparam("policy")
    )
)
VERSIONS = Statement(
    select(pools.c.pool, func.max(pools.c.version).label("latest"))
    .where(
        pools.c.pool.in_(_given("pools")),
        pools.c.policy == bindparam("policy"),
    )
    .group_by(pools.c.pool)
)
DECISION = Statement(
    select(pools.c.version, pools.c.through, pools.c.window).where(
        pools.c.pool == bindparam("pool"),
        pools.c.policy == bindparam("policy"),
        pools.c.version == bindparam("version"),
    )
)
DECIDE = Statement(insert(pools).on_conflict_do_nothing())
EXTEND = Statement(
    pools.update()
    .where(
        pools.c.pool == bindparam("of_pool"),
        pools.c.policy == bindparam("of_policy"),
        pools.c.version == bindparam("of_version"),
    )
    .values(through=func.max(pools.c.through, bindparam("at_least")))
)

# Notes

NOTED = Statement(select(about.c.value).where(about.c.key == bindparam("key")))
_NEW_NOTE = insert(about)
NOTE = Statement(_NEW_NOTE.on_conflict_do_update(["key"], set_={"value": _NEW_NOTE.excluded.value}))
NOTE_LATER = Statement(
    _NEW_NOTE.on_conflict_do_update(
        ["key"],
        set_={"value": _NEW_NOTE.excluded.value},
        where=about.c.value.cast(Integer) < _NEW_NOTE.excluded.value.cast(Integer),
    )
)
_NOTE_FIRST = Statement(_NEW_NOTE.on_conflict_do_nothing())


def open_renditions(path: Path, store_id: str) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """A connection that reads and one that writes; the file is made if need be, or made anew.

    Raises StoreUnavailable when it cannot be opened.
    """
    with translated(), contextlib.ExitStack() as opened:
        reader = opened.enter_context(contextlib.closing(open_driver(path, OPEN_TIMEOUT_S, "mode=rwc")))
        if not _is_usable(reader, store_id):
            log.info("renditions of another store or version: starting afresh")
            reader.close()
            _remove(path)
            reader = opened.enter_context(contextlib.closing(open_driver(path, OPEN_TIMEOUT_S, "mode=rwc")))
            _prepare(reader, store_id)
        reader.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        writer = opened.enter_context(contextlib.closing(open_driver(path, BUSY_TIMEOUT_S, "mode=rw")))
        writer.execute(_SYNCHRONOUS)
        opened.pop_all()
    return reader, writer


def _is_usable(driver: sqlite3.Connection, store_id: str) -> bool:
    """As `_prepare`; False also for a file that is damaged or no such database."""
    try:
        return _prepare(driver, store_id)
    except sqlite3.DatabaseError as error:
        if sqlite_code(error) not in FOREIGN:
            raise
        return False


def _prepare(driver: sqlite3.Connection, store_id: str) -> bool:
    """Make the tables if need be; False when the file is another store's or version's."""
    switch_to_wal(driver)
    driver.execute(_SYNCHRONOUS)
    facts = {"schema_version": str(SCHEMA_VERSION), "store_id": store_id}
    # Locked from the first look on: another mount may be starting at the same moment.
    with immediate(driver):
        for table in metadata.sorted_tables:
            driver.execute(_sql(CreateTable(table, if_not_exists=True)))
            for index in table.indexes:
                driver.execute(_sql(CreateIndex(index, if_not_exists=True)))
        for key, value in facts.items():
            _NOTE_FIRST.run(driver, key=key, value=value)
        return all(noted(driver, key) == value for key, value in facts.items())


def _sql(definition: CreateTable | CreateIndex) -> str:
    return str(definition.compile(dialect=dialect()))


def _remove(path: Path) -> None:
    try:
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            path.with_name(name).unlink(missing_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"the renditions file cannot be made anew: {error.strerror}") from error


@contextlib.contextmanager
def open_as_it_is(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file that is only looked at: it is not made, and not made anew."""
    with translated(), contextlib.closing(open_driver(path, BUSY_TIMEOUT_S, "mode=rw")) as driver:
        yield driver


def noted(driver: sqlite3.Connection, key: str) -> str | None:
    """What `about` says; None: nothing."""
    row = NOTED.first(driver, key=key)
    return row and str(row.value)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn database errors into StoreUnavailable."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the renditions file cannot be used now: {error}") from error
