"""What a data set says about how its frames want to be shown: modality transformation, window, polarity.

Reads attributes, decides nothing: `window` does. Per-frame functional groups go before shared ones,
those before the top level. Real World Value Mapping is never part of display. Called by `render`.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from pydicom.dataset import Dataset

from dicomfs.attributes import integer, integers, items, number, octets, text, texts
from dicomfs.grey import Lut, Modality, Rescale, Voi, Window

TAGS = (
    *(0x00080008, 0x00080016, 0x00080021, 0x00080022, 0x00080031, 0x00080032, 0x00080060, 0x00080068),
    *(0x00101030, 0x00180015, 0x00280120, 0x00280121, 0x00281040, 0x00281050, 0x00281051, 0x00281052),
    *(0x00281053, 0x00281056, 0x00283000, 0x00283010, 0x00540016, 0x00541001, 0x00541102, 0x0062000E),
    *(0x20500020, 0x52009229, 0x52009230),
)
"""Every attribute that this module reads; none of them names a patient."""

_PER_FRAME_GROUPS, _SHARED_GROUPS = 0x52009230, 0x52009229
_PIXEL_VALUE_TRANSFORMATION, _FRAME_VOI_LUT = 0x00289145, 0x00289132
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_FULL_16_BITS = 65536
_X_RAY_RUNS = ("XA", "RF")

_MODALITY_OF_CLASS = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.12.1": "XA",
    "1.2.840.10008.5.1.4.1.1.12.2": "RF",
    "1.2.840.10008.5.1.4.1.1.20": "NM",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"

_SUV_UNITS = "BQML"
_GRAMS_PER_KILOGRAM = 1000.0


@dataclass(frozen=True, slots=True)
class Display:
    """One frame's wishes."""

    modality: str
    """Defined term of Modality; `SEG`, `MAP` and, where it is missing, others by SOP class."""
    secondary_capture: bool
    image_type: tuple[str, ...]
    for_processing: bool
    body_part: str
    bits: int
    """Bits that a stored value can use; 32 or 64 for floating point."""
    is_float: bool
    signed: bool
    transformation: Modality
    windows: tuple[Voi, ...]
    """The header's valid window and VOI LUT, alternatives, the window first."""
    inverted: bool
    padding: tuple[int, int] | None
    suv_scale: float | None
    """PET: standardised uptake value (g/ml, body weight) of modality value 1; None: not computable."""
    full_scale: float | None
    """Fractional segmentation: the stored value that means 1."""

    @property
    def stored_range(self) -> tuple[float, float]:
        """Least and greatest stored value that the bits can hold."""
        if self.signed:
            return -(2.0 ** (self.bits - 1)), 2.0 ** (self.bits - 1) - 1
        return 0.0, 2.0**self.bits - 1


def display(ds: Dataset, frame: int, *, bits: int, signed: bool, is_float: bool, allocated: int) -> Display:
    """Read the display attributes of `frame`; broken ones count as missing. Raises nothing of its own."""
    sop_class = text(ds, 0x00080016)
    modality = text(ds, 0x00080060).upper() or _MODALITY_OF_CLASS.get(sop_class, "")
    if sop_class in _SEGMENTATIONS:
        modality = "SEG"
    elif sop_class == _PARAMETRIC_MAP:
        modality = "MAP"
    groups = functional_groups(ds, frame)
    return Display(
        modality=modality,
        secondary_capture=sop_class.startswith(_SECONDARY_CAPTURE),
        image_type=tuple(value.upper() for value in texts(ds, 0x00080008)),
        for_processing=text(ds, 0x00080068).upper() == "FOR PROCESSING",
        body_part=text(ds, 0x00180015).upper(),
        bits=bits,
        is_float=is_float,
        signed=signed,
        # XA, RF: the Modality LUT leads back to X-ray intensity and is not meant for display
        transformation=Rescale() if modality in _X_RAY_RUNS else _transformation(ds, groups, signed=signed),
        windows=_windows(ds, groups, is_float=is_float),
        inverted=_inverted(ds),
        padding=None if is_float else _padding(ds, signed=signed, allocated=allocated),
        suv_scale=_suv_scale(ds) if modality == "PT" else None,
        full_scale=float(integer(ds, 0x0062000E, 0)) or None,
    )


def functional_groups(ds: Dataset, frame: int) -> list[Dataset]:
    """The groups that hold for a frame, the most specific first."""
    per_frame = items(ds, _PER_FRAME_GROUPS)
    return [*per_frame[frame : frame + 1], *items(ds, _SHARED_GROUPS)[:1]]


def _group_item(groups: list[Dataset], tag: int) -> Dataset | None:
    for group in groups:
        found = items(group, tag)
        if found:
            return found[0]
    return None


def _transformation(ds: Dataset, groups: list[Dataset], *, signed: bool) -> Modality:
    """PS3.3 C.11.1; a slope of 0 or none is no rescale at all."""
    luts = items(ds, 0x00283000)
    if luts and (lut := _lut(luts[0], signed=signed)) is not None:
        return lut
    source = _group_item(groups, _PIXEL_VALUE_TRANSFORMATION) or ds
    slope, intercept = number(source, 0x00281053), number(source, 0x00281052)
    return Rescale(slope, intercept or 0.0) if slope else Rescale()


