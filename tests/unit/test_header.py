"""The header reader against hand-made bytes, pydicom's reading of real files, and hostile input."""

import io
import os
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomfs.errors import UnreadableDataSet
from dicomfs.header import read_file_meta, read_header
from dicomfs.model import Header
from tests.support import shipped

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG, PRIVATE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50", "1.3.6.1.4.1.1.2"
MR, DICOMDIR = b"1.2.840.10008.5.1.4.1.1.4\0", b"1.2.840.10008.1.3.10"
LONG = {b"OB", b"OW", b"SQ", b"UN", b"UT"}
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (
    struct.pack("<HHL", 0xFFFE, element, length)
    for element, length in ((0xE000, UNDEFINED), (0xE00D, 0), (0xE0DD, 0))
)

Elements = dict[int, tuple[bytes, bytes]]


def encode(tag: int, vr: bytes, value: bytes, syntax: str = EXPLICIT, length: int | None = None) -> bytes:
    """One element by PS3.5 7.1."""
    order = ">" if syntax == BIG else "<"
    length = len(value) if length is None else length
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack("<L", length) + value
    if vr in LONG:
        return head + vr + b"\0\0" + struct.pack(order + "L", length) + value
    return head + vr + struct.pack(order + "H", length) + value


def us(number: int, syntax: str = EXPLICIT) -> tuple[bytes, bytes]:
    return b"US", number.to_bytes(2, "big" if syntax == BIG else "little")


def mr(syntax: str = EXPLICIT) -> Elements:
    """A small MR image."""
    return {
        0x00080008: (b"CS", rb"ORIGINAL\PRIMARY\M "),
        0x00080016: (b"UI", MR),
        0x00080018: (b"UI", b"1.2.3.4\0"),
        0x00080020: (b"DA", b"20030110"),
        0x00080030: (b"TM", b"123015.5"),
        0x00080060: (b"CS", b"MR"),
        0x0008103E: (b"LO", b"FIESTA"),
        0x00100010: (b"PN", b"Man^Cinc"),
        0x00100020: (b"LO", b"4711"),
        0x00100030: (b"DA", b"19500101"),
        0x0020000D: (b"UI", b"1.2.3\0"),
        0x0020000E: (b"UI", b"1.2.3.1\0"),
        0x00200011: (b"IS", b"4 "),
        0x00200013: (b"IS", b"12"),
        0x00200032: (b"DS", rb"1.001\2\-3.5 "),
        0x00280002: us(1, syntax),
        0x00280004: (b"CS", b"MONOCHROME2 "),
        0x00280010: us(2, syntax),
        0x00280011: us(3, syntax),
        0x00280100: us(16, syntax),
        0x7FE00010: (b"OW", bytes(range(12))),
    }


def write(elements: Elements, syntax: str = EXPLICIT) -> bytes:
    return b"".join(encode(tag, vr, value, syntax) for tag, (vr, value) in sorted(elements.items()))


def read(raw: bytes, syntax: str = EXPLICIT, junk: bytes = b"junk") -> Header:
    """Read from the middle of a stream, so that offsets that count from elsewhere show."""
    stream = io.BytesIO(junk + raw)
    stream.seek(len(junk))
    return read_header(stream, len(raw), syntax)


def changed(tag: int, value: bytes | None, vr: bytes = b"LO") -> Header:
    """The header of the small image with one element put or (None) left out."""
    elements = mr()
    elements.pop(tag, None)
    return read(write(elements | ({tag: (vr, value)} if value is not None else {})))


def charset(terms: bytes, name: bytes) -> str:
    return read(write(mr() | {0x00080005: (b"CS", terms), 0x00100010: (b"PN", name)})).patient_name


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Kolkata"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The machine's time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


