"""Files that are no pictures: an encapsulated PDF as it is, and the header as DICOM JSON.

Called by `render` for the formats `pdf` and `json`. Here, and only here, patient data go into a file.
"""

import json
import math
from typing import Any, BinaryIO

from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicomfs.attributes import DAMAGE, octets, text
from dicomfs.bounded import inflated
from dicomfs.errors import NotDisplayable
from dicomfs.recipes import ENCAPSULATED_PDF

MAX_BINARY_BYTES = 1024
"""Longer binary values are bulk data and left out of the JSON."""
_BINARY = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
_PDF_START = b"%PDF-"
_START_WITHIN = 1024
_UTF_8 = "ISO_IR 192"


def pdf(file: BinaryIO) -> bytes:
    """The PDF of an Encapsulated PDF instance, byte for byte (PS3.3 C.24.2).

    Raises NotDisplayable when it is another SOP class or holds no PDF, and what pydicom raises for damage.
    """
    ds = dcmread(inflated(file), force=True, specific_tags=[0x00080016, 0x00420011, 0x00420015])
    if text(ds, 0x00080016) != ENCAPSULATED_PDF:
        raise NotDisplayable("It is no encapsulated PDF.")
    document, _ = octets(ds, 0x00420011)
    raw, little = octets(ds, 0x00420015)
    length = int.from_bytes(raw[:4], "little" if little else "big") if len(raw) >= 4 else 0
    if len(document) - (length or len(document) - 1) == 1 and document.endswith(b"\0"):
        document = document[:-1]  # the value was padded to an even length
    if _PDF_START not in document[:_START_WITHIN]:
        raise NotDisplayable("It holds no PDF.")
    return document


def header_json(file: BinaryIO) -> bytes:
    """The data set in the DICOM JSON model (PS3.18 F), without file meta information and bulk data.

    Pixel data, what follows them, and binary values of more than 1024 bytes are left out; so are values
    that their value representation does not allow. UTF-8, tags in order, the same bytes every time.
    """
    ds = dcmread(inflated(file), stop_before_pixels=True, force=True)
    if not len(ds):
        raise NotDisplayable("It is no DICOM data set.")
    model = _model(ds)
    if "00080005" in model:
        model["00080005"] = {"vr": "CS", "Value": [_UTF_8]}
    return (json.dumps(_finite(model), ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode(
        "utf-8", "replace"
    )


def _model(ds: Dataset) -> dict[str, Any]:
    found = {}
    for tag in ds.keys():  # noqa: SIM118 - iterating a data set itself converts every value, and may raise
        try:
            element = ds[tag]
            if tag.element == 0 or (element.VR in _BINARY and _is_bulk(element)):
                continue
            found[f"{int(tag):08X}"] = _element(element)
        except RecursionError:
            raise
        except DAMAGE:
            continue
    return found


def _is_bulk(element: DataElement) -> bool:
    return len(element.value or b"") > MAX_BINARY_BYTES


def _element(element: DataElement) -> dict[str, Any]:
    if element.VR == "SQ":
        return {"vr": "SQ", "Value": [_model(item) for item in element.value or ()]}
    return dict(element.to_json_dict(None, 0))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value
