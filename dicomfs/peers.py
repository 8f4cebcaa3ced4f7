"""The address book: where associations of our own go, by AE title. Pure values and texts.

A storage commitment is answered by an association that the archive opens, to a port that no request tells.
An entry is `AE@HOST:PORT`, or `AE@HOST:PORT/tls` where that side speaks TLS:

    CT1@10.1.2.3:104
    MR2@mr2.radiology.example:11112
    US3@[2001:db8::7]:2762/tls

Unlike the allow-list this one takes host names: it says whom we call, not whom we believe. Used by
`scpoptions.py`, which reads entries, and `reporter.py`, which calls them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dicomfs.access import ae_title
from dicomfs.errors import UsageError

DEFAULT_PORT: Final = 104
"""Where DICOM listens unless somebody says otherwise (PS3.8 9.1.1)."""
_TLS: Final = "/tls"
_HOST: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"
_PLACE: Final = re.compile(rf"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>{_HOST})):(?P<port>[0-9]{{1,5}})")


@dataclass(frozen=True, slots=True)
class Peer:
    """One application that can be called; `str` gives the entry back as it would be written."""

    ae_title: str
    host: str
    """Name or address, IPv6 without brackets."""
    port: int
    is_tls: bool = False

    @property
    def place(self) -> str:
        """Host and port, for texts."""
        return f"{self.host} port {self.port}{' (TLS)' if self.is_tls else ''}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.ae_title}@{host}:{self.port}{_TLS if self.is_tls else ''}"


def peer(text: str) -> Peer:
    """Read one entry (syntax above). Raises UsageError naming the entry and what it should be."""
    title, at, place = text.strip().rpartition("@")
    is_tls = place.endswith(_TLS)
    match = _PLACE.fullmatch(place.removesuffix(_TLS))
    if not at or match is None or not 0 < int(match["port"]) <= 65_535:
        raise UsageError(
            f"peer '{text}' is not AE@HOST:PORT, such as CT1@10.1.2.3:104 or CT1@[2001:db8::7]:104; "
            "/tls after it where that side speaks TLS"
        )
    try:
        return Peer(ae_title(title), match["v6"] or match["host"], int(match["port"]), is_tls)
    except ValueError as error:
        raise UsageError(f"peer '{text}': '{title}' is no AE title; it needs {error}") from None


def address_book(peers: Sequence[Peer]) -> Mapping[str, Peer]:
    """Peers by AE title. Raises UsageError when one is there twice: which would be called?"""
    book: dict[str, Peer] = {}
    for entry in peers:
        if book.setdefault(entry.ae_title, entry) != entry:
            raise UsageError(f"peer {entry.ae_title} has two places: {book[entry.ae_title]} and {entry}")
    return book