# --- encodings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_every_native_syntax_reads_alike(syntax: str) -> None:
    raw = write(mr(syntax), syntax)
    header = read(raw, syntax)
    assert (header.sop_instance_uid, header.study_uid, header.series_uid) == ("1.2.3.4", "1.2.3", "1.2.3.1")
    assert header.sop_class_uid == MR.decode().strip("\0")
    assert header.derived_uids == ()
    assert (header.patient_name, header.patient_id, header.birth_date) == ("Man^Cinc", "4711", "19500101")
    assert (header.study_date, header.study_time, header.modality) == ("20030110", "123015", "MR")
    assert (header.series_name, header.series_number, header.instance_number) == ("FIESTA", 4, 12)
    assert (header.frames, header.rows, header.columns, header.has_pixels) == (1, 2, 3, True)
    assert header.pixel_offset is not None
    assert raw[header.pixel_offset :] == bytes(range(12))
    assert header.pixel_length == 12


def test_deflated() -> None:
    plain = write(mr())
    compressor = zlib.compressobj(wbits=-15)
    raw = compressor.compress(plain) + compressor.flush()
    header = read(raw + b"\0", DEFLATED)
    assert (header.sop_instance_uid, header.has_pixels) == ("1.2.3.4", True)
    assert (header.pixel_offset, header.pixel_length) == (None, None)
    for broken in (raw[:-9], b"no deflate stream"):
        with pytest.raises(UnreadableDataSet):
            read(broken, DEFLATED)


def test_deflated_bomb_is_not_kept_in_memory() -> None:
    """300 MB of pixels from 300 kB: only the first 16 MiB are kept, and nothing is refused."""
    compressor = zlib.compressobj(wbits=-15)
    elements = mr()
    del elements[0x7FE00010]
    parts = [compressor.compress(write(elements) + encode(0x7FE00010, b"OW", b"", length=300 << 20))]
    parts += [compressor.compress(bytes(1 << 20)) for _ in range(300)]
    assert read(b"".join([*parts, compressor.flush()]), DEFLATED).has_pixels


def encapsulated(*fragments: bytes, end: bytes = SEQUENCE_END) -> bytes:
    elements = mr()
    del elements[0x7FE00010]
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(f)) + f for f in (b"", *fragments))
    return write(elements) + encode(0x7FE00010, b"OB", b"", length=UNDEFINED) + items + end


@pytest.mark.parametrize("syntax", [JPEG, PRIVATE])
def test_encapsulated(syntax: str) -> None:
    for raw in (encapsulated(b"abcd", b"ef"), encapsulated(b"abcd", end=b""), encapsulated(b"ab") + b"\0\0"):
        header = read(raw, syntax)
        assert (header.has_pixels, header.pixel_offset, header.pixel_length) == (True, None, None)


@pytest.mark.parametrize("raw", [encapsulated(b"abcd", end=b"")[:-1], encapsulated(b"abcd", end=ITEM)])
def test_encapsulated_that_ends_too_soon(raw: bytes) -> None:
    with pytest.raises(UnreadableDataSet):
        read(raw, JPEG)


@pytest.mark.parametrize(("tag", "vr"), [(0x7FE00008, b"OF"), (0x7FE00009, b"OD")])
def test_float_pixel_data(tag: int, vr: bytes) -> None:
    elements = mr()
    del elements[0x7FE00010]
    raw = (
        write(elements)
        + struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        + vr
        + struct.pack("<HL", 0, 8)
        + bytes(8)
    )
    header = read(raw)
    assert (header.has_pixels, header.pixel_offset) == (True, None)
    with pytest.raises(UnreadableDataSet):
        read(raw[:-1])


def test_without_pixels() -> None:
    header = changed(0x7FE00010, None)
    assert (header.has_pixels, header.pool, header.pixel_length) == (False, "", None)


def test_every_truncation_is_noticed() -> None:
    """Wherever the bytes end, except between two elements once both SOP UIDs are there."""
    elements = mr()
    raw = write(elements)
    boundaries, at = set(), 0
    for tag, (vr, value) in sorted(elements.items()):
        at += len(encode(tag, vr, value))
        boundaries |= {at} if tag >= 0x00080018 else set()
    for end in range(len(raw)):
        if end in boundaries:
            assert not read(raw[:end]).has_pixels
        else:
            with pytest.raises(UnreadableDataSet):
                read(raw[:end])


def nested(depth: int) -> bytes:
    inner = encode(0x00081150, b"UI", b"1.2\0")
    for _ in range(depth):
        inner = encode(0x00081140, b"SQ", ITEM + inner + ITEM_END + SEQUENCE_END, length=UNDEFINED)
    return inner


