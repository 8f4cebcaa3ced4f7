"""Names: legal everywhere, unique under folding, parsed back exactly."""

import ctypes
import hashlib
import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dicomfs import naming
from dicomfs.config import MOST_FRAMES
from dicomfs.naming import (
    FileName,
    component,
    exam_folder,
    exam_suffix,
    file_name,
    fold,
    parse_file_name,
    patient_folder,
    patient_suffix_of_birth,
    series_label,
    short_hash,
    suffixed,
    units,
)
from dicomfs.recipes import FORMATS, LABEL_LENGTH
from tests.support import lacking

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=120)  # with lone surrogates
HOSTILE_TEXT = st.text(
    "aA. _-/\\\0\u0301\u0338=<\u200d\u200b\u202e\ufe0f\u3164👩🏽🇫🇷葛\U000e0100각\u1100\u1161ﬁKıİ\ud800",
    max_size=40,
)
LABEL_TEXT = st.text("Az _-0149().é/\u0301", max_size=30)
NUMBERS = st.integers(-(10**12) + 1, 10**12 - 1)
# from Microsoft's "Naming files, paths and namespaces", written out rather than computed
WINDOWS_DEVICES = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
WINDOWS_DEVICES += [f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"]


def assert_legal(name: str) -> None:
    assert not set(name) & set('<>:"/\\|?*~')
    shown = re.sub(
        "(?<=[\u2190-\u27bf\U0001f000-\U0001faff])\u200d(?=[\u2190-\u27bf\U0001f000-\U0001faff])", "", name
    )
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn"} for c in shown)
    assert not name or unicodedata.category(name[0])[0] != "M"
    assert name == name.strip(" ")
    assert "  " not in name
    assert not name.startswith(".")
    assert not name.endswith(".")
    assert unicodedata.is_normalized("NFC", name)
    assert name.partition(".")[0].strip().upper() not in WINDOWS_DEVICES
    assert name.casefold() not in {"desktop.ini", "thumbs.db", "autorun.inf"}


@settings(deadline=None)
@given(ANY_TEXT | HOSTILE_TEXT, st.integers(4, 255))
@example("con", 4)
@example("NUL.txt", 5)
@example("desktop.ini", 11)
@example("a\u200d\u0301", 80)
@example("e" + "\u0301" * 60, 20)
def test_component_is_legal_and_fits(text: str, limit: int) -> None:
    name = component(text, limit)
    assert units(name) == len(name.encode("utf-16-le")) // 2 <= limit
    assert len(name.encode()) <= 255
    assert_legal(name)
    assert component(name, limit) == name


@pytest.mark.parametrize("device", WINDOWS_DEVICES)
def test_device_names_become_ordinary(device: str) -> None:
    for spelling in (device, device.lower(), f"{device}.txt", f"{device} .txt", f"{device}."):
        assert component(spelling, 64).partition(".")[0].strip().upper() == f"{device}_"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("../../etc/passwd", "-..-etc-passwd"),
        ("A/B\\C", "A-B-C"),
        ("T2* map", "T2- map"),
        ("  .hidden. ", "hidden"),
        (".DS_Store", "DS_Store"),
        ("._resource", "_resource"),
        ("Thumbs.db", "Thumbs_.db"),
        ("tab\tnew\r\nline\u00a0space", "tab new line space"),
        ("\ufeff\u202egnp.exe\0", "gnp.exe"),
        ("MULLER~1", "MULLER-1"),
        ("Mu\u0308ller", "Müller"),
        ("\0\u200b. .", ""),
        ("山田 太郎", "山田 太郎"),
        ("..", ""),
        ("a\0b/c", "ab-c"),
        ("\u2066evil\u2069\u200f\u202d txt", "evil txt"),
        ("in\u200bvis\u2060ible\ufeff", "invisible"),
        ("\u3164\u115f\u2800", ""),  # fillers that look like nothing
        ("\u0301Ann", "Ann"),  # an accent on the separator before it
        ("a\ud800b\udfffc", "abc"),
        ("a\ue000b\U0010ffffc\u0378d", "abcd"),  # private, no character, not assigned
        ("name . . ", "name"),
        ("bell\x07\x1b[31m", "bell[31m"),
        ("葛\U000e0100城", "葛城"),  # an ideograph's variant
        ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"),
        ("a\u200db\u200d👧\u200d", "ab👧"),
        ("❤\ufe0f\u200d🔥", "❤\u200d🔥"),
        ("<\u0338>", "≮-"),
    ],
)
def test_component_reads_well(text: str, expected: str) -> None:
    assert component(text, 64) == expected


def test_a_cut_leaves_no_accent_space_or_dot_behind() -> None:
    assert component("abc x\u0323\u0302yz", 6) == "abc"  # one of the accents does not fit
    assert component("abc .def", 5) == "abc"
    assert component("e\u0301é\u0323", 1) == "é"
    assert component("e" + "\u0323" * 300, 64) == "ẹ" + "\u0323" * 63  # no letter has so many accents


