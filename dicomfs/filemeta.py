"""File meta information of archived originals (PS3.10 7.1): written and read back.

Every archived file has its data set at byte `DATA_SET_OFFSET`: what is in front of it is padded, in its
private information element, to that length, so that it can be written when the header has been read. Pure.
Used by `archive.py` and whoever opens an original.
"""

import json
import math
import re
import struct
from typing import Final

from dicomfs import __version__
from dicomfs.errors import UnreadableDataSet
from dicomfs.model import Duplicates, Receipt

DATA_SET_OFFSET: Final = 1024
"""First byte of the data set in every archived file."""

IMPLEMENTATION_UID: Final = "2.25.328308849035975025332632903334970848394"
IMPLEMENTATION_VERSION: Final = f"DICOMFS_{__version__}"[:16]
PRIVATE_CREATOR_UID: Final = "2.25.4201760754356986948954808459140212463"
"""(0002,0100): names the owner of our JSON text in (0002,0102)."""

_ELEMENT: Final = struct.Struct("<HH2sHL")
"""Head of an explicit VR element with a long length (PS3.5 7.1.2)."""
_SHORT_ELEMENT: Final = struct.Struct("<HH2sH")
_GROUP_LENGTH_AT: Final = 140
"""Value of (0002,0000): after preamble, prefix and its own head."""
_NOT_OF_AN_AE: Final = re.compile(r"[^ -~]|\\")
_HEAD: Final = (
    bytes(128)
    + b"DICM"
    + _SHORT_ELEMENT.pack(0x0002, 0x0000, b"UL", 4)
    # The group length counts what follows it (PS3.10 table 7.1-1).
    + struct.pack("<L", DATA_SET_OFFSET - _GROUP_LENGTH_AT - 4)
)
_LONGEST_REASON: Final = 120


def file_meta(receipt: Receipt, sop_class_uid: str, sop_instance_uid: str, *, refused: str = "") -> bytes:
    """Preamble, prefix and file meta information (PS3.10 7.1), exactly `DATA_SET_OFFSET` bytes.

    Time of receipt and policy are JSON in Private Information (0002,0102), blank padded: the last element,
    so that it can fill what is left; `refused`: why a data set that is kept aside was not taken. Raises
    UnreadableDataSet when the UIDs leave no room.
    """
    source_ae, receiving_ae = plain_ae(receipt.source_ae), plain_ae(receipt.receiving_ae)
    elements = [
        (0x0001, b"OB", b"\0\1"),
        (0x0002, b"UI", _padded(sop_class_uid)),
        (0x0003, b"UI", _padded(sop_instance_uid)),
        (0x0010, b"UI", _padded(receipt.transfer_syntax)),
        (0x0012, b"UI", _padded(IMPLEMENTATION_UID)),
        (0x0013, b"SH", _padded(IMPLEMENTATION_VERSION, b" ")),
    ]
    if source_ae:
        elements += [(tag, b"AE", _padded(source_ae, b" ")) for tag in (0x0016, 0x0017)]
    if receiving_ae:
        elements.append((0x0018, b"AE", _padded(receiving_ae, b" ")))
    elements.append((0x0100, b"UI", _padded(PRIVATE_CREATOR_UID)))
    head = _HEAD
    for tag, vr, value in elements:
        form = _ELEMENT.pack(2, tag, vr, 0, len(value)) if vr == b"OB" else None
        head += (form or _SHORT_ELEMENT.pack(0x0002, tag, vr, len(value))) + value
    facts: dict[str, float | str] = {"received": receipt.received}
    if receipt.duplicates is not Duplicates.KEEP_FIRST:
        facts["duplicates"] = receipt.duplicates.value
    if refused:
        facts["refused"] = refused[:_LONGEST_REASON]
    note = json.dumps(facts).encode()
    room = DATA_SET_OFFSET - len(head) - _ELEMENT.size
    if room < len(note):
        raise UnreadableDataSet("its UIDs are too long for file meta information")
    return head + _ELEMENT.pack(0x0002, 0x0102, b"OB", 0, room) + note.ljust(room)


def _padded(text: str, padding: bytes = b"\0") -> bytes:
    """A value of even length (PS3.5 7.1.1)."""
    raw = text.encode("ascii", "replace")
    return raw + padding * (len(raw) % 2)


def plain_ae(title: str) -> str:
    """An AE title fit for value representation AE (PS3.5 6.2), whatever the peer called itself."""
    return _NOT_OF_AN_AE.sub("_", title.strip())[:16].strip()


def parse_file_meta(raw: bytes) -> Receipt:
    """Read back what `file_meta` wrote: the first `DATA_SET_OFFSET` bytes of a file.

    Strict, since these bytes are ours and no checksum covers them: whatever `file_meta` would not have
    written raises UnreadableDataSet.
    """
    try:
        values = _elements(raw)
        if _text(values[0x0100]) != PRIVATE_CREATOR_UID:
            raise UnreadableDataSet("its file meta information was not written by dicomfs")
        note = json.loads(values[0x0102])
        receipt = Receipt(
            transfer_syntax=_text(values[0x0010]),
            received=float(note["received"]),
            source_ae=_text(values.get(0x0016, b"")),
            receiving_ae=_text(values.get(0x0018, b"")),
            sop_class_uid=_text(values[0x0002]),
            sop_instance_uid=_text(values[0x0003]),
            duplicates=Duplicates(note.get("duplicates", Duplicates.KEEP_FIRST.value)),
        )
    except (struct.error, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        # Not chained: its text may quote the file.
        raise UnreadableDataSet(
            "its file meta information is damaged or was not written by dicomfs"
        ) from None
    if not math.isfinite(receipt.received):
        raise UnreadableDataSet("its file meta information is damaged: it has no time of receipt")
    return receipt


def _elements(raw: bytes) -> dict[int, bytes]:
    """Values of group 0002 by element, after the group length. Raises ValueError, struct.error."""
    at = len(_HEAD)
    if len(raw) != DATA_SET_OFFSET or not raw.startswith(_HEAD):
        raise ValueError("no file meta information")
    values = {}
    while at < DATA_SET_OFFSET:
        head = _ELEMENT if raw[at + 4 : at + 6] == b"OB" else _SHORT_ELEMENT
        group, tag, _vr, *_reserved, length = head.unpack_from(raw, at)
        at += head.size + length
        if group != 2 or at > DATA_SET_OFFSET:
            raise ValueError("no element of file meta information")
        values[tag] = raw[at - length : at]
    return values


def _text(value: bytes) -> str:
    return value.decode("ascii").strip("\0 ")
