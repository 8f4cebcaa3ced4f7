"""What is read from the index: frozen rows, and how those of SQL become them.

Pure. A name that is shown is made here, out of a component and the suffix that tells it from others. Read by
`index.py`, `removal.py`; used by whoever asks the index.
"""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from dicomfs.model import Layout
from dicomfs.naming import EXAM_UNITS, PATIENT_UNITS, suffixed
from dicomfs.selection import Selection
from dicomfs.spelling import PatientName


@dataclass(frozen=True, slots=True)
class PatientRow:
    """A patient, as listings show it."""

    id: int
    name: PatientName
    updated: float
    """Receipt of the latest original, seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class ExamRow:
    """An exam, as listings show it."""

    id: int
    patient: int
    patient_name: PatientName
    date: str
    """`YYYYMMDD` or empty."""
    folder: str
    """Date and suffix, as the index has them."""
    updated: float
    """As `PatientRow.updated`."""


@dataclass(frozen=True, slots=True)
class DayRow:
    """A date of exams, as listings show it."""

    date: str
    """`YYYYMMDD` or empty."""
    updated: float
    """As `PatientRow.updated`."""


class NameRow(NamedTuple):
    """One instance with what a listing of rendered files needs: nothing of its original is read for it."""

    id: int
    label: str
    series_number: int
    number: int
    suffix: str
    frames: int
    shows: int
    """`PICTURES`, `PDF`, both or neither."""
    modality: str
    """Of its series."""
    pool: str
    modified: float
    original: int
    """The one that it shows."""
    size: int
    """Bytes of its data set; 0 when they were not asked for."""


class ImageRow(NamedTuple):
    """One instance with all that its files need: first the same as `NameRow`."""

    id: int
    label: str
    series_number: int
    number: int
    suffix: str
    frames: int
    shows: int
    modality: str
    pool: str
    modified: float
    original: int
    size: int
    """Bytes of the data set."""
    exam: int
    patient: int
    day: str
    """`YYYYMMDD` of its exam, as `since=` measures."""
    hash: bytes
    pixel_offset: int | None
    """First byte of native pixel data, counted from the start of the data set."""
    outline: bytes | None
    """Of a plain image (`outline.py`)."""

    @property
    def layout(self) -> Layout | None:
        """What a renderer can go by instead of parsing the file."""
        if self.outline is None or self.pixel_offset is None:
            return None
        return Layout(self.size, self.pixel_offset, self.outline)


@dataclass(frozen=True, slots=True)
class StoredOriginal:
    """One original of an instance, as `status` tells it."""

    sequence: int
    hash: bytes
    transfer_syntax: str
    received: float
    source_ae: str
    sop_uid: str
    shown: bool
    """False when it is kept beside the one that is shown."""


@dataclass(frozen=True, slots=True)
class KeptOriginal:
    """One original that is kept under a SOP Instance UID, shown or not."""

    sequence: int
    hash: bytes
    size: int
    """Bytes of the data set."""
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class RecordedOriginal:
    """What the index says of one original, to be compared with its file."""

    sequence: int
    hash: bytes
    size: int
    """Bytes of the data set."""
    transfer_syntax: str
    received: float
    source_ae: str
    duplicates: str
    sop_uid: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """One original in order of receipt, for those who follow what comes in."""

    sequence: int
    instance: int
    pool: str
    replaces: bool
    """It is shown in the place of an earlier original."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something that an exam held: instances of a modality that can be shown in one way."""

    modality: str
    """As `modality_key` writes it, or `selection.ANY`."""
    shows: int
    """`PICTURES`, `PDF`, or 0 for the stored file."""
    day: str
    """`exams.day`."""
    since: int
    """Receipt sequence number of the first of such."""

    def is_of(self, selection: Selection) -> bool:
        """Whether a selection takes it."""
        return (
            self.modality in selection.modalities
            and self.shows == selection.shows
            and self.day >= selection.first_day
            and self.since <= selection.through
        )


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that was forgotten, as it was: an image, or afterwards what all of an exam held."""

    id: int
    patient: PatientRow
    exam: ExamRow
    image: ImageRow | None
    """None: this is about the folders that it was in."""
    held: tuple[Held, ...]
    """What the exam held before, some of which may be left; empty for an image."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of each kind, for `status`."""

    patients: int
    exams: int
    series: int
    instances: int
    originals: int


def shown_name(row: Any, limit: int) -> str:
    """The name of a folder: its component and the suffix that tells it from another of that name."""
    name: str = row.folder
    return suffixed(name, row.suffix, limit) if row.suffix else name


def _patient_name(row: Any) -> PatientName:
    return PatientName(shown_name(row, PATIENT_UNITS), row.id_folder, row.id_suffix)


def patient_row(row: Any) -> PatientRow:
    """Of columns as in `queries.PATIENT`."""
    return PatientRow(row.id, _patient_name(row), row.updated)


def exam_row(row: Any) -> ExamRow:
    """Of columns as in `queries.EXAM`."""
    folder = row.exam_folder
    if row.exam_suffix:
        folder = suffixed(folder, row.exam_suffix, EXAM_UNITS)
    return ExamRow(row.id, row.patient, _patient_name(row), row.date, folder, row.updated)


def removal_row(row: Any) -> Removal:
    """Of `schema.removals`, where what went is JSON."""
    of_patient, of_exam = (SimpleNamespace(**json.loads(text)) for text in (row.patient, row.exam))
    patient = patient_row(of_patient)
    folder = shown_name(of_exam, EXAM_UNITS)
    exam = ExamRow(of_exam.id, patient.id, patient.name, of_exam.date, folder, of_exam.updated)
    image = ImageRow(**json.loads(row.image) | {"hash": b"", "outline": None}) if row.image else None
    return Removal(row.id, patient, exam, image, tuple(Held(*one) for one in json.loads(row.held)))


def image_row(row: Any) -> ImageRow:
    """Of columns as in `queries.IMAGE`."""
    return ImageRow(*row)  # as they are selected
