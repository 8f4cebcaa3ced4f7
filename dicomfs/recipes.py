"""What a recipe may say: the names of formats and window policies, and which of them share pools.

Pure text, no libraries: configuration and the tree ask here without loading a decoder. `encode` has the
writers of these formats, `render` carries the policies out.
"""

import math
from dataclasses import dataclass
from enum import Enum

from dicomfs.model import Recipe


class Kind(Enum):
    """What a format is made from."""

    PICTURE = "8-bit grey or RGB, as a person looks at it"
    VALUES = "16-bit grey, as a program measures it"
    DOCUMENT = "no picture: one file for the instance, whatever its frames"


@dataclass(frozen=True, slots=True)
class Format:
    """One format of `formats=`."""

    extension: str
    """With its dot. `tiff` and `tiff16` share one: they are told apart by their folder."""
    kind: Kind = Kind.PICTURE
    is_uncompressed: bool = False
    """Of so many pixels a file is always as long (`lengths.py`)."""
    only_sop_class: str = ""
    """UID of the only SOP class that has such files; empty: any, for pictures any with pixel data."""

    @property
    def per_frame(self) -> bool:
        """True when each frame of a multi-frame instance is a file of its own."""
        return self.kind is not Kind.DOCUMENT


ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"

FORMATS = {
    "jpg": Format(".jpg"),
    "png": Format(".png"),
    "tiff": Format(".tif", is_uncompressed=True),
    "bmp": Format(".bmp", is_uncompressed=True),
    "gif": Format(".gif"),
    "tiff16": Format(".tif", Kind.VALUES),
    "png16": Format(".png", Kind.VALUES),
    "pdf": Format(".pdf", Kind.DOCUMENT, only_sop_class=ENCAPSULATED_PDF),
    "json": Format(".json", Kind.DOCUMENT),
}
"""Every rendered format; originals (`dcm`) are not rendered."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A window policy."""

    name: str
    """`auto`, `header`, `full` or `fixed`."""
    centre: float = 0.0
    width: float = 0.0

    @property
    def text(self) -> str:
        """The policy as an option spells it, always the same for the same policy."""
        return self.name if self.name != "fixed" else f"{_plain(self.centre)}/{_plain(self.width)}"

    @property
    def label(self) -> str:
        """The policy as part of a folder's name; where it becomes one, at most `LABEL_LENGTH` characters."""
        return self.name if self.name != "fixed" else f"C{_plain(self.centre)} W{_plain(self.width)}"


_LARGEST = 1e9
LABEL_LENGTH = 16
"""With a format before it, a window's folder is in the budget of a path (`naming.py`)."""


def policy(text: str) -> Policy:
    """The policy that an option names: `auto`, `header`, `full` or `C/W`.

    `auto`: by modality, one range per pool. `header`: each image's own window; where it has none, the
    range of its pool. `full`: each image's least to greatest value. `C/W`: a LINEAR window in modality
    units (Hounsfield units for CT), decimals allowed. Raises ValueError with words for a user.
    """
    asked = text.strip().lower()
    if asked in {"auto", "header", "full"}:
        return Policy(asked)
    parts = asked.split("/")
    if len(parts) != 2:
        raise ValueError("auto, header, full, or centre/width such as 40/400")
    centre, width = (_number(part) for part in parts)
    if width <= 0:
        raise ValueError(f"the width of a window is greater than 0, unlike {width:g}")
    return Policy("fixed", centre, width)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > _LARGEST or "_" in text:
        raise ValueError(f"{text.strip()!r} is not a number: centre/width is meant, such as 40/400")
    return value + 0.0  # no negative zero


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def pool_policy(recipe: Recipe) -> str:
    """Name of the kind of pool decision that a recipe needs; empty when it needs none.

    Equal names mean equal decisions for equal members: what `render.decide_pool` takes, and the key under
    which its answer may be kept.
    """
    name = policy(recipe.window).name
    if name not in {"auto", "header"} or FORMATS[recipe.format].kind is not Kind.PICTURE:
        return ""
    return "".join(
        (name, "" if recipe.subtraction else NOT_SUBTRACTED, "" if recipe.shutters else NOT_SHUTTERED)
    )


NOT_SUBTRACTED = ",subtraction=off"
NOT_SHUTTERED = ",shutters=off"


def from_pool_policy(name: str) -> Recipe:
    """A recipe that needs the decision of that name (the inverse of `pool_policy`)."""
    return Recipe(
        "png",
        window=name.split(",", 1)[0],
        subtraction=NOT_SUBTRACTED not in name,
        shutters=NOT_SHUTTERED not in name,
    )
