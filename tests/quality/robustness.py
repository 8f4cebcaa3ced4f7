"""Robustness: six hot pixels must not darken the rest, and what is an image must not come out flat."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian

from tests.quality.contestants import DCMTK, OURS, ROUGH, Pictures, ours
from tests.quality.expert import without_window
from tests.quality.images import UNREADABLE, Image, Pool, minmax, number
from tests.quality.pictures import used_range
from tests.quality.report import Gate, Row, Shown, Tally, worst

LEAST_KEPT = 0.9
HOT_PIXELS, HOT_VALUE = 6, 32767
MOST_IMAGES = 16


class HotPixels:
    """Used range with hot pixels as a share of the same image's without, both without a header window.

    Made here: the first image of a series of MR, 16 bits allocated; six pixels at fixed random places get
    32767, or the greatest value that Bits Stored allows.
    """

    def __init__(self) -> None:
        self._kept = Tally()
        self._seen: set[str] = set()

    def look(self, shown: Shown) -> None:
        """One image of each series, sixteen at most."""
        image = next((image for image, _ in shown.new()), None)
        if image is None or image.modality != "MR" or not image.is_measurable:
            return
        series = str(image.ds.get("SeriesInstanceUID") or image.name)
        single = number(image.ds, "NumberOfFrames") in {None, 1.0}
        if (
            image.ds.get("BitsAllocated") != 16
            or series in self._seen
            or len(self._seen) >= MOST_IMAGES
            or not single
        ):
            return
        self._seen.add(series)
        with TemporaryDirectory(prefix="dicomfs-quality-") as folder:
            clean = self._pictures(shown, image, Path(folder, "clean.dcm"), hot=0)
            hot = self._pictures(shown, image, Path(folder, "hot.dcm"), hot=HOT_PIXELS)
        for name, picture in clean.items():
            damaged = hot.get(name)
            if picture is not None and damaged is not None and (used := used_range(picture, image.body)) > 0:
                self._kept.add(name, image.name, used_range(damaged, image.body) / used)

    def _pictures(self, shown: Shown, image: Image, path: Path, hot: int) -> Pictures:
        pixels = image.stored.copy()
        places = np.random.default_rng(20240229).choice(pixels.size, hot, replace=False)
        pixels.flat[places] = min(
            HOT_VALUE, 2 ** (image.bits - (image.ds.get("PixelRepresentation") == 1)) - 1
        )
        try:
            ds = without_window(image.path)
            ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
            ds["PixelData"].VR = "OW"
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.save_as(path, implicit_vr=False, little_endian=True)
        except UNREADABLE:
            return {}
        alone = Pool(image.name, [Image(path, image.name, 0, image.ds)])
        pictures = {OURS: ours(path, 0, shown.contestants.window(alone)), ROUGH: minmax(pixels.astype(float))}
        return pictures | {name: shown.contestants.dcmtk(path, 0, options) for name, options in DCMTK.items()}

    def rows(self) -> Iterator[Row]:
        """Least share that is left."""
        found = self._kept.of(OURS)
        gate = Gate(f">= {LEAST_KEPT}", min(found.values()) >= LEAST_KEPT if found else None)
        yield Row("hot pixels: least used range kept", len(found), self._kept.least(2), gate,
                  worst(found, smallest=True))  # fmt: skip


class Flat:
    """Images of more than one value that come out as one grey."""

    def __init__(self) -> None:
        self._flat: dict[str, list[str]] = {}
        self._count = 0

    def look(self, shown: Shown) -> None:
        """Every image, copies too: their headers differ."""
        for image, pictures in zip(shown.images, shown.pictures, strict=True):
            inside = image.values[~image.padding]
            if not inside.size or inside.min() == inside.max():
                continue
            self._count += 1
            for name, picture in pictures.items():
                if picture is not None:
                    flat = self._flat.setdefault(name, [])
                    flat += [image.name] * int(picture.min() == picture.max())

    def rows(self) -> Iterator[Row]:
        """How many."""
        figures = {name: str(len(found)) for name, found in self._flat.items()}
        mine = self._flat.get(OURS, [])
        gate = Gate("none", not mine if self._count else None)
        yield Row("flat pictures of images that are not", self._count, figures, gate, mine)