def spliced(extra: bytes) -> bytes:
    """The small image with encoded bytes before its group 0010."""
    elements = mr()
    first = write({tag: value for tag, value in elements.items() if tag < 0x00100000})
    return first + extra + write({tag: value for tag, value in elements.items() if tag >= 0x00100000})


@pytest.mark.parametrize(
    "extra",
    [
        nested(1),
        nested(20),
        encode(0x00081140, b"SQ", ITEM + ITEM_END + ITEM + ITEM_END + SEQUENCE_END, length=UNDEFINED),
        # explicit length of the item, undefined length of the sequence
        encode(0x00081140, b"SQ", b"\xfe\xff\0\xe0\x04\0\0\0abcd" + SEQUENCE_END, length=UNDEFINED),
        # UN of undefined length holds implicit VR (PS3.5 6.2.2)
        encode(
            0x00091010,
            b"UN",
            ITEM + encode(0x00091011, b"", b"abcd", IMPLICIT) + ITEM_END + SEQUENCE_END,
            length=UNDEFINED,
        ),
        # a writer that slips into implicit VR
        encode(
            0x00081140,
            b"SQ",
            ITEM + encode(0x00091011, b"", b"ab", IMPLICIT) + ITEM_END + SEQUENCE_END,
            length=UNDEFINED,
        ),
        encode(0x00091010, b"??", b"ab"),
        encode(0x00091010, b"OB", bytes(200_000)),
    ],
)
def test_steps_over_sequences_and_private_elements(extra: bytes) -> None:
    header = read(spliced(extra))
    assert (header.patient_id, header.pixel_length) == ("4711", 12)


@pytest.mark.parametrize(
    "extra",
    [
        nested(1000),
        encode(0x00081140, b"SQ", ITEM, length=UNDEFINED) * 50_000,
        encode(0x00081140, b"SQ", ITEM + SEQUENCE_END, length=UNDEFINED),
        encode(0x00081140, b"SQ", b"abcdefgh", length=UNDEFINED),
        ITEM,
    ],
)
def test_hostile_sequences(extra: bytes) -> None:
    with pytest.raises(UnreadableDataSet):
        read(spliced(extra))


@pytest.mark.parametrize(
    ("written", "announced"),
    [(IMPLICIT, EXPLICIT), (EXPLICIT, IMPLICIT), (BIG, EXPLICIT), (EXPLICIT, BIG), (IMPLICIT, JPEG)],
)
def test_another_syntax_than_announced(written: str, announced: str) -> None:
    with pytest.raises(UnreadableDataSet, match="transfer syntax"):
        read(write(mr(written), written), announced)


@pytest.mark.parametrize("tag", [0x00080016, 0x00080018])
@pytest.mark.parametrize("value", [None, b"", b"1" * 130, b"1.2\\1.3", b".1", b"\xff\xfe"])
def test_without_sop_uids(tag: int, value: bytes | None) -> None:
    with pytest.raises(UnreadableDataSet, match="UID"):
        changed(tag, value, b"UI")


def test_an_error_quotes_no_value() -> None:
    with pytest.raises(UnreadableDataSet) as caught:
        changed(0x00080018, b"DOE^JOHN", b"UI")
    assert "DOE" not in str(caught.value)


# --- values ---------------------------------------------------------------------------------------------


def test_padding_does_not_count() -> None:
    assert changed(0x00080018, b" 1.2.3.4 \0", b"UI").sop_instance_uid == "1.2.3.4"
    assert changed(0x0020000D, b"1.2.3 ", b"UI").study_uid == "1.2.3"


