"""Specific Character Set: bytes of text elements -> text, whatever the data set claims of them.

Pure, and never raises on any bytes: what cannot be read as it claims to be is read as well as it can be, the
same way each time. Three lies are common and are seen through: UTF-8 under another name or under none, text
in a further set without its escape sequence, and Windows' Latin-1 for ISO's. (pydicom's tables of terms and
escape sequences are used; its decoder warns, and stops at what is not in the standard.)
Called by `header.py`.
"""

import codecs
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pydicom.charset import CODES_TO_ENCODINGS, python_encoding

from dicomfs.remember import remembered

_LATIN: Final = "iso8859-1"
_UTF_8: Final = "utf-8"
_OF_TWO_BYTES: Final = frozenset(
    {"gb18030", "gbk", "gb2312", "euc_kr", "shift_jis", "iso2022_jp", "iso2022_jp_2"}
)


def _key(term: str) -> str:
    """Defined terms are often misspelt: `ISO-IR 100`, `iso_ir_192`."""
    return re.sub(r"[^0-9A-Z]+", " ", term.upper()).strip()


_DEFAULT: Final = frozenset({"", "ISO IR 6", "ISO 2022 IR 6"})
"""The default repertoire, ASCII. Bytes above 127 have no meaning in it, so their set has to be guessed."""
_NOT_DICOM: Final = MappingProxyType(
    {
        "UTF 8": _UTF_8,
        "UTF8": _UTF_8,
        "GB2312": "gb18030",
        "BIG5": "big5",
        "EUC KR": "euc_kr",
        "SHIFT JIS": "shift_jis",
        "WINDOWS 1250": "cp1250",
        "WINDOWS 1251": "cp1251",
        "ISO 8859 1": _LATIN,
        "WINDOWS 1252": _LATIN,
    }
)
"""Names from other worlds that scanners have been seen to send."""
_CODECS: Final = MappingProxyType(
    _NOT_DICOM
    | {_key(term): codecs.lookup(codec).name for term, codec in python_encoding.items()}
    | dict.fromkeys(_DEFAULT, "")
)
_ESCAPES: Final = MappingProxyType(
    CODES_TO_ENCODINGS
    | {
        b"\x1b(B": "",
        b"\x1b(J": "",  # JIS X 0201: differs from ASCII in the backslash, which delimits values, and tilde
        b"\x1b$@": "iso2022_jp",  # JIS C 6226, the forerunner of JIS X 0208
    }
)
_ESCAPE: Final = re.compile(b"(" + b"|".join(map(re.escape, _ESCAPES)) + b")")
_RUNS: Final = re.compile(rb"[\x00-\x7f]+|[\x80-\xff]+")


@dataclass(frozen=True, slots=True)
class Charset:
    """What Specific Character Set (0008,0005) says (PS3.3 C.12.1.1.2), as Python codecs."""

    first: str = ""
    """Of the first value; empty for the default repertoire and for what is missing or unknown."""
    further: tuple[str, ...] = ()
    """Of the others that are known."""

    @staticmethod
    @remembered(64, 256)
    def of(raw: bytes, /) -> "Charset":
        """From the bytes of the element; any bytes."""
        first, *further = [_CODECS.get(_key(term), "") for term in raw.decode("latin-1").split("\\")]
        return Charset(first, tuple(codec for codec in further if codec))

    def decode(self, raw: bytes, delimiters: bytes) -> str:
        """The text of a value; `delimiters` are where designations end (PS3.5 6.1.2.5.3)."""
        if b"\x1b" in raw:
            return self._extended(raw, delimiters)
        return raw.decode("ascii") if raw.isascii() else self._plain(raw)

    def _plain(self, raw: bytes) -> str:
        """Text without escape sequences. Valid UTF-8 is hardly ever anything else."""
        text = _strictly(raw, _UTF_8)
        if text is not None and (self.first in {"", _LATIN, _UTF_8} or _could_be_said_in(self.first, text)):
            return text
        if self.first != _LATIN:
            for codec in filter(None, (self.first, *self.further)):
                if (text := _strictly(raw, codec)) is not None:
                    return text
        if self.first not in {"", _LATIN, _UTF_8}:
            return raw.decode(self.first, "replace")
        return _cut_utf_8(raw) or _strictly(raw, "cp1252") or raw.decode(_LATIN)

    def _extended(self, raw: bytes, delimiters: bytes) -> str:
        """Text with ISO 2022 escape sequences (PS3.5 6.1.2.5): G0 is bytes below 128, G1 those above."""
        pieces, g0, g0_escape, g1 = [], "", b"", ""
        for part in _ESCAPE.split(raw):
            if part in _ESCAPES:
                codec = _ESCAPES[part]
                if part[1:2] in b"-)" or part[1:3] == b"$)":
                    g1 = codec
                else:
                    g0, g0_escape = codec, part
                continue
            text = part.replace(b"\x1b", b"")  # an escape sequence that nobody knows
            if g0:  # two bytes below 128 are a character, so that no delimiter can be told from a half
                pieces += [
                    _run(run, g1, self) if run[0] > 127 else (g0_escape + run).decode(g0, "replace")
                    for run in _RUNS.findall(text)
                ]
                continue
            if g1:
                end = next((place for place, byte in enumerate(text) if byte in delimiters), len(text))
                pieces += [_run(run, g1, self) for run in _RUNS.findall(text[:end])]
                text, g1 = text[end:], "" if end < len(text) else g1
            pieces.append(text.decode("ascii") if text.isascii() else self._plain(text))
        return "".join(pieces)


def _run(run: bytes, g1: str, charset: Charset) -> str:
    """Bytes that are all below or all above 128."""
    if run[0] < 128:
        return run.decode("ascii")
    return run.decode(g1, "replace") if g1 else charset._plain(run)


def _strictly(raw: bytes, codec: str) -> str | None:
    try:
        return raw.decode(codec)
    except UnicodeError:
        return None


def _could_be_said_in(codec: str, text: str) -> bool:
    """Whether a text that was read as UTF-8 would have been possible in the set that was claimed.

    `PÓŁ` in Latin-2 is valid UTF-8, too, but for a letter that no Latin-2 has. The large sets have
    everything: there, what is not ASCII must be kana, ideographs or hangul, whose UTF-8 begins with bytes
    that begin no frequent character of those sets.
    """
    if codec in _OF_TWO_BYTES:
        return all(c.isascii() or "\u3000" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3" for c in text)
    try:
        text.encode(codec)
    except UnicodeError:
        return False
    return True


def _cut_utf_8(raw: bytes) -> str:
    """UTF-8 that was cut inside its last character, as devices of fixed lengths do; empty if it is not."""
    for missing in (1, 2, 3):
        text = _strictly(raw[:-missing], _UTF_8)
        if text is not None:
            return "" if text.isascii() else text
    return ""
