"""What is known of pictures before they are rendered: exact sizes, decided windows, permanent failures.

All SQL on `renditions.sqlite3`. The file can be deleted at any time: everything in it is found again by
rendering. Several mounts of one store share it; whoever decides first is right, everybody else reads
that back. So two mounts never show one pool with two grey scales. Sizes are written many at a time: a
crash loses some of them, and never more than that. Called by `tree.py` (reads), `present.py`, `pools.py`,
`follow.py` and `ahead.py`.
"""

import contextlib
import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    NullPool,
    Table,
    Text,
    bindparam,
    create_engine,
    exc,
    func,
    literal_column,
    select,
)
from sqlalchemy import Index as TableIndex
from sqlalchemy.dialects.sqlite import insert

from dicomfs.database import FOREIGN, open_driver, sqlite_code, switch_to_wal
from dicomfs.errors import StoreUnavailable
from dicomfs.model import PoolWindow
from dicomfs.statement import Statement

RENDITIONS_NAME: Final = "renditions.sqlite3"
"""Its name in the store."""
SCHEMA_VERSION: Final = 1
OPEN_TIMEOUT_S: Final = 30.0
"""How long to wait for another mount that is making the file."""
BUSY_TIMEOUT_S: Final = 2.0
"""Writes are single rows; whoever waits longer than this has met something that hangs."""
UNRECORDED: Final = 100_000
"""Most sizes, and most windows, kept in memory while the file cannot be written."""
AT_ONCE: Final = 256
"""Sizes that are written in one transaction."""
RETRY_S: Final = 5.0
"""Between two tries to write sizes to a file that could not be written."""

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
_FAILED = TableIndex("failures", sizes.c.original, sqlite_where=sizes.c.failure != "")


@dataclass(frozen=True, slots=True)
class Key:
    """One rendition: these four always give the same bytes."""

    recipe: str
    original: int
    frame: int
    version: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for a pool, and over which of its members."""

    version: int
    through: int
    window: PoolWindow


_ONE = Statement(
    select(sizes.c.size, sizes.c.failure).where(
        sizes.c.recipe == bindparam("recipe"),
        sizes.c.original == bindparam("original"),
        sizes.c.frame == bindparam("frame"),
        sizes.c.version == bindparam("version"),
    )
)
_OF_FRAMES = select(sizes.c.original, sizes.c.frame, sizes.c.version, sizes.c.size).where(
    sizes.c.recipe == bindparam("recipe"),
    sizes.c.frame.between(bindparam("first"), bindparam("last")),
)


def _given(parameter: str) -> Any:
    """The values of a parameter that is a JSON array: one statement, however many they are."""
    return select(func.json_each(bindparam(parameter)).table_valued("value", name="given").c.value)


_SIZES = Statement(_OF_FRAMES.where(sizes.c.original.in_(_given("originals"))))
_SIZES_BETWEEN = Statement(
    _OF_FRAMES.where(sizes.c.original.between(bindparam("least"), bindparam("greatest")))
)
_VERSION = Statement(
    select(func.max(pools.c.version).label("latest")).where(
        pools.c.pool == bindparam("pool"), pools.c.policy == bindparam("policy")
    )
)
_VERSIONS = Statement(
    select(pools.c.pool, func.max(pools.c.version).label("latest"))
    .where(
        pools.c.pool.in_(_given("pools")),
        pools.c.policy == bindparam("policy"),
    )
    .group_by(pools.c.pool)
)
_DECISION = Statement(
    select(pools.c.version, pools.c.through, pools.c.window).where(
        pools.c.pool == bindparam("pool"),
        pools.c.policy == bindparam("policy"),
        pools.c.version == bindparam("version"),
    )
)


_NEW_SIZE = insert(sizes)
_ANNOUNCE = Statement(
    _NEW_SIZE.on_conflict_do_update(
        index_elements=sizes.primary_key,
        set_={"size": _NEW_SIZE.excluded.size, "failure": _NEW_SIZE.excluded.failure},
    )
)
_NEW_NOTE = insert(about)
_NOTE = Statement(_NEW_NOTE.on_conflict_do_update(["key"], set_={"value": _NEW_NOTE.excluded.value}))
_NOTE_LATER = Statement(
    _NEW_NOTE.on_conflict_do_update(
        ["key"],
        set_={"value": _NEW_NOTE.excluded.value},
        where=about.c.value.cast(Integer) < _NEW_NOTE.excluded.value.cast(Integer),
    )
)
_DECIDE = Statement(insert(pools).on_conflict_do_nothing())
_EXTEND = Statement(
    pools.update()
    .where(
        pools.c.pool == bindparam("of_pool"),
        pools.c.policy == bindparam("of_policy"),
        pools.c.version == bindparam("of_version"),
    )
    .values(through=func.max(pools.c.through, bindparam("at_least")))
)

# A literal and no parameter, so that SQLite can tell that the partial index has all of them.
_FAILURES = (
    select(sizes.c.original, sizes.c.frame, sizes.c.failure)
    .where(sizes.c.failure != literal_column("''"))
    .distinct()
    .order_by(sizes.c.original)
    .limit(bindparam("most"))
)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction writes."""

    sizes: Mapping[Key, tuple[int, str]]
    """Size and failure."""
    notes: Mapping[str, str]
    """Of `about`."""


