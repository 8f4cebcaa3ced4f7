"""Expert agreement: the window of an informative header is hidden, and the picture compared with it.

One image of each series: the middle one of its largest pool. Copies of the whole pool without any window
are what dicomfs and everyone else get; the expert's picture is PS3.3's formula with the hidden window.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pydicom import DataElement, dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.quality.contestants import OURS
from tests.quality.images import UNREADABLE, Image, Pool
from tests.quality.pictures import mean_absolute_difference, ssim
from tests.quality.report import Gate, Row, Shown, Tally, worst

MOST_DIFFERENCE, LEAST_SSIM = 11.0, 0.82
LEAST_SERIES = 8
"""A median of fewer proves nothing either way."""
_HIDDEN = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "WindowCenterWidthExplanation")


class Expert:
    """Images of more than 8 bits whose headers are informative; MR has the gate."""

    def __init__(self) -> None:
        self._difference: dict[str, Tally] = {}
        self._similarity: dict[str, Tally] = {}
        self._seen: set[str] = set()

    def look(self, shown: Shown) -> None:
        """One pool, if its series was not looked at yet."""
        images = [image for image, _ in shown.new()]
        middle = images[len(images) // 2] if images else None
        if middle is None or not middle.is_measurable or middle.window_class != "informative":
            return
        series = str(middle.ds.get("SeriesInstanceUID") or middle.name)
        if series in self._seen:
            return
        with TemporaryDirectory(prefix="dicomfs-quality-") as folder:
            hidden = _hide(shown.pool.images, Path(folder))
            if hidden is None:
                return
            self._seen.add(series)
            number = next(i for i, image in enumerate(shown.pool.images) if image.name == middle.name)
            self._compare(shown, middle, hidden, min(number, len(hidden.images) - 1))

    def _compare(self, shown: Shown, image: Image, hidden: Pool, number: int) -> None:
        if image.window is None:
            return
        expert = image.shown(image.window.apply(image.values))
        window = shown.contestants.window(hidden)
        alone = Pool(hidden.name, [hidden.images[number]])
        difference = self._difference.setdefault(image.modality, Tally())
        similarity = self._similarity.setdefault(image.modality, Tally())
        for name, picture in shown.contestants.show(alone, window)[0].items():
            if picture is not None and picture.shape == expert.shape and name != "header":
                difference.add(name, image.name, mean_absolute_difference(picture, expert))
                similarity.add(name, image.name, ssim(picture, expert))

    def rows(self) -> Iterator[Row]:
        """Medians by modality."""
        for modality in sorted(self._difference, key=lambda name: (name != "MR", name)):
            gated = modality == "MR" and len(self._difference[modality].of(OURS)) >= LEAST_SERIES
            difference, similarity = self._difference[modality], self._similarity[modality]
            found, alike = difference.of(OURS), similarity.of(OURS)
            gate = Gate(f"<= {MOST_DIFFERENCE:g}", statistics.median(found.values()) <= MOST_DIFFERENCE)
            yield Row(f"expert hidden, {modality}: median MAD", len(found), difference.medians(1),
                      gate if gated else None, worst(found, "{:.1f}"))  # fmt: skip
            gate = Gate(f">= {LEAST_SSIM:g}", statistics.median(alike.values()) >= LEAST_SSIM)
            yield Row(f"expert hidden, {modality}: median SSIM", len(alike), similarity.medians(3),
                      gate if gated else None, worst(alike, "{:.3f}", smallest=True))  # fmt: skip


def _hide(images: Sequence[Image], folder: Path) -> Pool | None:
    """Copies of these images without any window, under new UIDs; None when pydicom cannot write them."""
    copies: dict[Path, tuple[Path, Dataset]] = {}
    for image in images:
        if image.path not in copies:
            path = folder / f"{len(copies):04}.dcm"
            try:
                ds = without_window(image.path)
                ds.save_as(path)
            except UNREADABLE:
                return None
            copies[image.path] = path, ds
    return Pool("hidden", [Image(copies[one.path][0], one.name, one.frame, one.ds) for one in images])


def without_window(path: Path) -> Dataset:
    """A file's data set, its windows taken out wherever they are, with a new UID."""
    ds = dcmread(path, force=True)
    ds.walk(_take_out)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return ds


def _take_out(ds: Dataset, element: DataElement) -> None:
    if element.keyword in _HIDDEN:
        del ds[element.tag]
