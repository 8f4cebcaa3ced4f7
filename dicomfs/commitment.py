"""Storage Commitment Push Model as data sets (PS3.4 J.3): a request read, its result written. Pure.

A request comes from anybody, so it is walked element by element within bounds and nothing of it is
believed; what the standard has a failure status for leaves here as `RequestRefused` with that status. Knows
neither network nor store. Used by `actions.py` (requests), `commitmentservice.py` (results) and
`commitments.py`, which keeps both.
"""

import hashlib
import io
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomfs.elements import ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, Walk
from dicomfs.errors import RequestRefused, UnreadableDataSet

SOP_CLASS_UID: Final = "1.2.840.10008.1.20.1"
SOP_INSTANCE_UID: Final = "1.2.840.10008.1.20.1.1"
"""The well-known instance that every request is addressed to (PS3.4 J.3.5)."""
REQUEST_COMMITMENT: Final = 1
"""The one action type (PS3.4 table J.3-1)."""
ALL_COMMITTED, FAILURES_EXIST = 1, 2
"""Event types (PS3.4 table J.3-2)."""

LONGEST_BYTES: Final = 32 << 20
"""Of a request's data set; what is longer is answered "resource limitation"."""
MOST_REFERENCES: Final = 100_000

# Failures of an N-ACTION (PS3.7 10.1.4.1.10, C.5).
PROCESSING_FAILURE, NO_SUCH_INSTANCE, INVALID_ARGUMENT, NO_SUCH_CLASS = 0x0110, 0x0112, 0x0115, 0x0118
NO_SUCH_ACTION, RESOURCE_LIMITATION = 0x0123, 0x0213

_TRANSACTION_UID, _REFERENCED_SOPS = 0x00081195, 0x00081199
_REFERENCED_CLASS, _REFERENCED_INSTANCE = 0x00081150, 0x00081155
_UID_TEXT: Final = re.compile(rb"[0-9]+(?:\.[0-9]+)*")
_LONGEST_UID: Final = 64
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 1800.0


