"""The images under test: found, decoded and described by pydicom and numpy, without the renderer under test.

Only the grouping into pools is asked of dicomfs, since that is what a mount does. Formulas: PS3.3 C.11.1
(modality), C.11.2.1.2 and C.11.2.1.3 (window), C.7.5.1.1.2 (padding).
"""

import hashlib
import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ImplicitVRLittleEndian

from dicomfs.attributes import DAMAGE
from dicomfs.errors import DicomfsError
from dicomfs.header import read_file_meta, read_header

T = TypeVar("T")

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MAX_FRAMES = 12
"""Frames of a multi-frame image that are looked at, evenly spaced."""
MAX_POOL = 40
LEAST_SIDE = 48
"""Rows and columns below which percentiles, shares and windows mean nothing: thumbnails, test patterns."""
UNREADABLE = (*DAMAGE, OSError, struct.error)
"""What pydicom and the decoders raise on files that they cannot read."""

_CT_AIR = -1024.0
_X_RAY_RUNS = ("XA", "RF")
_FULL_RANGE, _COVERED, _MINMAX = 0.95, 0.5, 0.03


@dataclass(frozen=True, slots=True)
class HeaderWindow:
    """A valid window: centre, width, function and where it was found."""

    centre: float
    width: float
    function: str

    def apply(self, values: Floats) -> Picture:
        """Values to 8 bits, rounded."""
        centre, width = self.centre, self.width
        if self.function == "SIGMOID":
            grey = 255.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
            return _rounded(grey)
        if self.function != "LINEAR_EXACT":
            centre, width = centre - 0.5, width - 1.0
        low, high = centre - width / 2, centre + width / 2
        inside = ((values - centre) / width + 0.5) * 255.0 if width > 0 else np.zeros_like(values)
        return _rounded(np.select([values <= low, values > high], [0.0, 255.0], inside))

    @property
    def ends(self) -> tuple[float, float]:
        """Values shown as black and as white."""
        shift, less = (0.5, 1.0) if self.function == "LINEAR" else (0.0, 0.0)
        half = (self.width - less) / 2
        return self.centre - shift - half, self.centre - shift + half


def minmax(values: Floats) -> Picture:
    """The rough conversion: least value black, greatest white."""
    low, high = float(values.min()), float(values.max())
    return _rounded((values - low) / ((high - low) or 1.0) * 255.0)


