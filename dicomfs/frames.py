"""One grey frame as it goes into a window: values, what the header wishes, what a shutter hides.

Where `pixels`, `display`, `planes` and `subtraction` come together; decides nothing. Called by `render`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomfs import display as wishes
from dicomfs import geometry, icc, planes, subtraction
from dicomfs.display import Display, display
from dicomfs.geometry import Geometry
from dicomfs.grey import Rescale
from dicomfs.histogram import Member, glimpse, measure
from dicomfs.image import Image
from dicomfs.model import Recipe
from dicomfs.pixels import Grey, grey
from dicomfs.planes import Mask, Shutter

_OTHER_TAGS = (0x00200060, 0x00200062, 0x00281054, 0x00282110, 0x00282112)
TAGS = tuple(sorted({*wishes.TAGS, *geometry.TAGS, *icc.TAGS, *planes.TAGS, *subtraction.TAGS, *_OTHER_TAGS}))
"""Every attribute that a picture is made from."""

_FLOAT_BITS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One grey frame."""

    codes: NDArray[Any]
    levels: NDArray[np.int32] | None
    """As in `pixels.Grey`; of a subtracted frame the differences, without levels."""
    display: Display
    shutter: Shutter | None
    overlay: Mask | None
    stands_alone: bool
    """It is shown as it is in a run whose other frames are subtracted, and shares no window with them."""

    def member(self, *, everything: bool = False) -> Member:
        """Its histogram without padding and what a shutter hides; with `everything`, of all its pixels."""
        if everything:
            return measure(self.codes, self.levels, replace(self.display, padding=None, modality=""))
        covered = None if self.shutter is None else self.shutter.covered
        return measure(self.codes, self.levels, self.display, covered)

    def glimpse(self) -> list[float]:
        """Modality values of some of the pixels that `member` counts; perhaps none."""
        covered = None if self.shutter is None else self.shutter.covered
        return glimpse(self.codes, self.levels, self.display, covered)


def header_wishes(image: Image, frame: int, recipe: Recipe) -> tuple[Display, bool]:
    """What the header says of a frame's display, and whether the frame stands alone; no pixel is read."""
    found = image.find("display", frame, lambda: _display(image, frame))
    if not recipe.subtraction or not subtraction.is_recommended(image.ds):
        return found, False
    if subtraction.subtraction(image.ds, frame, image.frames) is None:
        return found, True
    # its window was made for the native values; differences are signed and know no padding
    changed: dict[str, Any] = {"windows": (), "padding": None, "transformation": Rescale()}
    return replace(found, **changed, bits=_FLOAT_BITS, is_float=True, signed=True), False


def grey_frame(image: Image, frame: int, recipe: Recipe) -> Frame:
    """One grey frame, subtracted where the header and the recipe want it. Raises like `pixels.grey`."""
    stored = grey(image, frame)
    found, alone = header_wishes(image, frame, recipe)
    wanted = subtraction.subtraction(image.ds, frame, image.frames) if recipe.subtraction else None
    shown = stored if wanted is None else Grey(subtraction.subtracted(wanted, _reader(image)), None)
    overlay = None
    if recipe.overlays and image.find("overlaid", 0, lambda: planes.has_overlays(image.ds)):
        overlay = planes.overlays(image.ds, frame, stored.codes, image.unused_bits)
    return Frame(shown.codes, shown.levels, found, shutter_of(image, frame, recipe), overlay, alone)


def values_frame(image: Image, frame: int) -> tuple[Grey, Display]:
    """One grey frame as it is stored, and what its values mean. Raises like `pixels.grey`."""
    return grey(image, frame), _display(image, frame)


def shutter_of(image: Image, frame: int, recipe: Recipe) -> Shutter | None:
    """The display shutter of a frame, grey or colour, where the recipe wants it."""
    if not recipe.shutters or not image.find("shuttered", 0, lambda: planes.has_shutters(image.ds)):
        return None
    aspect = pixel_size(image, frame).aspect
    return planes.shutter(image.ds, frame, (image.rows, image.columns), aspect)


def pixel_size(image: Image, frame: int) -> Geometry:
    """The size of a frame's pixels."""
    return image.find("geometry", frame, lambda: geometry.geometry(image.ds, frame))


def _reader(image: Image) -> Callable[[int], NDArray[np.float32]]:
    def stored(frame: int) -> NDArray[np.float32]:
        found = grey(image, frame)
        return (found.codes if found.levels is None else np.take(found.levels, found.codes)).astype(
            np.float32
        )

    return stored


def _display(image: Image, frame: int) -> Display:
    return display(
        image.ds,
        frame,
        bits=image.stored,
        signed=image.signed,
        is_float=image.is_float,
        allocated=image.allocated,
    )
