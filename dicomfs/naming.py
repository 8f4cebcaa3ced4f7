"""Headers -> names: safe on Linux, Samba, Windows and macOS, readable by a clinician, reversible.

Pure: text in, text out. Nothing here knows the index or the tree, so nothing here decides whether a
name is taken; it only makes names, the suffix that tells two of them apart, and the key (`fold`)
under which two names are one on some client. `ingest.py` stores what comes from here; `tree.py` parses
file names back with `parse_file_name`.
"""

import hashlib
import re
import unicodedata
from typing import NamedTuple

from dicomfs.remember import remembered

# The budget of a path, in UTF-16 units, since that is what Windows counts: its ordinary API takes 259.
#   40  `\\server\share\`, such as `\\radiology-fs.hospital.example\imaging\`
#   24  a view's folder, such as `tiff16 C-600 W1500`, and its separator
#   65  patient, 33 exam, with their separators
#   97  image: the series' label, and 52 for `_-2147483648_-2147483648 (a1b2c3d4e5f6a7)_16000.tiff`
# A unit takes at most 3 bytes of UTF-8, so no component comes near the 255 bytes that Linux allows.
VIEW_UNITS = 23
PATIENT_UNITS = 64
EXAM_UNITS = 32
SERIES_UNITS = 45
_COMPONENT_BYTES = 255
_SUFFIXED_BASE_UNITS = 12
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
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What else has no shape: the rest of Default_Ignorable_Code_Point (UAX 44), and an empty Braille cell."""
_JOINER = "\u200d"
_PICTOGRAPH = "[\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\U0001f000-\U0001faff]"
_IDLE_JOINER = re.compile(f"(?<!{_PICTOGRAPH}){_JOINER}+|{_JOINER}+(?!{_PICTOGRAPH})")
"""One that does not make one emoji of two."""
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)
_THAI_AM = "\u0e33\u0eb3"
"""Letters by their category, which stand on the letter before them nevertheless."""
_INITIAL, _MEDIAL, _FINAL = (
    "\u1100-\u115e\ua960-\ua97f",
    "\u1160-\u11a7\ud7b0-\ud7c6",
    "\u11a8-\u11ff\ud7cb-\ud7fb",
)
_JAMO = re.compile(
    f"[{_INITIAL}][{_INITIAL}{_MEDIAL}]|[{_MEDIAL}][{_MEDIAL}{_FINAL}]|[\uac00-\ud7a3{_FINAL}][{_FINAL}]"
)
"""Two letters of one Korean syllable that has no code of its own."""
_VIRAMA = 9
"""Canonical combining class of what joins two Indic consonants."""
_ENDS_LIKE_A_NUMBER = re.compile(r"_(-?[0-9]+)$")
_DOTTED_I = re.compile("i\u0307+")
_NUMBER = r"-?[0-9]{1,12}"
_FILE_NAME = re.compile(
    rf"(?P<series>.+?)_(?P<number>{_NUMBER})_(?P<instance>{_NUMBER})"
    r"(?: \((?P<suffix>[0-9a-f]+)\))?(?:_(?P<frame>[0-9]{1,12}))?\.(?P<extension>[a-z0-9]{1,8})",
    re.DOTALL,
)


class FileName(NamedTuple):
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


@remembered(256, 200)
def fold(name: str) -> str:
    """Key under which two names are the same folder on some client.

    Canonical caseless matching (Unicode 3.13, D145), widened by the upper-casing that Windows and Samba
    do, for which dotless i is I and dotted capital I is i. It may join more than any one client does:
    that costs a suffix, whereas joining less would hide a folder. Joiners do not count, as on HFS+.
    """
    decomposed = unicodedata.normalize("NFD", name.replace(_JOINER, ""))
    folded = unicodedata.normalize("NFD", decomposed.upper().casefold())
    return unicodedata.normalize("NFC", _DOTTED_I.sub("i", folded))


def component(text: str, limit: int) -> str:
    """One path component of at most `limit` UTF-16 units out of any text; empty when nothing is left.

    One rule for characters: what has a shape but may not be used becomes `-` (so `T2*` stays apart
    from `T2`); white space becomes one space; what has no shape is dropped, but for the joiners inside
    an emoji. Dots and spaces at either end go (hidden files; Windows drops them at the end), and accents
    that have no letter. Names that Windows or a share reserves get `_` after the part before the first
    dot. `component(component(x)) == component(x)`.
    """
    spaced = " ".join(unicodedata.normalize("NFC", text).split())
    shown = "".join(c for c in spaced if c == _JOINER or unicodedata.category(c) not in _LOST)
    usable = unicodedata.normalize("NFC", _UNUSABLE.sub("-", _UNSEEN.sub("", shown)))
    # Last, since it looks at neighbours; what loses a joiner may compose.
    joined = unicodedata.normalize("NFC", _IDLE_JOINER.sub("", usable))
    name = _cut(_trimmed(" ".join(joined.split())), limit)
    if not _reserved(name):
        return name
    stem, dot, rest = name.partition(".")
    safe = f"{stem.rstrip()}_{dot}{rest}"
    return safe if units(safe) <= limit else f"{_cut(stem.rstrip(), limit - 1)}_"


def units(text: str) -> int:
    """Length in UTF-16 units, as Windows counts. (A lone surrogate is one.)"""
    return len(text) + sum(c > "\uffff" for c in text)


def patient_folder(patient_name: str, patient_id: str) -> str:
    """`Family Given Middle Prefix Suffix` of the PN group (PS3.5 6.2.1.1), else the id, else a fixed word.

    What has neither a letter nor a digit, such as `---`, is taken only when there is nothing better.
    """
    names = [component(patient_name.replace("^", " "), PATIENT_UNITS), component(patient_id, PATIENT_UNITS)]
    telling = [name for name in names if any(map(str.isalnum, name))]
    return next(filter(None, telling + names), UNKNOWN_PATIENT)


def patient_suffix_of_birth(birth_date: str) -> str:
    """`born YYYY-MM-DD` of a `YYYYMMDD`, else empty: what tells namesakes of one Patient ID apart."""
    return f"born {exam_folder(birth_date)}" if birth_date else ""


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


@remembered(256, 200)
def series_label(text: str) -> str:
    """First part of a file name; never ends in `_` and a number, so that names parse from the right."""
    label = component(text, SERIES_UNITS)
    while _ENDS_LIKE_A_NUMBER.search(label):
        label = component(_ENDS_LIKE_A_NUMBER.sub(r" \1", label), SERIES_UNITS)
    return label or UNKNOWN_SERIES


def suffixed(base: str, suffix: str, limit: int) -> str:
    """`base (suffix)` in at most `limit` units (at least 16): `base` is cut, and the suffix made safe.

    A suffix too long to leave anything of `base` is cut as well, so two long ones can come out equal:
    the caller that needs uniqueness then takes a `short_hash`.
    """
    safe = component(suffix, limit - _SUFFIXED_BASE_UNITS - len(" ()"))
    if not safe:
        return component(base, limit)
    room = limit - units(f" ({safe})")
    return f"{component(base, room)} ({safe})".lstrip()


def short_hash(uid: str, digits: int) -> str:
    """First `digits` (at most 64) lower-case hexadecimal digits of the SHA-256 of the text."""
    return hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def file_name(name: FileName, pad: int = 0) -> str:
    """`Series_Number_Image.ext`, with ` (suffix)` and `_Frame` after the image number where given.

    Numbers are filled up to `pad` digits with zeros.
    """
    series, series_number, instance_number, suffix, frame, extension = name
    text = f"{series}_{_number(series_number, pad)}_{_number(instance_number, pad)}"
    if suffix:
        text += f" ({suffix})"
    if frame:
        text += f"_{_number(frame, pad)}"
    return f"{text}.{extension}"


def _number(value: int, pad: int) -> str:
    return f"{'-' if value < 0 else ''}{abs(value):0{pad}}" if pad else str(value)


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


def _reserved(name: str) -> bool:
    folded = fold(name)
    return folded in VETOED_NAMES or _RESERVED_STEM.fullmatch(folded.partition(".")[0]) is not None


def _trimmed(name: str) -> str:
    """Without dots, spaces and stray accents in front, and dots and spaces behind."""
    start = 0
    while start < len(name) and (name[start] in " ." or unicodedata.category(name[start])[0] == "M"):
        start += 1
    return name[start:].rstrip(" .")


def _cut(name: str, limit: int) -> str:
    """The longest beginning of at most `limit` units that splits nothing which is seen as one character."""
    if units(name) <= limit and len(name.encode()) <= _COMPONENT_BYTES:
        return name
    fits = length = size = 0
    for c in name:
        length += units(c)
        size += len(c.encode())
        if length > limit or size > _COMPONENT_BYTES:
            break
        fits += 1
    end = fits
    while end and _is_one(name, end):
        end -= 1
    return name[: end or fits].rstrip(" .")


def _is_one(name: str, place: int) -> bool:
    """Whether a grapheme cluster (UAX 29) goes on from the character before `place` to the one there."""
    before, c = name[place - 1], name[place]
    if unicodedata.category(c)[0] == "M" or _JOINER in (before, c) or c in _THAI_AM:
        return True
    if ord(c) in _SKIN_TONES:
        return True
    if ord(c) in _FLAG_LETTERS:
        letters = 0
        while letters < place and ord(name[place - 1 - letters]) in _FLAG_LETTERS:
            letters += 1
        return letters % 2 == 1
    is_conjunct = unicodedata.combining(before) == _VIRAMA and unicodedata.category(c) == "Lo"
    return is_conjunct or _JAMO.fullmatch(before + c) is not None
