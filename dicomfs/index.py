"""The index: everything that is read from it.

Rows become frozen values (`rows.py`) before they leave; the SELECTs are in `queries.py`, the file and its
transactions in `indexfile.py`. Called by whoever has a store open: above all `ingest.py`, whose batches are
written by way of it, and `tree.py`. Never touches the archive.
"""

import heapq
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from sqlalchemy import func, select

from dicomfs import queries
from dicomfs.database import translated
from dicomfs.indexfile import IndexFile
from dicomfs.rows import (
    Arrival,
    Counts,
    DayRow,
    ExamRow,
    ImageRow,
    KeptOriginal,
    NameRow,
    PatientRow,
    RecordedOriginal,
    Removal,
    StoredOriginal,
    exam_row,
    image_row,
    patient_row,
    removal_row,
)
from dicomfs.schema import counter, exams, instances, originals, patients, series
from dicomfs.selection import Selection
from dicomfs.spelling import PatientKey

INDEX_NAME: Final = "index.sqlite3"
"""Its name in the store."""

T = TypeVar("T")


def _limits(selection: Selection) -> dict[str, Any]:
    """What statements on `exam_contents` need, but for the modality."""
    return {
        "shows": selection.shows,
        "first_day": selection.first_day,
        "through": selection.through,
    }


def _taken(rows: Iterable[NameRow], selection: Selection) -> list[NameRow]:
    """Those of a selection; asked once for all of a kind, since a page is waited for."""
    taken: dict[tuple[str, int], bool] = {}
    found: list[NameRow] = []
    for row in rows:
        kind = row.modality, row.shows
        if (takes := taken.get(kind)) is None:
            takes = taken[kind] = selection.takes(*kind)
        if takes:
            found.append(row)
    return found