def _lut(item: Dataset, *, signed: bool) -> Lut | None:
    """A LUT item (C.11.1.1, C.11.2.1.1): descriptor = entries, first input value, bits."""
    descriptor = integers(item, 0x00283002)
    data, little = octets(item, 0x00283006)
    if len(descriptor) != 3 or not data:
        return None
    entries, first, bits = descriptor[0] or _FULL_16_BITS, descriptor[1], descriptor[2]
    if signed and first >= _FULL_16_BITS // 2:
        first -= _FULL_16_BITS
    packed = bits <= 8 and len(data) < 2 * entries
    values = np.frombuffer(
        data if packed or len(data) % 2 == 0 else data[:-1], "u1" if packed else "<u2" if little else ">u2"
    )
    values = values[:entries].astype(np.float64)
    if not values.size or not 1 <= bits <= 16:
        return None
    return Lut(first, values, max(2.0**bits - 1, float(values.max())))


def _windows(ds: Dataset, groups: list[Dataset], *, is_float: bool) -> tuple[Voi, ...]:
    found: list[Voi] = []
    window = _window(_group_item(groups, _FRAME_VOI_LUT) or ds, is_float=is_float)
    if window is not None:
        found.append(window)
    luts = items(ds, 0x00283010)
    # the VOI LUT's input is signed when a rescale made it so; its descriptor then is SS (C.11.2.1.1)
    if luts and (lut := _lut(luts[0], signed=_may_be_negative(ds))) is not None:
        found.append(lut)
    return tuple(found)


def _may_be_negative(ds: Dataset) -> bool:
    return integer(ds, 0x00280103, 0) == 1 or (number(ds, 0x00281052) or 0.0) < 0


def _window(source: Dataset, *, is_float: bool) -> Window | None:
    """First window of centre and width, if valid (PS3.3 C.11.2.1.2); a negative width is a slip.

    LINEAR counts in steps of one: parametric maps that say so and mean 0..1 (centre 0.5, width 1) would
    turn black and white, so for floating point it is taken as LINEAR_EXACT.
    """
    centre, width = number(source, 0x00281050), number(source, 0x00281051)
    function = text(source, 0x00281056).upper()
    if function not in _FUNCTIONS:
        function = "LINEAR"
    if is_float and function == "LINEAR":
        function = "LINEAR_EXACT"
    if centre is None or not width or (function == "LINEAR" and abs(width) < 1):
        return None
    return Window(centre, abs(width), function)


def _inverted(ds: Dataset) -> bool:
    """The presentation LUT shape, where given, already contains MONOCHROME1 (never invert twice)."""
    shape = text(ds, 0x20500020).upper()
    return shape == "INVERSE" or (shape != "IDENTITY" and text(ds, 0x00280004).upper() == "MONOCHROME1")


def _padding(ds: Dataset, *, signed: bool, allocated: int) -> tuple[int, int] | None:
    """Pixel Padding Value to Range Limit (PS3.3 C.7.5.1.1.2), in stored values."""
    ends = (*integers(ds, 0x00280120)[:1], *integers(ds, 0x00280121)[:1])
    if not integers(ds, 0x00280120):
        return None
    if signed:
        modulus = 1 << min(allocated, 16)
        ends = tuple(end % modulus - modulus if end % modulus >= modulus // 2 else end for end in ends)
    return min(ends), max(ends)


def _suv_scale(ds: Dataset) -> float | None:
    """SUV by body weight, decay corrected to the start of the scan (QIBA profile's pseudo code)."""
    source = next(iter(items(ds, 0x00540016)), None)
    if source is None or text(ds, 0x00541001) != _SUV_UNITS or text(ds, 0x00541102) != "START":
        return None
    weight, dose, half_life = number(ds, 0x00101030), number(source, 0x00181074), number(source, 0x00181075)
    given = _moment(text(source, 0x00181078)) or _moment(text(ds, 0x00080021) + text(source, 0x00181072))
    scanned = [
        moment
        for moment in (
            _moment(text(ds, 0x00080021) + text(ds, 0x00080031)),
            _moment(text(ds, 0x00080022) + text(ds, 0x00080032)),
        )
        if moment is not None
    ]
    if not weight or not dose or not half_life or given is None or not scanned:
        return None
    elapsed_seconds = (min(scanned) - given).total_seconds()
    if min(weight, dose, half_life) <= 0 or not 0 <= elapsed_seconds < 10 * half_life:
        return None
    scale = weight * _GRAMS_PER_KILOGRAM / (dose * math.exp2(-elapsed_seconds / half_life))
    return scale if math.isfinite(scale) and scale > 0 else None


def _moment(digits: str) -> datetime | None:
    """YYYYMMDDHHMMSS…, any fraction or offset left out; None when it is none."""
    try:
        return datetime.strptime(digits[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
