"""Texts for the log, of what peers and libraries say: one line, plain characters, nothing of a data set."""

import re
import traceback
from typing import Final

_NOT_OF_A_UID: Final = re.compile(r"[^0-9.]", re.ASCII)


def plain(text: object, limit: int) -> str:
    """Text that a peer chose, fit for one line of a log."""
    line = str(text).strip()
    if line.isascii() and line.isprintable():
        return line[:limit]
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in line)[:limit]


def uid_text(uid: object) -> str:
    """A UID of a peer; what is not a digit or a point could be anything, even a name."""
    return _NOT_OF_A_UID.sub("?", str(uid).strip())[:128] or "(no UID)"


def where(error: BaseException) -> str:
    """Traceback without the messages: those of a library may quote the data set."""
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    cause = error.__cause__ or error.__context__
    text = f"{type(error).__qualname__}\n{frames}"
    return text if cause is None else f"{text}\ncaused by {where(cause)}"
