"""What one write transaction of the index does: an original's rows, and the names they bear for ever.

Names are decided here, once, inside the transaction that stores the row, because only there is it
certain what they would collide with. Every statement is compiled once, and what the last objects found
out about their patient, exam and series is remembered, because a scanner sends a thousand images of one
series. Called by `ingest.py`, by way of `Index.write`.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Table, bindparam, case, func, select, update
from sqlalchemy.dialects.sqlite import insert

from dicomfs.errors import StoreUnavailable
from dicomfs.identity import identity_of
from dicomfs.model import Duplicates, Header, Receipt, Stored
from dicomfs.naming import (
    EXAM_UNITS,
    PATIENT_UNITS,
    SERIES_UNITS,
    component,
    exam_folder,
    exam_suffix,
    fold,
    patient_folder,
    patient_suffix_of_birth,
    series_label,
    short_hash,
    suffixed,
)
from dicomfs.owners import Known, Owners
from dicomfs.recipes import ENCAPSULATED_PDF
from dicomfs.retired import Retired
from dicomfs.schema import (
    PDF,
    PICTURES,
    counter,
    days,
    exam_contents,
    exams,
    instances,
    originals,
    patient_contents,
    patients,
    series,
)
from dicomfs.selection import ANY, day_of_exam, modality_key
from dicomfs.spelling import id_label
from dicomfs.statement import Statement as _Statement

DIFFERS: Final = "differs from an earlier original of the same UIDs"
STRANGER: Final = (
    "bears another patient's identity than the earlier original of the same UIDs: check who is right"
)
"""Warnings about an object; by UID, the caller names it."""
_CLOCK_TOLERANCE_S: Final = 86_400.0
_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class KnownOriginal:
    """An original that is already in the index."""

    sequence: int
    size: int
    sop_uid: str
    sop_class_uid: str
    received: float
    source_ae: str
    duplicates: str


@dataclass(frozen=True, slots=True)
class Earlier:
    """The instance that bears the UIDs of a new original already."""

    instance: int
    is_same_patient: bool


@dataclass(frozen=True, slots=True)
class Added:
    """What `Writer.add` did."""

    stored: Stored
    warnings: tuple[str, ...]


_KNOWN = _Statement(
    select(
        originals.c.id.label("sequence"),
        originals.c.size,
        instances.c.sop_uid,
        instances.c.sop_class_uid,
        originals.c.received,
        originals.c.source_ae,
        originals.c.duplicates,
    )
    .join(instances, instances.c.id == originals.c.instance)
    .where(originals.c.hash == bindparam("hash"))
)
_SAME_IDENTITY = _Statement(
    select(instances.c.id, exams.c.patient)
    .join(series, series.c.id == instances.c.series)
    .join(exams, exams.c.id == instances.c.exam)
    .where(
        instances.c.sop_uid == bindparam("sop_uid"),
        series.c.series_uid == bindparam("series_uid"),
        exams.c.study_uid == bindparam("study_uid"),
    )
    .order_by(instances.c.id)
    .limit(1)
)
_EXAM = _Statement(
    select(exams.c.id, exams.c.date, exams.c.day).where(
        exams.c.study_uid == bindparam("study_uid"),
        exams.c.patient == bindparam("patient"),
        exams.c.date == bindparam("date"),
    )
)
_SERIES = _Statement(
    select(series.c.id, series.c.modality).where(
        series.c.exam == bindparam("exam"),
        series.c.series_uid == bindparam("series_uid"),
        series.c.name_key == bindparam("name_key"),
        series.c.number == bindparam("number"),
    )
)
_PATIENT_TAKEN = _Statement(select(patients.c.id).where(patients.c.folder_key == bindparam("key")))
_PATIENT_ID_TAKEN = _Statement(select(patients.c.id).where(patients.c.id_key == bindparam("key")))
_EXAM_TAKEN = _Statement(
    select(exams.c.id).where(exams.c.patient == bindparam("patient"), exams.c.folder_key == bindparam("key"))
)
_SERIES_TAKEN = _Statement(
    select(series.c.id).where(
        series.c.exam == bindparam("exam"),
        series.c.label_key == bindparam("key"),
        series.c.number == bindparam("number"),
    )
)
_NUMBER_TAKEN = _Statement(
    select(instances.c.id).where(
        instances.c.series == bindparam("series"),
        instances.c.number == bindparam("number"),
        instances.c.suffix == bindparam("suffix"),
    )
)
_TOUCH = {
    table: _Statement(
        update(table)
        .where(table.c.id == bindparam("row"))
        .values(updated=func.max(table.c.updated, bindparam("received")))
    )
    for table in (patients, exams)
}
_DAY = insert(days)
_TOUCH_DAY = _Statement(
    _DAY.on_conflict_do_update(
        index_elements=[days.c.date], set_={"updated": func.max(days.c.updated, _DAY.excluded.updated)}
    )
)
_EXAM_HOLDS = _Statement(insert(exam_contents).on_conflict_do_nothing())
_OF_PATIENT = insert(patient_contents)
_PATIENT_HOLDS = _Statement(
    _OF_PATIENT.on_conflict_do_update(
        index_elements=list(patient_contents.primary_key),
        set_={
            "latest": func.max(patient_contents.c.latest, _OF_PATIENT.excluded.latest),
            "risen": case(
                (_OF_PATIENT.excluded.latest > patient_contents.c.latest, _OF_PATIENT.excluded.risen),
                else_=patient_contents.c.risen,
            ),
        },
    )
)
_INSERT = {table: _Statement(insert(table)) for table in (patients, exams, series, instances, originals)}
_SHOW = _Statement(
    update(instances)
    .where(instances.c.id == bindparam("instance"))
    .values(
        sop_class_uid=bindparam("sop_class"),
        frames=bindparam("frame_count"),
        rows=bindparam("row_count"),
        columns=bindparam("column_count"),
        shows=bindparam("can_show"),
        pool=bindparam("pool_key"),
        # Newer than before whatever the clocks say: a viewer that compares times must fetch it again.
        modified=func.max(instances.c.modified + 1, bindparam("time")),
        shown=bindparam("original"),
    )
)
_PLACE_OF = _Statement(
    select(
        series.c.id,
        series.c.modality,
        exams.c.id.label("exam"),
        exams.c.patient,
        exams.c.date,
        exams.c.day,
    )
    .join(series, series.c.id == instances.c.series)
    .join(exams, exams.c.id == instances.c.exam)
    .where(instances.c.id == bindparam("instance"))
)
_LAST_SEQUENCE = _Statement(select(counter.c.last_sequence))
_COUNT = _Statement(update(counter).values(last_sequence=bindparam("last")))


@dataclass(frozen=True, slots=True)
class _Exam:
    """An exam, with what places it among the days."""

    id: int
    patient: int
    date: str
    day: str


@dataclass(frozen=True, slots=True)
class _Series:
    """A series, with what filters go by: the modality of its first image, for all of them."""

    id: int
    modality: str


@dataclass(slots=True)
class Recollection:
    """What a connection's last transactions found or made; forgotten when it may be out of date."""

    owners: Known = field(default_factory=Known)
    exams: dict[tuple[int, str, str], _Exam] = field(default_factory=dict)
    series: dict[tuple[int, str, str, int], _Series] = field(default_factory=dict)
    contents: set[tuple[int, str, int]] = field(default_factory=set)
    """(exam, modality, shows) that are on record."""

    def clear(self) -> None:
        """Forget everything: a transaction was rolled back, or somebody else wrote."""
        for kept in (self.owners.patients, self.exams, self.series, self.contents):
            kept.clear()

    def bound(self) -> None:
        """Forget what takes too much memory."""
        kept = (len(self.owners.patients), len(self.exams), len(self.series), len(self.contents))
        if max(kept) > _REMEMBERED:
            self.clear()


