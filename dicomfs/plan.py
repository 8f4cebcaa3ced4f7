"""The plan of a rebuild: what the archive holds, which receipt sequence number each original gets, and why.

A temporary SQLite table, since an archive of millions fits into no list. The former index, if there is one,
is attached to it: the archive alone would do, but the index knows which files were never acknowledged
(a crash left them) and which numbers were given to what is no longer there. It may be of any version, or
damaged; then it is asked for no more than the highest number. Called by `reindex.py`.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from dicomfs.errors import StoreFull, StoreUnavailable
from dicomfs.model import Duplicates, Header, Receipt

_HIGHEST_SEQUENCE: Final = 2**32 - 1
"""What an inode has room for (`inode.Inode`): a file that claims more is damaged."""
_PAGE: Final = 1000
_HEADER_FIELDS: Final = tuple(one.name for one in fields(Header))

_TABLES: Final = """
CREATE TABLE whole (
    hash BLOB, named INTEGER, size INTEGER NOT NULL, start INTEGER NOT NULL, claimed INTEGER,
    received REAL NOT NULL, receipt TEXT NOT NULL, labelled INTEGER NOT NULL, header TEXT NOT NULL,
    former INTEGER, number INTEGER, PRIMARY KEY (hash, named)
);
CREATE TABLE spare (hash BLOB, named INTEGER, PRIMARY KEY (hash, named));
CREATE TABLE broken (
    hash BLOB, named INTEGER, claimed INTEGER, detail TEXT NOT NULL, PRIMARY KEY (hash, named)
);
"""
_BY_NUMBER: Final = "CREATE UNIQUE INDEX whole_by_number ON whole (number)"
_BY_CLAIM: Final = "CREATE INDEX whole_by_claim ON whole (claimed)"
_FORMER: Final = """
UPDATE whole SET former = (SELECT id FROM former.originals AS f WHERE f.hash = whole.hash)
"""
# Of one content under several numbers (a crash, then the same sent again) one is kept: that of the former
# index; else one that nothing else claims, since a number that came to nothing was given again; else the
# lowest.
_SPARE: Final = """
INSERT INTO spare SELECT hash, named FROM (
    SELECT hash, named, row_number() OVER (
        PARTITION BY hash ORDER BY
            claimed IS NOT former,
            EXISTS (SELECT 1 FROM whole AS o WHERE o.claimed = w.claimed AND o.hash != w.hash),
            named
    ) AS place
    FROM whole AS w
    WHERE hash IN (SELECT hash FROM whole GROUP BY hash HAVING count(*) > 1)
) WHERE place > 1
"""
_WITHOUT_SPARE: Final = """
DELETE FROM whole WHERE EXISTS (SELECT 1 FROM spare AS s WHERE s.hash = whole.hash AND s.named = whole.named)
"""
# A number that was given to a file whose transaction failed is given again: of two, the later is the one
# that has got it for good.
_LOSERS: Final = """
UPDATE whole SET number = NULL WHERE hash IN (
    SELECT hash FROM (
        SELECT hash, row_number() OVER (PARTITION BY number ORDER BY received DESC, hash) AS place
        FROM whole WHERE number IS NOT NULL
    ) WHERE place > 1
)
"""
_NEWCOMERS: Final = """
UPDATE whole SET number = ? + newcomers.place
FROM (
    SELECT hash, row_number() OVER (ORDER BY claimed IS NULL, claimed, received, hash) AS place
    FROM whole WHERE number IS NULL
) AS newcomers
WHERE whole.hash = newcomers.hash
"""
_ONLY_FORMER: Final = """
SELECT hash FROM former.originals AS f WHERE hash > ?
AND NOT EXISTS (SELECT 1 FROM whole WHERE whole.hash = f.hash)
AND NOT EXISTS (SELECT 1 FROM broken WHERE broken.hash = f.hash)
ORDER BY hash
"""
_KEPT_ELSEWHERE: Final = """
SELECT s.hash, s.named, w.number FROM spare AS s JOIN whole AS w ON w.hash = s.hash
WHERE (s.hash, s.named) > (?, ?)
ORDER BY s.hash, s.named
"""
# Not those in whose place a whole one of their content has come.
_BROKEN: Final = """
SELECT hash, named, detail, EXISTS (SELECT 1 FROM whole AS w WHERE w.hash = b.hash)
FROM broken AS b
WHERE (hash, named) > (?, ?)
AND NOT EXISTS (SELECT 1 FROM whole AS w WHERE w.hash = b.hash AND w.number = b.named)
ORDER BY hash, named
"""
_SAME_IDS: Final = """
SELECT NOT EXISTS (
    SELECT 1 FROM former.originals AS f WHERE NOT EXISTS (
        SELECT 1 FROM fresh.originals AS n WHERE n.id = f.id AND n.hash = f.hash
    )
) AND NOT EXISTS (
    SELECT 1 FROM former.instances AS f WHERE NOT EXISTS (
        SELECT 1 FROM fresh.instances AS n WHERE n.id = f.id AND n.shown = f.shown AND n.pool = f.pool
    )
)
"""


@dataclass(frozen=True, slots=True)
class Planned:
    """One whole original."""

    hash: bytes
    named: int
    """The number in the name of its file."""
    size: int
    offset: int
    """First byte of the data set in its file."""
    receipt: Receipt
    is_labelled: bool
    """Its file says this of its receipt; else its file meta information is damaged, or not ours."""
    header: Header
    former: int | None = None
    """The number of its row in the former index."""
    number: int = 0
    """The number that it gets; 0: not yet decided."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What is not whole, or is only in the former index."""

    hash: bytes
    named: int
    """The number in the name of its file, or what that would be."""
    detail: str
    """What is wrong with its file; empty: there is none."""
    sequence: int | None
    """Of its row in the former index."""
    sop_instance_uid: str = ""


