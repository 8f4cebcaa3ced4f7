"""Transactions of storage commitment: the file `commitments.sqlite3`, and all SQL on it.

A transaction is durable (`synchronous=FULL`) before its request is answered, and is kept for some weeks
after its end, so that a request that comes again is known. The index can be rebuilt from the archive and
this file cannot: that is why it is a file of its own. Deleting it while no receiver runs loses open
transactions, no images: the modalities go on keeping theirs. Rows become frozen dataclasses before they
leave. Called by `commitmentservice.py`, and by `cli.py` for `counts`.
"""

import json
import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
    UniqueConstraint,
    delete,
    exc,
    func,
    insert,
    select,
    update,
)
from sqlalchemy import Index as TableIndex

from dicomfs.commitment import Report, Request, from_lines, reference_lines
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
from dicomfs.errors import StoreMismatch, StoreUnavailable

COMMITMENTS_NAME: Final = "commitments.sqlite3"
"""Its name in the store."""
SCHEMA_VERSION: Final = 1
KEEP_S: Final = 30 * 86_400.0
"""So long a transaction is kept after its end."""
_ASKED, _VERIFIED, _REPORTED, _GIVEN_UP = range(4)
_HOUR_S: Final = 3600.0
_WHAT: Final = "the file of storage commitments"

metadata = MetaData()

about = Table(
    "about",
    metadata,
    Column("key", Text, primary_key=True, comment="schema_version"),
    Column("value", Text, nullable=False),
)

transactions = Table(
    "transactions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("ae_title", Text, nullable=False, comment="AE title of who asked"),
    Column("transaction_uid", Text, nullable=False, comment="Transaction UID"),
    Column("digest", LargeBinary(32), nullable=False, comment="tells this request from others of that UID"),
    Column("is_reuse", Integer, nullable=False, comment="1: the UID was another transaction's"),
    Column("address", Text, nullable=False, comment="where the latest request came from"),
    Column("called_ae", Text, nullable=False, comment="our AE title as it was called"),
    Column("references", LargeBinary, nullable=False, comment="class and instance UIDs, lines, zlib"),
    Column("count", Integer, nullable=False, comment="how many references"),
    Column("state", Integer, nullable=False, comment="0 asked, 1 verified, 2 reported, 3 given up"),
    Column("failures", Text, comment="JSON [[place, Failure Reason], ...]; null before verification"),
    Column("attempts", Integer, nullable=False, comment="times that the report was not delivered"),
    Column("waited", Float, nullable=False, comment="seconds waited between them, by a steady clock"),
    Column("trouble", Text, nullable=False, comment="what was in the way the last time"),
    Column("received", Float, nullable=False, comment="latest request, seconds since the epoch"),
    Column("ended", Float, comment="seconds since the epoch; null while it is open"),
    UniqueConstraint("ae_title", "transaction_uid", "digest"),
    TableIndex("transactions_by_end", "ended"),
)
_OPEN = transactions.c.ended.is_(None)


@dataclass(frozen=True, slots=True)
class Open:
    """An open transaction, without its references."""

    id: int
    ae_title: str
    address: str
    called_ae: str
    is_verified: bool
    is_reuse: bool
    attempts: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """Reports that wait for one AE title."""

    ae_title: str
    reports: int
    trouble: str
    """Why the latest attempt failed."""


@dataclass(frozen=True, slots=True)
class CommitmentCounts:
    """For `status`."""

    open: int = 0
    """Asked for, and not yet reported; those of `waiting` too."""
    reported_last_hour: int = 0
    failed_last_hour: int = 0
    """Of those, the ones whose report lists failures."""
    given_up: int = 0
    """Results that could never be delivered, of the last 30 days."""
    waiting: tuple[Waiting, ...] = ()


