"""Character sets: the standard's own examples, what devices really send, and any bytes at all."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.charset import CODES_TO_ENCODINGS, python_encoding

from dicomfs.charset import Charset

PN = b"^=\\"


def read(terms: bytes, raw: bytes) -> str:
    return Charset.of(terms).decode(raw, PN)


# PS3.5, annexes H to K: names as they are encoded there, byte by byte.
STANDARD = [
    (
        rb"\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    (
        rb"ISO 2022 IR 13\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    (
        rb"\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    (b"ISO_IR 192", b"Wang^XiaoDong=\xe7\x8e\x8b^\xe5\xb0\x8f\xe6\x9d\xb1", "Wang^XiaoDong=王^小東"),
    (b"GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
    (
        rb"\ISO 2022 IR 58",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab",
        "Zhang^XiaoDong=张^小东",
    ),
    (b"ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
]
# One word in each single-byte set, by Python's own tables.
SETS = [
    *((b"ISO_IR 101", "iso8859-2", "Żółkiewska^Łucja"), (b"ISO_IR 109", "iso8859-3", "Ħaġar^Ċensu")),
    *((b"ISO_IR 110", "iso8859-4", "Ķēniņš^Ģirts"), (b"ISO_IR 126", "iso8859-7", "Διονυσίου^Άννα")),
    *((b"ISO_IR 127", "iso8859-6", "قباني^نزار"), (b"ISO_IR 138", "iso8859-8", "שרון^דבורה")),
    *((b"ISO_IR 144", "iso8859-5", "Люксембург^Роза"), (b"ISO_IR 148", "iso8859-9", "Çavuşoğlu^İpek")),
    *((b"ISO_IR 166", "iso8859-11", "สมชาย^ใจดี"), (b"ISO_IR 13", "shift_jis", "ﾔﾏﾀﾞ^ﾀﾛｳ")),
    *((b"GBK", "gbk", "王^小东"), (b"GB18030", "gb18030", "王^㐂𠮷")),
]


@pytest.mark.parametrize(("terms", "raw", "expected"), STANDARD)
def test_examples_of_the_standard(terms: bytes, raw: bytes, expected: str) -> None:
    assert read(terms, raw) == expected
    assert read(terms + b" ", raw) == expected


@pytest.mark.parametrize(("term", "codec", "text"), SETS)
def test_sets_without_escapes(term: bytes, codec: str, text: str) -> None:
    assert read(term, text.encode(codec)) == text
    assert read(term.lower().replace(b"_", b"-"), text.encode(codec)) == text  # misspelt


@pytest.mark.parametrize(("term", "codec", "text"), SETS[:9])
def test_sets_with_escapes(term: bytes, codec: str, text: str) -> None:
    """PS3.3 table C.12-3: every single-byte set may follow another, by its escape sequence."""
    number = term.split()[1]
    escape = next(e for e, c in CODES_TO_ENCODINGS.items() if c == python_encoding[term.decode()])
    family, given_name = (part.encode(codec) for part in text.split("^"))
    for first in (b"", b"ISO 2022 IR 100", b"ISO 2022 IR 6"):
        terms = first + b"\\ISO 2022 IR " + number
        assert read(terms, b"Doe^Ann=" + escape + family + b"^" + escape + given_name) == f"Doe^Ann={text}"


def test_a_delimiter_ends_what_was_designated() -> None:
    terms = rb"ISO 2022 IR 100\ISO 2022 IR 126"
    assert read(terms, b"\x1b-F\xc4\xe9^\xc4\xe9") == "Δι^Äé"
    assert read(terms, b"\x1b-F\xc4\xe9 \xc4\xe9") == "Δι Δι"


def test_g1_stays_when_g0_changes() -> None:
    assert read(rb"\ISO 2022 IR 149", b"\x1b$)C\xc8\xab\x1b(B a \xb1\xe6") == "홍 a 길"
    assert read(rb"ISO 2022 IR 13\ISO 2022 IR 87", b"\x1b$B;3\x1b(J\xd4\xcf") == "山ﾔﾏ"


@pytest.mark.parametrize(("terms", "raw", "expected"), STANDARD[:3])
def test_escapes_speak_for_themselves_where_the_element_is_missing(
    terms: bytes, raw: bytes, expected: str
) -> None:
    if b"IR 13" not in terms:  # that one begins without an escape sequence
        assert read(b"", raw) == expected


@pytest.mark.parametrize(
    ("terms", "raw", "expected"),
    [
        # UTF-8 under another name or none
        *(
            (terms, "Müller^Jörg".encode(), "Müller^Jörg")
            for terms in (b"", b"ISO_IR 100", b"ISO_IR 101", b"?")
        ),
        (b"ISO_IR 144", "Люк^Роза".encode(), "Люк^Роза"),
        (b"GB18030", "王^小东".encode(), "王^小东"),
        (b"ISO_IR 13", "山田^太郎".encode(), "山田^太郎"),
        (rb"\ISO 2022 IR 149", "홍^길동".encode(), "홍^길동"),
        (b"UTF-8", "Люк".encode(), "Люк"),
        # valid UTF-8 that is none
        (b"ISO_IR 101", "PÓŁTORAK".encode("iso8859-2"), "PÓŁTORAK"),
        # another set under the name of UTF-8, or none
        (b"ISO_IR 192", b"M\xfcller", "Müller"),
        (b"ISO_IR 192", b"Ren\xe9", "René"),
        (b"", b"\x8aime\x9aa^D\x92Arcy", "Šimeša^D’Arcy"),  # Windows' Latin-1
        (b"ISO_IR 100", b"a\x81b", "a\x81b"),  # which has no such character
        # UTF-8 cut within a character
        (b"ISO_IR 192", "Müller^山田".encode()[:-1], "Müller^山"),
        (b"", "Müller^山田".encode()[:-2], "Müller^山"),
        # further sets without escape sequences
        (rb"\ISO 2022 IR 149", "홍^길동".encode("euc_kr"), "홍^길동"),
        (rb"ISO 2022 IR 6\ISO 2022 IR 144", "Люк".encode("iso8859-5"), "Люк"),
        (rb"\GB18030", "王^小东".encode("gb18030"), "王^小东"),
        (rb"ISO 2022 IR 100\ISO 2022 IR 149", "Müller".encode("latin-1"), "Müller"),
        # damaged
        (b"ISO_IR 126", b"\xc4\xff\xe9", "Δ\ufffdι"),
        (b"GB18030", b"\xcd\xf5^\xff", "王^\ufffd"),
        (rb"\ISO 2022 IR 999", b"A\x1b$ZB", "A$ZB"),
        (b"ISO_IR 100", b"\x1b", ""),
    ],
)
def test_wrong_or_missing_sets_are_guessed(terms: bytes, raw: bytes, expected: str) -> None:
    assert read(terms, raw) == expected


def test_every_defined_term_is_known() -> None:
    for term, codec in python_encoding.items():
        default = term in {"", "ISO_IR 6", "ISO 2022 IR 6"}
        assert Charset.of(term.encode()).first == ("" if default else codecs.lookup(codec).name)


TERMS = st.binary(max_size=20) | st.sampled_from([t.encode() for t in python_encoding])
ESCAPED = st.lists(st.binary(max_size=8) | st.sampled_from([*CODES_TO_ENCODINGS, b"^", b"="]), max_size=8)


@given(st.lists(TERMS, max_size=4).map(b"\\".join), ESCAPED.map(b"".join))
def test_any_bytes_are_some_text_and_always_the_same(terms: bytes, raw: bytes) -> None:
    text = read(terms, raw)
    assert text == Charset.of(terms).decode(bytes(bytearray(raw)), PN)
    text.encode()  # raises for a lone surrogate
    assert "\x1b" not in text


@given(st.text(st.characters(codec="ascii"), max_size=20), TERMS)
def test_ascii_is_ascii_in_every_set(text: str, terms: bytes) -> None:
    plain = text.replace("\x1b", "")
    assert read(terms, plain.encode()) == plain