class Writer:
    """What may be done inside one write transaction of the index."""

    def __init__(self, connection: sqlite3.Connection, recollection: Recollection | None = None) -> None:
        self._connection = connection
        self._recollection = recollection or Recollection()
        self._last_sequence = 0
        self._owners = Owners(connection, self._recollection.owners)
        self._retired = Retired(connection)
        self._touched: dict[tuple[Table, int], float] = {}
        self._touched_days: dict[str, float] = {}

    def finish(self) -> None:
        """Write what was put together for all of the transaction; called before it is committed."""
        if self._last_sequence:
            _COUNT.run(self._connection, last=self._last_sequence)
        for (table, row), received in self._touched.items():
            _TOUCH[table].run(self._connection, row=row, received=received)
        for day, received in self._touched_days.items():
            _TOUCH_DAY.run(self._connection, date=day, updated=received)
        self._touched.clear()
        self._touched_days.clear()
        self._recollection.bound()

    def next_sequence(self) -> int:
        """A receipt sequence number that was never given before; higher than all before it."""
        self._last_sequence = self._given() + 1
        return self._last_sequence

    def count_from(self, last: int) -> None:
        """Numbers up to this one were given before, whatever has become of them."""
        self._last_sequence = max(self._given(), last)

    def _given(self) -> int:
        """The highest number that was given."""
        return self._last_sequence or int(_LAST_SEQUENCE.first(self._connection)[0])

    def known(self, digest: bytes) -> KnownOriginal | None:
        """The original with this content hash."""
        row = _KNOWN.first(self._connection, hash=digest)
        return KnownOriginal(**row._asdict()) if row else None

    def has_row(self, digest: bytes, sequence: int) -> bool:
        """Whether the original with this content hash bears this number."""
        known = self.known(digest)
        return known is not None and known.sequence == sequence

    def earlier(self, header: Header) -> Earlier | None:
        """The instance of the same Study, Series and SOP Instance UID; of several the first."""
        row = _SAME_IDENTITY.first(
            self._connection,
            sop_uid=header.sop_instance_uid,
            series_uid=header.series_uid,
            study_uid=header.study_uid,
        )
        return Earlier(int(row.id), self._owners.find(header) == row.patient) if row else None

    def add(self, header: Header, receipt: Receipt, sequence: int, digest: bytes, size: int) -> Added:
        """Store one new original and whatever it is the first of.

        One whose identity (Study, Series and SOP Instance UID) is known is treated as
        `receipt.duplicates` says; that it is not to be taken at all is for the caller to see (`earlier`).
        It never replaces what another patient's identity is shown with.
        """
        earlier = self.earlier(header)
        warnings: list[str] = []
        stored, instance = Stored.NEW, sequence
        if earlier is not None:
            stored = Stored.OTHER_VERSION
            if not earlier.is_same_patient:
                warnings.append(STRANGER)
            if receipt.duplicates is Duplicates.BOTH:
                warnings.append(f"{DIFFERS}; both are shown")
            else:
                instance = earlier.instance
        if instance == sequence:
            unique = digest.hex() if earlier else header.sop_instance_uid
            self._instance(header, receipt, sequence, self._owner(header, sequence, receipt), unique)
        elif receipt.duplicates is Duplicates.NEWEST and earlier is not None and earlier.is_same_patient:
            self._show(header, receipt, instance, sequence)
            warnings.append(f"{DIFFERS}, and is shown in its place")
        else:
            warnings.append(f"{DIFFERS}, which stays the one that is shown")
        _INSERT[originals].run(
            self._connection,
            id=sequence,
            instance=instance,
            hash=digest,
            size=size,
            transfer_syntax=receipt.transfer_syntax,
            received=receipt.received,
            source_ae=receipt.source_ae,
            duplicates=receipt.duplicates.value,
            conflict=int(earlier is not None and not earlier.is_same_patient),
            pixel_offset=header.pixel_offset,
            pixel_length=header.pixel_length,
            outline=header.outline,
        )
        return Added(stored, tuple(warnings))

    # Patients

    def _owner(self, header: Header, sequence: int, receipt: Receipt) -> int:
        """Id of the patient this data set belongs to, made now if there is none."""
        patient = self._owners.find(header)
        if patient is None:
            self._new_patient(header, sequence, receipt)
            patient = sequence
        else:
            self._touch(patients, patient, receipt)
        self._owners.record(header, patient, sequence)
        return patient

    def _new_patient(self, header: Header, sequence: int, receipt: Receipt) -> None:
        folder = patient_folder(header.patient_name, header.patient_id)
        suffix = _first_free(
            _patient_suffixes(header, folder, sequence),
            lambda s: (
                self._is_taken(_PATIENT_TAKEN, key=_folder_key(folder, s, PATIENT_UNITS))
                or self._retired.patient(_folder_key(folder, s, PATIENT_UNITS), identity_of(header).text)
            ),
        )
        id_folder = component(header.patient_id, PATIENT_UNITS)
        id_suffix = _first_free(
            ["", identity_of(header).issuer, *_of_identity(header, sequence)],
            lambda s: (
                self._is_taken(_PATIENT_ID_TAKEN, key=fold(id_label(id_folder, s)))
                or self._retired.patient_id(fold(id_label(id_folder, s)), identity_of(header).text)
            ),
        )
        _INSERT[patients].run(
            self._connection,
            id=sequence,
            folder=folder,
            suffix=suffix,
            folder_key=_folder_key(folder, suffix, PATIENT_UNITS),
            id_folder=id_folder,
            id_suffix=id_suffix,
            id_key=fold(id_label(id_folder, id_suffix)),
            updated=receipt.received,
        )

    # Exams, series, instances

    def _is_taken(self, statement: _Statement, **values: object) -> bool:
        return statement.first(self._connection, **values) is not None

    def _touch(self, table: Table, row: int, receipt: Receipt) -> None:
        self._touched[table, row] = max(self._touched.get((table, row), 0.0), receipt.received)

    def _touch_exam(self, exam: _Exam, receipt: Receipt) -> None:
        self._touch(exams, exam.id, receipt)
        self._touch_day(exam.date, receipt)

    def _touch_day(self, day: str, receipt: Receipt) -> None:
        self._touched_days[day] = max(self._touched_days.get(day, 0.0), receipt.received)

    def _note_contents(self, exam: _Exam, modality: str, shows: int, sequence: int) -> None:
        """Let views that ask for such an instance find the folders it is in."""
        for shown in [0, *(bit for bit in (PICTURES, PDF) if shows & bit)]:
            for key in dict.fromkeys((ANY, modality_key(modality))):
                if (exam.id, key, shown) in self._recollection.contents:
                    continue
                common = {"modality": key, "shows": shown}
                of_exam = {"date": exam.date, "exam": exam.id, "day": exam.day, "since": sequence}
                of_patient = {"patient": exam.patient, "latest": exam.day, "risen": sequence}
                _EXAM_HOLDS.run(self._connection, **common, **of_exam)
                _PATIENT_HOLDS.run(self._connection, **common, **of_patient)
                self._recollection.contents.add((exam.id, key, shown))

    def _exam(self, header: Header, receipt: Receipt, sequence: int, patient: int) -> _Exam:
        place = (patient, header.study_uid, header.study_date)
        found = self._recollection.exams.get(place)
        if found is None:
            row = _EXAM.first(
                self._connection, study_uid=header.study_uid, patient=patient, date=header.study_date
            )
            found = _Exam(row.id, patient, row.date, row.day) if row else None
        if found is not None:
            self._touch_exam(found, receipt)
            self._recollection.exams[place] = found
            return found
        folder, owner = exam_folder(header.study_date), f"{header.study_uid}\n{header.study_date}"
        suffix = _first_free(
            ["", exam_suffix(header.study_time), *_hashes(header.study_uid, 4)],
            lambda s: (
                self._is_taken(_EXAM_TAKEN, patient=patient, key=_folder_key(folder, s, EXAM_UNITS))
                or self._retired.exam(patient, _folder_key(folder, s, EXAM_UNITS), owner)
            ),
        )
        _INSERT[exams].run(
            self._connection,
            id=sequence,
            patient=patient,
            study_uid=header.study_uid,
            date=header.study_date,
            folder=folder,
            suffix=suffix,
            folder_key=_folder_key(folder, suffix, EXAM_UNITS),
            day=day_of_exam(header.study_date, receipt.received),
            updated=receipt.received,
        )
        made = _Exam(sequence, patient, header.study_date, day_of_exam(header.study_date, receipt.received))
        self._touch_day(made.date, receipt)
        self._recollection.exams[place] = made
        return made

    def _series(self, header: Header, sequence: int, exam: int) -> _Series:
        base, number = series_label(header.series_name), header.series_number or 0
        name_key = fold(base)
        place = (exam, header.series_uid, name_key, number)
        found = self._recollection.series.get(place)
        if found is None:
            row = _SERIES.first(
                self._connection, exam=exam, series_uid=header.series_uid, name_key=name_key, number=number
            )
            found = _Series(row.id, row.modality) if row else None
        if found is not None:
            self._recollection.series[place] = found
            return found

        def label(suffix: str) -> str:
            return suffixed(base, suffix, SERIES_UNITS) if suffix else base

        suffix = _first_free(
            ["", *_hashes(header.series_uid, 4)],
            lambda s: (
                self._is_taken(_SERIES_TAKEN, exam=exam, key=fold(label(s)), number=number)
                or self._retired.series(exam, fold(label(s)), number, f"{header.series_uid}\n{name_key}")
            ),
        )
        _INSERT[series].run(
            self._connection,
            id=sequence,
            exam=exam,
            series_uid=header.series_uid,
            modality=header.modality,
            label=label(suffix),
            label_key=fold(label(suffix)),
            name_key=name_key,
            number=number,
        )
        made = _Series(sequence, header.modality)
        self._recollection.series[place] = made
        return made

    def _instance(self, header: Header, receipt: Receipt, sequence: int, patient: int, unique: str) -> None:
        """`unique`: what a suffix is made of when the number is taken."""
        exam = self._exam(header, receipt, sequence, patient)
        its_series = self._series(header, sequence, exam.id)
        series_id = its_series.id
        number = header.instance_number or 0
        suffix = _first_free(
            ["", *_hashes(unique, 6)],
            lambda s: (
                self._is_taken(_NUMBER_TAKEN, series=series_id, number=number, suffix=s)
                or self._retired.image(series_id, number, s, header.sop_instance_uid)
            ),
        )
        _INSERT[instances].run(
            self._connection,
            id=sequence,
            series=series_id,
            exam=exam.id,
            sop_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            number=number,
            suffix=suffix,
            frames=header.frames,
            rows=header.rows,
            columns=header.columns,
            shows=_shows(header),
            pool=f"{series_id}:{header.pool}" if header.pool else "",
            modified=_modified(header, receipt),
            shown=sequence,
        )
        self._note_contents(exam, its_series.modality, _shows(header), sequence)

    def _show(self, header: Header, receipt: Receipt, instance: int, original: int) -> None:
        """Let an instance show another original from now on, under the name that it has."""
        place = _PLACE_OF.first(self._connection, instance=instance)
        exam = _Exam(place.exam, place.patient, place.date, place.day)
        self._touch(patients, exam.patient, receipt)
        self._touch_exam(exam, receipt)
        self._note_contents(exam, place.modality, _shows(header), original)
        _SHOW.run(
            self._connection,
            instance=instance,
            original=original,
            sop_class=header.sop_class_uid,
            frame_count=header.frames,
            row_count=header.rows,
            column_count=header.columns,
            can_show=_shows(header),
            pool_key=f"{place.id}:{header.pool}" if header.pool else "",
            time=_modified(header, receipt),
        )


