"""How one view spells the components that the index keeps, and how it reads them back.

Pure: components in, names out, and the reverse. Each spelling is one to one, so that a name of a view leads
to the one row that bears it by a unique key, and two rows never get one name:

* an exam's folder is its date as the view writes dates (`DateFormat` refuses what would make two dates
  equal), then the tail that tells studies of one day apart, as the index has it;
* a patient's folder is the name (unique by `patients.folder_key`), the Patient ID (`patients.id_key`), or
  name and ID: then the ID alone makes it unique, for it holds no round bracket;
* where exams are listed by patient, below their date, a label that ends like a tail gets one of its own,
  ` (-)`: a patient whose ID is `10.15.00` is not the study of 10:15:00;
* numbers padded with zeros are read back only as they would be written.

Used by `config.py` (options), `writer.py` (the ID component), `aspect.py` (there) and `tree.py` (back).
"""

import re
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Final

from dicomfs.naming import (
    PATIENT_UNITS,
    UNKNOWN_DATE,
    component,
    exam_folder,
    fold,
    suffixed,
    units,
)

ID_UNITS: Final = 40
"""Most UTF-16 units of a Patient ID in a name: it leaves room for the name beside it."""
NO_ID: Final = "No patient ID"
DATE_UNITS: Final = 20
"""Most UTF-16 units of a date: with its tail it stays within the budget of an exam's folder."""
DEFAULT_DATE_FORMAT: Final = "%Y-%m-%d"

_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DIRECTIVES: Final = {
    "%Y": ("Y", "[0-9]{4}"),
    "%m": ("m", "[0-9]{2}"),
    "%d": ("d", "[0-9]{2}"),
    "%b": ("b", "[A-Za-z]{3}"),
    "%B": ("B", "|".join(_MONTHS)),
}
_NOT_SUFFICIENT: Final = {
    "%y": "19%y and 20%y would be one year",
    "%e": "use %d",
    "%F": f"use {DEFAULT_DATE_FORMAT}",
}
_TAIL: Final = re.compile(r" \((?:[0-9]{2}\.[0-9]{2}\.[0-9]{2}|study [0-9a-f]+|-)\)$", re.IGNORECASE)
"""What follows a label where exams are listed by patient."""
_TIME_TAIL: Final = re.compile(r" \([0-9]{2}\.[0-9]{2}\.[0-9]{2}\)")
_FIRST: Final = " (-)"


class Layout(Enum):
    """What the folders of a view are grouped by."""

    PATIENT_DATE = "patient/date"
    DATE_PATIENT = "date/patient"


class Label(Enum):
    """What a patient's folder is called."""

    NAME = "name"
    NAME_ID = "name-id"
    ID = "id"


class DateFormat:
    """A way to write dates: `%Y`, `%m`, `%d`, `%b` and `%B` (English names of months), and plain text.

    Raises ValueError, in words for a user, for a format that would make two dates equal, is too long, or
    holds what Windows does not allow in a name.
    """

    def __init__(self, text: str = DEFAULT_DATE_FORMAT) -> None:
        self.text = text
        parts = re.split(r"(%.?)", text)
        pattern, used = "", set()
        for place, part in enumerate(parts):
            if place % 2 == 0 or part == "%%":
                pattern += re.escape(part.replace("%%", "%"))
                continue
            if part not in _DIRECTIVES:
                why = f" ({_NOT_SUFFICIENT[part]})" if part in _NOT_SUFFICIENT else ""
                raise ValueError(f"{', '.join(_DIRECTIVES)} and plain text, not {part}{why}")
            name, digits = _DIRECTIVES[part]
            # The first of each kind is read; that the others agree is seen by writing the date again.
            pattern += f"(?:{digits})" if name in used else f"(?P<{name}>{digits})"
            used.add(name)
        for lacking, what in (
            ({"Y"}, "the year (%Y)"),
            ({"m", "b", "B"}, "the month (%m)"),
            ({"d"}, "the day (%d)"),
        ):
            if not used & lacking:
                raise ValueError(f"{what} too: without it two dates would be one folder")
        self._pattern = re.compile(pattern, re.IGNORECASE)
        self._parts = parts
        for month in range(1, 13):
            sample = self.write(f"2024{month:02}28")
            if component(sample, 10 * DATE_UNITS) != sample:
                raise ValueError(f"only what Windows allows in the name of a folder, unlike '{sample}'")
            if units(sample) > DATE_UNITS:
                raise ValueError(f"at most {DATE_UNITS} characters for a date, unlike '{sample}'")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DateFormat) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"DateFormat({self.text!r})"

    def write(self, day: str) -> str:
        """A date, `YYYYMMDD`, as this format has it; the empty one is a fixed word."""
        if not day:
            return UNKNOWN_DATE
        year, month, of_month = day[:4], day[4:6], day[6:]
        name = _MONTHS[int(month) - 1]
        values = {"%Y": year, "%m": month, "%d": of_month, "%b": name[:3], "%B": name, "%%": "%"}
        return "".join(values.get(part, part) for part in self._parts)

    def read(self, text: str) -> tuple[str, str] | None:
        """The date that a text begins with, in any case, and what follows it; None when it is none."""
        if fold(text[: len(UNKNOWN_DATE)]) == fold(UNKNOWN_DATE):
            return "", text[len(UNKNOWN_DATE) :]
        match = self._pattern.match(text)
        if match is None:
            return None
        parts = match.groupdict()
        name = (parts.get("B") or parts.get("b") or "").title()
        month = parts.get("m") or next(
            (f"{n:02}" for n, m in enumerate(_MONTHS, 1) if name and m.startswith(name)), ""
        )
        day = f"{parts['Y']}{month}{parts['d']}"
        try:
            date.fromisoformat(day)
        except ValueError:
            return None
        return (day, text[match.end() :]) if fold(self.write(day)) == fold(match[0]) else None