class Index(IndexFile):
    """One connection to the index; use it from one thread at a time."""

    def last_sequence(self) -> int:
        """The highest receipt sequence number given so far."""
        row = self._row(select(counter.c.last_sequence))
        return int(row.last_sequence) if row else 0

    def last_received(self) -> float:
        """Time of the newest receipt, seconds since the epoch; 0 when there is none."""
        row = self._row(queries.LAST_ORIGINAL)
        return float(row.received) if row else 0.0

    def _page(
        self, selection: Selection, most: int, fetch: Callable[[str], list[T]], place: Callable[[T], Any]
    ) -> list[T]:
        """The first `most` of what `fetch` gives for each modality, in order of `place`, each once."""
        if len(selection.modalities) == 1:
            return fetch(selection.modalities[0])
        page: list[T] = []
        for item in heapq.merge(*map(fetch, selection.modalities), key=place):
            if not page or place(page[-1]) != place(item):
                page.append(item)
        return page[:most]

    def patient_page(self, after: int, most: int, selection: Selection) -> list[PatientRow]:
        """Patients with an id above `after` who have such, in order of id."""

        def fetch(modality: str) -> list[PatientRow]:
            of = {"modality": modality, "shows": selection.shows, "first_day": selection.first_day}
            page: list[PatientRow] = []
            last = after
            # What came lately may not be shown yet. A page that is short for that would be filled up with
            # another modality's patients, in front of those who follow here.
            while len(page) < most:
                rows = self._rows(queries.PATIENT_PAGE, after=last, most=most, **of)
                page += [
                    patient_row(row)
                    for row in rows
                    if row.risen <= selection.through or self._has_shown(row.id, modality, selection)
                ]
                if len(rows) < most:
                    break
                last = rows[-1].id
            return page[:most]

        return self._page(selection, most, fetch, lambda patient: patient.id)

    def patient_by_key(self, key: PatientKey) -> PatientRow | None:
        """The patient of that name or Patient ID, whatever is there of him."""
        row = self._row(queries.PATIENT_BY_ID_KEY if key.by_id else queries.PATIENT_BY_KEY, key=key.key)
        return patient_row(row) if row else None

    def has_such(self, patient: int, selection: Selection) -> bool:
        """Whether a patient has anything of a selection."""
        for modality in selection.modalities:
            row = self._row(queries.PATIENT_HOLDS, modality=modality, shows=selection.shows, patient=patient)
            if row is None or row.latest < selection.first_day:
                continue
            if row.risen <= selection.through or self._has_shown(patient, modality, selection):
                return True
        return False

    def _has_shown(self, patient: int, modality: str, selection: Selection) -> bool:
        row = self._row(queries.PATIENT_SHOWS, patient=patient, modality=modality, **_limits(selection))
        return row is not None

    def patient(self, patient_id: int) -> PatientRow | None:
        """One patient by id."""
        row = self._row(queries.PATIENT_BY_ID, id=patient_id)
        return patient_row(row) if row else None

    def exam_page(self, patient: int, after: int, most: int, selection: Selection) -> list[ExamRow]:
        """Exams of a patient with an id above `after` that hold such, in order of id."""
        return self._exam_page(queries.EXAM_PAGE, after, most, selection, patient=patient)

    def exams_of_day(self, date: str, after: int, most: int, selection: Selection) -> list[ExamRow]:
        """Exams of a date (`YYYYMMDD` or empty) with an id above `after` that hold such, in order of id."""
        return self._exam_page(queries.EXAMS_OF_DAY, after, most, selection, date=date)

    def _exam_page(
        self, statement: Any, after: int, most: int, selection: Selection, **of: object
    ) -> list[ExamRow]:
        of = {"after": after, "most": most, **of, **_limits(selection)}

        def fetch(modality: str) -> list[ExamRow]:
            return [exam_row(row) for row in self._rows(statement, modality=modality, **of)]

        return self._page(selection, most, fetch, lambda exam: exam.id)

    def exam_by_key(self, patient: int, key: str, selection: Selection) -> ExamRow | None:
        """The exam of this patient whose folded folder name is `key`, if it holds such."""
        of = {"patient": patient, "key": key, **_limits(selection)}
        for modality in selection.modalities:
            row = self._row(queries.EXAM_BY_KEY, modality=modality, **of)
            if row is not None:
                return exam_row(row)
        return None

    def exam(self, exam_id: int) -> ExamRow | None:
        """One exam by id."""
        row = self._row(queries.EXAM_BY_ID, id=exam_id)
        return exam_row(row) if row else None

    def exams_between(self, after: tuple[str, int], before: str, most: int) -> list[tuple[str, ExamRow]]:
        """Exams behind `after` (day, id) whose `day` is less than `before`, with it, in that order."""
        rows = self._rows(queries.EXAMS_BETWEEN, day=after[0], after=after[1], before=before, most=most)
        return [(row.day, exam_row(row)) for row in rows]

    def day_page(self, after: str | None, most: int, selection: Selection) -> list[DayRow]:
        """Dates later than `after` with exams that hold such, in order.

        None: from the start, which is the empty date.
        """

        def fetch(modality: str) -> list[str]:
            """Dates of one modality: one step through its index for each, and not for each exam."""
            of = {"modality": modality, **_limits(selection)}
            found = []
            if after is None and self._row(queries.IN_DAY, date="", **of) is not None:
                found.append("")
            # The day behind a day; none before the limit needs to be looked at, but those without a date.
            first = max(f"{after or ''} ", selection.first_day)
            while len(found) < most and (row := self._row(queries.NEXT_DAY, first=first, **of)) is not None:
                found.append(row.date)
                first = f"{row.date} "
            return found

        dates = self._page(selection, most, fetch, lambda date: date)
        return [row for row in map(self.day, dates) if row is not None]

    def day(self, date: str) -> DayRow | None:
        """One date of exams, `YYYYMMDD` or empty."""
        row = self._row(queries.DAY, date=date)
        return DayRow(row.date, row.updated) if row else None

    def day_has_such(self, date: str, selection: Selection) -> bool:
        """Whether a date has anything of a selection."""
        of = {"date": date, **_limits(selection)}
        return any(self._row(queries.IN_DAY, modality=m, **of) is not None for m in selection.modalities)

    def exam_has_such(self, exam: int, date: str, selection: Selection) -> bool:
        """Whether an exam of this date holds anything of a selection."""
        of = {"date": date, "exam": exam, "shows": selection.shows}
        rows = [self._row(queries.EXAM_HOLDS, modality=modality, **of) for modality in selection.modalities]
        return any(
            row is not None and row.day >= selection.first_day and row.since <= selection.through
            for row in rows
        )

    def name_page(
        self, exam: int, first: int, most: int, selection: Selection, *, sized: bool
    ) -> list[NameRow]:
        """Instances of an exam with an id of at least `first` that are such, in order of id.

        `sized`: with the sizes of their data sets.
        """
        page: list[NameRow] = []
        statement = queries.NAME_PAGE[sized, False]
        while len(page) < most:
            rows = self._rows(statement, exam=exam, first=first, last=selection.through, most=most)
            page += _taken(rows, selection)
            if len(rows) < most:
                break
            first = rows[-1].id + 1
        return page[:most]

    def name_page_back(
        self, exam: int, last: int, most: int, selection: Selection, *, sized: bool
    ) -> list[NameRow]:
        """Instances of an exam with an id of at most `last` that are such, the newest first."""
        page: list[NameRow] = []
        statement = queries.NAME_PAGE[sized, True]
        last = min(last, selection.through)
        while len(page) < most:
            rows = self._rows(statement, exam=exam, first=0, last=last, most=most)
            page += _taken(rows, selection)
            if len(rows) < most:
                break
            last = rows[-1].id - 1
        return page[:most]

    def instances_before(self, before: int, most: int) -> list[int]:
        """Ids of instances below `before`, the newest first."""
        return [int(row.id) for row in self._rows(queries.INSTANCES_BEFORE, before=before, most=most)]

    def image_by_name(
        self, exam: int, label_key: str, series_number: int, number: int, suffix: str
    ) -> ImageRow | None:
        """The instance that bears these name components in an exam."""
        row = self._row(
            queries.IMAGE_BY_NAME,
            exam=exam,
            label_key=label_key,
            series_number=series_number,
            number=number,
            suffix=suffix,
        )
        return image_row(row) if row else None

    def image(self, instance_id: int) -> ImageRow | None:
        """One instance by id."""
        row = self._row(queries.IMAGE_BY_ID, id=instance_id)
        return image_row(row) if row else None

    def image_shown(self, original: int) -> ImageRow | None:
        """The instance that shows this original; None when no instance does (any more)."""
        row = self._row(queries.IMAGE_SHOWN, original=original)
        return image_row(row) if row else None

    def pool_members(self, pool: str) -> list[ImageRow]:
        """All instances that share a grey scale, in order of the originals they show."""
        return [image_row(row) for row in self._rows(queries.POOL_MEMBERS, pool=pool)]

    def pool_through(self, pool: str) -> int:
        """The highest id of an original shown in a pool; 0 when it is empty."""
        row = self._row(queries.POOL_THROUGH, pool=pool)
        return int(row[0] or 0) if row else 0

    def pool_span(self, pool: str) -> tuple[int, int] | None:
        """The least and the highest id of the instances of a pool; None when it is empty."""
        row = self._row(queries.POOL_SPAN, pool=pool)
        return (row.first, row.last) if row and row.first is not None else None

    def arrivals(self, after: int, most: int) -> list[Arrival]:
        """Originals received after this sequence number, in order."""
        rows = self._rows(queries.ARRIVALS, after=after, most=most)
        return [
            Arrival(row.id, row.instance, row.pool, row.id == row.shown and row.id != row.instance)
            for row in rows
        ]

    def last_removal(self) -> int:
        """Number of the latest removal; 0 when there is none."""
        row = self._row(queries.LAST_REMOVAL)
        return int(row[0] or 0) if row else 0

    def removals(self, after: int, most: int) -> list[Removal]:
        """What was forgotten after this removal, in order; what was in a folder comes before the folder."""
        return [removal_row(row) for row in self._rows(queries.REMOVALS, after=after, most=most)]

    def originals_of(self, instance_id: int) -> list[StoredOriginal]:
        """Every original that is kept of an instance, in order of receipt."""
        rows = self._rows(queries.ORIGINALS_OF, id=instance_id)
        return [StoredOriginal(**{**row._mapping, "shown": row.sequence == row.shown}) for row in rows]

    def kept_under(self, sop_uid: str) -> list[KeptOriginal]:
        """Every original of a SOP Instance UID, whatever its series, in order of receipt."""
        rows = self._rows(queries.KEPT_UNDER, sop_uid=sop_uid)
        return sorted((KeptOriginal(**row._mapping) for row in rows), key=lambda kept: kept.sequence)

    def recorded(self, after: bytes, last: bytes, most: int) -> list[RecordedOriginal]:
        """Originals whose hash is above `after` and at most `last`, in order of the hash."""
        rows = self._rows(queries.RECORDED, after=after, last=last, most=most)
        return [RecordedOriginal(**{**row._mapping, "sop_uid": row.sop_uid or ""}) for row in rows]

    def faults(self, most: int, *, quick: bool = False) -> list[str]:
        """What is wrong inside the index itself, in words without any value of a row; empty: nothing.

        SQLite's own checks (`quick`: without comparing tables with their indices), foreign keys, and what
        no foreign key says. Reads the whole file.
        """
        check = "quick_check" if quick else "integrity_check"
        with translated():
            try:
                said = self._connection.exec_driver_sql(f"PRAGMA {check}({most})").scalars().all()
                keys = self._connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(most)
            finally:
                self._connection.rollback()
        found = [line for line in said if line != "ok"]
        found += [f"row {row[1]} of {row[0]} points to a row of {row[2]} that is not there" for row in keys]
        lost = self._rows(queries.NOT_SHOWN, most=most)
        found += [f"instance {row.id} shows an original that has no row" for row in lost]
        if (self._rows(queries.HIGHEST)[0][0] or 0) > self.last_sequence():
            found.append("the counter of receipt sequence numbers is below a number that was given")
        return found

    def counts(self) -> Counts:
        """How many rows of each kind; grows with the index, so for `status` only."""
        tables = (patients, exams, series, instances, originals)
        numbers = [self._rows(select(func.count()).select_from(table))[0][0] for table in tables]
        return Counts(*numbers)
