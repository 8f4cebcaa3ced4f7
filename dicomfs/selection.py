"""Which part of a store a view shows: modalities, and how far back.

Pure. `Since` is measured on the day of the exam, as people ask for "the last month"; an exam without a date
counts by the day of its receipt (UTC), and so does one whose date lies after its receipt (a wrong clock),
or it would never leave. Both are one column of the index, `exams.day`. Used by `config.py` (options),
`index.py` (conditions) and `aspect.py`.
"""

import calendar
import re
import time
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

ANY: Final = ""
"""In place of a modality: every one."""
_SPAN: Final = re.compile(r"([1-9][0-9]{0,4})(d|w|m|y)")
_MODALITY: Final = re.compile(r"[A-Z0-9 _]{1,16}")


@dataclass(frozen=True, slots=True)
class Since:
    """`30d`, `4w`, `6m`, `1y` (days, weeks, months, years until today), or a fixed day such as `2024-01-31`.

    Empty: no limit. Raises ValueError, in words for a user, for any other text.
    """

    text: str = ""

    def __post_init__(self) -> None:
        if self.text and not _SPAN.fullmatch(self.text):
            try:
                date.fromisoformat(self.text)
            except ValueError:
                raise ValueError(
                    "days, weeks, months or years such as 30d, 4w, 6m, 1y, or a date such as 2024-01-31"
                ) from None

    @property
    def is_moving(self) -> bool:
        """Whether what is shown changes as time passes."""
        return bool(_SPAN.fullmatch(self.text))

    def first_day(self, today: date) -> str:
        """The first day that is shown, `YYYYMMDD`; empty: all of them."""
        if not self.text:
            return ""
        span = _SPAN.fullmatch(self.text)
        if span is None:
            return _digits(date.fromisoformat(self.text))
        number, unit = int(span[1]), span[2]
        try:
            if unit in "dw":
                return _digits(today - timedelta(days=number * (7 if unit == "w" else 1)))
            months = today.year * 12 + today.month - 1 - number * (12 if unit == "y" else 1)
            year, month = months // 12, months % 12 + 1
            # A month before 31 March is the last day of February.
            return _digits(date(year, month, min(today.day, calendar.monthrange(year, month)[1])))
        except (OverflowError, ValueError):
            return ""  # before the calendar begins


def _digits(day: date) -> str:
    return day.isoformat().replace("-", "")


@dataclass(frozen=True, slots=True)
class Selection:
    """What one folder tree takes from the index."""

    shows: int = 0
    """What an instance must be showable as: `schema.PICTURES` or `schema.PDF`; 0: all are taken."""
    modalities: tuple[str, ...] = (ANY,)
    """As `modality_key` writes them."""
    first_day: str = ""
    """Of `exams.day`, `YYYYMMDD`; empty: all."""
    through: int = 2**63 - 1
    """Receipt sequence number through which names are shown (`gate.Mark`)."""

    def takes(self, modality: str, shows: int) -> bool:
        """Whether an instance of this Modality, showable as the sum `shows`, is in it."""
        wanted = ANY in self.modalities or modality_key(modality) in self.modalities
        return wanted and shows & self.shows == self.shows


def modality_key(modality: str) -> str:
    """A Modality (0008,0060) as filters compare it: CS has no lower case and no meaning in padding."""
    return modality.strip().upper()


def modalities(text: str) -> tuple[str, ...]:
    """The modalities of an option, `MR+XA`. Raises ValueError."""
    wanted = tuple(dict.fromkeys(modality_key(part) for part in text.split("+")))
    if not all(_MODALITY.fullmatch(part) for part in wanted):
        raise ValueError("one or several modalities as DICOM spells them, joined by +, such as MR+XA")
    return wanted


def day_of_exam(study_date: str, received: float) -> str:
    """What `Since` is measured on; `received`: seconds since the epoch. `YYYYMMDD`."""
    receipt = time.strftime("%Y%m%d", time.gmtime(received))
    # The day after: where the scanner stands, it may be tomorrow already.
    tomorrow = time.strftime("%Y%m%d", time.gmtime(received + 86_400))
    return study_date if study_date and study_date <= tomorrow else receipt