def id_label(id_folder: str, suffix: str) -> str:
    """The Patient ID as a name of at most `ID_UNITS` units, without round brackets.

    `id_folder`: the component that the index keeps, or empty; `suffix`: what tells equal ones apart.
    """
    base = component(id_folder.translate(_SQUARE), ID_UNITS) or NO_ID
    if not suffix:
        return base
    # With its own bracket turned square, it reads well inside the round one of name and ID.
    return suffixed(base, suffix.translate(_SQUARE), ID_UNITS).translate(_SQUARE)


_SQUARE: Final = str.maketrans("()", "[]")


@dataclass(frozen=True, slots=True)
class PatientName:
    """What the index keeps to name a patient."""

    folder: str
    """The name, with its suffix if it has one."""
    id_folder: str
    id_suffix: str


@dataclass(frozen=True, slots=True)
class PatientKey:
    """The unique key that a patient's folder is found by."""

    by_id: bool
    """`patients.id_key`; else `patients.folder_key`."""
    key: str


@dataclass(frozen=True, slots=True)
class Spelling:
    """The names of one view."""

    label: Label = Label.NAME
    dates: DateFormat = field(default_factory=DateFormat)
    pad: int = 0
    """Digits that numbers are padded to with zeros."""

    def patient(self, name: PatientName) -> str:
        """Name of a patient's folder, at most `naming.PATIENT_UNITS` units."""
        if self.label is Label.NAME:
            return name.folder
        identity = id_label(name.id_folder, name.id_suffix)
        if self.label is Label.ID:
            return identity
        tail = f" ({identity})"
        return component(name.folder, PATIENT_UNITS - units(tail)) + tail

    def patient_key(self, text: str) -> PatientKey | None:
        """Where to look for the patient of a folder of this name, in any case; None: there is none.

        Whoever is found bears the name only if `patient` says so.
        """
        if self.label is Label.NAME:
            return PatientKey(False, fold(text))
        if self.label is Label.ID:
            return PatientKey(True, fold(text))
        _, bracket, identity = text.rpartition(" (")
        return PatientKey(True, fold(identity[:-1])) if bracket and identity.endswith(")") else None

    def exam(self, day: str, stored: str) -> str:
        """Name of an exam's folder below its patient; `stored`: with the date as the index has it."""
        return self.dates.write(day) + _tail(day, stored)

    def exam_key(self, text: str) -> str | None:
        """Folded stored name (`exams.folder_key`) of the exam that this view calls so."""
        found = self.dates.read(text)
        return fold(exam_folder(found[0]) + found[1]) if found else None

    def exam_of_day(self, name: PatientName, day: str, stored: str) -> str:
        """Name of an exam's folder below its date: the patient, with the tail of a further study."""
        label, tail = self.patient(name), _tail(day, stored)
        if not tail:
            return label + _FIRST if _TAIL.search(label) else label
        return label + (tail if _TIME_TAIL.fullmatch(tail) else tail.replace("(", "(study ", 1))

    def exam_of_day_key(self, day: str, text: str) -> tuple[PatientKey, str] | None:
        """Keys of patient and exam behind a name below a date."""
        match = _TAIL.search(text)
        label, tail = (text[: match.start()], match[0].lower()) if match else (text, "")
        patient = self.patient_key(label)
        tail = "" if tail == _FIRST else tail.replace("(study ", "(", 1)
        return (patient, fold(exam_folder(day) + tail)) if patient else None


def _tail(day: str, stored: str) -> str:
    """What the index has added to an exam's date, with its space and brackets; usually nothing."""
    return stored[len(exam_folder(day)) :]
