"""One encoded data set -> `Header`: the only reader of untrusted tags.

Walks the elements from header to header, keeps the few short values that the index wants, steps over
everything else by seeking and stops at the pixel data: no pixel value, sequence or private block is read
into memory, nothing recurses, and every length is checked against the bytes there are. (pydicom's reader
builds undefined-length sequences in memory, recursively, and warns through a global; its dictionary is
used here.) Never writes, logs, or puts a value of the data set into an error;
whatever hostile bytes provoke leaves this module as `UnreadableDataSet`. Called by `ingest.py`
(`read_header`) and by the import (`read_file_meta`).
"""

import functools
import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from types import MappingProxyType
from typing import BinaryIO, Final, ParamSpec, TypeVar

from pydicom.datadict import tag_for_keyword
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPIPHTJ2KReferencedDeflate,
    MediaStorageDirectoryStorage,
)

from dicomfs.charset import Charset
from dicomfs.elements import ITEM, LONG_VR, SHORT_VR, UNDEFINED, Walk, inflate, is_vr
from dicomfs.errors import NotDicom, UnreadableDataSet
from dicomfs.model import Header
from dicomfs.naming import short_hash
from dicomfs.outline import MAX_HEAD_BYTES, RELEVANT, Packer
from dicomfs.remember import remembered

_P = ParamSpec("_P")
_R = TypeVar("_R")

_KEYWORDS: Final = (
    *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "SeriesDate"),
    *("AcquisitionDate", "ContentDate", "AcquisitionDateTime", "StudyTime", "SeriesTime", "AcquisitionTime"),
    *("ContentTime", "Modality", "TimezoneOffsetFromUTC", "SeriesDescription", "ComplexImageComponent"),
    *(
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientSex",
        "SequenceName",
        "EchoNumbers",
    ),
    *("ProtocolName", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber"),
    *("ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated"),
)
_GE_CREATOR, _GE_RAW_DATA_TYPE = 0x00430010, 0x0043102F
_WANTED: Final = MappingProxyType(
    {tag_for_keyword(keyword): keyword for keyword in _KEYWORDS}
    | {_GE_CREATOR: "GECreator", _GE_RAW_DATA_TYPE: "GERawDataType"}
)
_WANTED_META: Final = MappingProxyType(
    {
        0x00020002: "MediaStorageSOPClassUID",
        0x00020003: "MediaStorageSOPInstanceUID",
        0x00020010: "TransferSyntaxUID",
        0x00020016: "SourceApplicationEntityTitle",
    }
)
_VALUE_BYTES: Final = 65_536
"""A wanted value longer than this counts as missing: none of them may have more than a few hundred bytes."""
_PIXEL_DATA: Final = 0x7FE00010
_PIXEL_TAGS: Final = frozenset({_PIXEL_DATA, 0x7FE00008, 0x7FE00009})
_NATIVE: Final = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})
_JPIP_REFERENCED_DEFLATE: Final = "1.2.840.10008.1.2.4.95"
_DEFLATED: Final = frozenset(
    {DeflatedExplicitVRLittleEndian, _JPIP_REFERENCED_DEFLATE, JPIPHTJ2KReferencedDeflate}
)
_ALONE: Final = frozenset(["CT", "CR", "DX", "MG", "IO", "RTIMAGE", "US", "XC", "ES", "OP", "SM", "SC", "OT"])
"""Modalities whose single images each decide on their own grey scale."""

_HOSTILE: Final = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError, RecursionError),
    *(NotImplementedError, struct.error, zlib.error),
)


