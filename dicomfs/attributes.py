"""Single attributes of a data set, read without trust: text, numbers and items, never an exception.

Values are taken from the bytes as they lie in the file: one broken value (text where a number belongs,
`1/0`, a missing item) must not cost the picture, and pydicom's conversions raise on such. Used by the
rendering modules only; patient data is none of their business.
"""

import math
import struct
import zlib
from collections.abc import Sequence

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and the decoders raise for data that are not as they should be."""

_INTEGER_TEXT = (b"IS", b"DS", "IS", "DS")


def _element(ds: Dataset, tag: int) -> DataElement | RawDataElement | None:
    try:
        return ds.get_item(tag)
    except KeyError:
        return None


def octets(ds: Dataset, tag: int) -> tuple[bytes, bool]:
    """The value's bytes and whether they are little endian; no bytes when missing or empty."""
    element = _element(ds, tag)
    if isinstance(element, RawDataElement):
        return bytes(element.value or b""), element.is_little_endian
    return b"", True


def texts(ds: Dataset, tag: int) -> tuple[str, ...]:
    """All values of a text attribute, stripped; () when missing or empty."""
    raw = octets(ds, tag)[0].decode("latin-1").strip(" \0")
    return tuple(part.strip(" \0") for part in raw.split("\\")) if raw else ()


def text(ds: Dataset, tag: int) -> str:
    """First value of a text attribute, stripped; empty when missing."""
    values = texts(ds, tag)
    return values[0] if values else ""


def number(ds: Dataset, tag: int) -> float | None:
    """First value of a decimal or integer string; None when missing, not a number or not finite."""
    try:
        value = float(text(ds, tag))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def integers(ds: Dataset, tag: int, *, signed: bool = False) -> tuple[int, ...]:
    """All values of a 16-bit binary attribute (US, SS), or of an integer string under such a tag."""
    element = _element(ds, tag)
    if isinstance(element, RawDataElement) and element.VR in _INTEGER_TEXT:
        return tuple(int(part) for part in texts(ds, tag) if part.isascii() and part.isdigit())
    raw, little = octets(ds, tag)
    order = "<" if little else ">"
    return struct.unpack(f"{order}{len(raw) // 2}{'h' if signed else 'H'}", raw[: len(raw) // 2 * 2])


def integer(ds: Dataset, tag: int, default: int, *, signed: bool = False) -> int:
    """First value of a 16-bit binary attribute, or `default`."""
    values = integers(ds, tag, signed=signed)
    return values[0] if values else default


def items(ds: Dataset, tag: int) -> Sequence[Dataset]:
    """Items of a sequence; () when missing, empty or damaged."""
    if _element(ds, tag) is None:
        return ()
    try:
        value = ds[tag].value
    except DAMAGE:
        return ()
    if not isinstance(value, Sequence):
        return ()
    return [item for item in value if isinstance(item, Dataset)]
