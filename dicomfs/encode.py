"""8-bit pictures to complete files; one table of formats. Deterministic, no metadata. Called by `render`."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicomfs.errors import NotDisplayable
from dicomfs.model import Recipe

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Format:
    """One file format."""

    extension: str
    max_side: int
    """Longest side in pixels that the format can hold."""
    write: Callable[[Image.Image, BytesIO, Recipe], None]


def _write_jpeg(image: Image.Image, file: BytesIO, recipe: Recipe) -> None:
    # 4:4:4: thinned-out chroma smears coloured text and Doppler; ignored for grey
    image.save(file, "JPEG", quality=recipe.quality, subsampling="4:4:4")


def _write_png(image: Image.Image, file: BytesIO, _recipe: Recipe) -> None:
    image.save(file, "PNG", compress_level=_PNG_LEVEL)


_PNG_LEVEL = 3

FORMATS = {
    "jpg": Format(".jpg", 65500, _write_jpeg),
    "png": Format(".png", 2**31 - 1, _write_png),
}
"""Every picture format by its name in `formats=`."""


def encode(picture: Picture, recipe: Recipe) -> bytes:
    """A picture of shape (rows, columns) or (rows, columns, 3), uint8, as the file `recipe` asks for.

    Raises NotDisplayable when the format cannot hold so many pixels.
    """
    chosen = FORMATS[recipe.format]
    rows, columns = picture.shape[:2]
    if max(rows, columns) > chosen.max_side:
        raise NotDisplayable(f"The image is too large for {recipe.format}: {columns} x {rows} pixels.")
    pixels: NDArray[Any] = np.ascontiguousarray(picture)
    file = BytesIO()
    chosen.write(Image.fromarray(pixels), file, recipe)
    return file.getvalue()
