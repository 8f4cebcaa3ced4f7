"""How long a picture's file will be, from the header alone, where that is certain.

An uncompressed picture of so many pixels always has the same length, so that of a blank one is that of any.
Certain it is only if there will be a picture: plain pixel data, all there, with nothing to decode. Whatever
else it is has to be rendered to know. Nothing is kept but lengths. Called by the render workers.
"""

from functools import lru_cache
from typing import Final

import numpy as np

from dicomfs import icc, subtraction
from dicomfs.encode import encode
from dicomfs.frames import TAGS
from dicomfs.geometry import Geometry, fitted, geometry
from dicomfs.image import Image, open_image
from dicomfs.model import Recipe, Source
from dicomfs.protocol import MAX_DATA_BYTES
from dicomfs.recipes import FORMATS
from dicomfs.render import translated

MAX_PIXELS: Final = 30_000_000
"""Rows x Columns of a frame beyond which memory may not suffice to render it."""
_LENGTHS_KEPT: Final = 256


def length(source: Source, recipe: Recipe) -> int | None:
    """Bytes of what `render` would give for one frame; None when that is not certain.

    Raises NotDisplayable when it is no image, OSError when the file cannot be read now.
    """
    if not FORMATS[recipe.format].is_uncompressed:
        return None
    with translated(), open_image(source.path, TAGS, source.layout) as image:
        if not _is_plain(image, source.frame, recipe):
            return None
        shape = (image.rows, image.columns, 3)[: 3 if image.is_colour else 2]
        found = _blank(shape, geometry(image.ds, source.frame), recipe)
    return found if found <= MAX_DATA_BYTES else None


def _is_plain(image: Image, frame: int, recipe: Recipe) -> bool:
    """Whether every pixel is there as it is shown, but for tables that always give something."""
    if image.samples == 3:
        usual = image.photometric == "RGB" and image.allocated == image.stored == 8
        usual = usual and not icc.profile(image.ds)
    else:
        usual = image.photometric in {"MONOCHROME1", "MONOCHROME2"} and image.allocated in {8, 16}
        # a mask is another frame, or the mean of some
        usual = usual and not (recipe.subtraction and subtraction.is_recommended(image.ds))
    pixels = image.rows * image.columns
    needed = image.frames * pixels * image.samples * image.allocated // 8
    return (
        usual
        and image.is_native
        and not image.is_float
        and image.length is not None
        and image.length >= needed
        and 0 <= frame < image.frames
        and pixels <= MAX_PIXELS
    )


@lru_cache(maxsize=_LENGTHS_KEPT)
def _blank(shape: tuple[int, ...], pixel: Geometry, recipe: Recipe) -> int:
    picture, per_metre = fitted(
        np.zeros(shape, np.uint8), pixel, square=recipe.square, max_size=recipe.max_size
    )
    return len(encode(picture, recipe, per_metre))
