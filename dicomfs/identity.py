"""Who is one patient: what headers say of a person, compared.

Pure. Two patients in one folder is a wrong report, one patient in two is a search for the earlier exam; so
headers are one person only if something confirms it and nothing important contradicts. `compare` is the
whole rule, and ARCHITECTURE.md has it as a table; `patients.py` asks it about everything that a patient's
folder holds, so that no two data sets that contradict each other ever share one, in whatever order they come.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from enum import Enum
from typing import Final

from dicomfs.model import Header
from dicomfs.naming import fold

_ANONYMOUS: Final = frozenset(
    {
        *("anon", "anonym", "anonyme", "anonymized", "anonymised", "anonymous", "anonymus", "anonimo"),
        *("anonymisiert", "deidentified", "identified", "removed", "dummy", "default", "empty"),
        *("unknown", "unbekannt", "unbekannte", "unbekannter", "inconnu", "inconnue", "desconocido"),
        *("desconocida", "sconosciuto", "sconosciuta", "unspecified", "undefined", "missing"),
        *("none", "noname", "null", "nil", "emergency", "notfall", "urgence", "trauma"),
    }
)
"""Words, folded, that stand where nobody wanted to write, or knew, a name or an ID."""
_BESIDE: Final = frozenset(
    {"de", "name", "no", "patient", "id", "male", "female", "man", "woman", "m", "f", "x", "xx", "xxx"}
)
"""Words beside which those may stand: `UNKNOWN^MALE`, `De-Identified`."""
_NOTHING: Final = frozenset({"na", "n a", "no id", "no name"})
_EARLIEST_BIRTH: Final = "19010101"
"""Before that, a birth date is a filler, such as 19000101 or 00010101."""
_LATEST_BIRTH: Final = "22001231"

_LETTERS: Final = str.maketrans(
    {"ø": "o", "œ": "oe", "æ": "ae", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "ё": "е"}
)
_TWO_FOR_ONE: Final = re.compile("(?<=[aou])e|(?<=a)a")
"""Müller is Mueller where there is no ü, Ålborg is Aalborg."""
_WORD: Final = re.compile(r"[^\W_]+")
_KATAKANA: Final = {code: code - 0x60 for code in range(0x30A1, 0x30F7)}
_MARKED: Final = ("LATIN", "GREEK")
"""Scripts whose accents come and go with the equipment; elsewhere marks are letters."""


class Verdict(Enum):
    """Whether two headers are one person."""

    SAME = "same"
    """Something besides the ID confirms it."""
    MAYBE = "maybe"
    """Nothing confirms and nothing contradicts it."""
    OTHER = "other"


class Likeness(Enum):
    """How two names compare."""

    EQUAL = "equal"
    """One name, but for spelling."""
    ABRIDGED = "abridged"
    """One is a part of the other, of two words at least; initials will do."""
    AKIN = "akin"
    """A word in common: a married name, a name with a misspelt part, or relatives."""
    FOREIGN = "foreign"
    """Nothing in common."""
    UNKNOWN = "unknown"
    """One is missing, or they have no script in common."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a header says of a person, without differences of spelling. Empty means unknown."""

    issuer: str
    patient_id: str
    """Case counts in IDs (LO is case-sensitive, PS3.5 6.2); fillers such as `0000` or `ANON` are none."""
    name: str
    """Keys of the groups of the name, joined by `=`; fillers such as `ANONYMOUS` are none."""
    birth_date: str
    """YYYYMMDD; fillers such as 19000101 are none."""
    sex: str
    """M, F or empty."""
    study: str
    """The Study Instance UID, when the rest is too little to recognise the person in another study."""

    @property
    def text(self) -> str:
        """All of it as one line each."""
        return "\n".join(astuple(self))

    @property
    def is_weak(self) -> bool:
        """Only the study holds such data sets together."""
        return bool(self.study)


def identity_of(header: Header) -> Identity:
    """The person a header is about."""
    patient_id = patient_id_key(header.patient_id)
    issuer = _unpadded(header.issuer) if patient_id else ""
    name = "=".join(dict.fromkeys(filter(None, map(name_key, header.patient_names))))
    is_birth = _EARLIEST_BIRTH < header.birth_date <= _LATEST_BIRTH
    birth_date = header.birth_date if is_birth else ""
    known = bool(name or birth_date) if patient_id else bool(name and birth_date)
    return Identity(issuer, patient_id, name, birth_date, header.sex, "" if known else header.study_uid)


def patient_id_key(text: str) -> str:
    """A Patient ID as `Identity` has it."""
    words = _words(text)
    return "" if _is_filler(words) or not "".join(words).strip("0") else _unpadded(text)