class Commitments:
    """One connection to the file; use it from one thread at a time."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open the file; with `create`, for writing, making it if there is none.

        Raises StoreMismatch when it is of another version or no such file, StoreFull, StoreUnavailable.
        """
        self._engine: Engine = connect(path, BUSY_TIMEOUT_S if create else READ_TIMEOUT_S)
        try:
            with translated(_WHAT):
                self._prepare(path, create=create)
        except BaseException:
            self.close()
            raise

    def _prepare(self, path: Path, *, create: bool) -> None:
        found: str | None = None
        try:
            self._connection: Connection = self._engine.connect()
            if create:
                driver = driver_of(self._connection)
                switch_to_wal(driver)
                with immediate(driver):
                    metadata.create_all(self._connection)
                    if self._connection.execute(select(about)).first() is None:
                        facts = {"key": "schema_version", "value": str(SCHEMA_VERSION)}
                        self._connection.execute(insert(about).values(facts))
            version = select(about.c.value).where(about.c.key == "schema_version")
            found = self._connection.execute(version).scalar_one_or_none()
            self._connection.execute(select(transactions).limit(1))
            self._connection.rollback()
        except (exc.DatabaseError, sqlite3.DatabaseError) as error:
            if sqlite_code(error) not in FOREIGN:
                raise
            found = None
        if found != str(SCHEMA_VERSION):
            raise StoreMismatch(
                f"{path} is damaged or of another version of dicomfs: move it away, and modalities that wait "
                "for a storage commitment will ask again"
            )

    def close(self) -> None:
        """Let go of the file."""
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        self._engine.dispose()

    def _write(self, *statements: Any) -> None:
        with translated(_WHAT), immediate(driver_of(self._connection)):
            for statement in statements:
                self._connection.execute(statement)

    def _all(self, statement: Any) -> list[Row[Any]]:
        with translated(_WHAT):
            try:
                return list(self._connection.execute(statement).all())
            finally:
                self._connection.rollback()

    # Requests

    def accept(self, request: Request, ae_title: str, address: str, called_ae: str, now: float) -> Open:
        """Keep a request; when this returns it is durable.

        A request that comes again is the same transaction: open, it goes on; ended, it begins anew (the
        modality has not heard, or has not understood, its result). Another request under the UID of one that
        is kept is a transaction too, all of whose references fail. Raises StoreFull or StoreUnavailable.
        """
        where = (transactions.c.ae_title == ae_title) & (
            transactions.c.transaction_uid == request.transaction_uid
        )
        same = where & (transactions.c.digest == request.digest)
        latest = {"address": address, "called_ae": called_ae, "received": now}
        afresh = {"attempts": 0, "waited": 0.0, "trouble": ""}
        with translated(_WHAT), immediate(driver_of(self._connection)):
            execute = self._connection.execute
            known = execute(select(transactions.c.digest, transactions.c.ended).where(where)).all()
            ended = [row.ended for row in known if row.digest == request.digest]
            if not ended:
                values = {
                    "ae_title": ae_title,
                    "transaction_uid": request.transaction_uid,
                    "digest": request.digest,
                    "is_reuse": int(bool(known)),
                    "state": _ASKED,
                    "references": zlib.compress(reference_lines(request.references), 1),
                    "count": len(request.references),
                }
                execute(insert(transactions).values({**values, **latest, **afresh}))
            elif ended[0] is None:
                execute(update(transactions).where(same).values({**latest, **afresh}))
            else:
                begun = {"state": _ASKED, "failures": None, "ended": None}
                execute(update(transactions).where(same).values({**latest, **afresh, **begun}))
            row = execute(select(transactions).where(same)).one()
        return _open(row)

    def open_ones(self) -> list[Open]:
        """Every open transaction, in order of arrival."""
        return [_open(row) for row in self._all(_WITHOUT_REFERENCES.where(_OPEN).order_by(transactions.c.id))]

    # What becomes of them

    def report(self, transaction: int) -> Report:
        """What is known of a transaction; before it is verified, as if nothing had failed."""
        rows = self._all(select(transactions).where(transactions.c.id == transaction))
        if not rows:
            raise StoreUnavailable(f"{_WHAT} has lost a transaction")
        failures: list[tuple[int, int]] = json.loads(rows[0].failures or "[]")
        references = from_lines(zlib.decompress(rows[0].references))
        return Report(rows[0].transaction_uid, references, dict(failures))

    def verified(self, transaction: int, failures: Mapping[int, int]) -> None:
        """Note the result. `failures`: Failure Reason by place of the reference."""
        values = {"state": _VERIFIED, "failures": json.dumps(sorted(failures.items()))}
        self._write(update(transactions).where(transactions.c.id == transaction).values(values))

    def missed(self, them: Iterable[Open], trouble: str) -> None:
        """Note that reports were not delivered; `them`, with the attempts and the time waited so far."""
        self._write(
            *(
                update(transactions)
                .where(transactions.c.id == it.id)
                .values(attempts=it.attempts, waited=it.waited_s, trouble=trouble)
                for it in them
            )
        )

    def ended(self, transaction: int, now: float, trouble: str = "") -> None:
        """Note that the report was delivered, or given up for that trouble."""
        values = {"state": _GIVEN_UP if trouble else _REPORTED, "ended": now, "trouble": trouble}
        self._write(update(transactions).where(transactions.c.id == transaction).values(values))

    def prune(self, now: float) -> None:
        """Forget what ended long ago."""
        self._write(delete(transactions).where(transactions.c.ended < now - KEEP_S))

    def counts(self, now: float) -> CommitmentCounts:
        """How many there are, and whom they wait for."""
        ended, state = transactions.c.ended, transactions.c.state
        reported = (state == _REPORTED) & (ended > now - _HOUR_S) & (ended <= now)
        failed = reported & (transactions.c.failures != "[]")

        def number(where: Any) -> int:
            return int(self._all(select(func.count()).select_from(transactions).where(where))[0][0])

        # SQLite takes the other columns from the row of the maximum.
        waiting = (
            select(transactions.c.ae_title, func.count().label("reports"), transactions.c.trouble)
            .add_columns(func.max(transactions.c.id))
            .where(_OPEN, transactions.c.attempts > 0)
            .group_by(transactions.c.ae_title)
            .order_by(transactions.c.ae_title)
        )
        return CommitmentCounts(
            open=number(_OPEN),
            reported_last_hour=number(reported),
            failed_last_hour=number(failed),
            given_up=number(state == _GIVEN_UP),
            waiting=tuple(Waiting(row.ae_title, row.reports, row.trouble) for row in self._all(waiting)),
        )


_WITHOUT_REFERENCES = select(*(column for column in transactions.c if column.name != "references"))


def _open(row: Row[Any]) -> Open:
    return Open(
        id=row.id,
        ae_title=row.ae_title,
        address=row.address,
        called_ae=row.called_ae,
        is_verified=row.state == _VERIFIED,
        is_reuse=bool(row.is_reuse),
        attempts=row.attempts,
        waited_s=row.waited,
    )


def counts(store: Path, now: float) -> CommitmentCounts:
    """Of a store, for `status`; all zero when no receiver has made the file yet.

    Raises StoreMismatch, StoreUnavailable.
    """
    path = store / COMMITMENTS_NAME
    try:
        if not path.exists():
            return CommitmentCounts()
    except PermissionError:
        raise StoreUnavailable(f"this user may not look into {store}") from None
    commitments = Commitments(path)
    try:
        return commitments.counts(now)
    finally:
        commitments.close()
