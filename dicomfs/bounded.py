"""Files read within bounds: no more memory than there are bytes, no data set that inflates without end.

A few bytes can announce gigabytes, as a length field or deflated (PS3.5 A.5); pydicom believes the first
and inflates the second whole. Knows nothing of what the data mean. Called by whoever reads an original.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_SET, BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO

from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicomfs.errors import NotDisplayable

MAX_INFLATED_BYTES = 512 << 20
_PREAMBLE = 128
_MAGIC = b"DICM"
_GROUP_LENGTH = b"\x02\0\0\0UL\x04\0"
_HEAD_BYTES = _PREAMBLE + len(_MAGIC) + len(_GROUP_LENGTH) + 4
_MAX_META_BYTES = 1 << 16
_SYNTAX_TAG = b"\x02\0\x10\0UI"
_EXPLICIT = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
_PLAIN_META = bytes(_PREAMBLE) + _MAGIC + _GROUP_LENGTH + len(_EXPLICIT).to_bytes(4, "little") + _EXPLICIT


@contextmanager
def open_file(path: Path | BinaryIO) -> Iterator[BinaryIO]:
    """A file for reading, that never asks for more memory than it has bytes; an open one as it is."""
    if not isinstance(path, Path):
        yield path
        return
    with path.open("rb", buffering=0) as raw, _BoundedReader(raw) as file:
        yield file


class _BoundedReader(BufferedReader):
    """A file that never asks for more memory than it has bytes, whatever a damaged length field says."""

    def __init__(self, raw: FileIO) -> None:
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self._size if size is None or size > self._size else size)


def inflated(file: BinaryIO) -> BinaryIO:
    """The same file, or for a deflated one its data set as an Explicit VR Little Endian file in memory.

    Stands at its start. Raises NotDisplayable when it inflates beyond `MAX_INFLATED_BYTES` or its file meta
    information has no length, and zlib.error.
    """
    head = file.read(_HEAD_BYTES)
    has_length = head[_PREAMBLE:].startswith(_MAGIC + _GROUP_LENGTH)
    meta_bytes = int.from_bytes(head[-4:], "little") if has_length else _MAX_META_BYTES
    meta = file.read(min(meta_bytes, _MAX_META_BYTES))
    if not _names_deflated(head + meta):
        file.seek(0, SEEK_SET)
        return file
    if not has_length or meta_bytes > _MAX_META_BYTES:
        raise NotDisplayable("Its data are damaged: the file meta information has no length.")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(), MAX_INFLATED_BYTES)
    if not inflater.eof and inflater.unconsumed_tail:
        raise NotDisplayable(f"Its data inflate to more than {MAX_INFLATED_BYTES >> 20} MiB.")
    whole = BytesIO()
    whole.write(_PLAIN_META)
    whole.write(data)
    whole.seek(0)
    return whole


def _names_deflated(meta: bytes) -> bool:
    """True when file meta information names the deflated transfer syntax, wherever it stands."""
    at = meta.find(_SYNTAX_TAG)
    while at >= 0:
        start = at + len(_SYNTAX_TAG) + 2
        value = meta[start : start + int.from_bytes(meta[start - 2 : start], "little")]
        if value.strip(b" \0") == DeflatedExplicitVRLittleEndian.encode():
            return True
        at = meta.find(_SYNTAX_TAG, at + 1)
    return False