def name_key(group: str) -> str:
    """Words of one group of a PN, as they compare; empty when it names nobody.

    Family, given and middle name: titles come and go. Case, width, hyphens and commas do not count, nor
    accents on Latin and Greek letters or what is written for them (Müller, Muller, Mueller), nor which kana.
    """
    words = _words(" ".join(group.replace("\0", "").split("^")[:3]))
    return "" if _is_filler(words) else " ".join(words)


def compare_names(one: str, other: str) -> Likeness:
    """Two names as `Identity` has them; any group may agree with any other."""
    pairs = [
        (a, b) for a in one.split("=") for b in other.split("=") if a and b and _scripts(a) & _scripts(b)
    ]
    if not pairs:
        return Likeness.UNKNOWN
    if any(a.replace(" ", "") == b.replace(" ", "") for a, b in pairs):
        return Likeness.EQUAL
    if any(_is_abridged(a.split(), b.split()) for a, b in pairs):
        return Likeness.ABRIDGED
    akin = any(len(word) > 1 for a, b in pairs for word in {*a.split()} & {*b.split()})
    return Likeness.AKIN if akin else Likeness.FOREIGN


def compare(one: Identity, other: Identity) -> Verdict:
    """The rule, symmetric; the table in ARCHITECTURE.md. The study they belong to is not looked at."""
    if one.patient_id != other.patient_id or _contradict(one.issuer, other.issuer):
        return Verdict.OTHER
    name = compare_names(one.name, other.name)
    born_alike = one.birth_date == other.birth_date != ""
    other_birth, other_sex = _contradict(one.birth_date, other.birth_date), _contradict(one.sex, other.sex)
    has_one_name = name in (Likeness.EQUAL, Likeness.ABRIDGED)
    if not one.patient_id:
        if name is Likeness.EQUAL and born_alike and not other_sex:
            return Verdict.SAME
        may_be = name in (Likeness.EQUAL, Likeness.UNKNOWN) and not other_birth and not other_sex
        return Verdict.MAYBE if may_be else Verdict.OTHER
    if one.issuer != other.issuer:  # one is unknown: the ID may be another hospital's
        return Verdict.SAME if has_one_name and born_alike and not other_sex else Verdict.OTHER
    if has_one_name:
        return Verdict.OTHER if other_birth and other_sex else Verdict.SAME
    if name is Likeness.FOREIGN or other_birth or other_sex:
        return Verdict.OTHER
    if born_alike:
        return Verdict.SAME
    return Verdict.OTHER if name is Likeness.AKIN else Verdict.MAYBE


def compare_with_all(one: Identity, others: Sequence[Identity]) -> Verdict:
    """The same of one header and everything that is known of a patient: whoever contradicts decides."""
    verdicts = {compare(one, other) for other in others}
    return next((v for v in (Verdict.OTHER, Verdict.SAME) if v in verdicts), Verdict.MAYBE)


def _unpadded(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\0", "").strip())


def _contradict(one: str, other: str) -> bool:
    """Both known, and not the same."""
    return bool(one) and bool(other) and one != other


def _words(text: str) -> list[str]:
    """Words as they compare."""
    wide = unicodedata.normalize("NFKC", text)
    kept, is_marked = [], False
    for c in unicodedata.normalize("NFD", fold(wide)):
        if unicodedata.category(c) != "Mn":
            is_marked = unicodedata.name(c, "").startswith(_MARKED)
        elif is_marked:
            continue
        kept.append(c)
    plain = unicodedata.normalize("NFC", "".join(kept)).translate(_LETTERS).translate(_KATAKANA)
    return [_TWO_FOR_ONE.sub("", word) for word in _WORD.findall(plain)]


_FILLERS: Final = frozenset(word for text in _ANONYMOUS for word in _words(text))
_BESIDE_FILLERS: Final = frozenset(word for text in _BESIDE for word in _words(text)) | _FILLERS


def _is_filler(words: Sequence[str]) -> bool:
    is_one = any(word in _FILLERS for word in words) and all(word in _BESIDE_FILLERS for word in words)
    return is_one or " ".join(words) in _NOTHING


def _scripts(name: str) -> frozenset[str]:
    """Scripts of its letters, e.g. `LATIN`, `CJK`; where there are none, of its digits."""
    scripts = {unicodedata.name(c, "?").split()[0].split("-")[0] for c in name if c.isalpha()}
    return frozenset(scripts or {"DIGIT"})


def _is_abridged(one: Sequence[str], other: Sequence[str]) -> bool:
    short, long = sorted((one, other), key=lambda words: (len(words), words))
    rest, whole = list(long), 0
    for word in sorted(short, key=len, reverse=True):
        same = [w for w in rest if w == word]
        found = same or [w for w in rest if w[0] == word[0] and 1 in (len(w), len(word))]
        if not found:
            return False
        rest.remove(found[0])
        whole += bool(same) and len(word) > 1
    return len(short) > 1 and whole > 0
