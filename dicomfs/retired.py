"""Names of what was removed: they go to nothing else, ever, so that a path never means another object.

Triggers of the schema write them down, whoever deletes a row. Only the same object, sent again, gets its name
back: the same person, study of that date, series, SOP instance. Called by `writer.py` for each new name.
"""

import sqlite3
from typing import Any, Final

from sqlalchemy import Text, bindparam, cast, select

from dicomfs.schema import exams, patients, retired, series
from dicomfs.statement import Statement

_ANY: Final = Statement(select(retired.c.owner).limit(1))
_PATIENT: Final = patients.c.folder_key
_EXAM: Final = patients.c.folder_key + "/" + exams.c.folder_key
_SERIES: Final = _EXAM + "/" + series.c.label_key + "_" + cast(series.c.number, Text)


def _below(path: Any, *joins: Any) -> Statement:
    """Whether a name below a folder was another's; `joins`: tables from that of `id` upwards."""
    table, *rest = joins
    of = select(path).select_from(table)
    for one in rest:
        of = of.join(one)
    of = of.where(table.c.id == bindparam("id"))
    whole = of.scalar_subquery() + bindparam("key")
    return Statement(
        select(retired.c.owner).where(retired.c.path == whole, retired.c.owner != bindparam("owner"))
    )


_STATEMENTS: Final = {
    "patient": Statement(
        select(retired.c.owner).where(
            retired.c.path == bindparam("key"), retired.c.owner != bindparam("owner")
        )
    ),
    "exam": _below(_PATIENT + "/", patients),
    "series": _below(_EXAM + "/", exams, patients),
    "image": _below(_SERIES + "_", series, exams, patients),
}


class Retired:
    """Names that are out of reach, inside one write transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._are_any: bool | None = None

    def patient(self, key: str, owner: str) -> bool:
        """Whether a folded name of a patient was another's than this owner's (`Identity.text`)."""
        return self._was_others("patient", key=key, owner=owner)

    def patient_id(self, key: str, owner: str) -> bool:
        """The same of the folded label that names a patient by the ID. No name holds a slash."""
        return self._was_others("patient", key=f"/{key}", owner=owner)

    def exam(self, patient: int, key: str, owner: str) -> bool:
        """The same of an exam's folder; owner: study UID and date."""
        return self._was_others("exam", id=patient, key=key, owner=owner)

    def series(self, exam: int, label_key: str, number: int, owner: str) -> bool:
        """The same of a series' label and number; owner: series UID and folded name."""
        return self._was_others("series", id=exam, key=f"{label_key}_{number}", owner=owner)

    def image(self, series_id: int, number: int, suffix: str, owner: str) -> bool:
        """The same of an instance's number and suffix; owner: SOP Instance UID."""
        return self._was_others("image", id=series_id, key=f"{number} {suffix}", owner=owner)

    def _was_others(self, level: str, **values: object) -> bool:
        if self._are_any is None:  # mostly nothing was ever removed, and the images of a series are many
            self._are_any = _ANY.first(self._connection) is not None
        return self._are_any and _STATEMENTS[level].first(self._connection, **values) is not None