@pytest.mark.parametrize(
    "whole",
    [
        "👩\u200d👩\u200d👧\u200d👦",  # a family
        "👍🏽",  # a skin tone
        "🇫🇷",  # a flag is two letters
        "กำ",
        "क्षि",  # a conjunct with its vowel
        "\u1112\u119e\u11ab",  # hangul that has no syllable of its own
        "q\u0323\u0307",
        "1\u20e3",
    ],
)
def test_a_cut_splits_nothing_that_is_seen_as_one(whole: str) -> None:
    for limit in range(12, 40):
        assert component(whole * 300, limit) == whole * (limit // units(whole))


def test_scripts_of_three_bytes_have_the_same_room_as_latin() -> None:
    assert component("ก" * 100, naming.PATIENT_UNITS) == "ก" * naming.PATIENT_UNITS
    assert len(component("ก" * 300, 255).encode()) == 255
    assert component("👧" * 300, 64) == "👧" * 32


@settings(deadline=None)
@given(ANY_TEXT)
@example("İ")
@example("i\u0307\u0307")
@example("ı")
def test_fold_takes_case_and_composition_away(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    assert fold(unicodedata.normalize("NFD", text)) == fold(text)
    assert fold(unicodedata.normalize("NFC", text)) == fold(text)
    assert fold(text.upper()) == fold(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("MÜLLER", "mu\u0308ller"), ("Straße", "STRASSE"), ("DİNÇ", "dinç"), ("ılgın", "ILGIN")),
        *(("ΣΑΣ", "σας"), ("\u212a", "k"), ("\u212b", "å"), ("ſ", "S"), ("ﬁ", "FI"), ("ẞ", "ss"), ("ǅ", "ǆ")),
        *(("\u1e9b\u0323", "ṩ"), ("ᾳ", "αι"), ("µ", "Μ"), ("👩\u200d👧", "👩👧"), ("Ꭰ", "ꭰ"), ("Ა", "ა")),
    ],
)
def test_fold_joins_what_some_client_joins(one: str, other: str) -> None:
    assert fold(one) == fold(other)


def test_what_samba_takes_for_one_name_is_one() -> None:
    """Samba's own table, made from the one of Windows, asked character by character."""
    try:
        samba = ctypes.CDLL("libsamba-util.so.0")
    except OSError:
        lacking("Samba's libraries are not installed")
    for case in (samba.toupper_m, samba.tolower_m):
        case.restype, case.argtypes = ctypes.c_uint32, [ctypes.c_uint32]
        for code in (*range(0x80, 0xD800), *range(0xE000, 0x1F000)):
            other = case(code)
            assert other == code or fold(chr(other)) == fold(chr(code)), (hex(code), hex(other))


def test_fold_keeps_different_names_apart() -> None:
    assert len({fold(name) for name in ("Muller", "Müller", "Mueller", "Miller")}) == 4


@pytest.mark.parametrize(
    ("name", "patient_id", "expected"),
    [
        ("Doe^John^Q^Dr^Jr", "1", "Doe John Q Dr Jr"),
        ("Doe^John^^^", "1", "Doe John"),
        ("^^^", "4711", "4711"),
        ("", " 47/11 ", "47-11"),
        ("", "", "Unknown patient"),
        ("...", "///", "---"),
        ("?", "4711", "4711"),
        ("-^-", "", "- -"),
        ("..^/^\0", "CON", "CON_"),
        ("山田^太郎", "1", "山田 太郎"),
        ("Doe^^^Dr", "1", "Doe Dr"),
    ],
)
def test_patient_folder(name: str, patient_id: str, expected: str) -> None:
    assert patient_folder(name, patient_id) == expected


def test_exam_folder_and_suffix() -> None:
    assert exam_folder("20030110") == "2003-01-10"
    assert exam_folder("") == "Unknown date"
    assert exam_folder("٢٠٠٣٠١١٠") == "Unknown date"
    assert exam_suffix("123015") == "12.30.15"
    assert exam_suffix("") == ""
    assert patient_suffix_of_birth("19500131") == "born 1950-01-31"
    assert patient_suffix_of_birth("") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FIESTA", "FIESTA"),
        ("SAX_4_12", "SAX_4 12"),
        ("SAX_-5", "SAX -5"),
        ("SAX_", "SAX_"),
        ("_7", "7"),
        ("t1_fl2d_sag", "t1_fl2d_sag"),
        ("", "Series"),
        ("...", "Series"),
    ],
)
def test_series_label(text: str, expected: str) -> None:
    assert series_label(text) == expected


@settings(deadline=None)
@given(ANY_TEXT | LABEL_TEXT)
def test_series_label_never_ends_like_a_number(text: str) -> None:
    label = series_label(text)
    assert re.search(r"_-?[0-9]+$", label) is None
    assert 0 < units(label) <= naming.SERIES_UNITS
    assert_legal(label)
    assert series_label(label) == label