class Reason(IntEnum):
    """Failure Reason (0008,1197) (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT = 0x0112
    CLASS_CONFLICT = 0x0119
    CLASS_NOT_SUPPORTED = 0x0122
    DUPLICATE_TRANSACTION = 0x0131
    RESOURCE_LIMITATION = 0x0213


@dataclass(frozen=True, slots=True)
class Reference:
    """One item of a Referenced SOP Sequence (0008,1199); both UIDs are digits and points."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Request:
    """Action Information of a request (PS3.4 table J.3-1)."""

    transaction_uid: str
    references: tuple[Reference, ...]

    @property
    def digest(self) -> bytes:
        """32 bytes that tell the same request from another one under its Transaction UID."""
        return hashlib.sha256(reference_lines(self.references)).digest()


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a request: Event Information (PS3.4 table J.3-2)."""

    transaction_uid: str
    references: Sequence[Reference]
    failures: Mapping[int, int]
    """Failure Reason by place in `references`, counted from 0; what is not in it is committed."""

    @property
    def event_type(self) -> int:
        """Event Type ID (0000,1002)."""
        return FAILURES_EXIST if self.failures else ALL_COMMITTED


def reference_lines(references: Sequence[Reference]) -> bytes:
    """Class and instance UID, a line for each; `from_lines` reads it back."""
    return "".join(f"{it.sop_class_uid} {it.sop_instance_uid}\n" for it in references).encode("ascii")


def from_lines(lines: bytes) -> tuple[Reference, ...]:
    """What `reference_lines` wrote."""
    return tuple(Reference(*line.split(" ")) for line in lines.decode("ascii").splitlines())


def pause_s(attempts: int) -> float:
    """Seconds to wait after so many attempts in vain (at least 1): doubled each time, up to half an hour."""
    return min(_FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 30), _LONGEST_PAUSE_S)


# --- A request is read ------------------------------------------------------------------------------


def check_addressee(sop_class_uid: str, sop_instance_uid: str, action_type: int) -> None:
    """Raise RequestRefused unless an N-ACTION asks this SOP class for the one thing it does (PS3.4 J.3.2)."""
    if sop_class_uid != SOP_CLASS_UID:
        raise RequestRefused("it is addressed to another SOP class", NO_SUCH_CLASS)
    if sop_instance_uid != SOP_INSTANCE_UID:
        raise RequestRefused("it is not addressed to the well-known SOP instance", NO_SUCH_INSTANCE)
    if action_type != REQUEST_COMMITMENT:
        raise RequestRefused(f"it asks for action type {action_type}", NO_SUCH_ACTION)


def read_request(raw: bytes, transfer_syntax: str) -> Request:
    """Read the data set of an N-ACTION (PS3.4 table J.3-1). Raises RequestRefused.

    Attributes that are optional there (media, performed procedure step) are stepped over.
    """
    walk = Walk(
        io.BytesIO(raw),
        len(raw),
        explicit=transfer_syntax != ImplicitVRLittleEndian,
        little=transfer_syntax != ExplicitVRBigEndian,
    )
    try:
        return _request(walk)
    except (UnreadableDataSet, struct.error) as error:
        raise RequestRefused(f"its data set cannot be read: {error}", INVALID_ARGUMENT) from None


def _request(walk: Walk) -> Request:
    transaction_uid: str | None = None
    references: tuple[Reference, ...] | None = None
    while (head := walk.head()) is not None:
        tag, vr, length = head
        if tag == _TRANSACTION_UID:
            _once(transaction_uid, "Transaction UID (0008,1195)")
            transaction_uid = _uid(walk, vr, length, "Transaction UID (0008,1195)")
        elif tag == _REFERENCED_SOPS:
            _once(references, "Referenced SOP Sequence (0008,1199)")
            if vr not in (b"", b"SQ"):
                raise _invalid("Referenced SOP Sequence (0008,1199) is no sequence")
            references = tuple(_references(walk, length))
        else:
            _step_over(walk, vr, length)
    if transaction_uid is None:
        raise _invalid("Transaction UID (0008,1195) is missing")
    if not references:
        raise _invalid("Referenced SOP Sequence (0008,1199) is missing or has no item")
    return Request(transaction_uid, references)


def _references(walk: Walk, length: int) -> Iterator[Reference]:
    end = _end(walk, length)
    for number, head in enumerate(_heads(walk, end, SEQUENCE_END)):
        tag, _, item_length = head
        if tag != ITEM:
            raise UnreadableDataSet("a sequence holds something else than items")
        if number == MOST_REFERENCES:
            raise RequestRefused(f"it has more than {MOST_REFERENCES} references", RESOURCE_LIMITATION)
        yield _reference(walk, item_length)


def _reference(walk: Walk, length: int) -> Reference:
    found: dict[int, str] = {}
    for tag, vr, value_length in _heads(walk, _end(walk, length), ITEM_END):
        if tag in (_REFERENCED_CLASS, _REFERENCED_INSTANCE):
            what = f"Referenced SOP {'Class' if tag == _REFERENCED_CLASS else 'Instance'} UID"
            _once(found.get(tag), what)
            found[tag] = _uid(walk, vr, value_length, what)
        else:
            _step_over(walk, vr, value_length)
    if len(found) < 2:
        raise _invalid("an item of the Referenced SOP Sequence lacks one of its UIDs")
    return Reference(found[_REFERENCED_CLASS], found[_REFERENCED_INSTANCE])


def _end(walk: Walk, length: int) -> int | None:
    """Where a sequence or an item ends; None: at its delimiter."""
    if length == UNDEFINED:
        return None
    if walk.at + length > walk.size:
        raise UnreadableDataSet("cut short inside a sequence")
    return walk.at + length


def _heads(walk: Walk, end: int | None, delimiter: int) -> Iterator[tuple[int, bytes, int]]:
    """Heads of elements up to `end`, or up to the delimiter; the caller reads the values."""
    while end is None or walk.at < end:
        if (head := walk.head()) is None:
            raise UnreadableDataSet("cut short inside a sequence")
        if head[0] == delimiter:
            if end is not None:
                raise UnreadableDataSet("a delimiter where none belongs")
            return
        yield head
    if walk.at > end:
        raise UnreadableDataSet("an element is longer than its item")


def _step_over(walk: Walk, vr: bytes, length: int) -> None:
    if length == UNDEFINED:
        walk.skip_sequence(explicit=walk.explicit and vr != b"UN")
    else:
        walk.skip(length)


def _uid(walk: Walk, vr: bytes, length: int, what: str) -> str:
    if vr not in (b"", b"UI") or length > _LONGEST_UID:
        raise _invalid(f"{what} is no UID")
    raw = walk.take(length).rstrip(b"\0 ")
    if not _UID_TEXT.fullmatch(raw):
        raise _invalid(f"{what} is empty or no UID")
    return raw.decode("ascii")


def _once(former: object, what: str) -> None:
    if former is not None:
        raise _invalid(f"{what} is there twice")


def _invalid(text: str) -> RequestRefused:
    return RequestRefused(text, INVALID_ARGUMENT)


# --- A result is written ----------------------------------------------------------------------------


def event_information(report: Report) -> Dataset:
    """The data set of an N-EVENT-REPORT (PS3.4 table J.3-2).

    Every reference of the request is in it once for each time it was asked for. No Retrieve AE Title:
    nothing can be retrieved from us by DICOM.
    """
    committed, failed = [], []
    for place, reference in enumerate(report.references):
        item = Dataset()
        item.ReferencedSOPClassUID = reference.sop_class_uid
        item.ReferencedSOPInstanceUID = reference.sop_instance_uid
        if place in report.failures:
            item.FailureReason = report.failures[place]
            failed.append(item)
        else:
            committed.append(item)
    information = Dataset()
    information.TransactionUID = report.transaction_uid
    # Type 1C both: there only when there is something to list.
    if failed:
        information.FailedSOPSequence = Items(failed)
    if committed:
        information.ReferencedSOPSequence = Items(committed)
    return information


def encoded(report: Report, transfer_syntax: UID) -> bytes:
    """`event_information` as bytes, in an uncompressed transfer syntax."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = transfer_syntax.is_implicit_VR
    buffer.is_little_endian = transfer_syntax.is_little_endian
    write_dataset(buffer, event_information(report))
    return buffer.getvalue()
