"""A cursor over encoded elements (PS3.5 7), for bytes that nobody has checked.

Steps from element to element by seeking: reads no value it is not asked for, recurses into nothing, and
checks every length against the bytes there are. Knows nothing of what elements mean. Raises
UnreadableDataSet where the bytes are no data set; what else they provoke (struct.error, zlib.error) is
for the caller to translate. Used by `header.py`.
"""

import io
import struct
import zlib
from typing import BinaryIO, Final

from dicomfs.errors import UnreadableDataSet

UNDEFINED: Final = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_VR: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""VRs with a length of 32 bits after two reserved bytes (PS3.5 7.1.2)."""
SHORT_VR: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

_NESTING: Final = 256
"""Levels of sequences and items that are followed; real objects have fewer than 20."""
_INFLATED_HEADER_BYTES: Final = 16 << 20
"""A deflated data set is kept inflated up to here; its header has to lie within."""
_INFLATED_BYTES: Final = 256 << 20
"""A deflated data set is inflated up to here to see whether it is whole; what is longer goes unchecked."""


def is_vr(raw: bytes) -> bool:
    return raw.isalpha() and raw.isupper()


class Walk:
    """A cursor over the elements of `size` bytes, which never steps past their end."""

    __slots__ = ("_base", "_data", "_head", "_length", "at", "explicit", "order", "size")

    def __init__(self, data: BinaryIO, size: int, *, explicit: bool, little: bool = True) -> None:
        self._data = data
        self._base = data.tell()
        self.at = 0
        self.size = size
        self.explicit = explicit
        self.order = "<" if little else ">"
        self._head = struct.Struct(self.order + "HH2sH")
        self._length = struct.Struct(self.order + "L")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        raw = self._data.read(count) if self.at + count <= self.size else b""
        if len(raw) != count:
            raise UnreadableDataSet(f"cut short: {count} bytes announced, {self.size - self.at} are there")
        self.at += count
        return raw

    def skip(self, count: int) -> None:
        """Step over bytes without reading them."""
        if self.at + count > self.size:
            raise UnreadableDataSet(f"cut short: {count} bytes announced, {self.size - self.at} are there")
        self.at += count
        self._data.seek(self._base + self.at)

    def peek(self, count: int) -> bytes:
        """The next bytes, or as many as there are, without stepping."""
        raw = self._data.read(min(count, self.size - self.at))
        self._data.seek(self._base + self.at)
        return raw

    def head(self, *, explicit: bool | None = None) -> tuple[int, bytes, int] | None:
        """Tag, VR (empty: implicit) and length of the next element; None at the end or before zero padding.

        In explicit VR an element whose VR is no VR is read as an implicit one if its length then fits
        (writers slip into implicit VR inside sequences), else as one of a short VR.
        """
        if self.size - self.at < 8:
            if self.take(self.size - self.at).strip(b"\0"):
                raise UnreadableDataSet("cut short inside an element")
            return None
        raw = self._data.read(8)
        if len(raw) != 8:
            raise UnreadableDataSet("cut short inside an element")
        self.at += 8
        group, number, vr, short = self._head.unpack(raw)
        tag = group << 16 | number
        implicit: int = self._length.unpack_from(raw, 4)[0]
        if group == 0xFFFE or not (self.explicit if explicit is None else explicit):
            return tag, b"", implicit
        if vr in LONG_VR or (short == 0 and vr not in SHORT_VR and is_vr(vr)):
            return tag, vr, self._length.unpack(self.take(4))[0]
        if vr not in SHORT_VR and not is_vr(vr) and implicit <= self.size - self.at:
            return tag, b"", implicit
        return tag, vr, short

    def check_start(self) -> None:
        """Raise UnreadableDataSet unless the first element has the form that the encoding demands."""
        first = self.peek(8)
        if not first:
            raise UnreadableDataSet("an empty data set")
        group = int.from_bytes(first[:2], "little" if self.order == "<" else "big")
        if len(first) < 8 or group > 0x0008 or is_vr(first[4:6]) != self.explicit:
            # (SOP Class and Instance UID are in group 0008: a data set without them is refused anyway)
            raise UnreadableDataSet("not a DICOM data set in the announced transfer syntax")

    def skip_sequence(self, *, explicit: bool) -> None:
        """Step over what follows the head of a sequence of undefined length, however nested."""
        inside_item = [False]  # per level: between the elements of an item, or between items
        modes = [explicit]
        while inside_item:
            if (head := self.head(explicit=modes[-1])) is None:
                raise UnreadableDataSet("cut short inside a sequence")
            tag, vr, length = head
            if tag == (ITEM_END if inside_item[-1] else SEQUENCE_END):
                inside_item.pop()
                modes.pop()
            elif inside_item[-1] == (tag >> 16 == 0xFFFE):
                raise UnreadableDataSet("a sequence with items out of place")
            elif length != UNDEFINED:
                self.skip(length)
            else:
                inside_item.append(not inside_item[-1])
                # undefined-length UN holds implicit VR little endian (PS3.5 6.2.2)
                modes.append(modes[-1] and vr != b"UN")
            if len(inside_item) > _NESTING:
                raise UnreadableDataSet(f"sequences nested more than {_NESTING} deep")

    def skip_fragments(self) -> None:
        """Step over encapsulated pixel data (PS3.5 A.4); its delimiter may be missing at the very end."""
        while (head := self.head(explicit=False)) is not None:
            tag, _, length = head
            if tag == SEQUENCE_END:
                return
            if tag != ITEM or length == UNDEFINED:
                raise UnreadableDataSet("encapsulated Pixel Data with something else than fragments")
            self.skip(length)


def inflate(data: BinaryIO, size: int) -> tuple[BinaryIO, int]:
    """The first bytes of a deflated data set (PS3.5 A.5), and how many there are in all.

    Raises UnreadableDataSet when the deflated stream has no end. A stream that is longer than we care to
    inflate counts as endless.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    kept, total, left = io.BytesIO(), 0, size
    while not inflater.eof and total < _INFLATED_BYTES:
        raw = inflater.unconsumed_tail or data.read(min(left, 1 << 16))
        left -= 0 if inflater.unconsumed_tail else len(raw)
        piece = inflater.decompress(raw, 1 << 20)
        if not raw and not piece:
            raise UnreadableDataSet("cut short: the deflated data set has no end")
        kept.write(piece[: max(0, _INFLATED_HEADER_BYTES - total)])
        total += len(piece)
    kept.seek(0)
    return kept, total if inflater.eof else 1 << 62
