"""What an administrator asks of the index: how much came in and from whom, what is kept and not shown.

An index that is only looked at, once: it is read from a disk that nobody can write to as well. Nothing here
is stored for its sake; every figure is exact, and bounded or measured to be quick with five million
instances (a quarter of a second for the slowest). Called by `status.py`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import Row, bindparam, func, literal_column, select

from dicomfs.errors import StoreUnavailable
from dicomfs.index import INDEX_NAME, Index
from dicomfs.schema import instances, originals

ALL: Final = (1 << 63) - 1
"""Above every id."""


@dataclass(frozen=True, slots=True)
class KeptOriginal:
    """One original that people should know of."""

    sequence: int
    sop_uid: str
    received: float
    """Seconds since the epoch."""
    source_ae: str
    """Empty: imported."""
    shown: int
    """Sequence of the original that is shown for its instance; its own, when that is the one."""
    conflict: bool
    """It bears another patient's identity than an earlier original of the same UIDs."""


@dataclass(frozen=True, slots=True)
class Conflicts:
    """Originals that bear another patient's identity than an earlier one of the same UIDs."""

    number: int
    latest_sequence: int
    """0 when there is none."""
    latest_received: float


@dataclass(frozen=True, slots=True)
class Intake:
    """What one sender has brought in."""

    source_ae: str
    """Empty: imported."""
    objects: int
    bytes: int
    """Of data sets."""


_KEPT = select(
    originals.c.id.label("sequence"),
    instances.c.sop_uid,
    originals.c.received,
    originals.c.source_ae,
    instances.c.shown,
    originals.c.conflict,
)
# A literal and no parameter, so that SQLite can tell that the partial index has all of them.
_IN_CONFLICT = originals.c.conflict == literal_column("1")
_CONFLICTING = (
    _KEPT.join(instances, instances.c.id == originals.c.instance)
    .where(_IN_CONFLICT, originals.c.id < bindparam("before"))
    .order_by(originals.c.id.desc())
    .limit(bindparam("most"))
)
_CONFLICTS = select(
    func.count().label("number"),
    func.max(originals.c.id).label("latest_sequence"),
    func.max(originals.c.received).label("latest_received"),
).where(_IN_CONFLICT, originals.c.id > bindparam("after"))
# Instances of more than one original, found in an index alone: they are few, and to ask every original
# whether it is shown would read the whole table.
_SEVERAL = select(originals.c.instance).where(originals.c.id != originals.c.instance).distinct().cte()
_SUPERSEDED = (
    _KEPT.select_from(_SEVERAL)
    .join(originals, originals.c.instance == _SEVERAL.c.instance)
    .join(instances, instances.c.id == originals.c.instance)
    .where(originals.c.id != instances.c.shown, originals.c.id < bindparam("before"))
    .order_by(originals.c.id.desc())
    .limit(bindparam("most"))
)
_AT_OR_AFTER = (
    select(originals.c.id, originals.c.received)
    .where(originals.c.id >= bindparam("sequence"))
    .order_by(originals.c.id)
    .limit(1)
)
_INTAKE = (
    select(originals.c.source_ae, func.count().label("objects"), func.sum(originals.c.size).label("bytes"))
    .where(originals.c.id >= bindparam("first"))
    .group_by(originals.c.source_ae)
)


class Census(Index):
    """The index of a store, for one look; use it from one thread."""

    @classmethod
    def of(cls, store: Path) -> Self:
        """Raises StoreMismatch when it is no store of this version, StoreUnavailable."""
        path = store / INDEX_NAME
        try:
            return cls(path)
        except StoreUnavailable:
            # SQLite wants to make files beside it even to read. Where nobody can, nobody changes it either;
            # but what a journal holds would be left out.
            if os.access(store, os.W_OK) or not os.access(path, os.R_OK):
                raise
            if path.with_name(f"{INDEX_NAME}-wal").exists():
                raise
            return cls(path, immutable=True)

    def conflicts_after(self, sequence: int) -> Conflicts:
        """Conflicting originals with an id above `sequence`."""
        row = self._rows(_CONFLICTS, after=sequence)[0]
        return Conflicts(row.number, row.latest_sequence or 0, row.latest_received or 0.0)

    def conflicting(self, before: int, most: int) -> list[KeptOriginal]:
        """Those originals with an id below `before`, the newest first."""
        return [_kept(row) for row in self._rows(_CONFLICTING, before=before, most=most)]

    def superseded(self, before: int, most: int) -> list[KeptOriginal]:
        """Originals with an id below `before` that are kept and not shown, the newest first."""
        return [_kept(row) for row in self._rows(_SUPERSEDED, before=before, most=most)]

    def first_since(self, since: float) -> tuple[int, float] | None:
        """Id and time of the first original received at `since` or later; None when there is none.

        By bisection: order of receipt is order of time, unless a clock was set back meanwhile.
        """
        low, high, found = 1, self.last_sequence() + 1, None
        while low < high:
            middle = (low + high) // 2
            there = self.at_or_after(middle)
            if there is None:
                high = middle
            elif there[1] < since:
                low = there[0] + 1
            else:
                found, high = there, middle
        return found

    def at_or_after(self, sequence: int) -> tuple[int, float] | None:
        """Id and time of the first original with an id of at least `sequence`; None when there is none."""
        row = self._row(_AT_OR_AFTER, sequence=sequence)
        return (int(row.id), float(row.received)) if row else None

    def intake(self, first: int) -> list[Intake]:
        """What came from whom in originals with an id of at least `first`, most objects first.

        Reads them all: an eighth of a second for a million.
        """
        rows = [Intake(row.source_ae, row.objects, row.bytes) for row in self._rows(_INTAKE, first=first)]
        return sorted(rows, key=lambda one: -one.objects)


def _kept(row: Row[Any]) -> KeptOriginal:
    return KeptOriginal(**{**row._mapping, "conflict": bool(row.conflict)})
