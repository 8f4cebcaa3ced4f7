"""What the rendering tests compare with: PS3.3 formulas in exact fractions, and small DICOM files.

Independent of numpy and of the code under test.
"""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

Number = int | float | Fraction


def half_up(value: Fraction | float) -> int:
    """Nearest integer, halves upwards."""
    return math.floor(value + Fraction(1, 2))


def linear(x: Number, centre: Number, width: Number) -> int:
    """PS3.3 C.11.2.1.2.1, ymin 0, ymax 255."""
    x, c, w = Fraction(x), Fraction(centre), Fraction(width)
    half = Fraction(1, 2)
    if x <= c - half - (w - 1) / 2:
        return 0
    if x > c - half + (w - 1) / 2:
        return 255
    return half_up(((x - (c - half)) / (w - 1) + half) * 255)


def linear_exact(x: Number, centre: Number, width: Number) -> int:
    """PS3.3 C.11.2.1.3.2."""
    x, c, w = Fraction(x), Fraction(centre), Fraction(width)
    if x <= c - w / 2:
        return 0
    if x > c + w / 2:
        return 255
    return half_up(((x - c) / w + Fraction(1, 2)) * 255)


def sigmoid(x: float, centre: float, width: float) -> int:
    """PS3.3 C.11.2.1.3.1."""
    return half_up(255 / (1 + math.exp(-4 * (x - centre) / width)))


def write(
    path: Path, pixels: NDArray[Any] | bytes, syntax: UID = ExplicitVRLittleEndian, **attributes: Any
) -> Path:
    """A DICOM file of `pixels`, (frames x) rows x columns (x 3); attributes override what follows."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4"
    ds.Modality = "OT"
    if isinstance(pixels, bytes):
        ds.PixelData = pixels
    else:
        colour = pixels.ndim > 2 and pixels.shape[-1] == 3
        ds.Rows, ds.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
        ds.SamplesPerPixel = 3 if colour else 1
        ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            ds.PlanarConfiguration = 0
        bits = pixels.dtype.itemsize * 8
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        raw = pixels.astype(pixels.dtype.newbyteorder("<" if syntax.is_little_endian else ">")).tobytes()
        ds.PixelData = raw + b"\0" * (len(raw) % 2)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    if "PixelData" in ds:
        ds["PixelData"].VR = "OB" if syntax.is_encapsulated or ds.get("BitsAllocated", 8) <= 8 else "OW"
    ds.save_as(path, enforce_file_format=True)
    return path
