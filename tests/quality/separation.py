"""Left ventricle: grey distance between blood and myocardium, and how much of the blood is white.

Per image, blood = inside the inner contour, myocardium = between inner and outer; separation = mean grey of
blood - mean grey of myocardium; clip = share of the blood at 255. Both are means over the phases of a slice.
Contours: `lvContours/…-NNNN-icontour….txt` and `…-ocontour….txt` in the image's folder or the one above,
NNNN = Instance Number, x y per line in pixels, pixel centres at whole numbers counted from 0.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.quality.contestants import HEADER, OURS
from tests.quality.images import Floats, Image, Mask, number
from tests.quality.report import Gate, Row, Shown, Tally, worst

LEAST_GAIN = 1.05
DARK, DARK_GAIN = 40.0, 1.7
MOST_CLIPPED = 0.025
FOLDER = "lvContours"


class Separation:
    """Slices with contours."""

    def __init__(self) -> None:
        self._separation, self._clip = Tally(), Tally()

    def look(self, shown: Shown) -> None:
        """One slice, if there are contours of it."""
        separations, clips = defaultdict(list), defaultdict(list)
        for image, pictures in zip(shown.images, shown.pictures, strict=True):
            regions = ventricle(image)
            if regions is None or image.name in shown.copies:
                continue
            blood, myocardium = regions
            for name, picture in pictures.items():
                if picture is not None and picture.shape == blood.shape:
                    grey = image.shown(picture)
                    separations[name].append(float(grey[blood].mean()) - float(grey[myocardium].mean()))
                    clips[name].append(float((grey[blood] == 255).mean()))
        for name, found in separations.items():
            case = f"{shown.pool.name}, {len(found)} phases"
            self._separation.add(name, case, statistics.mean(found))
            self._clip.add(name, case, statistics.mean(clips[name]))

    def rows(self) -> Iterator[Row]:
        """Separation, its gain on the header, clipped blood."""
        found, header = self._separation.of(OURS), self._separation.of(HEADER)
        gains = {case: value / header[case] for case, value in found.items() if header.get(case, 0) > 0}
        dark = {case: gain for case, gain in gains.items() if header[case] < DARK}
        notes = [
            f"{gain:.2f} x header: {header[case]:.1f} -> {found[case]:.1f}, "
            f"blood clipped {100 * self._clip.of(OURS)[case]:.2f} %  {case}"
            for case, gain in gains.items()
        ]
        least = Gate(f"every slice >= {LEAST_GAIN} x header", _at_least(gains, LEAST_GAIN))
        yield Row("LV separation: median over slices", len(found), self._separation.medians(), least, notes)
        figures = {OURS: f"{min(dark.values()):.2f} x"} if dark else {}
        demand = f">= {DARK_GAIN} x header"
        yield Row("LV separation, dark slices: least gain", len(dark), figures,
                  Gate(demand, _at_least(dark, DARK_GAIN)))  # fmt: skip
        clips = self._clip.of(OURS)
        held = max(clips.values()) <= MOST_CLIPPED if clips else None
        yield Row("LV blood clipped: greatest of slices, %", len(clips), self._clip.greatest(2, 100),
                  Gate(f"<= {100 * MOST_CLIPPED:g} %", held),
                  worst({case: 100 * value for case, value in clips.items()}, "{:.2f} %"))  # fmt: skip


def _at_least(gains: dict[str, float], limit: float) -> bool | None:
    return min(gains.values()) >= limit if gains else None


def ventricle(image: Image) -> tuple[Mask, Mask] | None:
    """Blood and myocardium of the left ventricle; None without both contours."""
    instance = number(image.ds, "InstanceNumber")
    if instance is None:
        return None
    for folder in (image.path.parent / FOLDER, image.path.parent.parent / FOLDER):
        inner, outer = _contour(folder, int(instance), "i"), _contour(folder, int(instance), "o")
        if inner is not None and outer is not None:
            blood = inside(inner, image.values.shape)
            return blood, inside(outer, image.values.shape) & ~blood
    return None


def _contour(folder: Path, instance: int, which: str) -> Floats | None:
    for path in sorted(folder.glob(f"*-{which}contour*.txt")):
        found = re.search(rf"-(\d+)-{which}contour", path.name)
        if found and int(found[1]) == instance:
            return np.loadtxt(path, dtype=np.float64, ndmin=2)
    return None


def inside(polygon: Floats, shape: tuple[int, ...]) -> Mask:
    """Pixels whose centres are inside the polygon of (x, y) points: even-odd rule along each row."""
    mask = np.zeros(shape, bool)
    columns = np.arange(shape[1])
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        first, last = sorted((y1, y2))
        rows = np.arange(max(0, int(np.ceil(first))), min(shape[0], int(np.ceil(last))))
        if rows.size:  # none for a horizontal edge
            crossings = (x2 - x1) * (rows - y1) / (y2 - y1) + x1
            mask[rows] ^= columns < crossings[:, np.newaxis]
    return mask
