"""The contact sheet: minimum to maximum | the header's window | dicomfs, a row for each image.

`cine.jpg` beside this file is one, of the short-axis cine of the Sunnybrook preclinical EP data set
(github.com/WrightGroupSRI/ep-dataset, CC0 1.0), GE FIESTA:

    python -m tests.quality --packaged none --data FOLDER-OF-THE-CINE --sheet tests/quality/cine.jpg
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pil
from PIL import ImageDraw, ImageFont

from tests.quality.contestants import HEADER, OURS, ROUGH
from tests.quality.flicker import LEAST_PHASES
from tests.quality.images import Image, Picture
from tests.quality.report import Row, Shown

COLUMNS = {ROUGH: "minimum to maximum", HEADER: "header window", OURS: "dicomfs"}
SIDE, GAP, LINE = 256, 4, 18
MOST_OTHERS = 6


@dataclass(frozen=True, slots=True)
class _Line:
    caption: str
    pictures: tuple[Picture, ...]
    """In the order of COLUMNS, scaled to SIDE."""


class Sheet:
    """Keeps the few pictures that are shown: of the cine whose header pumps most three phases, the darkest,
    the median and the brightest by the header; of each modality the image that gains most.
    """

    def __init__(self) -> None:
        self._cine: tuple[float, list[_Line]] = (0.0, [])
        self._others: dict[str, tuple[float, _Line]] = {}

    def look(self, shown: Shown) -> None:
        """Remember what is worth showing."""
        complete = [
            (image, [picture for name in COLUMNS if (picture := pictures.get(name)) is not None])
            for image, pictures in zip(shown.images, shown.pictures, strict=True)
            if image.is_measurable and image.name not in shown.copies
        ]
        complete = [(image, found) for image, found in complete if len(found) == len(COLUMNS)]
        if len(complete) < len(shown.images):
            return
        phases = len({image.path for image, _ in complete})
        if phases >= LEAST_PHASES and complete[0][0].modality == "MR":
            means = np.array([float(found[1].mean()) for _, found in complete])
            order = np.argsort(means, kind="stable")
            if float(means.std()) > self._cine[0]:
                chosen = sorted({int(order[0]), int(order[len(order) // 2]), int(order[-1])})
                self._cine = float(means.std()), [_line(*complete[place]) for place in chosen]
        elif complete:
            self._other(*complete[len(complete) // 2])

    def _other(self, image: Image, found: list[Picture]) -> None:
        gain = float(np.abs(found[2].astype(float) - found[0]).mean())
        if gain > self._others.get(image.modality, (0.0, None))[0]:
            self._others[image.modality] = gain, _line(image, found)

    def rows(self) -> Iterator[Row]:
        """No figures."""
        return iter(())

    def write(self, path: Path) -> bool:
        """Save what was chosen; False when there is nothing."""
        others = [line for _, line in sorted(self._others.values(), key=lambda item: -item[0])]
        lines = [*self._cine[1], *others[:MOST_OTHERS]]
        if not lines:
            return False
        _draw(lines).save(path, quality=85)
        return True


def _line(image: Image, found: list[Picture]) -> _Line:
    return _Line(image.name, tuple(_fitted(picture) for picture in found))


def _fitted(picture: Picture) -> Picture:
    """Scaled so that the longer side is SIDE."""
    source = Pil.fromarray(picture)
    scale = SIDE / max(source.size)
    size = max(1, round(source.width * scale)), max(1, round(source.height * scale))
    return np.asarray(source.resize(size, Pil.Resampling.LANCZOS))


def _draw(lines: list[_Line]) -> Pil.Image:
    width = len(COLUMNS) * (SIDE + GAP) - GAP
    heights = [max(picture.shape[0] for picture in line.pictures) + LINE + GAP for line in lines]
    sheet = Pil.new("L", (width, LINE + GAP + sum(heights)), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, title in enumerate(COLUMNS.values()):
        pen.text((column * (SIDE + GAP), 1), title, 0, font)
    top = LINE + GAP
    for line, height in zip(lines, heights, strict=True):
        for column, picture in enumerate(line.pictures):
            sheet.paste(Pil.fromarray(picture), (column * (SIDE + GAP) + (SIDE - picture.shape[1]) // 2, top))
        pen.text((0, top + height - LINE - GAP), line.caption, 0, font)
        top += height
    return sheet
