"""What one write transaction of `dicomfs forget` does to the index: rows go, and a log says which names went.

The log is for mounts: when they look, the rows are gone already, and the names were made of them. Touches
no file. Called by `forget.py`, within `Index.transaction`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Connection, Row, Table, bindparam, case, delete, exists, func, insert, select, update

from dicomfs.identity import patient_id_key
from dicomfs.index import IMAGE_BY_ID, shown_name
from dicomfs.naming import EXAM_UNITS, PATIENT_UNITS
from dicomfs.schema import (
    PDF,
    PICTURES,
    REMAINS,
    exams,
    forgotten,
    identities,
    instances,
    originals,
    patients,
    removals,
    series,
)

LOG_KEPT_S: Final = 7 * 86_400.0
"""How long the log remembers names, for a mount that does not look."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What somebody wants forgotten: all of it together."""

    patient_ids: frozenset[str] = frozenset()
    """Patient IDs (0010,0020), whoever issued them."""
    studies: frozenset[str] = frozenset()
    """Study Instance UIDs."""
    patients: frozenset[int] = frozenset()
    exams: frozenset[int] = frozenset()
    instances: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Doomed:
    """One exam, or a part of it, that would go."""

    patient: str
    exam: str
    """Their folders' names."""
    instances: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that would go."""

    exams: tuple[Doomed, ...]
    originals: dict[int, bytes]
    """Content hash of each, by id."""
    size: int
    """Bytes of their data sets."""

    @property
    def instances(self) -> int:
        """How many images and other objects."""
        return sum(len(doomed.instances) for doomed in self.exams)

    @property
    def token(self) -> str:
        """Stands for exactly these originals: another plan has another."""
        return sha256(",".join(map(str, sorted(self.originals))).encode()).hexdigest()[:8]


_PATIENT = select(patients).where(patients.c.id == bindparam("id"))
_EXAM = select(exams).where(exams.c.id == bindparam("id"))
_PATIENTS_OF_ID = select(identities.c.patient).where(identities.c.patient_id == bindparam("text"))
_EXAMS_OF_STUDY = select(exams.c.id).where(exams.c.study_uid == bindparam("text"))
_EXAMS_OF_PATIENT = select(exams.c.id).where(exams.c.patient == bindparam("id"))
_INSTANCES_OF_EXAM = select(instances.c.id).where(instances.c.exam == bindparam("id"))
_PLACE = select(instances.c.exam, instances.c.series).where(instances.c.id == bindparam("id"))
_ORIGINALS_OF = select(originals.c.id, originals.c.hash, originals.c.size).where(
    originals.c.instance == bindparam("id")
)
_CARRIED_OUT = select(forgotten.c.name).where(forgotten.c.name == bindparam("name"))

_DELETE_ORIGINALS = delete(originals).where(originals.c.instance == bindparam("gone"))
_DELETE_INSTANCE = delete(instances).where(instances.c.id == bindparam("gone"))
_DELETE_SERIES = delete(series).where(
    series.c.id == bindparam("gone"), ~exists().where(instances.c.series == series.c.id)
)


def _since(shows: int) -> Any:
    """The first instance that can be shown so, of those of an exam, or of those of a patient's exams."""
    return func.min(case((instances.c.shows.op("&")(shows) == shows, instances.c.id)))


_LEFT = (_since(PICTURES).label("pictures_since"), _since(PDF).label("pdf_since"), func.count().label("rows"))
_LEFT_OF: Final = {
    exams: select(*_LEFT).where(instances.c.exam == bindparam("id")),
    patients: select(*_LEFT)
    .join(exams, exams.c.id == instances.c.exam)
    .where(exams.c.patient == bindparam("id")),
}