@pytest.mark.parametrize(
    ("tag", "field", "value", "expected"),
    [
        (0x00200013, "instance_number", b"abc ", None),
        (0x00200013, "instance_number", rb"1\2 ", None),
        (0x00200013, "instance_number", b"99999999999 ", None),
        (0x00200013, "instance_number", b"\xd9\xa1", None),
        (0x00200013, "instance_number", b" -7 ", -7),
        (0x00200013, "instance_number", b"4.00", 4),
        (0x00280008, "frames", b"1A", 1),
        (0x00280008, "frames", b"-3", 1),
        (0x00280008, "frames", b"96", 96),
        (0x00280010, "rows", b"\x02\0\x03\0", 0),
        (0x00280010, "rows", b"", 0),
        (0x00080020, "study_date", b"20030230", ""),
        (0x00080020, "study_date", b"2003.01.10", "20030110"),
        (0x00080020, "study_date", rb"20030110\20030111 ", ""),
        (0x00080020, "study_date", b"tomorrow", ""),
        (0x00100030, "birth_date", b"00000000", ""),
        (0x00080030, "study_time", b"12", "120000"),
        (0x00080030, "study_time", b"1230", "123000"),
        (0x00080030, "study_time", b"12:30:15", "123015"),
        (0x00080030, "study_time", b"123015.123456 ", "123015"),
        (0x00080030, "study_time", b"250000", ""),
        (0x00100010, "patient_name", b"^^^^", ""),
    ],
)
@pytest.mark.parametrize("vr", [b"LO", b"UN"])
def test_values_of_wrong_form_are_missing(
    tag: int, field: str, value: bytes, expected: object, vr: bytes
) -> None:
    assert getattr(changed(tag, value, vr), field) == expected


def test_wanted_tag_with_a_sequence_or_a_megabyte_in_it_is_missing() -> None:
    elements = mr()
    del elements[0x0008103E]
    name = encode(0x0008103E, b"SQ", ITEM + ITEM_END + SEQUENCE_END, length=UNDEFINED)
    before = write({tag: value for tag, value in elements.items() if tag < 0x0008103E})
    after = write({tag: value for tag, value in elements.items() if tag > 0x0008103E})
    assert read(before + name + after).series_name == "MR"
    assert read(before + encode(0x0008103E, b"UT", b"x" * (1 << 20)) + after).series_name == "MR"


def test_fallbacks_of_series_name_and_study_date() -> None:
    elements = mr()
    for tag in (0x0008103E, 0x00080020):
        del elements[tag]
    steps: list[tuple[int, bytes, str]] = [
        (0x00180024, b"fgre", "fgre"),
        (0x00181030, b"Protocol", "Protocol"),
        (0x0008103E, b"Description ", "Description"),
    ]
    assert read(write(elements)).series_name == "MR"
    for tag, value, expected in steps:
        elements[tag] = (b"LO", value)
        assert read(write(elements)).series_name == expected
    assert read(write(elements)).study_date == ""
    for tag, day in ((0x00080023, b"20030101"), (0x00080021, b"20030102"), (0x00080022, b"20030103")):
        elements[tag] = (b"DA", day)
        assert read(write(elements)).study_date == day.decode()


def test_derived_uids_keep_a_study_together() -> None:
    elements = mr()
    del elements[0x0020000D], elements[0x0020000E]
    one = read(write(elements))
    assert one.derived_uids == ("StudyInstanceUID", "SeriesInstanceUID")
    for uid in (one.study_uid, one.series_uid):
        assert uid.startswith("2.25.")
        assert 0 <= int(uid[5:]) < 1 << 128
    other = read(write(elements | {0x00080018: (b"UI", b"1.2.3.5\0"), 0x00200013: (b"IS", b"13")}))
    assert (other.study_uid, other.series_uid) == (one.study_uid, one.series_uid)
    series = read(write(elements | {0x00200011: (b"IS", b"5 ")}))
    assert series.study_uid == one.study_uid
    assert series.series_uid != one.series_uid
    for tag in (0x00080020, 0x00100010, 0x00100020, 0x00100021, 0x00100030):
        assert read(write(elements | {tag: (b"LO", b"19700707")})).study_uid != one.study_uid


@pytest.mark.parametrize("tag", [0x00080016, 0x00080018, 0x0020000D, 0x0020000E])
@pytest.mark.parametrize("value", [b"1.2.x1", b"1.02.003", b"1." * 33, b"1" * 128, b"1.2.  7.9 \0"])
def test_uids_that_the_standard_forbids_but_devices_send(tag: int, value: bytes) -> None:
    header = changed(tag, value, b"UI")
    found = {
        0x00080016: header.sop_class_uid,
        0x00080018: header.sop_instance_uid,
        0x0020000D: header.study_uid,
        0x0020000E: header.series_uid,
    }
    assert found[tag] == value.decode().strip(" \0")
    assert header.derived_uids == ()


