"""What one write transaction of `dicomfs forget` does to the index: rows go, and a log says which names went.

The log is for mounts: when they look, the rows are gone already, and the names were made of them. Touches
no file. Called by `forget.py`, within `Index.transaction`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Connection, Row, Table, and_, bindparam, delete, exists, func, insert, select, update

from dicomfs.identity import patient_id_key
from dicomfs.naming import EXAM_UNITS, PATIENT_UNITS
from dicomfs.queries import IMAGE_BY_ID
from dicomfs.rows import shown_name
from dicomfs.schema import (
    PDF,
    PICTURES,
    days,
    exam_contents,
    exams,
    forgotten,
    identities,
    instances,
    originals,
    patient_contents,
    patients,
    removals,
    series,
)
from dicomfs.selection import ANY, Selection, modality_key

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


_MODALITIES = select(series.c.modality).distinct().where(series.c.exam == bindparam("id"))
_HELD = select(exam_contents).where(
    exam_contents.c.modality == bindparam("modality"),
    exam_contents.c.shows == bindparam("shows"),
    exam_contents.c.date == bindparam("date"),
    exam_contents.c.exam == bindparam("exam"),
)
_LEFT = (
    select(series.c.modality, instances.c.shows, func.min(instances.c.id).label("first"))
    .join(series, series.c.id == instances.c.series)
    .where(instances.c.exam == bindparam("id"))
    .group_by(series.c.modality, instances.c.shows)
)
# The exams of a patient that hold such, the latest first, and of one day what came first.
_LEFT_OF_PATIENT = (
    select(exam_contents.c.day, exam_contents.c.since)
    .join(exams, exams.c.id == exam_contents.c.exam)
    .where(
        exams.c.patient == bindparam("patient"),
        exam_contents.c.modality == bindparam("modality"),
        exam_contents.c.shows == bindparam("shows"),
        exam_contents.c.date == exams.c.date,
    )
    .order_by(exam_contents.c.day.desc(), exam_contents.c.since)
    .limit(1)
)
# Whatever there is of a date is there as any modality and as stored files.
_LEFT_OF_DAY = (
    select(exam_contents.c.exam)
    .where(
        exam_contents.c.modality == ANY, exam_contents.c.shows == 0, exam_contents.c.date == bindparam("date")
    )
    .limit(1)
)
_LEFT_IN: Final = {
    exams: select(instances.c.id).where(instances.c.exam == bindparam("id")).limit(1),
    patients: select(exams.c.id).where(exams.c.patient == bindparam("id")).limit(1),
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
        exam: Row[Any] | None = None
        patient: Row[Any] | None = None
        held: list[Row[Any]] = []
        for instance in rows:
            place = self._row(_PLACE, id=instance)
            if exam is None or patient is None:
                exam = self._row(_EXAM, id=place.exam)
                patient = self._row(_PATIENT, id=exam.patient)
                held = list(self._held(exam))
            all_series.add(place.series)
            image = self._row(IMAGE_BY_ID, id=instance)
            self._note(now, patient, exam, image=json.dumps({**image._mapping, "hash": "", "outline": None}))
            self._connection.execute(_DELETE_ORIGINALS, {"gone": instance})
            self._connection.execute(_DELETE_INSTANCE, {"gone": instance})
        if exam is None or patient is None:
            return
        self._note(now, patient, exam, held=[(row.modality, row.shows, row.day, row.since) for row in held])
        self._reduce_contents(exam, held)
        for one in sorted(all_series):
            self._connection.execute(_DELETE_SERIES, {"gone": one})
        self._reduce(exams, exam.id, now)
        self._reduce(patients, patient.id, now)
        self._reduce_day(exam.date, now)

    def _held(self, exam: Row[Any]) -> Iterator[Row[Any]]:
        """What `exam_contents` says of an exam; asked by modality, as its key begins with that."""
        found = [modality_key(row.modality) for row in self._connection.execute(_MODALITIES, {"id": exam.id})]
        for modality in dict.fromkeys((ANY, *found)):
            for shows in (0, PICTURES, PDF):
                row = self._first(_HELD, modality=modality, shows=shows, date=exam.date, exam=exam.id)
                if row is not None:
                    yield row

    def _reduce_contents(self, exam: Row[Any], held: Iterable[Row[Any]]) -> None:
        """Let views find folders by what is left in them only."""
        left = self._connection.execute(_LEFT, {"id": exam.id}).all()
        for row in held:
            selection = Selection(row.shows, (row.modality,))
            firsts = [some.first for some in left if selection.takes(some.modality, some.shows)]
            such = and_(
                exam_contents.c.modality == row.modality,
                exam_contents.c.shows == row.shows,
                exam_contents.c.date == row.date,
                exam_contents.c.exam == row.exam,
            )
            if not firsts:
                self._connection.execute(delete(exam_contents).where(such))
            else:
                # An instance may have become such after it came.
                since = max(row.since, min(firsts))
                self._connection.execute(update(exam_contents).where(such).values(since=since))
            self._reduce_patient_contents(exam.patient, row.modality, row.shows)

    def _reduce_patient_contents(self, patient: int, modality: str, shows: int) -> None:
        such = and_(
            patient_contents.c.modality == modality,
            patient_contents.c.shows == shows,
            patient_contents.c.patient == patient,
        )
        latest = self._first(_LEFT_OF_PATIENT, patient=patient, modality=modality, shows=shows)
        if latest is None:
            self._connection.execute(delete(patient_contents).where(such))
        else:
            values = {"latest": latest.day, "risen": latest.since}
            self._connection.execute(update(patient_contents).where(such).values(values))

    def _reduce(self, table: Table, row: int, now: float) -> None:
        """Let a folder that is empty now go."""
        this = table.c.id == row
        if self._first(_LEFT_IN[table], id=row) is None:
            self._connection.execute(delete(table).where(this))
        else:
            # Who compares times must see that the folder is another.
            updated = func.max(table.c.updated, now)
            self._connection.execute(update(table).where(this).values(updated=updated))

    def _reduce_day(self, date: str, now: float) -> None:
        this = days.c.date == date
        if self._first(_LEFT_OF_DAY, date=date) is None:
            self._connection.execute(delete(days).where(this))
        else:
            updated = func.max(days.c.updated, now)
            self._connection.execute(update(days).where(this).values(updated=updated))

    def _note(
        self, now: float, patient: Row[Any], exam: Row[Any], *, image: str = "", held: Sequence[object] = ()
    ) -> None:
        folders = {
            name: json.dumps(dict(row._mapping)) for name, row in (("patient", patient), ("exam", exam))
        }
        self._connection.execute(
            insert(removals).values(removed=now, **folders, image=image, held=json.dumps(held))
        )

    def _ids(self, statement: Any, **values: object) -> Iterator[int]:
        return (int(row[0]) for row in self._connection.execute(statement, values).all())

    def _first(self, statement: Any, **values: object) -> Row[Any] | None:
        return self._connection.execute(statement, values).first()

    def _row(self, statement: Any, **values: object) -> Row[Any]:
        return self._connection.execute(statement, values).one()
