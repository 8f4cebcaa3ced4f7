"""The vocabulary: frozen values that travel between the modules, and nothing that does anything.

Used by everyone, uses nobody. Ids are receipt sequence numbers (positive integers, never re-used): an
original's id is its own; an instance, series, exam or patient bears the id of the original that
created it.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Header:
    """What the index keeps of one data set; text is decoded but not yet made safe for file names.

    UIDs that the data set lacks are replaced by derived ones (`header.py` has the rule). Empty text
    means missing.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    derived_uids: tuple[str, ...]
    """Keywords of the UIDs that were missing and had to be derived, for the log."""

    patient_id: str
    issuer: str
    patient_name: str
    """The group of PatientName that people read: alphabetic, else ideographic, else phonetic; decoded,
    components still separated by `^`."""
    patient_names: tuple[str, ...]
    """All groups that say something, `patient_name` first; for telling who is who."""
    birth_date: str
    """YYYYMMDD or empty."""
    sex: str
    """M, F or empty."""

    study_date: str
    """YYYYMMDD of the exam, or empty: StudyDate, else Acquisition-, Series-, ContentDate."""
    study_time: str
    """HHMMSS or empty: StudyTime, else the time beside the date that was taken."""

    modality: str
    series_name: str
    """SeriesDescription, else ProtocolName, SequenceName, Modality."""
    series_number: int | None
    instance_number: int | None

    frames: int
    """NumberOfFrames, at least 1."""
    rows: int
    columns: int
    has_pixels: bool
    """True when a picture can be asked for: the data set has Pixel Data, Float or Double Float Pixel Data."""
    pool: str
    """Key of the images that share one grey scale, unique within the series; empty: decides alone."""

    acquired: float | None
    """Acquisition date and time, seconds since the epoch (UTC); None when missing or absurd."""

    pixel_offset: int | None
    """First byte of the value of native Pixel Data, counted from the start of the data set; None when
    encapsulated, deflated or absent."""
    pixel_length: int | None
    """Bytes of native Pixel Data."""
    outline: bytes | None = None
    """What a render needs of the header of a plain image (`outline.py`); None: it has to be parsed."""


class Duplicates(Enum):
    """What is done with other bytes under UIDs that are known already."""

    KEEP_FIRST = "keep-first"
    """Kept, but the first goes on being shown."""
    NEWEST = "newest"
    """Kept, and shown in the place of the earlier one, unless it bears another patient's identity."""
    BOTH = "both"
    """Kept, and shown beside the earlier one, under a name of its own."""
    REJECT = "reject"
    """Not taken: the sender is told."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a data set came in: becomes file meta information (PS3.10 table 7.1-1)."""

    transfer_syntax: str
    received: float
    """Seconds since the epoch (UTC)."""
    source_ae: str = ""
    """(0002,0016), (0002,0017): AE title of the sender; empty for an import that names none."""
    receiving_ae: str = ""
    """(0002,0018): our AE title; empty for an import."""
    sop_class_uid: str | None = None
    """As the command or the file meta announces it; checked against the data set when given."""
    sop_instance_uid: str | None = None
    duplicates: Duplicates = Duplicates.KEEP_FIRST
    """The policy in force; kept with the original, so that a rebuilt index shows the same."""


class Stored(Enum):
    """What became of one SOP instance that was taken in without error; all of them mean success."""

    NEW = "stored"
    ALREADY_THERE = "already there"
    REPAIRED = "repaired"
    OTHER_VERSION = "kept beside an earlier version"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Answer of `Ingest.receive`."""

    stored: Stored
    sop_instance_uid: str
    warnings: tuple[str, ...] = ()
    """Sentences for the log, by UID and never by patient."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How frames are made into pictures. Two equal recipes give equal bytes for equal input."""

    format: str
    """A name in `recipes.FORMATS`."""
    quality: int = 90
    """JPEG quality, 1 to 100; ignored by lossless formats."""
    window: str = "auto"
    """Window policy: `auto`, `header`, `full`, or centre/width such as `40/400` (`recipes.policy`)."""
    max_size: int = 0
    """Pixels of the longer side beyond which a picture is scaled down; 0: as large as it is."""
    square: bool = True
    """Pixels that are not square are resampled until they are (never in the formats of 16 bits)."""
    overlays: bool = True
    """Overlay planes (60xx) are drawn."""
    shutters: bool = True
    """What lies outside a display shutter is covered."""
    subtraction: bool = True
    """Angiograms that ask for it are shown with their mask subtracted."""
    marks: bool = False
    """Laterality and lossy compression are written in a corner of the picture."""


@dataclass(frozen=True, slots=True)
class PoolWindow:
    """What was decided for a pool of images that share one grey scale.

    `low` and `high` are modality units (after rescale): low is shown as 0, high as 255. Both None: each
    image shows its own header window.
    """

    low: float | None
    high: float | None
    reason: str
    """For an administrator, e.g. `header` or `P0.1-P99.9 + 10 % over 20 images`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the index knows of a plain image's file, so that a renderer need not parse it."""

    size: int
    """Bytes of the data set, which ends with the file."""
    pixel_offset: int
    """First byte of the pixel data, counted from the start of the data set."""
    outline: bytes
    """As `outline.py` packs it; its checksum tells whether file and index still fit."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one original lies, as a renderer needs it."""

    path: Path
    """The DICOM file in the archive."""
    frame: int = 0
    """Frame, counted from 0."""
    layout: Layout | None = None
    """None: the file has to be parsed. Makes no difference to the picture."""
