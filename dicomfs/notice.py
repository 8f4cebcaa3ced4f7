"""A picture that says why there is no picture: what a folder shows for a permanent failure.

Deterministic like any rendition, and never fails, whatever the text. Called by whoever asks `render`
and is told NotDisplayable.
"""

import json
from bisect import bisect_right

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dicomfs.encode import encode
from dicomfs.model import Recipe

SIDE = 512
"""Width and height, pixels."""
_MARGIN = 40
_PAPER, _TITLE_INK, _INK = 38, 235, 190
_TITLE = "This image cannot be displayed"
_TITLE_SIZE, _TEXT_SIZE, _LINE_HEIGHT = 27, 20, 28
_MAX_LINES = 11
_MAX_CHARACTERS = 800
_ELLIPSIS = "…"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def notice(recipe: Recipe, reason: str) -> bytes:
    """A complete file of the recipe's format, 512 x 512, that shows `reason` (any text) to a user.

    For `json` an object whose only member is `error`.
    """
    if recipe.format == "json":
        return (json.dumps({"error": _printable(reason)}, ensure_ascii=False, indent=1) + "\n").encode()
    image = Image.new("L", (SIDE, SIDE), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, 120), _TITLE, fill=_TITLE_INK, font=ImageFont.load_default(_TITLE_SIZE))
    draw.line((_MARGIN, 164, SIDE - _MARGIN, 164), fill=_INK, width=1)
    font = ImageFont.load_default(_TEXT_SIZE)
    for row, line in enumerate(_wrapped(_printable(reason), font)):
        draw.text((_MARGIN, 182 + row * _LINE_HEIGHT), line, fill=_INK, font=font)
    return encode(np.asarray(image), recipe)


def _printable(text: str) -> str:
    """One paragraph of characters that can be drawn: no control characters, no halves of surrogates."""
    known = text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in known).split())


def _wrapped(text: str, font: Font) -> list[str]:
    """Lines that fit between the margins; words that do not fit are broken, what remains is cut."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < _MAX_LINES:
        # the longest piece that fits, then back to the last blank if there is one
        end = bisect_right(range(1, len(rest) + 1), 0, key=lambda n: 0 if _fits(rest[:n], font) else 1) or 1
        if end < len(rest) and rest[end] != " ":
            end = max(rest.rfind(" ", 0, end), 0) or end
        lines.append(rest[:end])
        rest = rest[end:].lstrip(" ")
    if rest:
        lines[-1] = lines[-1][:-1] + _ELLIPSIS
    return lines


def _fits(line: str, font: Font) -> bool:
    return font.getlength(line) <= SIDE - 2 * _MARGIN