@settings(deadline=None)
@given(ANY_TEXT, ANY_TEXT, st.integers(16, 200))
def test_suffixed_fits_and_is_legal(base: str, suffix: str, limit: int) -> None:
    name = suffixed(base, suffix, limit)
    assert units(name) <= limit
    assert_legal(name)
    safe = component(suffix, limit - 15)
    assert not safe or name.endswith(f"({safe})")


def test_suffixed_cuts_the_base() -> None:
    assert suffixed("Cinc Man", "4711", 80) == "Cinc Man (4711)"
    assert suffixed("abcdefghijklmnopqrstuvwxyz", "4/7", 20) == "abcdefghijklmn (4-7)"
    assert suffixed("Cinc Man", "", 80) == "Cinc Man"


@st.composite
def file_names(draw: st.DrawFn) -> FileName:
    label = series_label(draw(ANY_TEXT | LABEL_TEXT))
    if draw(st.booleans()):
        label = suffixed(label, draw(LABEL_TEXT | st.just("a1b2")), naming.SERIES_UNITS)
    return FileName(
        series=series_label(label),
        series_number=draw(NUMBERS),
        instance_number=draw(NUMBERS),
        suffix=draw(st.text("0123456789abcdef", max_size=12)),
        frame=draw(st.integers(0, 10**12 - 1)),
        extension=draw(st.sampled_from(["jpg", "png", "dcm", "mp4"])),
    )


@settings(deadline=None)
@given(file_names())
@example(FileName("FIESTA (a1b2)", 4, 12, "", 0, "jpg"))
@example(FileName("FIESTA (a1b2)", 4, 12, "", 3, "jpg"))
@example(FileName("X_1_2 (ab)", 4, 12, "cd", 9, "jpg"))
@example(FileName("X_", -4, -12, "", 0, "jpg"))
def test_parse_is_the_inverse_of_file_name(name: FileName) -> None:
    assert parse_file_name(file_name(name)) == name


@settings(deadline=None)
@given(
    st.from_regex(
        r"[A_ ]{0,4}(_-?[0-9]{1,3}){0,4}( \([0-9a-f]{0,3}\))?(_[0-9]{1,3}){0,3}\.(jpg|JPG)", fullmatch=True
    )
)
@example("FIESTA (a1b2)_4_12.jpg")
def test_file_name_is_the_inverse_of_parse(text: str) -> None:
    name = parse_file_name(text)
    assert name is None or file_name(name) == text


def test_file_names_as_documented() -> None:
    assert file_name(FileName("FIESTA", 4, 12, "", 0, "jpg")) == "FIESTA_4_12.jpg"
    assert file_name(FileName("FIESTA", 4, 12, "a1b2c3", 0, "jpg")) == "FIESTA_4_12 (a1b2c3).jpg"
    assert file_name(FileName("FIESTA", 4, 12, "", 7, "png")) == "FIESTA_4_12_7.png"
    assert file_name(FileName("FIESTA", 4, 12, "a1b2c3", 7, "dcm")) == "FIESTA_4_12 (a1b2c3)_7.dcm"


@pytest.mark.parametrize(
    "text",
    [
        *("FIESTA_4_007.jpg", "FIESTA_-0_1.jpg", "FIESTA_4_12_0.jpg", "FIESTA_4_12 (A1).jpg", "FIESTA_4.jpg"),
        *("FIESTA_4_12", "FIESTA_4_12.JPG", "_4_12.jpg", "A_1_2_3_4.jpg", "A_007_1_2.jpg", "A_+1_2.jpg"),
        *("A_1_٢.jpg", "A_1234567890123_1.jpg", "A_1_2 ().jpg", "A_1_2.jpg\n", "A_1_2 (ab)_-3.jpg", ""),
    ],
)
def test_what_file_name_would_not_write_is_no_name(text: str) -> None:
    assert parse_file_name(text) is None


def test_short_hash_is_sha256() -> None:
    assert short_hash("1.2.3", 12) == hashlib.sha256(b"1.2.3").hexdigest()[:12]
    assert short_hash("\ud800", 6) != short_hash("\ud801", 6)


def test_a_path_of_longest_names_fits_windows() -> None:
    least = -(2**31)
    label = series_label("s" * 300)
    share = r"\\radiology-fs.hospital.example\imaging"  # 40 with the backslash after it
    view = f"{max(FORMATS, key=len)} {'C' * LABEL_LENGTH}"
    patient, exam = (
        component("p" * 300, naming.PATIENT_UNITS),
        suffixed("e" * 99, "f" * 99, naming.EXAM_UNITS),
    )
    for extension in {made.extension.lstrip(".") for made in FORMATS.values()} | {"dcm"}:
        image = file_name(FileName(label, least, least, "a1b2c3d4e5f6a7", MOST_FRAMES, extension))
        path = rf"{share}\{view}\{patient}\{exam}\{image}"
        assert len(share) + 1 == 40
        assert len(view) <= naming.VIEW_UNITS
        assert len(path) <= 259
        assert len(image.encode()) + 2 * naming.SERIES_UNITS <= 255  # a unit may be three bytes
