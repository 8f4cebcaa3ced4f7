"""What a render needs of a plain image's header, packed into some hundred bytes for the index.

A plain image is native, little endian Pixel Data (7FE0,0010) of one sample per pixel whose picture is made
from short attributes of the top level alone: no lookup table, functional group, overlay, calibrated region
or isotope. Whatever else it is, it has no outline, and its header is parsed for each picture.

    B        version, changes with the lists below
    B        1 explicit VR, 0 implicit VR
    <I       CRC-32 of the data set up to the first byte of the pixel data, then of what follows here
    …        attributes, deflated: of each its place in `KEPT` (B), its length (B), its value as it is there

With the checksum a renderer sees that the header in the file is the one that was packed, and that this is
what was packed. Names no patient.
Pure. Called by `header` (`pack`) and `image` (`unpack`).
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from dicomfs.remember import remembered

VERSION: Final = 1
MAX_HEAD_BYTES: Final = 1 << 20
"""A longer header has no outline: a render would have to read all of it for the checksum."""

KEPT: Final = (
    *(0x00080008, 0x00080016, 0x00080060, 0x00080068, 0x00180015, 0x00181164, 0x00181600, 0x00181602),
    *(0x00181604, 0x00181606, 0x00181608, 0x00181610, 0x00181612, 0x00181620, 0x00181622, 0x00181623),
    *(0x00182010, 0x00200060, 0x00200062, 0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010),
    *(0x00280011, 0x00280030, 0x00280034, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120),
    *(0x00280121, 0x00281040, 0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281054, 0x00281056),
    *(0x00281090, 0x00282110, 0x00282112, 0x00541001, 0x0062000E, 0x20500020),
)
"""Attributes that are packed, in ascending order; a new one goes with a new `VERSION`."""
IDLE: Final = frozenset(
    {
        *(0x00080021, 0x00080022, 0x00080031, 0x00080032, 0x00101030, 0x00541102),  # an isotope's activity
        0x00286100,  # mask subtraction that is not recommended
        *(0x7FE00001, 0x7FE00002),  # encapsulated frames
    }
)
"""Attributes that no picture is made from where those of `COMPLEX` are missing."""
COMPLEX: Final = frozenset(
    {
        *(0x00186011, 0x00282000, 0x00283000, 0x00283010, 0x00480105, 0x00540016, 0x52009229, 0x52009230),
        *(0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203),
        *(0x00281221, 0x00281222, 0x00281223),
        *(
            group << 16 | element
            for group in range(0x6000, 0x6020, 2)
            for element in (0x10, 0x11, 0x15, 0x40, 0x50, 0x51, 0x100, 0x102, 0x3000)
        ),
    }
)
"""Attributes that a plain image does not have."""
RELEVANT: Final = frozenset(KEPT) | COMPLEX
"""What `Packer.wants` has to be asked about."""

_VIEWING_MODE, _SAMPLES, _BITS_ALLOCATED, _PHOTOMETRIC = 0x00281090, 0x00280002, 0x00280100, 0x00280004
_TEXT_VRS: Final = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UI UC UR UT UN".split())
_BINARY_VRS: Final = frozenset(b"US SS UN".split())
_BINARY: Final = frozenset(
    {
        *(0x00181622, 0x00181623, 0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100, 0x00280101),
        *(0x00280102, 0x00280103, 0x00280120, 0x00280121, 0x0062000E),
    }
)
"""Those of 16 bits (US, SS); all others are text."""
_KINDS: Final = dict.fromkeys(COMPLEX, frozenset[bytes]()) | {
    tag: _BINARY_VRS if tag in _BINARY else _TEXT_VRS for tag in KEPT
}
_IMPLICIT: Final = {tag: kinds and frozenset([b""]) for tag, kinds in _KINDS.items()}
"""VRs that an attribute may have, in explicit and in implicit VR; none: not in a plain image."""
_PLACE: Final = {tag: place for place, tag in enumerate(KEPT)}
_HEAD: Final = struct.Struct("<BBI")
_MAX_VALUE: Final = 255
_MAX_UNPACKED: Final = len(KEPT) * (2 + _MAX_VALUE)

_WINDOW_BITS, _MEMORY_LEVEL = -10, 2
"""Raw deflate with a window of 1 kB: as small as with the usual one, and three times as quick to set up."""
_COMMON: Final = (
    b"DERIVED\\SECONDARY\\OTHER MONOCHROME1 SIGMOID LINEAR_EXACT FOR PROCESSINGFOR PRESENTATIONABDOMEN "
    b"CHESTHEAD\\-600\\1500 350\\50\\40 400 -1000 -1024 IDENTITYINVERSE HEART M\\NORM\\DIS2D US00 HU\\MR"
    b"\0\2 ORIGINAL\\PRIMARY\\AXIAL\1\x1a1.2.840.10008.5.1.4.1.1.2\0CTMONOCHROME2 \x10\0\x0c\0\x0b\0"
)
"""What is found in many headers, the most frequent last; a change goes with a new `VERSION`."""


@dataclass(frozen=True, slots=True)
class Outline:
    """An outline taken apart, but for its attributes."""

    explicit: bool
    checksum: int
    body: bytes
    """The attributes, still deflated: equal for images of equal ones."""

    def fits(self, head: bytes) -> bool:
        """Whether this was packed from a data set that begins so, up to the first byte of its pixel data."""
        return zlib.crc32(self.body, zlib.crc32(head)) == self.checksum


class Packer:
    """Sees the elements of one data set, in order, and packs what a render needs."""

    __slots__ = ("_explicit", "_is_plain", "_kinds", "_values")

    def __init__(self, *, explicit: bool) -> None:
        self._explicit = explicit
        self._kinds = _KINDS if explicit else _IMPLICIT
        self._values: dict[int, bytes] = {}
        self._is_plain = True

    def wants(self, tag: int, vr: bytes, length: int) -> bool:
        """Whether the value of an element of the top level in `RELEVANT` is to be kept.

        `vr` is empty in implicit VR. VRs are not packed, so an attribute of another kind than it should be
        has to be parsed; so has one that slips from one encoding into the other.
        """
        if vr not in self._kinds[tag] or length > _MAX_VALUE:
            self._is_plain = False
        return self._is_plain

    def keep(self, tag: int, value: bytes) -> None:
        """The value of an element that was wanted; of several of one tag the last counts."""
        self._values[tag] = value

    def is_plain(self) -> bool:
        """Whether all that was seen, up to the pixel data, allows an outline."""
        values = self._values
        return (
            self._is_plain
            and values.get(_VIEWING_MODE, b"").strip(b" \0").upper() != b"SUB"
            and values.get(_SAMPLES) == b"\1\0"
            and values.get(_BITS_ALLOCATED) in {b"\x08\0", b"\x10\0"}
            and values.get(_PHOTOMETRIC, b"").strip(b" \0") in {b"MONOCHROME1", b"MONOCHROME2"}
        )

    def pack(self, head: bytes) -> bytes:
        """The outline of a plain image; `head`: its data set up to the first byte of the pixel data."""
        parts = [bytes((_PLACE[tag], len(value))) + value for tag, value in self._values.items() if value]
        packed = _deflated(b"".join(parts))
        return _HEAD.pack(VERSION, self._explicit, zlib.crc32(packed, zlib.crc32(head))) + packed


@remembered(256, 1024)
def _deflated(raw: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_FIXED, _COMMON)
    return deflater.compress(raw) + deflater.flush()


def unpack(packed: bytes) -> Outline | None:
    """The outline in `packed`; None when it is of another version, or none."""
    if len(packed) < _HEAD.size or packed[0] != VERSION:
        return None
    _, explicit, checksum = _HEAD.unpack_from(packed)
    return Outline(bool(explicit), checksum, packed[_HEAD.size :])


def attributes(body: bytes) -> Mapping[int, bytes]:
    """Values by tag. Raises ValueError, zlib.error for what `pack` has not made."""
    inflater = zlib.decompressobj(_WINDOW_BITS, zdict=_COMMON)
    raw = inflater.decompress(body, _MAX_UNPACKED)
    if not inflater.eof:
        raise ValueError("an outline that does not end")
    return dict(_split(raw))


def _split(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(raw):
        place, length = raw[at], raw[at + 1]
        yield KEPT[place], raw[at + 2 : at + 2 + length]
        at += 2 + length
