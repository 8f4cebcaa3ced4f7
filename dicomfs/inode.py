"""Inodes: numbers that say what they stand for; pure.

An inode is arithmetic on ids: the same after a restart, never another object's, and never in need of being
remembered.
"""

from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

FORMAT_CODES: Final = {
    "jpg": 1,
    "png": 2,
    "tiff": 3,
    "bmp": 4,
    "gif": 5,
    "dcm": 6,
    "tiff16": 7,
    "png16": 8,
    "pdf": 9,
    "json": 10,
}
"""Part of every inode: a code never changes its meaning."""
_FORMAT_OF_CODE: Final = {code: name for name, code in FORMAT_CODES.items()}

STORED: Final = "dcm"
"""The format that is not rendered: the stored bytes."""
_DATE_MARK: Final = 1
LAST_VERSION: Final = 0xFF
"""A pool that has been decided this often keeps its last window."""


def view_key(name: str, window: int) -> str:
    """Key of the view of a format through the mount's window of that number."""
    return f"{name}@{window}" if window else name


@lru_cache(maxsize=256)
def _view_bits(key: str) -> int:
    """The bits of an inode that a view takes, by its key."""
    name, _, window = key.partition("@")
    return int(window or 0) << 4 | FORMAT_CODES[name]


class Kind(IntEnum):
    """What an inode stands for."""

    TOP = 0
    PATIENT = 1
    EXAM = 2
    FILE = 3
    DATE = 4
    """A folder of exams of one date; its id is that date, `YYYYMMDD` as a number, 0 for none."""


class Inode(NamedTuple):
    """The parts of an inode number.

        bit  62..61  60..58  57..54  53..46   45..32  31..0
             kind    window  format  version  frame   id

    A date is of kind 0, as the tops are, with the frame 1. `format` is the key of a view: a format, with
    `@` and the number of the window in the mount's options when that is not the first. The id of a file is
    that of the original it shows, and `version` the pool version (0 for images that decide alone): a
    picture that changes becomes another inode under the same name. `frame` counts from 1; 0 is a file that
    is not one of several frames. The root is number 1, as FUSE wants it.
    """

    kind: Kind
    id: int = 0
    format: str = ""
    frame: int = 0
    version: int = 0

    @property
    def number(self) -> int:
        """The inode as FUSE knows it."""
        if self.kind is Kind.TOP and not self.format:
            return 1
        view = _view_bits(self.format)
        if self.kind is Kind.DATE:
            return view << 54 | _DATE_MARK << 32 | self.id
        return self.kind << 61 | view << 54 | self.version << 46 | self.frame << 32 | self.id

    @classmethod
    @lru_cache(maxsize=4096)  # the same folders are asked about again and again
    def of(cls, number: int) -> "Inode | None":
        """The parts of a number; None when it cannot be one of ours."""
        if number == 1:
            return cls(Kind.TOP)
        name = _FORMAT_OF_CODE.get(number >> 54 & 0xF)
        if name is None or number >> 63:
            return None
        kind, frame = Kind(number >> 61 & 3), number >> 32 & 0x3FFF
        if kind is Kind.TOP and frame == _DATE_MARK:
            kind, frame = Kind.DATE, 0
        parts = cls(
            kind,
            number & 0xFFFF_FFFF,
            view_key(name, number >> 58 & 7),
            frame,
            number >> 46 & 0xFF,
        )
        unused = parts.id if parts.kind is Kind.TOP else 0
        if parts.kind is not Kind.FILE:
            unused |= parts.frame | parts.version
        if unused:
            return None
        return parts if parts.number == number else None