class Renditions:
    """Two connections to the renditions file: what writes may wait for the disk, and nobody waits for that.

    `write`, `decide`, `extend` and `note_followed` may be called in another thread; everything else belongs
    to one.
    """

    def __init__(self, path: Path, store_id: str) -> None:
        """Open or make the file; one that is damaged, of another store or version is made anew.

        Raises StoreUnavailable when it cannot be opened.
        """
        self._unrecorded: dict[Key, tuple[int, str]] = {}
        """Size and failure, announced and not yet written."""
        self._notes: dict[str, str] = {}
        """Of `about`: they rest upon sizes, and are written with or after them."""
        self._next_try = -math.inf
        """When writing sizes may be tried again, by the monotonic clock; in the past when all is well."""
        self._first_decisions: dict[tuple[str, str], Decision] = {}
        self._connection = self._open(path)
        self._writer: sqlite3.Connection | None = None
        self._writing = threading.Lock()
        try:
            with _translated():
                usable = self._usable(store_id)
            if not usable:
                log.info("renditions of another store or version: starting afresh")
                self.close()
                _remove(path)
                self._connection = self._open(path)
                with _translated():
                    self._prepare(store_id)
            with _translated():
                self._connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
                self._connection.rollback()
                self._writer = open_driver(path, BUSY_TIMEOUT_S, "mode=rw")
                self._writer.execute(_SYNCHRONOUS)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _open(path: Path) -> Connection:
        with _translated():
            return _engine(path, OPEN_TIMEOUT_S).connect()

    def _usable(self, store_id: str) -> bool:
        """As `_prepare`; False also for a file that is damaged or no such database."""
        try:
            return self._prepare(store_id)
        except exc.DatabaseError as error:
            self._connection.rollback()
            if sqlite_code(error) not in FOREIGN:
                raise
            return False

    def _prepare(self, store_id: str) -> bool:
        """Make the tables if need be; False when the file is another store's or version's."""
        connection = self._connection
        switch_to_wal(connection)
        connection.exec_driver_sql(_SYNCHRONOUS)
        facts = {"schema_version": str(SCHEMA_VERSION), "store_id": store_id}
        # Locked from the first look on: another mount may be starting at the same moment.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            metadata.create_all(connection)
            _FAILED.create(connection, checkfirst=True)
            rows = [{"key": key, "value": value} for key, value in facts.items()]
            connection.execute(insert(about).on_conflict_do_nothing(), rows)
            found = {row.key: row.value for row in connection.execute(select(about))}
            connection.exec_driver_sql("COMMIT")
        finally:
            connection.rollback()
        return facts.items() <= found.items()

    def close(self) -> None:
        """Write what is not written, and let go of the file."""
        self._next_try = -math.inf
        while self._unrecorded or self._notes:
            if not self.record():
                break
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._connection.close()
        self._connection.engine.dispose()

    def _first(self, statement: Statement, **values: Any) -> Any:
        """The first row; for what the kernel waits for."""
        with _translated():
            return statement.first(self._driver, **values)

    @property
    def _driver(self) -> sqlite3.Connection:
        driver: Any = self._connection.connection.dbapi_connection
        return cast(sqlite3.Connection, driver)

    def _all(self, statement: Any, values: Any) -> list[Any]:
        with _translated():
            try:
                result = self._connection.execute(statement, values)
                return list(result.all()) if result.returns_rows else []
            finally:
                self._connection.rollback()

    def size(self, key: Key) -> int | None:
        """Bytes of this rendition, or None when it was never rendered."""
        if key in self._unrecorded:
            return self._unrecorded[key][0]
        row = self._first(
            _ONE, recipe=key.recipe, original=key.original, frame=key.frame, version=key.version
        )
        return int(row.size) if row else None

    def sizes(
        self, recipe: str, originals: Sequence[int], frames: tuple[int, int]
    ) -> dict[tuple[int, int, int], int]:
        """Known sizes in bytes by (original, frame, version), of frames from `frames[0]` to `frames[1]`."""
        if not originals:
            return {}
        first, last = frames
        of = {"recipe": recipe, "first": first, "last": last}
        with _translated():
            least, greatest = min(originals), max(originals)
            if 1 < len(originals) == greatest - least + 1 and first == last:
                # What came in one after the other lies side by side, unless there are other frames between.
                rows = _SIZES_BETWEEN.all(self._driver, least=least, greatest=greatest, **of)
            else:
                rows = _SIZES.all(self._driver, originals=json.dumps(list(originals)), **of)
        found = {(original, frame, version): size for original, frame, version, size in rows}
        if self._unrecorded:
            wanted = set(originals)
            for key, (size, _) in self._unrecorded.items():
                if key.recipe == recipe and key.original in wanted and first <= key.frame <= last:
                    found[key.original, key.frame, key.version] = size
        return found

    def announce(self, key: Key, size: int, failure: str) -> None:
        """Record what a render gave, replacing what was announced before.

        Written by `write`, `record` or `record_many`, for which the caller sees to it, and never here: the
        kernel waits for who announces, and an older size may be in the hands of a thread that writes.
        """
        _keep(self._unrecorded, key, (size, failure))

    def record_many(self) -> None:
        """`record` if so many have come together; for whoever has no thread that writes."""
        if len(self._unrecorded) >= AT_ONCE:
            self.record()

    def record(self) -> bool:
        """Write a batch here and now; False when the file cannot be written. See `unwritten`."""
        batch = self.unwritten()
        if batch is None:
            return not (self._unrecorded or self._notes)
        return self.written(batch, is_done=self.write(batch))

    def unwritten(self) -> Batch | None:
        """Some of what was announced, and when that is all, what was noted; None when there is nothing.

        None also for some seconds after the file could not be written (disk full): all is kept in memory
        meanwhile, for a picture must not be lost for want of room to note its length.
        """
        if not (self._unrecorded or self._notes) or time.monotonic() < self._next_try:
            return None
        some = dict(islice(self._unrecorded.items(), AT_ONCE))
        return Batch(some, dict(self._notes) if len(some) == len(self._unrecorded) else {})

    def write(self, batch: Batch) -> bool:
        """Write in one transaction; False when the file cannot be written. May be called in a thread."""
        try:
            with self._transaction() as driver:
                for key, (size, failure) in batch.sizes.items():
                    _ANNOUNCE.run(driver, **asdict(key), size=size, failure=failure)
                for name, text in batch.notes.items():
                    _NOTE.run(driver, key=name, value=text)
        except StoreUnavailable as error:
            if self._next_try == -math.inf:
                log.warning("sizes are kept in memory only: %s", error)
            return False
        return True

    def written(self, batch: Batch, *, is_done: bool) -> bool:
        """Take note of how `write` ended; returns that."""
        self._next_try = -math.inf if is_done else time.monotonic() + RETRY_S
        if is_done:
            _drop(self._unrecorded, batch.sizes)
            _drop(self._notes, batch.notes)
        return is_done

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction of the connection that writes; one at a time. Raises StoreUnavailable."""
        with _translated(), self._writing:
            if self._writer is None:
                raise StoreUnavailable("the renditions file is closed")
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def failure(self, key: Key) -> str:
        """Why this rendition is a notice; empty for a picture, or when it was never rendered."""
        if key in self._unrecorded:
            return self._unrecorded[key][1]
        row = self._first(_ONE, **asdict(key))
        return str(row.failure) if row else ""

    def failures(self, most: int) -> list[tuple[int, int, str]]:
        """(original, frame, reason) of frames that cannot be displayed."""
        return [(row.original, row.frame, row.failure) for row in self._all(_FAILURES, {"most": most})]

    def version(self, pool: str, policy: str) -> int:
        """The latest version decided for a pool; 0 when none is."""
        return int(self._first(_VERSION, pool=pool, policy=policy).latest or 0)

    def versions(self, pools_wanted: Sequence[str], policy: str) -> dict[str, int]:
        """The latest version decided for each of these pools; undecided ones are missing."""
        if not pools_wanted:
            return {}
        if len(pools_wanted) == 1:
            latest = self.version(pools_wanted[0], policy)
            return {pools_wanted[0]: latest} if latest else {}
        with _translated():
            rows = _VERSIONS.all(self._driver, pools=json.dumps(list(pools_wanted)), policy=policy)
        return {row.pool: int(row.latest) for row in rows}

    def data_version(self) -> int:
        """Changes whenever something was written, by this mount or another; costs microseconds."""
        with _translated():
            return int(self._driver.execute("PRAGMA data_version").fetchone()[0])

    def decision(self, pool: str, policy: str, version: int) -> Decision | None:
        """What was decided as this version."""
        with _translated():
            recorded = _recorded(self._driver, pool, policy, version)
        if recorded is None and version == 1:
            return self._first_decisions.get((pool, policy))
        return recorded

    def decide(self, pool: str, policy: str, decision: Decision) -> Decision:
        """Record a decision unless this version exists; returns the one that is on record.

        When the file cannot be written (disk full), a first decision is kept in memory, for the same
        reason as sizes are. Later ones raise StoreUnavailable: the pool goes on with what it has.
        """
        try:
            with self._transaction() as driver:
                if decision.version == 1:  # what was kept in memory has been shown
                    decision = self._first_decisions.get((pool, policy), decision)
                window, now = json.dumps(asdict(decision.window)), int(time.time())
                row = {"pool": pool, "policy": policy, "version": decision.version, "window": window}
                _DECIDE.run(driver, **row, through=decision.through, decided=now)
                recorded = _recorded(driver, pool, policy, decision.version)
        except StoreUnavailable as error:
            if decision.version != 1:
                raise
            return self._decide_in_memory(pool, policy, decision, error)
        if recorded is None:
            raise StoreUnavailable("a window that was just recorded is gone from the renditions file")
        return recorded

    def _decide_in_memory(
        self, pool: str, policy: str, decision: Decision, why: StoreUnavailable
    ) -> Decision:
        """A first decision that cannot be written, unless there is one; the one that is on record."""
        with self._writing:
            if self._writer is not None:
                with contextlib.suppress(sqlite3.Error):  # it may be readable all the same
                    recorded = _recorded(self._writer, pool, policy, decision.version)
                    if recorded is not None:
                        return recorded
            if not self._first_decisions:
                log.warning("decided windows are kept in memory only: %s", why)
            first = self._first_decisions.get((pool, policy), decision)
            _keep(self._first_decisions, (pool, policy), first)
            return first

    def followed(self, policy: str) -> int | None:
        """Receipt sequence up to which pools were looked at for growth; None: never noted."""
        rows = self._all(select(about.c.value).where(about.c.key == f"followed {policy}"), {})
        return int(rows[0].value) if rows else None

    def note_followed(self, policy: str, sequence: int) -> None:
        """See `followed`: what came in later, or while no mount ran, is looked at by the next mount."""
        with self._transaction() as driver:
            _NOTE_LATER.run(driver, key=f"followed {policy}", value=str(sequence))

    def unwarmed(self, view: str) -> str | None:
        """What `note_unwarmed` was told of a view; None: nothing."""
        rows = self._all(select(about.c.value).where(about.c.key == f"unwarmed {view}"), {})
        return self._notes.get(f"unwarmed {view}", rows[0].value if rows else None)

    def note_unwarmed(self, view: str, text: str) -> None:
        """Keep a text about what is still to be rendered ahead; it is not written before the sizes are."""
        self._notes[f"unwarmed {view}"] = text

    def extend(self, pool: str, policy: str, version: int, through: int) -> None:
        """Note that a decision still holds for members up to `through`."""
        with self._transaction() as driver:
            _EXTEND.run(driver, of_pool=pool, of_policy=policy, of_version=version, at_least=through)


def failures_noted(path: Path, store_id: str, most: int) -> list[tuple[int, int, str]]:
    """`Renditions.failures` of a file that is only looked at: it is not made, and not made anew.

    None are noted when there is no file yet, or another store's. Raises StoreUnavailable.
    """
    if not path.exists():
        return []
    engine = _engine(path, BUSY_TIMEOUT_S, "mode=rw")
    try:
        with _translated(), engine.connect() as connection:
            if (
                connection.execute(select(about.c.value).where(about.c.key == "store_id")).scalar()
                != store_id
            ):
                return []
            rows = connection.execute(_FAILURES, {"most": most}).all()
    finally:
        engine.dispose()
    return [(row.original, row.frame, row.failure) for row in rows]


def _engine(path: Path, timeout_s: float, how: str = "mode=rwc") -> Engine:
    """As `database.connect`, but nothing is asked of the file yet: if it is damaged it is made anew."""
    return create_engine("sqlite://", creator=partial(open_driver, path, timeout_s, how), poolclass=NullPool)


def _recorded(driver: sqlite3.Connection, pool: str, policy: str, version: int) -> Decision | None:
    row = _DECISION.first(driver, pool=pool, policy=policy, version=version)
    return row and Decision(row.version, row.through, PoolWindow(**json.loads(row.window)))


K = TypeVar("K")
V = TypeVar("V")


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    """Put into a dictionary of at most `UNRECORDED` items; the oldest goes."""
    if key not in kept and len(kept) >= UNRECORDED:
        del kept[next(iter(kept))]
    kept[key] = value


def _drop(kept: dict[K, V], written: Mapping[K, V]) -> None:
    """Take out what was written, but for what has changed meanwhile."""
    for key, value in written.items():
        if kept.get(key) == value:
            del kept[key]


def _remove(path: Path) -> None:
    try:
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            path.with_name(name).unlink(missing_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"the renditions file cannot be made anew: {error.strerror}") from error


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except exc.DBAPIError as error:
        raise StoreUnavailable(f"the renditions file cannot be used now: {error.orig}") from error
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the renditions file cannot be used now: {error}") from error