def _untrusted(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The one place where what hostile bytes provoke becomes `UnreadableDataSet`.

    The cause is not chained: its text may quote the data set.
    """

    @functools.wraps(function)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except _HOSTILE as error:
            kind = f"{type(error).__module__}.{type(error).__qualname__}"
            raise UnreadableDataSet(f"damaged data set ({kind})") from None

    return guarded


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What the head of a file says of the data set that follows (PS3.10 7.1)."""

    transfer_syntax: str
    """As announced, else guessed from the first element."""
    sop_class_uid: str | None
    sop_instance_uid: str | None
    source_ae: str
    data_set_offset: int
    """First byte of the data set, counted from the start of the file."""


@_untrusted
def read_header(data_set: BinaryIO, size: int, transfer_syntax: str) -> Header:
    """Read the header of the data set that begins where `data_set` stands and has `size` bytes.

    Raises UnreadableDataSet when it is no data set in that transfer syntax, is cut short, or has no
    plausible SOP Class or Instance UID. A value of the wrong form never raises: it counts as missing. A
    missing Study or Series UID becomes `2.25.` + the first 16 bytes of a SHA-256 as a decimal number: the
    study's over issuer, patient id, name, birth date, study date; the series' over study UID, modality,
    series number and description. So images that agree in these stay together, however often sent.
    """
    syntax = transfer_syntax.strip("\0 ")
    if syntax in _DEFLATED:
        inflated, total = inflate(data_set, size)
        walk = Walk(inflated, total, explicit=True)
    else:
        explicit, little = syntax != ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        walk = Walk(data_set, size, explicit=explicit, little=little)
        if not syntax.startswith("1.2.840.10008."):  # nobody says what a private syntax does: see
            walk.explicit = is_vr(walk.peek(6)[4:])
    walk.check_start()
    start = data_set.tell()
    packer = Packer(explicit=walk.explicit)
    raw, tag, offset, length = _scan(walk, packer)
    values = _Values(raw, Charset.of(raw.get("SpecificCharacterSet", b"")), walk.order)
    native = tag == _PIXEL_DATA and length != UNDEFINED and syntax in _NATIVE
    plain = native and length and walk.order == "<" and offset <= MAX_HEAD_BYTES and packer.is_plain()
    outline = None
    if plain:
        data_set.seek(start)
        outline = packer.pack(data_set.read(offset))
    place = (offset, length) if native else (None, None)
    return _header(values, place, outline, has_pixels=tag is not None)


@_untrusted
def read_file_meta(file: BinaryIO) -> FileMeta:
    """Find the data set of a file: after preamble and meta, after meta alone, or at once.

    Without Transfer Syntax UID the encoding is guessed from the first element. Raises NotDicom when
    the file does not look like DICOM, or is a DICOMDIR, which lists images and is none.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    head = file.read(132)
    preamble = 132 if head[128:132] == b"DICM" else 4 if head[:4] == b"DICM" else 0
    file.seek(start + preamble)
    walk = Walk(file, size - preamble, explicit=True)
    bare_meta = head[:2] == b"\x02\0" and head[4:6] in {b"UL", b"OB", b"UI"}
    meta = _read_meta(walk) if preamble or bare_meta else {}
    values = _Values(meta, Charset(), "<")
    syntax = values.uid("TransferSyntaxUID")
    file.seek(start + preamble + walk.at)
    first = file.read(8)
    is_directory = values.text("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage
    if is_directory or (not meta and first[:2] == b"\x04\0" and _guess(first)):
        raise NotDicom("a DICOMDIR, not an image object")
    if not syntax and not (syntax := _guess(first)):
        raise NotDicom("not a DICOM file")
    return FileMeta(
        transfer_syntax=syntax,
        sop_class_uid=values.uid("MediaStorageSOPClassUID") or None,
        sop_instance_uid=values.uid("MediaStorageSOPInstanceUID") or None,
        source_ae=values.text("SourceApplicationEntityTitle"),
        data_set_offset=start + preamble + walk.at,
    )


def _scan(walk: Walk, packer: Packer) -> tuple[dict[str, bytes], int | None, int, int]:
    """Values of the wanted elements by keyword; tag, value offset and length of the pixel data.

    `packer` gets those that an outline is made from. The length is `UNDEFINED` when encapsulated, the tag
    None when there are no pixels.
    """
    values: dict[str, bytes] = {}
    while (head := walk.head()) is not None:
        tag, vr, length = head
        if tag in _PIXEL_TAGS:
            offset = walk.at
            if length == UNDEFINED:
                walk.skip_fragments()
            else:
                walk.skip(length)
            return values, tag, offset, length
        if tag in RELEVANT and packer.wants(tag, vr, length):
            packer.keep(tag, value := walk.take(length))
            if tag in _WANTED:
                values[_WANTED[tag]] = value
        elif length == UNDEFINED:
            walk.skip_sequence(explicit=bool(vr) and vr != b"UN")
        elif tag in _WANTED and length <= _VALUE_BYTES:
            values[_WANTED[tag]] = walk.take(length)
        elif tag == ITEM:
            raise UnreadableDataSet("an item outside any sequence")
        else:
            walk.skip(length)
    return values, None, 0, 0


def _read_meta(walk: Walk) -> dict[str, bytes]:
    """Group 0002 by keyword (PS3.10 7.1); leaves the cursor at the data set."""
    values: dict[str, bytes] = {}
    end = -1
    # the group's own length comes first: deflated bytes after it may look like group 0002
    while walk.at != end and walk.peek(2) == b"\x02\0" and (head := walk.head()) is not None:
        tag, _, length = head
        if length > _VALUE_BYTES:
            walk.skip(length)
            continue
        value = walk.take(length)
        if tag == 0x00020000 and length == 4:
            end = walk.at + int.from_bytes(value, "little")
        elif tag in _WANTED_META:
            values[_WANTED_META[tag]] = value
    return values


def _guess(first: bytes) -> str:
    """Transfer syntax of a data set that begins with these 8 bytes; empty when it does not look like one."""
    if len(first) < 8:
        return ""
    little, big = struct.unpack("<HH", first[:4]), struct.unpack(">HH", first[:4])
    known_vr = first[4:6] in SHORT_VR | LONG_VR
    # the first element of a data set with SOP Class and Instance UID is not after (0008,0018)
    if little[0] in {0x0004, 0x0008} and (little[0] == 0x0004 or little[1] <= 0x0018):
        length = int.from_bytes(first[4:], "little")
        return ExplicitVRLittleEndian if known_vr else ImplicitVRLittleEndian if length <= 1024 else ""
    return ExplicitVRBigEndian if known_vr and big[0] == 0x0008 and big[1] <= 0x0018 else ""


# --- values ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Values:
    """Typed access to raw values by keyword; whatever does not have the right form is missing."""

    raw: dict[str, bytes]
    charset: Charset
    order: str

    def text(self, keyword: str, delimiters: bytes = b"\\\r\n\f\t") -> str:
        """Without padding, white space at the ends and NUL; several values stay joined by `\\`."""
        raw = self.raw.get(keyword)
        return self.charset.decode(raw, delimiters).replace("\0", "").strip() if raw else ""

    def names(self, keyword: str) -> tuple[str, ...]:
        """Groups of the first name that say something: alphabetic, ideographic, phonetic (PS3.5 6.2.1.1)."""
        groups = self.text(keyword, b"^=\\").split("\\")[0].split("=")[:3]
        return tuple(group.strip() for group in groups if group.strip("^ "))

    def uid(self, keyword: str) -> str:
        """UI as what it is here, a name that tells things apart.

        PS3.5 9.1 wants digits and dots, no leading zeros, at most 64 in all. Devices send letters, zeros,
        blanks inside and longer ones; to refuse these would lose their images.
        """
        uid = self.text(keyword)
        return uid if _UID.fullmatch(uid) else ""

    def number(self, keyword: str) -> int | None:
        """IS (PS3.5 6.2: signed, 32 bits), also when written `4.00`."""
        match = re.fullmatch(r"([+-]?[0-9]{1,10})(?:\.0*)?", self.text(keyword))
        number = int(match[1]) if match else 1 << 31
        return number if -(1 << 31) <= number < 1 << 31 else None

    def unsigned(self, keyword: str) -> int | None:
        """Exactly one US."""
        raw = self.raw.get(keyword, b"")
        return int.from_bytes(raw, "little" if self.order == "<" else "big") if len(raw) == 2 else None

    def hundredths(self, keyword: str, count: int) -> list[int] | None:
        """Exactly `count` DS, in hundredths; None as well when one of them is absurd (over 10^9)."""
        words = self.text(keyword).split("\\")
        if len(words) != count or not all(_DECIMAL.fullmatch(word) for word in words):
            return None
        numbers = [float(word) for word in words]
        return [round(number * 100) for number in numbers] if max(map(abs, numbers)) < 1e9 else None

    def day(self, keyword: str) -> str:
        """YYYYMMDD of a DA, a real day."""
        return _day(self.text(keyword))

    def time(self, keyword: str) -> str:
        """HHMMSS of a TM, without fraction."""
        return _time(self.text(keyword))


_UID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._ -]{0,127}", re.ASCII)
"""As long as two of them have room in the file meta information of an archived file, and longer than seen."""
_DECIMAL: Final = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*", re.ASCII)
_DATE: Final = re.compile(r"([0-9]{4})([./-]?)([0-9]{2})\2([0-9]{2})")
"""DA; ACR-NEMA wrote `2003.01.10`."""
_CLOCK: Final = (
    r"(?P<hour>[01][0-9]|2[0-3])"
    r"(:?(?P<minute>[0-5][0-9])(:?(?P<second>[0-5][0-9]|60)(\.(?P<fraction>[0-9]*))?)?)?"
)
_TIME: Final = re.compile(_CLOCK)
"""TM, which may be short; ACR-NEMA wrote `12:30:15`."""
_DATE_TIME: Final = re.compile(rf"(?P<day>[0-9]{{8}})(?P<clock>{_CLOCK})?(?P<zone>[+-][0-9]{{4}})?")
_ZONE: Final = re.compile(r"(?P<sign>[+-])(?P<hours>0[0-9]|1[0-4])(?P<minutes>[0-5][0-9])")


@remembered(256, 10)
def _day(text: str) -> str:
    match = _DATE.fullmatch(text)
    if match is None:
        return ""
    try:
        date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        return ""
    return match[1] + match[3] + match[4]


def _time(text: str) -> str:
    match = _TIME.fullmatch(text)
    return "".join(part or "00" for part in match.group("hour", "minute", "second")) if match else ""


def _acquired(values: _Values) -> float | None:
    """Seconds since the epoch: the first complete date and time, else the first date, at midnight.

    In the offset that the value or the data set names (PS3.3 C.12.1.1.8), else in this machine's zone. What
    is before 1970 becomes 1970-01-01 UTC; a year after 2200 is a mistake and counts as missing.
    """
    first: tuple[str, re.Match[str] | None, str] | None = None
    for moment in _moments(values):
        day, clock, _ = moment
        if day and day <= "22001231":
            if clock:
                return _epoch(*moment)
            first = first or moment
    return _epoch(*first) if first else None


def _moments(values: _Values) -> Iterator[tuple[str, re.Match[str] | None, str]]:
    """Day, time and offset of what tells when it was acquired, the best first; any may be missing."""
    zone = values.text("TimezoneOffsetFromUTC")
    if match := _DATE_TIME.fullmatch(values.text("AcquisitionDateTime")):
        yield _day(match["day"]), _TIME.fullmatch(match["clock"] or ""), match["zone"] or zone
    for kind in ("Acquisition", "Content", "Series", "Study"):
        yield values.day(f"{kind}Date"), _TIME.fullmatch(values.text(f"{kind}Time")), zone


def _epoch(day: str, clock: re.Match[str] | None, zone: str) -> float:
    hour, minute, second, fraction = (
        clock.group("hour", "minute", "second", "fraction") if clock else ("",) * 4
    )
    offset = _ZONE.fullmatch(zone)
    delta = timedelta(hours=int(offset["hours"]), minutes=int(offset["minutes"])) if offset else timedelta()
    moment = datetime(
        *(int(day[:4]), int(day[4:6]), int(day[6:]), int(hour or 0), int(minute or 0)),
        second=min(int(second or 0), 59),
        microsecond=int(f"{fraction or '':0<6}"[:6]),
        tzinfo=timezone(-delta if offset["sign"] == "-" else delta) if offset else None,
    )
    # (the year first: the machine's zone has no answer for antiquity)
    return max(0.0, moment.timestamp()) if moment.year >= 1969 else 0.0


# --- the header -----------------------------------------------------------------------------------------


def _header(
    values: _Values, native: tuple[int | None, int | None], outline: bytes | None, *, has_pixels: bool
) -> Header:
    """Raises UnreadableDataSet without SOP Class or Instance UID."""
    if not (sop_class_uid := values.uid("SOPClassUID")):
        raise UnreadableDataSet("no SOP Class UID, or one that is none")
    if not (sop_instance_uid := values.uid("SOPInstanceUID")):
        raise UnreadableDataSet("no SOP Instance UID, or one that is none")
    names = values.names("PatientName")
    patient = [values.text("IssuerOfPatientID"), values.text("PatientID"), names[0] if names else ""]
    birth_date, sex = values.day("PatientBirthDate"), values.text("PatientSex").upper()
    study_date, study_time = _study_date_and_time(values)
    modality = values.text("Modality")
    series_number = values.number("SeriesNumber")
    description = values.text("SeriesDescription")
    study_uid, series_uid = values.uid("StudyInstanceUID"), values.uid("SeriesInstanceUID")
    derived = tuple(
        keyword
        for keyword, uid in (("StudyInstanceUID", study_uid), ("SeriesInstanceUID", series_uid))
        if not uid
    )
    study_uid = study_uid or _derived_uid("study", *patient, birth_date, study_date)
    number = "" if series_number is None else str(series_number)
    frames = max(1, values.number("NumberOfFrames") or 1)
    return Header(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        study_uid=study_uid,
        series_uid=series_uid or _derived_uid("series", study_uid, modality, number, description),
        derived_uids=derived,
        issuer=patient[0],
        patient_id=patient[1],
        patient_name=patient[2],
        patient_names=names,
        birth_date=birth_date,
        sex=sex if sex in {"M", "F"} else "",
        study_date=study_date,
        study_time=study_time,
        modality=modality,
        series_name=description or values.text("ProtocolName") or values.text("SequenceName") or modality,
        series_number=series_number,
        instance_number=values.number("InstanceNumber"),
        frames=frames,
        rows=values.unsigned("Rows") or 0,
        columns=values.unsigned("Columns") or 0,
        has_pixels=has_pixels,
        pool=_pool(values, modality.upper(), frames, sop_instance_uid) if has_pixels else "",
        acquired=_acquired(values),
        pixel_offset=native[0],
        pixel_length=native[1],
        outline=outline,
    )


def _study_date_and_time(values: _Values) -> tuple[str, str]:
    """Date of the study, else of acquisition, series, content; its time, else the one beside that date."""
    day, clock = next((pair for pair in _dated(values) if pair[0]), ("", ""))
    return day, values.time("StudyTime") or clock


def _dated(values: _Values) -> Iterator[tuple[str, str]]:
    yield values.day("StudyDate"), values.time("StudyTime")
    yield values.day("AcquisitionDate"), values.time("AcquisitionTime")
    moment = values.text("AcquisitionDateTime")
    yield _day(moment[:8]), _time(moment[8:14])
    yield values.day("SeriesDate"), values.time("SeriesTime")
    yield values.day("ContentDate"), values.time("ContentTime")


def _derived_uid(*parts: str) -> str:
    """A UID below 2.25, where 128-bit numbers may be used without asking (PS3.5 B.2)."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _pool(values: _Values, modality: str, frames: int, sop_instance_uid: str) -> str:
    """Key of the images of a series that share one grey scale, or empty.

    `i…` all frames of a run; `series` PET and NM, whose numbers compare across slices; `p…` all phases at one
    position (`s…`: the position is unknown, so alone). Phase and velocity maps never share with magnitude
    images: Image Type from its third value on (PS3.3 C.8.3.1.1.1), Complex Image Component, and GE's private
    raw data type are part of the key, as are echo and matrix.
    """
    samples = values.unsigned("SamplesPerPixel")
    photometric = values.text("PhotometricInterpretation").upper()
    grey = photometric.startswith("MONOCHROME") if samples is None else samples == 1
    if not grey or "PALETTE" in photometric or (values.unsigned("BitsAllocated") or 0) <= 8:
        return ""
    if frames > 1:
        return "i" + short_hash(sop_instance_uid, 12)
    if modality in {"PT", "NM"}:
        return "series"
    if modality in _ALONE:
        return ""
    position = values.hundredths("ImagePositionPatient", 3)
    location = values.hundredths("SliceLocation", 1)
    if position is None and location is None:
        return "s" + short_hash(sop_instance_uid, 12)
    is_ge = values.text("GECreator").startswith("GEMS_PARM")
    parts = (
        [position, values.hundredths("ImageOrientationPatient", 6)] if position else location,
        [word.strip().upper() for word in values.text("ImageType").split("\\")[2:]],
        values.text("ComplexImageComponent").upper(),
        values.raw.get("GERawDataType", b"").hex() if is_ge else "",
        values.text("EchoNumbers"),
        (values.unsigned("Rows"), values.unsigned("Columns")),
    )
    return "p" + short_hash(json.dumps(parts), 12)