def _rounded(grey: Floats) -> Picture:
    return np.clip(np.floor(grey + 0.5), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Image:
    """One grey frame of a file; `values` and all that follows from them are read when asked for."""

    path: Path
    name: str
    """Path below the folder that was asked for, and the frame."""
    frame: int
    ds: Dataset
    """Its attributes, without pixels."""

    @property
    def modality(self) -> str:
        """Modality (0008,0060)."""
        return str(self.ds.get("Modality", "") or "")

    @property
    def bits(self) -> int:
        """Bits Stored, 32 for floating point."""
        return int(self.ds.get("BitsStored") or 32)

    @cached_property
    def stored(self) -> NDArray[Any]:
        """Stored values, shape (rows, columns)."""
        ds = dcmread(self.path, force=True)
        if not ds.file_meta.get("TransferSyntaxUID"):
            ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        return np.asarray(pixel_array(ds, index=self.frame))

    @cached_property
    def values(self) -> Floats:
        """Modality values; those that are no number are the least."""
        values = _modality_values(self.ds, self.frame, self.stored)
        finite = np.isfinite(values)
        return values if finite.all() else np.where(finite, values, values[finite].min(initial=0.0))

    @cached_property
    def padding(self) -> Mask:
        """Pixels that are no image."""
        least = number(self.ds, "PixelPaddingValue")
        mask = np.zeros(self.stored.shape, bool)
        if least is not None:
            limit = number(self.ds, "PixelPaddingRangeLimit")
            ends = np.array([least, least if limit is None else limit])
            if self.ds.get("PixelRepresentation") == 1:
                ends = np.where(ends >= 2**15, ends - 2**16, ends)
            mask = (self.stored >= ends.min()) & (self.stored <= ends.max())
        return mask | (self.values < _CT_AIR) if self.modality == "CT" else mask

    @cached_property
    def body(self) -> Mask:
        """Where the patient is: see `body_mask`."""
        return body_mask(self.values, self.padding)

    @cached_property
    def window(self) -> HeaderWindow | None:
        """The header's first valid window."""
        return header_window(self.ds, self.frame)

    @cached_property
    def window_class(self) -> str:
        """What the header's window is worth: none, minmax-like, full-range, off-data or informative."""
        return _class(self.window, self.values[~self.padding], self.bits)

    @cached_property
    def is_measurable(self) -> bool:
        """Of more than 8 bits, large enough, not constant: a window makes a difference."""
        large = min(self.stored.shape) >= LEAST_SIDE
        return self.bits > 8 and large and bool(self.values.min() < self.values.max())

    @property
    def inverted(self) -> bool:
        """Small values bright (PS3.3 C.7.6.3.1.2, C.11.6.1.2)."""
        shape = str(self.ds.get("PresentationLUTShape") or "")
        return shape == "INVERSE" or (shape != "IDENTITY" and self.photometric == "MONOCHROME1")

    @property
    def photometric(self) -> str:
        """Photometric Interpretation."""
        return str(self.ds.get("PhotometricInterpretation") or "")

    @cached_property
    def digest(self) -> str:
        """Equal for images of equal pixels."""
        return hashlib.sha256(self.stored.tobytes()).hexdigest()

    def shown(self, grey: Picture) -> Picture:
        """`grey` as this image's header wants it seen; and a picture as seen back to `grey`."""
        return 255 - grey if self.inverted else grey

    def forget(self) -> None:
        """Let go of the pixels, until they are asked for again."""
        for kept in ("stored", "values", "padding", "body"):
            self.__dict__.pop(kept, None)


@dataclass(frozen=True, slots=True)
class Pool:
    """Images that share one grey scale in a mount: phases at one position, a file's frames, or one image."""

    name: str
    images: Sequence[Image]


@dataclass(slots=True)
class Collection:
    """All pools of a folder, and what is not in them."""

    label: str
    pools: list[Pool] = field(default_factory=list)
    colour: list[Image] = field(default_factory=list)
    """First frames; no window is ever applied to these."""
    files: int = 0
    """DICOM files with pixels."""


def collect(label: str, folders: Sequence[Path], leave_out: Iterable[str] = ()) -> Collection:
    """Every DICOM image below the folders; `leave_out`: patterns of relative paths."""
    found = Collection(label)
    pools: dict[tuple[str, str], list[tuple[int, Image]]] = defaultdict(list)
    for folder in folders:
        for path in sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names):
            name = str(path.relative_to(folder))
            if any(fnmatch(name, pattern) for pattern in leave_out) or (ds := _attributes(path)) is None:
                continue
            found.files += 1
            if ds.get("SamplesPerPixel", 1) != 1 or "PALETTE" in str(ds.get("PhotometricInterpretation")):
                found.colour.append(Image(path, name, 0, ds))
                continue
            for frame in _frames(ds):
                image = Image(path, f"{name}[{frame + 1}]" if _count(ds) > 1 else name, frame, ds)
                pools[_pool_key(path, name)].append((int(number(ds, "InstanceNumber") or 0), image))
    for members in pools.values():
        members.sort(key=lambda member: (member[0], member[1].frame, member[1].name))
        images = [image for _, image in members]
        found.pools.append(Pool(images[0].name, evenly(images, MAX_POOL)))
    return found


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, evenly spaced."""
    count = min(len(items), most)
    return [items[place * len(items) // count] for place in range(count)]


def _attributes(path: Path) -> Dataset | None:
    """An image file's attributes, else None. Without preamble its name has to say that it is DICOM."""
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] != b"DICM" and path.suffix.lower() not in {".dcm", ".ima", ".img"}:
        return None
    try:
        ds = dcmread(path, force=True, stop_before_pixels=True)
        return ds if ds.get("Rows") and ds.get("Columns") else None
    except UNREADABLE:
        return None


def _count(ds: Dataset) -> int:
    return int(number(ds, "NumberOfFrames") or 1)


def _frames(ds: Dataset) -> list[int]:
    return evenly(range(max(1, min(_count(ds), 10_000))), MAX_FRAMES)


def _pool_key(path: Path, name: str) -> tuple[str, str]:
    """As the index of a store would group them, but never across folders: copies of a series stay apart."""
    try:
        with path.open("rb") as file:
            meta = read_file_meta(file)
            file.seek(meta.data_set_offset)
            size = path.stat().st_size - meta.data_set_offset
            header = read_header(file, size, meta.transfer_syntax)
    except DicomfsError:
        return name, ""
    return (f"{path.parent} {header.series_uid}", header.pool) if header.pool else (name, "")