def _patient_suffixes(header: Header, folder: str, sequence: int) -> list[str]:
    """What may tell a patient from namesakes, the most telling first: of the object that made the folder."""
    identity = identity_of(header)
    patient_id = identity.patient_id if component(identity.patient_id, PATIENT_UNITS) != folder else ""
    telling = [
        patient_id,
        f"{patient_id} {identity.issuer}".strip(),
        patient_suffix_of_birth(identity.birth_date),
    ]
    if identity.is_weak and header.study_date:
        day = exam_folder(header.study_date)
        telling += [day, f"{day} {exam_suffix(header.study_time)}"]
    return [
        "",
        *telling,
        *_of_identity(header, sequence),
    ]


def _of_identity(header: Header, sequence: int) -> list[str]:
    identity = identity_of(header)
    return _hashes(f"{identity.issuer}\n{identity.patient_id}\n{header.study_uid}\n{sequence}", 4)


def _modified(header: Header, receipt: Receipt) -> float:
    """Acquisition, else receipt. A time after receipt is a wrong clock."""
    acquired = header.acquired
    plausible = acquired is not None and acquired <= receipt.received + _CLOCK_TOLERANCE_S
    return acquired if plausible and acquired is not None else receipt.received


def _first_free(suffixes: Sequence[str], taken: Callable[[str], bool]) -> str:
    """The first suffix that is not taken; an empty one counts only in first place.

    The last candidates are whole hashes of UIDs, so that one is always free.
    """
    for place, suffix in enumerate(suffixes):
        if (suffix or place == 0) and not taken(suffix):
            return suffix
    raise StoreUnavailable("no free name could be found")


def _shows(header: Header) -> int:
    return PICTURES * header.has_pixels | PDF * (header.sop_class_uid == ENCAPSULATED_PDF)


def _hashes(uid: str, shortest: int) -> list[str]:
    """Hashes of growing length, all of the object itself: a name does not depend on what else is there."""
    return [short_hash(uid, digits) for digits in (shortest, shortest + 4, shortest + 8, 32)]


def _folder_key(folder: str, suffix: str, limit: int) -> str:
    return fold(suffixed(folder, suffix, limit) if suffix else folder)
