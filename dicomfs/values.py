"""Texts of options -> values: sizes, whole numbers, switches. Pure.

Each function raises ValueError whose text completes the sentence "it needs …". Used by `config.py` and
`scpoptions.py`, so that a size is written the same way everywhere.
"""

import re
from collections.abc import Callable


def size(text: str) -> int:
    """Bytes; K, M, G, T are powers of 1024."""
    match = re.fullmatch(r"(\d+)\s*([kmgt]?)(i?b)?", text.strip().lower())
    if not match:
        raise ValueError("a size such as 64M or 2G")
    return int(match[1]) << 10 * " kmgt".index(match[2] or " ")


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"\d{1,12}", text.strip()) else -1
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def bounded_size(low: int, high: int, *, or_zero: bool = False) -> Callable[[str], int]:
    """A parser of sizes within bounds; `or_zero`: 0 has a meaning of its own and is taken too."""

    def parse(text: str) -> int:
        try:
            value = size(text)
        except ValueError:
            value = -1
        if not low <= value <= high and not (or_zero and value == 0):
            raise ValueError(f"a size from {size_text(low)} to {size_text(high)}{' or 0' * or_zero}")
        return value

    return parse


def size_text(size_bytes: int) -> str:
    """The shortest way to write a size that `size` reads back as the same number of bytes."""
    for power, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if size_bytes and size_bytes % (1 << 10 * power) == 0:
            return f"{size_bytes >> 10 * power}{unit}"
    return str(size_bytes)


def switch(text: str) -> bool:
    """On or off; without a value it is on."""
    words = {"": True, "on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ValueError("on or off")
    return words[text.lower()]