def number(ds: Dataset, keyword: str) -> float | None:
    """First value of an attribute as a finite number, however it is written; None when it is none."""
    try:
        value = ds.get(keyword)
        if isinstance(value, bytes):
            value = value.decode("ascii").strip("\0 ").split("\\")[0]
        elif value is not None and not isinstance(value, (str, int, float)):
            value = value[0] if len(value) else None
        found = float(value) if value is not None else None
    except UNREADABLE:
        return None
    return found if found is not None and np.isfinite(found) else None


def _groups(ds: Dataset, frame: int) -> Iterator[Dataset]:
    """Functional groups of a frame, the most specific first."""
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    yield from per_frame[frame : frame + 1]
    yield from (ds.get("SharedFunctionalGroupsSequence") or [])[:1]


def has_functional_groups(ds: Dataset) -> bool:
    """Enhanced multi-frame."""
    return any(True for _ in _groups(ds, 0))


def _macro(ds: Dataset, frame: int, keyword: str) -> Dataset:
    """The item of a functional group macro, else the data set itself."""
    for group in _groups(ds, frame):
        if group.get(keyword):
            item: Dataset = group[keyword].value[0]
            return item
    return ds


def _modality_values(ds: Dataset, frame: int, stored: NDArray[Any]) -> Floats:
    """XA and RF keep their stored values: their Modality LUT is not meant for display."""
    if ds.get("Modality") in _X_RAY_RUNS:
        return stored.astype(np.float64)
    if ds.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, ds), np.float64)
    source = _macro(ds, frame, "PixelValueTransformationSequence")
    slope, intercept = number(source, "RescaleSlope"), number(source, "RescaleIntercept")
    return stored.astype(np.float64) * slope + (intercept or 0.0) if slope else stored.astype(np.float64)


def header_window(ds: Dataset, frame: int) -> HeaderWindow | None:
    """First window of the frame's group, shared group or data set; None when it is not valid."""
    try:
        source = _macro(ds, frame, "FrameVOILUTSequence")
        function = str(source.get("VOILUTFunction") or "LINEAR")
    except UNREADABLE:
        return None
    centre, width = number(source, "WindowCenter"), number(source, "WindowWidth")
    if centre is None or not width or (function == "LINEAR" and abs(width) < 1):
        return None
    return HeaderWindow(centre, abs(width), function)


def _class(window: HeaderWindow | None, values: Floats, bits: int) -> str:
    """RENDERING's tests, on each image for itself; up to 8 bits every valid window counts as informative."""
    if window is None:
        return "none"
    if bits <= 8 or not values.size:
        return "informative"
    low, high = window.ends
    least, most = float(values.min()), float(values.max())
    near = _MINMAX * (most - least) + 1
    if abs(low - least) <= near and abs(high - most) <= near:
        return "minmax-like"
    dim, bright = np.percentile(values, [0.1, 99.9])
    if high <= dim or low >= bright:
        return "off-data"
    if window.width >= _FULL_RANGE * 2**bits and bright - dim < _COVERED * 2**bits:
        return "full-range"
    return "informative"


def body_mask(values: Floats, padding: Mask) -> Mask:
    """Foreground: above Otsu's threshold between two classes of log intensity; all, if that says nothing.

    Logarithms keep bright fat from taking dim tissue into the background.
    """
    image = values[~padding]
    if image.size < 16:
        return ~padding
    depth = np.log1p(np.maximum(values - image.min(), 0.0))
    threshold = _otsu(depth[~padding])
    mask = (depth > threshold) & ~padding
    return mask if 0.02 < mask.mean() < 0.98 else ~padding


def _otsu(values: Floats) -> float:
    """The threshold of greatest variance between classes, on 256 bins between P0.1 and P99.9."""
    low, high = np.percentile(values, [0.1, 99.9])
    if high <= low:
        return float(low)
    counts, edges = np.histogram(np.clip(values, low, high), 256, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    share = np.cumsum(counts) / counts.sum()
    moment = np.cumsum(counts * centres) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * share - moment) ** 2 / (share * (1 - share))
    return float(centres[np.nanargmax(np.where(np.isfinite(between), between, -1.0))])