def test_invalid_study_uid_counts_as_missing() -> None:
    for value in (b"1.2^abc\0", b"1." * 65, b""):
        header = changed(0x0020000D, value, b"UI")
        assert header.derived_uids == ("StudyInstanceUID",)
        assert header.series_uid == "1.2.3.1"


# --- text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "name", "expected"),
    [
        (b"ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        (b"ISO_IR 192", "Müller^山田".encode(), "Müller^山田"),
        (b"ISO-IR 192", "Müller^山田".encode(), "Müller^山田"),
        (b"GB18030 ", "王^小东".encode("gb18030"), "王^小东"),
        (b"ISO_IR 144", "Люк".encode("iso8859-5"), "Люк"),
        (b"ISO_IR 101", "Łódź".encode("iso8859-2"), "Łódź"),
        (b"", "Müller".encode(), "Müller"),  # no character set, UTF-8
        (b"", "Müller".encode("latin-1"), "Müller"),  # no character set, Latin-1
        (b"ISO_IR 100", "Müller^Jörg".encode(), "Müller^Jörg"),  # UTF-8 under the name of Latin-1
        (b"KLINGON ", "Müller".encode(), "Müller"),
        (b"ISO_IR 192", "Müller".encode("latin-1"), "Müller"),
        (b"ISO_IR 100", b"=\xc4rzte^A", "Ärzte^A"),  # no alphabetic group: the ideographic one
        (b"", b"==Phonetic", "Phonetic"),
        # PS3.5 H.3, example 1 and I.2: the first group
        (rb"\ISO 2022 IR 87 ", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou"),
        (rb"\ISO 2022 IR 87 ", b"=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "山田^太郎"),
        (rb"\ISO 2022 IR 149", b"=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "洪^吉洞"),
        (rb"\ISO 2022 IR 999", b"A\x1b$ZB", "A$ZB"),  # an escape sequence nobody knows
    ],
)
def test_character_sets(terms: bytes, name: bytes, expected: str) -> None:
    assert charset(terms, name) == expected


@settings(deadline=None)
@given(
    terms=st.binary(max_size=40) | st.sampled_from([rb"\ISO 2022 IR 87", b"ISO 2022 IR 149"]),
    name=st.binary(max_size=60),
)
def test_no_text_raises(terms: bytes, name: bytes) -> None:
    assert isinstance(charset(terms, name), str)
    assert isinstance(charset(terms, b"\x1b$B" + name + b"\x1b$)C" + name), str)


CHARSET_FILES = sorted((Path(pydicom.__file__).parent / "data" / "charset_files").glob("*.dcm"))


@pytest.mark.parametrize("path", CHARSET_FILES, ids=lambda path: path.stem)
def test_charset_files_read_as_pydicom_reads_them(path: Path) -> None:
    with path.open("rb") as file:
        meta = read_file_meta(file)
        raw = path.read_bytes()[meta.data_set_offset :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pydicom.dcmread(path)
        groups = str(reference.get("PatientName", "")).split("=")
    if "SOPInstanceUID" not in reference or "SOPClassUID" not in reference:
        with pytest.raises(UnreadableDataSet, match="UID"):
            read(raw, meta.transfer_syntax)
        return
    expected = next((group for group in groups if group.strip("^ ")), "")
    assert read(raw, meta.transfer_syntax).patient_name == expected.strip()


# --- time -----------------------------------------------------------------------------------------------


def acquired(**values: str) -> float | None:
    tags = {
        "dt": 0x0008002A,
        "date": 0x00080022,
        "time": 0x00080032,
        "content_date": 0x00080023,
        "content_time": 0x00080033,
        "series_date": 0x00080021,
        "series_time": 0x00080031,
        "study_date": 0x00080020,
        "study_time": 0x00080030,
        "offset": 0x00080201,
    }
    elements = mr()
    del elements[0x00080020], elements[0x00080030]
    return read(write(elements | {tags[k]: (b"LO", v.encode()) for k, v in values.items()})).acquired


@pytest.mark.usefixtures("zone")
def test_acquired_in_the_offset_that_is_named() -> None:
    noon = 1042200000.0  # date -u -d "2003-01-10 12:00" +%s
    assert acquired(dt="20030110120000+0000") == noon
    assert acquired(dt="20030110130000.25+0100", offset="-0500") == noon + 0.25
    assert acquired(dt="20030110070000", offset="-0500") == noon
    assert acquired(date="20030110", time="1730", offset="+0530") == noon
    assert acquired(date="2003.01.10", time="12:00:00", offset="+0000") == noon
    assert acquired(dt="20030110120060+0000") == noon + 59  # a leap second


def test_acquired_in_the_zone_of_the_machine(zone: str) -> None:
    noon = {"UTC": 1042200000.0, "America/New_York": 1042218000.0, "Asia/Kolkata": 1042180200.0}[zone]
    assert acquired(dt="20030110120000") == noon
    assert acquired(date="20030110", time="12", offset="+9900") == noon


def test_acquired_takes_the_first_complete_pair() -> None:
    pairs = ["date", "content_date", "series_date", "study_date"]
    values = {"offset": "+0000", "dt": "20050101000000"}
    for day, name in enumerate(pairs, 1):
        values |= {name: f"2004010{day}", name.replace("date", "time"): "00"}
    start = 1072915200.0  # date -u -d 2004-01-01 +%s
    assert acquired(**values) == 1104537600.0  # date -u -d 2005-01-01 +%s
    del values["dt"]
    for day, name in enumerate(pairs):
        assert acquired(**values) == start + 86400 * day
        del values[name.replace("date", "time")]
    assert acquired(**values) == start  # no time at all: the first date, at midnight
    assert acquired(offset="+0000", time="12") is None


@pytest.mark.usefixtures("zone")
def test_acquired_when_absurd() -> None:
    for early in ("19600614", "00010101", "19691231"):
        assert acquired(date=early, time="0000", offset="+0000") == 0.0
        assert acquired(date=early, time="0000") == 0.0
    assert acquired(dt="22010101000000") is None
    assert acquired(dt="99991231235959") is None
    assert acquired(dt="20030230120000", date="x") is None
    assert acquired() is None


# --- pools ----------------------------------------------------------------------------------------------


def pool(**changes: bytes) -> str:
    tags = {
        "type": 0x00080008,
        "uid": 0x00080018,
        "modality": 0x00080060,
        "component": 0x00089208,
        "echo": 0x00180086,
        "number": 0x00200013,
        "position": 0x00200032,
        "orientation": 0x00200037,
        "location": 0x00201041,
        "samples": 0x00280002,
        "photometric": 0x00280004,
        "frames": 0x00280008,
        "rows": 0x00280010,
        "bits": 0x00280100,
        "ge": 0x00430010,
        "ge_type": 0x0043102F,
    }
    return read(write(mr() | {tags[name]: (b"LO", value) for name, value in changes.items()})).pool


def test_phases_of_a_position_share_a_pool() -> None:
    one = pool()
    assert one[0] == "p"
    assert len(one) == 13
    assert pool(uid=b"1.2.9\0", number=b"13", position=rb"1.0012\2.0\-3.50") == one
    assert pool(type=rb"DERIVED\SECONDARY\m ") == one


@pytest.mark.parametrize(
    "change",
    [
        {"position": rb"1.02\2\-3.5"},
        {"orientation": rb"1\0\0\0\1\0 "},
        {"type": rb"ORIGINAL\PRIMARY\P "},
        {"type": rb"ORIGINAL\PRIMARY\M\VELOCITY"},
        {"component": b"PHASE "},
        {"echo": b"2 "},
        {"rows": b"\x04\0"},
        {"ge": b"GEMS_PARM_01", "ge_type": b"\x01\0"},
    ],
)
def test_what_does_not_share_a_pool(change: dict[str, bytes]) -> None:
    assert pool(**change) not in {pool(), ""}


def test_pools_without_position() -> None:
    here, there = ({"position": b"", "location": location} for location in (b"7.5 ", b"8.5 "))
    assert pool(**here) == pool(uid=b"1.2.9\0", **here) != pool(**there)
    alone = [pool(position=b"nan\\1\\2", uid=uid) for uid in (b"1.2.9\0", b"1.2.8\0")]
    assert [key[0] for key in alone] == ["s", "s"]
    assert alone[0] != alone[1]


def test_pools_of_runs_and_of_series() -> None:
    run = pool(frames=b"20")
    assert run[0] == "i"
    assert pool(frames=b"20", modality=b"CT", position=b"") == run != pool(frames=b"20", uid=b"1.2.9\0")
    assert pool(modality=b"PT") == pool(modality=b"NM", position=b"") == "series"


@pytest.mark.parametrize(
    "change",
    [
        *({"modality": m} for m in (b"CT", b"CR", b"DX", b"MG", b"US", b"SC", b"OT", b"SM")),
        {"samples": b"\x03\0"},
        {"bits": b"\x08\0", "frames": b"20"},
        {"photometric": b"PALETTE COLOR "},
        {"samples": b"", "photometric": b"RGB "},
    ],
)
def test_images_that_decide_alone(change: dict[str, bytes]) -> None:
    assert pool(**change) == ""


# --- files ----------------------------------------------------------------------------------------------


def meta_group(*elements: bytes) -> bytes:
    group = b"".join(elements)
    return encode(0x00020000, b"UL", len(group).to_bytes(4, "little")) + group


def syntax_element(syntax: str) -> bytes:
    return encode(0x00020010, b"UI", syntax.encode() + b"\0" * (len(syntax) % 2))


PREAMBLE = bytes(128) + b"DICM"


def test_file_meta() -> None:
    group = meta_group(
        encode(0x00020001, b"OB", b"\0\1"),
        encode(0x00020002, b"UI", MR),
        encode(0x00020003, b"UI", b"1.2.3.4\0"),
        syntax_element(BIG),
        encode(0x00020016, b"AE", b"SCANNER "),
    )
    for start in (PREAMBLE, b""):
        meta = read_file_meta(io.BytesIO(start + group + write(mr(BIG), BIG)))
        assert meta.transfer_syntax == BIG
        assert (meta.sop_class_uid, meta.sop_instance_uid) == (MR.decode().strip("\0"), "1.2.3.4")
        assert (meta.source_ae, meta.data_set_offset) == ("SCANNER", len(start + group))


def test_group_length_parts_meta_from_deflated_bytes_that_look_like_meta() -> None:
    group = meta_group(syntax_element(DEFLATED))
    meta = read_file_meta(io.BytesIO(PREAMBLE + group + b"\x02\0\x16\0AE\x08\0deceiver"))
    assert (meta.source_ae, meta.data_set_offset) == ("", len(PREAMBLE + group))


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("start", [b"", PREAMBLE, PREAMBLE + meta_group(encode(0x00020003, b"UI", b"1.2\0"))])
def test_syntax_is_guessed(syntax: str, start: bytes) -> None:
    meta = read_file_meta(io.BytesIO(start + write(mr(syntax), syntax)))
    assert (meta.transfer_syntax, meta.data_set_offset) == (syntax, len(start))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"\xff\xd8\xff\xe0" + bytes(200),
        bytes(300),
        PREAMBLE,
        b"A" * 500,
    ],
)
def test_other_files(raw: bytes) -> None:
    with pytest.raises(UnreadableDataSet, match="not a DICOM file"):
        read_file_meta(io.BytesIO(raw))


def test_dicomdir() -> None:
    directory = meta_group(encode(0x00020002, b"UI", DICOMDIR), syntax_element(EXPLICIT))
    for raw in (PREAMBLE + directory, encode(0x00041130, b"CS", b"DISK")):
        with pytest.raises(UnreadableDataSet, match="DICOMDIR"):
            read_file_meta(io.BytesIO(raw))


# --- real files, and noise ------------------------------------------------------------------------------

REAL = [
    *("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm"),
    *("JPEG2000.dcm", "image_dfl.dcm", "rtplan.dcm", "rtdose.dcm", "test-SR.dcm", "examples_ybr_color.dcm"),
    *("liver_1frame.dcm", "SC_rgb_small_odd_big_endian.dcm", "waveform_ecg.dcm"),
]


@pytest.mark.parametrize("name", REAL)
def test_real_files_read_as_pydicom_reads_them(name: str) -> None:
    path = shipped(name)
    raw = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pydicom.dcmread(path)
    stream = io.BytesIO(raw)
    meta = read_file_meta(stream)
    stream.seek(meta.data_set_offset)
    header = read_header(stream, len(raw) - meta.data_set_offset, meta.transfer_syntax)
    assert meta.transfer_syntax == reference.file_meta.TransferSyntaxUID
    assert header.sop_instance_uid == reference.SOPInstanceUID
    assert meta.sop_instance_uid == reference.file_meta.MediaStorageSOPInstanceUID  # (may be another one)
    assert header.sop_class_uid == reference.SOPClassUID
    assert header.study_uid == reference.StudyInstanceUID
    assert header.series_uid == reference.SeriesInstanceUID
    assert header.study_date == (reference.get("StudyDate") or reference.get("ContentDate") or "")
    assert header.rows == reference.get("Rows", 0)
    assert header.frames == int(reference.get("NumberOfFrames", 1))
    assert header.has_pixels == ("PixelData" in reference)
    compressed = meta.transfer_syntax not in {IMPLICIT, EXPLICIT, BIG}
    assert (header.pixel_offset is None) == (compressed or not header.has_pixels)
    if header.pixel_offset is not None and header.pixel_length is not None:
        start = meta.data_set_offset + header.pixel_offset
        assert raw[start : start + header.pixel_length] == reference.PixelData


def tolerated(raw: bytes, syntax: str) -> None:
    """Either a header or UnreadableDataSet; anything else fails the test."""
    try:
        header = read(raw, syntax)
    except UnreadableDataSet:
        return
    assert header.sop_instance_uid
    assert header.frames >= 1
    if header.pixel_offset is not None and header.pixel_length is not None:
        assert 0 < header.pixel_offset <= header.pixel_offset + header.pixel_length <= len(raw)


SYNTAXES = st.sampled_from([IMPLICIT, EXPLICIT, BIG, JPEG, DEFLATED, PRIVATE])


@settings(deadline=None)
@given(st.binary(max_size=400), SYNTAXES)
def test_noise(raw: bytes, syntax: str) -> None:
    tolerated(raw, syntax)
    tolerated(write({0x00080016: (b"UI", MR), 0x00080018: (b"UI", b"1.2\0")}) + raw, syntax)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_images(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from([IMPLICIT, EXPLICIT, BIG, JPEG]))
    raw = bytearray(encapsulated(b"abcd") if syntax == JPEG else write(mr(syntax), syntax))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    tolerated(bytes(raw[: data.draw(st.integers(0, len(raw)))]), syntax)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(mr())[3:-1]), st.binary(max_size=40)))
