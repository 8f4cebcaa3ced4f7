"""Pictures to complete files, a writer for each format. Deterministic; no patient data. Called by `render`.

Formats of 8 bits carry nothing but pixels and, where it is known, their size, so that a word processor
inserts an image at true size: that in the patient (PixelSpacing, ultrasound regions), at the detector
(ImagerPixelSpacing: magnified like a film) or of the film (NominalScannedPixelSpacing); pixels below 0.01 mm
or above 10 mm have none. JPEG counts whole pixels per inch, which for pixels of 1 mm is up to 2 % off. GIF
has no place for it. BMP always has a resolution: 96 per inch when unknown.

Those of 16 bits also carry one line of calibration (`measurement`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dicomfs.errors import NotDisplayable
from dicomfs.measurement import Values
from dicomfs.model import Recipe
from dicomfs.recipes import FORMATS, Kind

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Extra:
    """What goes into a file besides the pixels."""

    dots_per_inch: tuple[float, float] | None = None
    """Across and down."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Writer:
    """How a format is written."""

    max_side: int
    """Longest side in pixels that the format can hold."""
    write: Callable[[Image.Image, BytesIO, Recipe, Extra], None]


def _write_jpeg(image: Image.Image, file: BytesIO, recipe: Recipe, extra: Extra) -> None:
    # 4:4:4: thinned-out chroma smears coloured text and Doppler; ignored for grey
    image.save(file, "JPEG", quality=recipe.quality, subsampling="4:4:4", **_dpi(extra))


def _write_png(image: Image.Image, file: BytesIO, _recipe: Recipe, extra: Extra) -> None:
    text = PngInfo()
    if extra.description:
        text.add_text("Description", extra.description)
    image.save(file, "PNG", compress_level=_PNG_LEVEL, pnginfo=text, **_dpi(extra))


def _write_tiff(image: Image.Image, file: BytesIO, _recipe: Recipe, extra: Extra) -> None:
    # uncompressed: every program reads it
    described = {"description": extra.description} if extra.description else {}
    image.save(file, "TIFF", **described, **_dpi(extra))


def _write_bmp(image: Image.Image, file: BytesIO, _recipe: Recipe, extra: Extra) -> None:
    image.save(file, "BMP", **_dpi(extra))


def _write_gif(image: Image.Image, file: BytesIO, _recipe: Recipe, _extra: Extra) -> None:
    if image.mode == "RGB":
        # exact for up to 256 colours; beyond, error diffusion instead of bands
        image = image.quantize(_GIF_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    image.save(file, "GIF")


def _write_pdf(image: Image.Image, file: BytesIO, _recipe: Recipe, _extra: Extra) -> None:
    # notices only; without a date, which would be that of the moment
    image.save(file, "PDF", creationDate=None, modDate=None, resolution=_NOTICE_DPI)


_PNG_LEVEL = 3
_GIF_COLOURS = 256
_NOTICE_DPI = 100
_METRES_PER_INCH = 0.0254
_MIN_DPI, _MAX_DPI = 1.0, 65535.0

_PNG = Writer(2**31 - 1, _write_png)
_TIFF = Writer(2**31 - 1, _write_tiff)

WRITERS = {
    "jpg": Writer(65500, _write_jpeg),
    "png": _PNG,
    "tiff": _TIFF,
    "bmp": Writer(2**31 - 1, _write_bmp),
    "gif": Writer(65535, _write_gif),
    "tiff16": _TIFF,
    "png16": _PNG,
    "pdf": Writer(2**16, _write_pdf),
}
"""The writer of every format in `recipes.FORMATS` that holds pixels; that of `pdf` is for notices."""


def _dpi(extra: Extra) -> dict[str, Any]:
    return {} if extra.dots_per_inch is None else {"dpi": extra.dots_per_inch}


def _per_inch(pixels_per_metre: tuple[float, float] | None) -> tuple[float, float] | None:
    if pixels_per_metre is None:
        return None
    across, down = (count * _METRES_PER_INCH for count in pixels_per_metre)
    plausible = min(across, down) >= _MIN_DPI and max(across, down) <= _MAX_DPI
    return (across, down) if plausible else None


def encode(picture: Picture, recipe: Recipe, pixels_per_metre: tuple[float, float] | None = None) -> bytes:
    """A picture of shape (rows, columns) or (rows, columns, 3), uint8, as the file `recipe` asks for.

    `pixels_per_metre`: across and down, for the file's resolution. A format of 16 bits gets grey spread
    over them. Raises NotDisplayable when the format cannot hold so many pixels.
    """
    if FORMATS[recipe.format].kind is Kind.VALUES:
        grey = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).convert("L"))
        return _file(grey.astype(np.uint16) * 257, recipe, Extra())
    return _file(picture, recipe, Extra(_per_inch(pixels_per_metre)))


def encode_values(
    values: Values, recipe: Recipe, pixels_per_metre: tuple[float, float] | None = None
) -> bytes:
    """16-bit grey as `tiff16` or `png16`, with the line that says what it means. Raises like `encode`."""
    return _file(values.pixels, recipe, Extra(_per_inch(pixels_per_metre), values.description))


def _file(pixels: NDArray[Any], recipe: Recipe, extra: Extra) -> bytes:
    chosen = WRITERS[recipe.format]
    rows, columns = pixels.shape[:2]
    if max(rows, columns) > chosen.max_side:
        raise NotDisplayable(f"The image is too large for {recipe.format}: {columns} x {rows} pixels.")
    file = BytesIO()
    chosen.write(Image.fromarray(np.ascontiguousarray(pixels)), file, recipe, extra)
    return file.getvalue()
