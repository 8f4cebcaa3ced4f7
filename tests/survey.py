"""Every image file of a folder, rendered in every still format: which cannot be shown, and why."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.errors import InvalidDicomError

from dicomfs.attributes import DAMAGE
from dicomfs.errors import NotDisplayable, UnreadableDataSet
from dicomfs.header import read_file_meta
from dicomfs.image import open_image
from dicomfs.model import Recipe, Source
from dicomfs.pixels import colour, grey
from dicomfs.render import render

FORMATS = ("png", "jpg", "tiff", "bmp", "gif")
MEASUREMENT = ("tiff16", "png16")
"""For grey images only."""
_PIXELS = (b"\xe0\x7f\x10\x00", b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00", b"\x7f\xe0\x00\x10")
"""Tags of pixel data, little and big endian: a file without any of them is no image."""
_SMALL = 2_000_000
"""Pixels beyond which only the first format is written: encoders do not know where pixels come from."""


@dataclass
class Survey:
    """What became of the images of a folder, by path within it."""

    images: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    """Images that cannot be shown."""
    faults: list[str] = field(default_factory=list)
    """What must not be: flat pictures of what is not flat, pictures of another size."""


def survey(folder: Path) -> Survey:
    """Look at every file below a folder; the first and the last frame of each image."""
    found = Survey()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        frames = _frames(path)
        if frames is None:
            continue
        found.images += 1
        name = str(path.relative_to(folder))
        try:
            for frame in sorted({0, frames - 1}):
                found.faults += [f"{name} frame {frame + 1}: {fault}" for fault in _faults(path, frame)]
        except NotDisplayable as error:
            found.reasons[name] = str(error)
    return found


def _frames(path: Path) -> int | None:
    """Number of frames; None when the file is no image."""
    with path.open("rb") as file:
        try:
            read_file_meta(file)
        except UnreadableDataSet:
            return None
    if not any(tag in path.read_bytes() for tag in _PIXELS) and b"deflated" not in path.name.encode():
        return None
    try:
        with open_image(path) as image:
            return image.frames
    except (NotDisplayable, InvalidDicomError) as error:
        return None if "no pixel data" in str(error) else 1
    except DAMAGE:
        return 1


def _faults(path: Path, frame: int) -> Iterator[str]:
    with open_image(path) as image:
        formats = FORMATS if image.is_colour else FORMATS + MEASUREMENT
        size = (image.columns, image.rows)
    flat = _is_flat(path, frame)
    for name in formats:
        recipe = Recipe(name, square=False, overlays=False, shutters=False, subtraction=False)
        with Image.open(io.BytesIO(render(Source(path, frame), recipe, None))) as picture:
            picture.load()
            pixels = np.asarray(picture)
            if picture.size != size:
                yield f"{name} is {picture.size}, the image {size}"
        if not flat and np.ptp(pixels) == 0:
            yield f"{name} is flat, the image is not"
        if size[0] * size[1] > _SMALL:
            return


def _is_flat(path: Path, frame: int) -> bool:
    with open_image(path) as image:
        if image.is_colour:
            return bool(np.ptp(colour(image, frame)) == 0)
        stored = grey(image, frame)
        values = stored.codes if stored.levels is None else stored.levels[stored.codes]
        return bool(np.ptp(values) == 0)