def test_no_value_raises(values: dict[int, bytes]) -> None:
    assert read(write(mr() | {tag: (b"UN", value) for tag, value in values.items()})).has_pixels


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_file_noise(raw: bytes) -> None:
    for start in (b"", PREAMBLE, b"\x02\0\0\0UL\x04\0"):
        try:
            meta = read_file_meta(io.BytesIO(start + raw))
        except UnreadableDataSet:
            continue
        assert 0 <= meta.data_set_offset <= len(start + raw)


def test_reads_little_of_a_large_image(tmp_path: Path) -> None:
    """No pixel value is read: a sparse gigabyte takes a few blocks."""
    elements = mr()
    del elements[0x7FE00010]
    raw = write(elements) + encode(0x7FE00010, b"OW", b"", length=1 << 30)
    path = tmp_path / "large"
    path.write_bytes(raw)
    os.truncate(path, len(raw) + (1 << 30))

    class Counting(io.FileIO):
        count = 0

        def readinto(self, buffer: object, /) -> int:
            done = super().readinto(buffer)  # type: ignore[arg-type]  # whatever buffer the caller has
            self.count += done or 0
            return done or 0

    counting = Counting(path)
    with io.BufferedReader(counting) as file:
        header = read_header(file, len(raw) + (1 << 30), EXPLICIT)
    assert header.pixel_length == 1 << 30
    assert 0 < counting.count <= 1 << 16
