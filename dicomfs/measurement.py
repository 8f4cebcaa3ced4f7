"""Grey values for programs: 16 bits that lead back to stored values exactly, and the line that says how.

No window, no polarity, no overlay, no scaling unless it is asked for. Called by `render` for the
formats `tiff16` and `png16`.

    pixel = stored value - least value that the bits can hold      (0 for unsigned data)
    value = c0 + c1 * pixel                                        (modality units, such as HU)

so c1 is the rescale slope and c0 = intercept + slope * least. They depend on the header alone, never on
the pixels, so that all images of a series that share a rescale share the mapping. Where there is a
Modality LUT, pixels are its output (c0 = 0, c1 = 1). Data of more than 16 bits, and floating point, do not
fit: they are spread from the frame's least to its greatest finite value over 0..65535, rounded. XA and RF
are as stored, because their Modality LUT is not for display.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomfs.display import Display
from dicomfs.grey import Lut, modality_values

_MOST = 65535
_RESCALE_TYPES = ("HU", "OD", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT")
_PET_UNITS = ("CNTS", "CM2", "PCNT", "CPS", "BQML", "MGMINML", "UMOLMINML", "MLMING", "MLG", "1CM", "GML")
_UNITS = frozenset((*_RESCALE_TYPES, *_PET_UNITS))
"""PS3.3 C.11.1.1.2 and C.8.9.1.1.3: no other text of the header gets into a file."""


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """One frame as 16-bit grey, and what it means."""

    pixels: NDArray[np.uint16]
    offset: float
    """Modality value of pixel 0 (c0)."""
    slope: float
    """Modality value of one step (c1)."""
    unit: str = ""

    @property
    def description(self) -> str:
        """The line that goes into the file; ImageJ reads it as the image's calibration."""
        lines = ["ImageJ=1.53", "cf=0", f"c0={self.offset!r}", f"c1={self.slope!r}"]
        lines += [f"vunit={self.unit}"] if self.unit else []
        return "\n".join([*lines, "formula=value is c0 + c1 * pixel", ""])


def values(codes: NDArray[Any], levels: NDArray[np.int32] | None, display: Display, unit: str) -> Values:
    """One frame, `codes` and `levels` as in `pixels.Grey`, for measurement."""
    unit = unit if unit in _UNITS else "HU" if display.modality == "CT" else ""
    transformation = display.transformation
    if levels is None:
        return _spread(modality_values(codes, transformation), unit)
    if isinstance(transformation, Lut):
        table = np.clip(modality_values(levels, transformation), 0, _MOST).astype(np.uint16)
        return Values(np.take(table, codes), 0.0, 1.0, unit)
    least = int(display.stored_range[0])
    table = np.clip(levels - least, 0, _MOST).astype(np.uint16)
    offset = transformation.intercept + transformation.slope * least
    return Values(np.take(table, codes), float(offset), float(transformation.slope), unit)


def _spread(found: NDArray[np.float64], unit: str) -> Values:
    finite = found[np.isfinite(found)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    with np.errstate(all="ignore"):
        slope = (most - least) / _MOST
        if not (slope > 0 and np.isfinite(slope)):
            return Values(np.zeros(found.shape, np.uint16), least, 1.0, unit)
        steps = np.nan_to_num((found - least) / slope, nan=0.0, posinf=_MOST, neginf=0.0)
    return Values(np.clip(np.floor(steps + 0.5), 0, _MOST).astype(np.uint16), least, slope, unit)
