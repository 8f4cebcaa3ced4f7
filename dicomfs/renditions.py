"""What is known of pictures before they are rendered: exact sizes, decided windows, permanent failures.

All SQL on `renditions.sqlite3`. The file can be deleted at any time: everything in it is found again by
rendering. Several mounts of one store share it; whoever decides first is right, everybody else reads
that back. So two mounts never show one pool with two grey scales. Called by `tree.py` (reads) and
`present.py`.
"""

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    NullPool,
    Table,
    Text,
    bindparam,
    create_engine,
    event,
    exc,
    func,
    select,
)
from sqlalchemy.dialects.sqlite import insert

from dicomfs.errors import StoreUnavailable
from dicomfs.model import PoolWindow

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 10.0

log = logging.getLogger(__name__)

metadata = MetaData()

about = Table(
    "about",
    metadata,
    Column("key", Text, primary_key=True, comment="schema_version, store_id"),
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


_SIZE = select(sizes.c.size).where(
    sizes.c.recipe == bindparam("recipe"),
    sizes.c.original == bindparam("original"),
    sizes.c.frame == bindparam("frame"),
    sizes.c.version == bindparam("version"),
)
_SIZES = select(sizes.c.original, sizes.c.frame, sizes.c.version, sizes.c.size).where(
    sizes.c.recipe == bindparam("recipe"), sizes.c.original.in_(bindparam("originals", expanding=True))
)
_VERSION = select(func.max(pools.c.version)).where(
    pools.c.pool == bindparam("pool"), pools.c.policy == bindparam("policy")
)
_VERSIONS = (
    select(pools.c.pool, func.max(pools.c.version))
    .where(pools.c.pool.in_(bindparam("pools", expanding=True)), pools.c.policy == bindparam("policy"))
    .group_by(pools.c.pool)
)
_DECISION = select(pools.c.version, pools.c.through, pools.c.window).where(
    pools.c.pool == bindparam("pool"),
    pools.c.policy == bindparam("policy"),
    pools.c.version == bindparam("version"),
)


class Renditions:
    """One connection to the renditions file; use it from one thread at a time."""

    def __init__(self, path: Path, store_id: str) -> None:
        """Open or make the file; one that is damaged, of another store or version is made anew.

        Raises StoreUnavailable when it cannot be written.
        """
        self._connection = self._open(path)
        try:
            usable = self._prepare(store_id)
        except exc.DatabaseError:
            usable = False
        if not usable:
            log.info("renditions of another store or version: starting afresh")
            self.close()
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
            self._connection = self._open(path)
            with _translated():
                self._prepare(store_id)

    @staticmethod
    def _open(path: Path) -> Connection:
        engine = create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
            poolclass=NullPool,
        )

        @event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, _record: object) -> None:
            connection.isolation_level = None

        with _translated():
            return engine.connect()

    def _prepare(self, store_id: str) -> bool:
        connection = self._connection
        # Not FULL: losing the last rows in a power cut only means rendering once more.
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
        metadata.create_all(connection)
        facts = {"schema_version": str(SCHEMA_VERSION), "store_id": store_id}
        rows = [{"key": key, "value": value} for key, value in facts.items()]
        connection.execute(insert(about).on_conflict_do_nothing(), rows)
        found = {row.key: row.value for row in connection.execute(select(about))}
        connection.rollback()
        return found == facts

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()
        self._connection.engine.dispose()

    def _all(self, statement: Any, values: Any) -> list[Any]:
        with _translated():
            result = self._connection.execute(statement, values)
            rows: list[Any] = list(result.all()) if result.returns_rows else []
            self._connection.rollback()
        return rows

    def size(self, key: Key) -> int | None:
        """Bytes of this rendition, or None when it was never rendered."""
        rows = self._all(_SIZE, asdict(key))
        return int(rows[0].size) if rows else None

    def sizes(self, recipe: str, originals: Sequence[int]) -> dict[tuple[int, int, int], int]:
        """Known sizes in bytes by (original, frame, version)."""
        if not originals:
            return {}
        rows = self._all(_SIZES, {"recipe": recipe, "originals": list(originals)})
        return {(row.original, row.frame, row.version): row.size for row in rows}

    def announce(self, key: Key, size: int, failure: str) -> None:
        """Record what a render gave, replacing what was announced before."""
        values = {**asdict(key), "size": size, "failure": failure}
        changed = {"size": size, "failure": failure}
        statement = insert(sizes).values(values)
        self._all(statement.on_conflict_do_update(index_elements=sizes.primary_key, set_=changed), {})

    def failures(self, most: int) -> list[tuple[int, int, str]]:
        """(original, frame, reason) of frames that cannot be displayed."""
        statement = select(sizes.c.original, sizes.c.frame, sizes.c.failure).where(sizes.c.failure != "")
        rows = self._all(statement.distinct().order_by(sizes.c.original).limit(most), {})
        return [(row.original, row.frame, row.failure) for row in rows]

    def version(self, pool: str, policy: str) -> int:
        """The latest version decided for a pool; 0 when none is."""
        return int(self._all(_VERSION, {"pool": pool, "policy": policy})[0][0] or 0)

    def versions(self, pools_wanted: Sequence[str], policy: str) -> dict[str, int]:
        """The latest version decided for each of these pools; undecided ones are missing."""
        if not pools_wanted:
            return {}
        rows = self._all(_VERSIONS, {"pools": list(pools_wanted), "policy": policy})
        return {row[0]: int(row[1]) for row in rows}

    def decision(self, pool: str, policy: str, version: int) -> Decision | None:
        """What was decided as this version."""
        rows = self._all(_DECISION, {"pool": pool, "policy": policy, "version": version})
        if not rows:
            return None
        return Decision(rows[0].version, rows[0].through, PoolWindow(**json.loads(rows[0].window)))

    def decide(self, pool: str, policy: str, decision: Decision) -> Decision:
        """Record a decision unless this version exists; returns the one that is on record."""
        statement = insert(pools).values(
            pool=pool,
            policy=policy,
            version=decision.version,
            through=decision.through,
            window=json.dumps(asdict(decision.window)),
            decided=int(time.time()),
        )
        self._all(statement.on_conflict_do_nothing(), {})
        recorded = self.decision(pool, policy, decision.version)
        if recorded is None:
            raise StoreUnavailable("a window that was just recorded is gone from the renditions file")
        return recorded

    def extend(self, pool: str, policy: str, version: int, through: int) -> None:
        """Note that a decision still holds for members up to `through`."""
        statement = pools.update().where(
            pools.c.pool == pool, pools.c.policy == policy, pools.c.version == version
        )
        self._all(statement.values(through=func.max(pools.c.through, through)), {})


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except exc.DBAPIError as error:
        raise StoreUnavailable(f"the renditions file cannot be used now: {error.orig}") from error
