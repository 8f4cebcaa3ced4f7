"""DIMSE command sets (PS3.7 6.3, 9.3, 10.3, E.1): the few short elements in front of every message.

Always implicit VR little endian, group 0000 only, never nested: read and written here by hand, because
every object that is received costs one of each and a data set library takes longer for them than the
store does for the object. Pure: bytes in, values out. Used by `association.py`.
"""

import struct
from dataclasses import dataclass
from typing import Final

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
N_EVENT_REPORT_RQ, N_ACTION_RQ = 0x0100, 0x0130
RESPONSE: Final = 0x8000
"""Set in the command field of a response."""
LONGEST: Final = 1 << 16
"""Bytes of a command set that are read; real ones have a few hundred."""

_NO_DATA_SET: Final = 0x0101
_WITH_DATA_SET: Final = 0x0001
_ELEMENT: Final = struct.Struct("<HHL")
_COMMAND_FIELD, _MESSAGE_ID, _RESPONDED_TO, _DATA_SET_TYPE, _STATUS = 0x0100, 0x0110, 0x0120, 0x0800, 0x0900
_AFFECTED_CLASS, _REQUESTED_CLASS, _AFFECTED_INSTANCE, _REQUESTED_INSTANCE = 0x0002, 0x0003, 0x1000, 0x1001
_COMMENT, _EVENT_TYPE, _ACTION_TYPE = 0x0902, 0x1002, 0x1008


@dataclass(frozen=True, slots=True)
class Command:
    """One command set; what is missing is empty or 0."""

    field: int
    """Command Field (0000,0100)."""
    message_id: int
    responded_to: int
    has_data_set: bool
    status: int
    sop_class_uid: str
    """Affected or Requested SOP Class UID, as it came: it may be no UID."""
    sop_instance_uid: str
    action_type: int

    @property
    def is_response(self) -> bool:
        """True for the answer to a message of ours."""
        return bool(self.field & RESPONSE)


def decode(raw: bytes) -> Command:
    """Read a command set. Raises ValueError when it is none; the text quotes nothing of it."""
    values: dict[int, bytes] = {}
    at = 0
    while at < len(raw):
        if len(raw) - at < _ELEMENT.size:
            raise ValueError("a command set is cut short")
        group, element, length = _ELEMENT.unpack_from(raw, at)
        at += _ELEMENT.size
        if group or length > len(raw) - at:
            raise ValueError("a command set holds something else than command elements")
        values[element] = raw[at : at + length]
        at += length
    if _COMMAND_FIELD not in values or _DATA_SET_TYPE not in values:
        raise ValueError("a command set does not say what it is")
    return Command(
        field=_number(values, _COMMAND_FIELD),
        message_id=_number(values, _MESSAGE_ID),
        responded_to=_number(values, _RESPONDED_TO),
        has_data_set=_number(values, _DATA_SET_TYPE) != _NO_DATA_SET,
        status=_number(values, _STATUS),
        sop_class_uid=_uid(values, _AFFECTED_CLASS, _REQUESTED_CLASS),
        sop_instance_uid=_uid(values, _AFFECTED_INSTANCE, _REQUESTED_INSTANCE),
        action_type=_number(values, _ACTION_TYPE),
    )


def response(request: Command, status: int, comment: str = "") -> bytes:
    """The answer to a request, without data set; `comment`: at most 64 ASCII characters (LO)."""
    elements = [
        (_COMMAND_FIELD, _short(request.field | RESPONSE)),
        (_RESPONDED_TO, _short(request.message_id)),
        (_DATA_SET_TYPE, _short(_NO_DATA_SET)),
        (_STATUS, _short(status)),
    ]
    if request.sop_class_uid:
        elements.append((_AFFECTED_CLASS, _even(request.sop_class_uid)))
    if comment:
        elements.append((_COMMENT, _even(comment, b" ")))
    if request.sop_instance_uid:
        elements.append((_AFFECTED_INSTANCE, _even(request.sop_instance_uid)))
    if request.action_type:
        elements.append((_ACTION_TYPE, _short(request.action_type)))
    return _encode(elements)


def event_report(message_id: int, sop_class_uid: str, sop_instance_uid: str, event_type: int) -> bytes:
    """An N-EVENT-REPORT request whose data set follows (PS3.7 10.3.1.1)."""
    return _encode(
        [
            (_AFFECTED_CLASS, _even(sop_class_uid)),
            (_COMMAND_FIELD, _short(N_EVENT_REPORT_RQ)),
            (_MESSAGE_ID, _short(message_id)),
            (_DATA_SET_TYPE, _short(_WITH_DATA_SET)),
            (_AFFECTED_INSTANCE, _even(sop_instance_uid)),
            (_EVENT_TYPE, _short(event_type)),
        ]
    )


def _encode(elements: list[tuple[int, bytes]]) -> bytes:
    body = b"".join(_ELEMENT.pack(0, tag, len(value)) + value for tag, value in sorted(elements))
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(body)) + body


def _number(values: dict[int, bytes], tag: int) -> int:
    """US; 0 when it is missing or has another length."""
    raw = values.get(tag, b"")
    return int.from_bytes(raw, "little") if len(raw) == 2 else 0


def _uid(values: dict[int, bytes], *tags: int) -> str:
    raw = next((values[tag] for tag in tags if tag in values), b"")
    return raw.decode("latin-1").rstrip("\0 ")


def _short(number: int) -> bytes:
    return struct.pack("<H", number)


def _even(text: str, padding: bytes = b"\0") -> bytes:
    raw = text.encode("latin-1", "replace")
    return raw + padding * (len(raw) % 2)