class Plan:
    """The table, in a file of its own; close it, or use it as a context manager."""

    def __init__(self, path: Path, former: Path) -> None:
        """Make it. `former`: the index as it is, which need not exist. Raises StoreFull, StoreUnavailable."""
        self.former_originals = 0
        """How many the former index has; 0 when it cannot be believed."""
        self._former_last = 0
        with _translated():
            self._connection = sqlite3.connect(path, isolation_level=None)
            for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):
                self._connection.execute(f"PRAGMA main.{pragma}")
            self._connection.executescript(_TABLES)
        self.former_is_sound = former.exists() and self._attach(former)
        with _translated():
            self._connection.execute("BEGIN")

    def close(self) -> None:
        """Let go of all files."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The former index

    def _attach(self, former: Path) -> bool:
        """True when it can be believed: SQLite finds no fault, and it has the rows of originals."""
        try:
            self._connection.execute("ATTACH ? AS former", (str(former),))
        except sqlite3.Error:
            return False
        asked = (
            "SELECT max(last_sequence) FROM former.counter",
            "SELECT max(id) FROM former.originals",
            "SELECT max(id) FROM former.instances",
        )
        numbers = [self._ask(query) for query in asked]
        self._former_last = max((n for n in numbers if _possible(n)), default=0)
        if self._ask("PRAGMA former.quick_check(1)") == "ok":
            originals = self._ask("SELECT count(*) FROM former.originals WHERE length(hash) = 32 AND id > 0")
            self.former_originals = originals or 0
            if originals is not None:
                return True
        # Nobody touches it again: a read error would end the transaction of the plan.
        self._connection.execute("DETACH former")
        return False

    def _ask(self, query: str, *values: object) -> Any:
        """One value from a database that may be of any version, damaged or not there; None: it has none."""
        try:
            row = self._connection.execute(query, values).fetchone()
        except sqlite3.Error:
            return None
        return row[0] if row else None

    # What the archive holds

    def add(self, found: Planned) -> None:
        """A whole original. Raises StoreFull, StoreUnavailable."""
        receipt = {**asdict(found.receipt), "duplicates": found.receipt.duplicates.value}
        values = (getattr(found.header, name) for name in _HEADER_FIELDS)
        header = [value.hex() if isinstance(value, bytes) else value for value in values]
        place = (found.hash, found.named, found.size, found.offset, _possible(found.named))
        said = (found.receipt.received, json.dumps(receipt), found.is_labelled, json.dumps(header))
        with _translated():
            self._connection.execute(
                "INSERT INTO whole VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)", (*place, *said)
            )

    def add_broken(self, digest: bytes, named: int, detail: str) -> None:
        """What is named as an original and is not whole. Raises StoreFull, StoreUnavailable."""
        with _translated():
            self._connection.execute(
                "INSERT INTO broken VALUES (?, ?, ?, ?)", (digest, named, _possible(named), detail)
            )

    def former_receipt(self, digest: bytes) -> Receipt | None:
        """What the former index says of the receipt of an original; None when it says nothing."""
        query = "SELECT transfer_syntax, received, source_ae, duplicates FROM former.originals WHERE hash = ?"
        try:
            row = self._connection.execute(query, (digest,)).fetchone()
            return Receipt(row[0], row[1], row[2], duplicates=Duplicates(row[3])) if row else None
        except (sqlite3.Error, ValueError):
            return None

    # What is to be done

    def decide(self) -> int:
        """Give every whole original its number; the highest number that was ever given, now or before.

        Order of numbers is order of receipt. Whatever the former index has keeps the number that it has
        there; numbers that came after it stay; what it does not know, though it gave that number, is what
        a crash has left: new, in the order of the old numbers. Without a former index all keep theirs, and
        of two with one number the one that was received later. One content gets one number: its other files
        are spare. Raises StoreFull, StoreUnavailable.
        """
        last = self._former_last
        with _translated():
            execute = self._connection.execute
            execute(_BY_CLAIM)
            for table in ("whole", "broken"):
                query = f"SELECT max(claimed) FROM {table}"  # noqa: S608  two names of ours
                last = max(last, execute(query).fetchone()[0] or 0)
            if self.former_is_sound:
                execute(_FORMER)
            execute(_SPARE)
            execute(_WITHOUT_SPARE)
            given = self._former_last if self.former_is_sound else 0
            execute("UPDATE whole SET number = coalesce(former, iif(claimed > ?, claimed, NULL))", (given,))
            execute(_LOSERS)
            execute(_NEWCOMERS, (last,))
            execute(_BY_NUMBER)
            return max(last, execute("SELECT max(number) FROM whole").fetchone()[0] or 0)

    def count(self) -> int:
        """Whole originals."""
        with _translated():
            return int(self._connection.execute("SELECT count(*) FROM whole").fetchone()[0])

    def in_order(self) -> Iterator[list[Planned]]:
        """All whole originals in the order of their numbers, in pages."""
        after = 0
        while page := self._page("number > ?", after):
            yield page
            after = page[-1].number

    def to_correct(self) -> Iterator[list[Planned]]:
        """Those whose file has another number in its name, or says nothing of its receipt; in order."""
        after = 0
        while page := self._page("(named != number OR NOT labelled) AND number > ?", after):
            yield page
            after = page[-1].number

    def _page(self, condition: str, after: int) -> list[Planned]:
        columns = "hash, named, size, start, receipt, labelled, header, former, number"
        query = f"SELECT {columns} FROM whole WHERE {condition} ORDER BY number LIMIT {_PAGE}"  # noqa: S608
        with _translated():
            rows = self._connection.execute(query, (after,)).fetchall()
        return [
            Planned(
                *(digest, named, size, offset, _receipt(receipt), bool(labelled), _header(header)),
                *(former, number),
            )
            for digest, named, size, offset, receipt, labelled, header, former, number in rows
        ]

    def spare(self) -> Iterator[tuple[bytes, int, int]]:
        """Hash and number in the name of files whose content is kept under another number, and that."""
        yield from self._pages(_KEPT_ELSEWHERE, (b"", 0))

    def lost(self) -> Iterator[Lost]:
        """What is not whole, then what only the former index has, as far as it can be read."""
        for digest, named, detail, is_kept in self._pages(_BROKEN, (b"", 0)):
            sequence, uid = (None, "") if is_kept else self._formerly(digest)
            yield Lost(digest, named, detail, sequence, uid)
        if self.former_is_sound:
            for (digest,) in self._pages(_ONLY_FORMER, (b"",)):
                sequence, uid = self._formerly(digest)
                yield Lost(digest, sequence or 0, "", sequence, uid)

    def _pages(self, query: str, after: tuple[object, ...]) -> Iterator[tuple[Any, ...]]:
        """All rows of a query, a page at a time; its parameters are the first columns of its last row."""
        while True:
            with _translated():
                rows = self._connection.execute(f"{query} LIMIT {_PAGE}", after).fetchall()
            yield from rows
            if len(rows) < _PAGE:
                return
            after = rows[-1][: len(after)]

    def _formerly(self, digest: bytes) -> tuple[int | None, str]:
        """Number and SOP Instance UID in the former index."""
        uid = self._ask(
            "SELECT i.sop_uid FROM former.originals AS o JOIN former.instances AS i ON i.id = o.instance "
            "WHERE o.hash = ?",
            digest,
        )
        return self._ask("SELECT id FROM former.originals WHERE hash = ?", digest), str(uid or "")

    def keep_retired(self, fresh: Path) -> None:
        """Hand names that were removed, and go to nothing else, on to an index that is still empty."""
        if not self._ask("SELECT 1 FROM former.retired"):
            return
        with self._with(fresh):
            self._connection.execute("INSERT INTO fresh.retired SELECT path, owner FROM former.retired")

    def keep_identity(self, fresh: Path) -> bool:
        """Let a rebuilt index be the same store as the former one, if it says the same of all that it had.

        For what others know by these ids (sizes of pictures, windows) is then still true. Returns whether
        it does.
        """
        if not self.former_is_sound:
            return False
        with self._with(fresh):
            if not self._ask(_SAME_IDS) or not self._ask("SELECT 1 FROM former.about WHERE key = 'store_id'"):
                return False
            self._connection.execute(
                "UPDATE fresh.about SET value = f.value FROM former.about AS f "
                "WHERE f.key = about.key AND f.key IN ('store_id', 'created')"
            )
        return True

    @contextmanager
    def _with(self, fresh: Path) -> Iterator[None]:
        """Beside the rebuilt index; SQLite attaches and detaches only between transactions."""
        with _translated():
            self._connection.execute("COMMIT")
            self._connection.execute("ATTACH ? AS fresh", (str(fresh),))
            try:
                yield
            finally:
                self._connection.execute("DETACH fresh")
                self._connection.execute("BEGIN")


def _possible(number: Any) -> int | None:
    return number if isinstance(number, int) and 0 < number <= _HIGHEST_SEQUENCE else None


def _receipt(text: str) -> Receipt:
    facts = json.loads(text)
    return Receipt(**{**facts, "duplicates": Duplicates(facts["duplicates"])})


def _header(text: str) -> Header:
    # JSON knows neither tuples nor bytes, and a header has no lists.
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in json.loads(text)]
    named = dict(zip(_HEADER_FIELDS, values, strict=True))
    if named["outline"] is not None:
        named["outline"] = bytes.fromhex(named["outline"])
    return Header(**named)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise StoreFull("no space left for the rebuilt index: nothing was changed") from error
        raise StoreUnavailable(f"the rebuilt index cannot be made: {error}") from error
