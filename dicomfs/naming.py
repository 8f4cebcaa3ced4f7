"""Headers -> names: safe on Linux, Samba, Windows and macOS, readable by a clinician, reversible.

Pure: text in, text out. Nothing here knows the index or the tree, so nothing here decides whether a
name is taken; it only makes names, the suffix that tells two of them apart, and the key (`fold`)
under which two names are one on some client. `ingest.py` stores what comes from here; `tree.py` parses
file names back with `parse_file_name`.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

# The budget of a path. Windows' ordinary API takes 259 UTF-16 units; a UTF-16 unit never takes less than
# one byte of UTF-8, so limits in bytes hold for both. 40 for \\server\share\, 4 for a format's folder,
# 80 + 1 patient, 32 + 1 exam, 64 series label, 37 for `_12345_123456 (a1b2c3)_123456.jpg`: 259.
# (One component may have 255 bytes on Linux and 255 units on NTFS: far away.)
PATIENT_BYTES = 80
EXAM_BYTES = 32
SERIES_BYTES = 64
_SUFFIXED_BASE_BYTES = 12
"""A suffix is cut before less than this is left of the name it belongs to."""

UNKNOWN_PATIENT = "Unknown patient"
UNKNOWN_DATE = "Unknown date"
UNKNOWN_SERIES = "Series"

VETOED_NAMES = frozenset(
    {
        "desktop.ini",
        "thumbs.db",
        "ehthumbs.db",
        "autorun.inf",
        "$recycle.bin",
        "system volume information",
        "network trash folder",
        "temporary items",
    }
)
"""Names, folded, that a file browser gives a meaning of its own and that a Samba share may veto. Those
that begin with a dot (`.DS_Store`, `._*`) need no entry: no component begins with one."""

# https://learn.microsoft.com/windows/win32/fileio/naming-a-file; COM0 and LPT0 are refused by some versions.
_RESERVED_STEM = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *")
_UNUSABLE = re.compile(r'[<>:"/\\|?*~]')
"""Illegal on Windows, or a separator; `~` because `NAME~1` is how Windows spells short aliases."""
_LOST = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
"""Control, format (direction marks, joiners, BOM), surrogate, private and unassigned characters."""
_ENDS_LIKE_A_NUMBER = re.compile(r"_(-?[0-9]+)$")
_DOTTED_I = re.compile("i\u0307+")
_NUMBER = r"-?[0-9]{1,12}"
_FILE_NAME = re.compile(
    rf"(?P<series>.+?)_(?P<number>{_NUMBER})_(?P<instance>{_NUMBER})"
    r"(?: \((?P<suffix>[0-9a-f]+)\))?(?:_(?P<frame>[0-9]{1,12}))?\.(?P<extension>[a-z0-9]{1,8})",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class FileName:
    """The parts of `Series_Number_Image (suffix)_Frame.ext`."""

    series: str
    """A `series_label`, with its own ` (suffix)` if it has one."""
    series_number: int
    instance_number: int
    suffix: str
    """Lower-case hexadecimal digits that tell two images of one number apart, or empty."""
    frame: int
    """Counted from 1; 0 when the name has no frame."""
    extension: str
    """1 to 8 lower-case letters and digits, without the dot."""


@dataclass(frozen=True, slots=True)
class PatientKey:
    """Who a patient is, spelling taken away; made by `patient_key` only. Empty text means unknown."""

    issuer: str
    patient_id: str
    name: str
    birth_date: str


def fold(name: str) -> str:
    """Key under which two names are the same folder on some client.

    Canonical caseless matching (Unicode 3.13, D145), widened by the upper-casing that Windows and Samba
    do, for which dotless i is I and dotted capital I is i. It may join more than any one client does:
    that costs a suffix, whereas joining less would hide a folder.
    """
    decomposed = unicodedata.normalize("NFD", name)
    folded = unicodedata.normalize("NFD", decomposed.upper().casefold())
    return unicodedata.normalize("NFC", _DOTTED_I.sub("i", folded))


def component(text: str, limit: int) -> str:
    """One path component of at most `limit` bytes of UTF-8 out of any text; empty when nothing is left.

    One rule for characters: what has a shape but may not be used becomes `-` (so `T2*` stays apart
    from `T2`); white space becomes one space; what has no shape is dropped. Dots and spaces at either
    end go (hidden files; Windows drops them at the end). Names that Windows or a share reserves
    get `_` after the part before the first dot. `component(component(x)) == component(x)`.
    """
    spaced = " ".join(unicodedata.normalize("NFC", text).split())
    shown = "".join(c for c in spaced if unicodedata.category(c) not in _LOST)
    usable = unicodedata.normalize("NFC", _UNUSABLE.sub("-", shown))
    name = _cut(" ".join(usable.split()).strip(" ."), limit)
    if not _reserved(name):
        return name
    stem, dot, rest = name.partition(".")
    safe = f"{stem.rstrip()}_{dot}{rest}"
    return safe if len(safe.encode()) <= limit else f"{_cut(stem.rstrip(), limit - 1)}_"


def patient_folder(patient_name: str, patient_id: str) -> str:
    """`Family Given Middle Prefix Suffix` of the PN group (PS3.5 6.2.1.1), else the id, else a fixed word."""
    name = component(patient_name.replace("^", " "), PATIENT_BYTES)
    return name or component(patient_id, PATIENT_BYTES) or UNKNOWN_PATIENT


def exam_folder(study_date: str) -> str:
    """`YYYY-MM-DD` of a `YYYYMMDD`, else a fixed word."""
    if not re.fullmatch(r"[0-9]{8}", study_date):
        return UNKNOWN_DATE
    return f"{study_date[:4]}-{study_date[4:6]}-{study_date[6:]}"


def exam_suffix(study_time: str) -> str:
    """`HH.MM.SS` of an `HHMMSS`, else empty."""
    if not re.fullmatch(r"[0-9]{6}", study_time):
        return ""
    return f"{study_time[:2]}.{study_time[2:4]}.{study_time[4:]}"


def series_label(text: str) -> str:
    """First part of a file name; never ends in `_` and a number, so that names parse from the right."""
    label = component(text, SERIES_BYTES)
    while _ENDS_LIKE_A_NUMBER.search(label):
        label = component(_ENDS_LIKE_A_NUMBER.sub(r" \1", label), SERIES_BYTES)
    return label or UNKNOWN_SERIES


def suffixed(base: str, suffix: str, limit: int) -> str:
    """`base (suffix)` in at most `limit` bytes (at least 16): `base` is cut, and the suffix made safe.

    A suffix too long to leave anything of `base` is cut as well, so two long ones can come out equal:
    the caller that needs uniqueness then takes a `short_hash`.
    """
    safe = component(suffix, limit - _SUFFIXED_BASE_BYTES - len(" ()"))
    if not safe:
        return component(base, limit)
    room = limit - len(f" ({safe})".encode())
    return f"{component(base, room)} ({safe})".lstrip()


def short_hash(uid: str, digits: int) -> str:
    """First `digits` (at most 64) lower-case hexadecimal digits of the SHA-256 of the text."""
    return hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def file_name(name: FileName, pad: int = 0) -> str:
    """`Series_Number_Image.ext`, with ` (suffix)` and `_Frame` after the image number where given.

    Numbers are filled up to `pad` digits with zeros.
    """
    suffix = f" ({name.suffix})" if name.suffix else ""
    frame = f"_{_number(name.frame, pad)}" if name.frame else ""
    numbers = f"{_number(name.series_number, pad)}_{_number(name.instance_number, pad)}"
    return f"{name.series}_{numbers}{suffix}{frame}.{name.extension}"


def _number(value: int, pad: int) -> str:
    return f"{'-' if value < 0 else ''}{abs(value):0{pad}}"


def parse_file_name(text: str, pad: int = 0) -> FileName | None:
    """Exact inverse of `file_name` for every series label and numbers of up to 12 digits.

    None for whatever `file_name` would not write, e.g. `007` (without `pad`), `-0` or upper-case
    hexadecimal digits. No two readings are possible: a label does not end in `_` and a number, so two
    numbers at the end are series and image, three have a frame, and brackets followed by two numbers
    belong to the label.
    """
    match = _FILE_NAME.fullmatch(text)
    if match is None or _ENDS_LIKE_A_NUMBER.search(match["series"]):
        return None
    name = FileName(
        series=match["series"],
        series_number=int(match["number"]),
        instance_number=int(match["instance"]),
        suffix=match["suffix"] or "",
        frame=int(match["frame"] or 0),
        extension=match["extension"],
    )
    # Zeros only where they would be written, no frame 0, no number -0.
    return name if file_name(name, pad) == text else None


def patient_key(issuer: str, patient_id: str, patient_name: str, birth_date: str) -> PatientKey:
    """The patient of a header, without differences of spelling.

    Names: case, white space, NUL and empty components (`DOE^JOHN^^` is `Doe^John`) do not count, nor does
    whether a space or a caret parts two words. Ids keep their case (LO is case-sensitive, PS3.5 6.2) and
    lose padding.
    """
    words = patient_name.replace("\0", "").replace("^", " ").split()
    return PatientKey(_unpadded(issuer), _unpadded(patient_id), fold(" ".join(words)), birth_date)


def same_patient(a: PatientKey, b: PatientKey) -> bool:
    """Whether two keys are one person, as far as one may say so without asking anybody.

    With an id: same issuer and id, unless the names are known and differ and no birth date, known on both
    sides and equal, says that it is one person all the same (an id used twice, or a placeholder).
    Without: same known name and same birth date. An unknown patient is the same as nobody, not even as
    itself: each such study is its own patient. Not transitive (an unknown name agrees with any two):
    compare with the key that a patient was created with.
    """
    if a.patient_id or b.patient_id:
        born_alike = bool(a.birth_date) and a.birth_date == b.birth_date
        conflict = _differ(a.name, b.name) and not born_alike
        return (a.issuer, a.patient_id) == (b.issuer, b.patient_id) and not conflict
    return bool(a.name) and a.name == b.name and a.birth_date == b.birth_date


def _differ(a: str, b: str) -> bool:
    """Both known and not the same."""
    return bool(a) and bool(b) and a != b


def _unpadded(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\0", "").strip())


def _reserved(name: str) -> bool:
    folded = fold(name)
    return folded in VETOED_NAMES or _RESERVED_STEM.fullmatch(folded.partition(".")[0]) is not None


def _cut(name: str, limit: int) -> str:
    """The longest beginning of `limit` bytes that splits no character from its accents."""
    encoded = name.encode()
    if len(encoded) <= limit:
        return name
    kept = encoded[: max(limit, 0)].decode("utf-8", "ignore")
    end = len(kept)
    while end and unicodedata.category(name[end]).startswith("M"):
        end -= 1
    return (name[:end] or kept).rstrip(" .")