class Remover:
    """What may be done to the index inside one write transaction to make it forget."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def was_carried_out(self, name: str) -> bool:
        """Whether a transaction that forgot under this name was committed."""
        return self._first(_CARRIED_OUT, name=name) is not None

    def plan(self, chosen: Chosen) -> Plan:
        """All that would go."""
        doomed: dict[int, dict[int, None]] = {}
        for exam in self._exams(chosen):
            doomed[exam] = dict.fromkeys(self._ids(_INSTANCES_OF_EXAM, id=exam))
        for instance in sorted(chosen.instances):
            place = self._first(_PLACE, id=instance)
            if place is not None:
                doomed.setdefault(place.exam, {})[instance] = None
        found: dict[int, bytes] = {}
        size = 0
        for instance in (one for of_exam in doomed.values() for one in of_exam):
            for row in self._connection.execute(_ORIGINALS_OF, {"id": instance}):
                found[row.id] = bytes(row.hash)
                size += row.size
        return Plan(tuple(self._doomed(exam, tuple(rows)) for exam, rows in doomed.items()), found, size)

    def _exams(self, chosen: Chosen) -> list[int]:
        whose = set(chosen.patients)
        for text in chosen.patient_ids:
            # As it is kept: without padding.
            whose.update(self._ids(_PATIENTS_OF_ID, text=patient_id_key(text)))
        found = set(chosen.exams)
        for uid in chosen.studies:
            found.update(self._ids(_EXAMS_OF_STUDY, text=uid))
        for patient in whose:
            found.update(self._ids(_EXAMS_OF_PATIENT, id=patient))
        return sorted(found)

    def _doomed(self, exam: int, rows: tuple[int, ...]) -> Doomed:
        of_exam = self._row(_EXAM, id=exam)
        of_patient = self._row(_PATIENT, id=of_exam.patient)
        return Doomed(shown_name(of_patient, PATIENT_UNITS), shown_name(of_exam, EXAM_UNITS), rows)

    def forget(self, plan: Plan, name: str, now: float) -> None:
        """Take all of a plan out of the index, and note which names went; `name`: what it is noted under."""
        self._connection.execute(delete(removals).where(removals.c.removed < now - LOG_KEPT_S))
        self._connection.execute(
            insert(forgotten).values(name=name, removed=now, originals=len(plan.originals))
        )
        for doomed in plan.exams:
            self._forget_of_exam(doomed.instances, now)

    def _forget_of_exam(self, rows: Iterable[int], now: float) -> None:
        all_series: set[int] = set()
        exam = 0
        before: dict[Table, Row[Any]] = {}
        for instance in rows:
            place = self._row(_PLACE, id=instance)
            if not before:
                exam = place.exam
                before[exams] = self._row(_EXAM, id=exam)
                before[patients] = self._row(_PATIENT, id=before[exams].patient)
            all_series.add(place.series)
            image = self._row(IMAGE_BY_ID, id=instance)
            self._note(now, before, image=json.dumps({**image._mapping, "hash": ""}))
            self._connection.execute(_DELETE_ORIGINALS, {"gone": instance})
            self._connection.execute(_DELETE_INSTANCE, {"gone": instance})
        for one in sorted(all_series):
            self._connection.execute(_DELETE_SERIES, {"gone": one})
        if before:
            self._note(now, before, left=self._reduce(exams, exam, now))
            of_patient = {patients: before[patients]}
            self._note(now, of_patient, left=self._reduce(patients, before[patients].id, now))

    def _reduce(self, table: Table, row: int, now: float) -> int:
        """Let a folder be what is left of it, or go; returns what it can be shown as still, and `REMAINS`."""
        left = self._row(_LEFT_OF[table], id=row)
        if not left.rows:
            self._connection.execute(delete(table).where(table.c.id == row))
            return 0
        self._connection.execute(
            update(table)
            .where(table.c.id == row)
            .values(
                pictures_since=left.pictures_since,
                pdf_since=left.pdf_since,
                # Who compares times must see that the folder is another.
                updated=func.max(table.c.updated, now),
            )
        )
        pictures, pdf = left.pictures_since is not None, left.pdf_since is not None
        return REMAINS | PICTURES * pictures | PDF * pdf

    def _note(self, now: float, before: dict[Table, Row[Any]], *, image: str = "", left: int = 0) -> None:
        folders = {
            table: json.dumps(dict(before[table]._mapping)) if table in before else ""
            for table in (patients, exams)
        }
        self._connection.execute(
            insert(removals).values(
                removed=now, patient=folders[patients], exam=folders[exams], image=image, left=left
            )
        )

    def _ids(self, statement: Any, **values: object) -> Iterator[int]:
        return (int(row[0]) for row in self._connection.execute(statement, values).all())

    def _first(self, statement: Any, **values: object) -> Row[Any] | None:
        return self._connection.execute(statement, values).first()

    def _row(self, statement: Any, **values: object) -> Row[Any]:
        return self._connection.execute(statement, values).one()
