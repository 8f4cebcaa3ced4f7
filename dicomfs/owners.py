"""Whose an original is: the patient of a header among those in the index, by the rule of `identity.py`.

Every identity that a patient's data sets have borne is kept, and a header joins a patient only if it
contradicts none of them: the first of all would not do, since it may have been without a name. What was
decided once for an identity stays so. Nothing here makes or names a patient; that is `writer.py`, which calls
this inside its transaction.
"""

import sqlite3
from dataclasses import astuple, dataclass, field
from typing import Final

from sqlalchemy import bindparam, insert, select

from dicomfs.identity import Identity, Verdict, compare_with_all, identity_of
from dicomfs.model import Header
from dicomfs.schema import exams, identities
from dicomfs.statement import Statement

_MOST: Final = 100
"""An ID under which more patients are known identifies nobody, and only equal identities are one patient. It
bounds what one object costs, too; as does the same limit on different identities of one patient."""

_PARTS: Final = ("issuer", "patient_id", "name", "birth_date", "sex", "study")
_EXACTLY = Statement(
    select(identities.c.patient).where(*(identities.c[part] == bindparam(part) for part in _PARTS))
)
_BY_ID = Statement(
    select(identities.c.patient)
    .where(identities.c.patient_id == bindparam("patient_id"))
    .distinct()
    .limit(_MOST + 1)
)
_BY_BIRTH = Statement(
    select(identities.c.patient)
    .where(identities.c.patient_id == "", identities.c.birth_date == bindparam("birth_date"))
    .distinct()
    .limit(_MOST + 1)
)
_OF_STUDY = Statement(
    select(exams.c.patient).where(exams.c.study_uid == bindparam("study_uid")).distinct().limit(_MOST + 1)
)
_OF_PATIENT = Statement(
    select(*(identities.c[part] for part in _PARTS[:-1]))
    .where(identities.c.patient == bindparam("patient"))
    .distinct()
    .limit(_MOST + 1)
)
_INSERT = Statement(insert(identities))

Said = tuple[object, ...]
"""What a header says of a person and its study, letter by letter."""


def _said(header: Header) -> Said:
    return (
        *(header.issuer, header.patient_id, header.patient_names),
        *(header.birth_date, header.sex, header.study_uid),
    )


@dataclass(slots=True)
class Known:
    """Patients whose identity is on record, by what headers said; kept from transaction to transaction."""

    patients: dict[Said, int] = field(default_factory=dict)


class Owners:
    """Patients, inside one write transaction."""

    def __init__(self, connection: sqlite3.Connection, known: Known) -> None:
        self._connection = connection
        self._known = known.patients

    def find(self, header: Header) -> int | None:
        """Id of the patient a header belongs to; None when it is nobody that is known."""
        said = _said(header)
        if said in self._known:
            return self._known[said]
        identity = identity_of(header)
        exact = self._first(_EXACTLY, **dict(zip(_PARTS, astuple(identity), strict=True)))
        if exact is not None:
            self._known[said] = exact
            return exact
        return self._recognise(identity, header.study_uid)

    def record(self, header: Header, patient: int, sequence: int) -> None:
        """Keep on record that a header is this patient's, if that is new; `sequence`: of its original."""
        said = _said(header)
        if said in self._known:
            return
        parts = dict(zip(_PARTS, astuple(identity_of(header)), strict=True))
        if self._first(_EXACTLY, **parts) is None:
            _INSERT.run(self._connection, id=sequence, patient=patient, **parts)
        self._known[said] = patient

    def _recognise(self, identity: Identity, study_uid: str) -> int | None:
        """The patient that an identity nobody has borne yet must be, if any."""
        of_study = self._all(_OF_STUDY, study_uid=study_uid)
        if identity.patient_id:
            candidates = self._all(_BY_ID, patient_id=identity.patient_id)
        elif identity.birth_date:
            candidates = self._all(_BY_BIRTH, birth_date=identity.birth_date)
        else:
            candidates = []
        verdicts = {patient: self._compare(identity, patient) for patient in {*candidates, *of_study}}
        same = [patient for patient, verdict in verdicts.items() if verdict is Verdict.SAME]
        if same:
            return min(same, key=lambda patient: (patient not in of_study, patient))
        maybe = [patient for patient, verdict in verdicts.items() if verdict is Verdict.MAYBE]
        in_study = [patient for patient in maybe if patient in of_study]
        if in_study:
            return min(in_study)
        # Of several who bear the ID it may be any, or yet another.
        is_the_only = bool(identity.patient_id) and len(candidates) == 1
        return candidates[0] if is_the_only and candidates[0] in maybe else None

    def _compare(self, identity: Identity, patient: int) -> Verdict:
        rows = _OF_PATIENT.all(self._connection, patient=patient)
        if len(rows) > _MOST:
            return Verdict.OTHER
        return compare_with_all(identity, [Identity(**row._asdict(), study="") for row in rows])

    def _first(self, statement: Statement, **values: object) -> int | None:
        row = statement.first(self._connection, **values)
        return int(row.patient) if row else None

    def _all(self, statement: Statement, **values: object) -> list[int]:
        """None of them when they are too many."""
        found = [int(row.patient) for row in statement.all(self._connection, **values)]
        return found if len(found) <= _MOST else []
