"""What a picture alone would not tell: the side of the body, and that compression has lost something.

Written small into a corner, after all scaling, when the recipe asks for it. Called by `render`.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from dicomfs.attributes import number, text, texts
from dicomfs.planes import burn

_SIDES = {"R": "R", "L": "L", "B": "R + L"}
_TEXT_SHARE = 32
"""The letters' height is this part of the shorter side, in pixels."""
_MIN_TEXT, _MAX_TEXT = 11, 60
_INK_FROM = 128


def marks(ds: Dataset) -> str:
    """Laterality (PS3.3 C.7.3.1, C.8.11.6 and others) and lossy compression (C.7.6.1.1.5); often empty."""
    side = _SIDES.get((text(ds, 0x00200062) or text(ds, 0x00200060)).upper(), "")
    lossy = ""
    if text(ds, 0x00282110) == "01":
        ratios = texts(ds, 0x00282112)
        ratio = number(ds, 0x00282112) if len(ratios) == 1 else None
        lossy = f"lossy {ratio:.0f}:1" if ratio and 1 < ratio < 1000 else "lossy"
    return "  ".join(filter(None, (side, lossy)))


def marked(picture: NDArray[np.uint8], ds: Dataset) -> NDArray[np.uint8]:
    """The picture, grey or RGB, with its marks at the top left; itself when there are none or no room."""
    words = marks(ds)
    rows, columns = picture.shape[:2]
    size = max(_MIN_TEXT, min(_MAX_TEXT, min(rows, columns) // _TEXT_SHARE))
    if not words or min(rows, columns) < 4 * size:
        return picture
    image = Image.new("L", (columns, rows))
    ImageDraw.Draw(image).text((size // 2, size // 2), words, fill=255, font=ImageFont.load_default(size))
    written = np.array(picture)
    burn(written, np.asarray(image) >= _INK_FROM)
    return written
