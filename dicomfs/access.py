"""Who may send: calling AE titles and addresses that are let in, and how many associations at once.

Pure values and one counter: no sockets, no files, no clock. `config.py` reads the list, `scp.py` asks for
each association request.

An entry of the list is `AE@ADDRESS`, `AE@NETWORK`, or `AE` alone (from any address):

    CT1@10.1.2.3          one scanner at one address
    MR*@10.1.0.0/16       every AE title that begins with MR, from that network
    *@2001:db8::/32       any AE title, from that network
    WS7                   the AE title WS7, from anywhere

`*` stands for any characters, also none. An AE title may itself hold an `@`: what follows the last one is
the address, and `*` as address means any. Host names are not looked up: whoever answers for the name server
would decide who may send.
"""

import logging
import re
import threading
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from dicomfs.errors import UsageError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_AE_TITLE: Final = 16
"""Bytes (PS3.5 table 6.2-1, AE)."""
_MAPPED_BITS: Final = 96
"""Prefix of ::ffff:0:0/96, where IPv6 sockets put peers of IPv4 (RFC 4291 2.5.5.2)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A-ASSOCIATE-RJ (PS3.8 table 9-21) and the reason for the log."""

    result: int
    """1: permanent, 2: transient."""
    source: int
    """1: service user, 2: service provider (ACSE), 3: service provider (presentation)."""
    diagnostic: int
    """Reason; its meaning depends on the source."""
    reason: str
    level: int = logging.WARNING

    @property
    def meaning(self) -> str:
        """What PS3.8 table 9-21 calls it: one of a few fixed texts."""
        return _MEANINGS.get((self.source, self.diagnostic), "no reason given")


_MEANINGS: Final = {
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}


# --- Entries ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allowed:
    """One entry of the list; `str` gives it back as it would be written."""

    ae_title: str
    """Without spaces at its ends; `*` stands for any characters."""
    network: Network | None = None
    """None: from anywhere."""

    def matches_title(self, calling_ae: str) -> bool:
        """Whether an AE title is meant. Case counts, spaces at the ends do not (PS3.5 6.2, AE)."""
        pattern = ".*".join(re.escape(part) for part in self.ae_title.split("*"))
        return re.fullmatch(pattern, calling_ae.strip(" "), re.DOTALL) is not None

    def matches_address(self, address: Address | None) -> bool:
        """Whether an address is meant; None is one that nobody could read."""
        return self.network is None or (address is not None and address in self.network)

    def __str__(self) -> str:
        if self.network is None:
            return f"{self.ae_title}@*" if "@" in self.ae_title else self.ae_title
        one = self.network.prefixlen == self.network.max_prefixlen
        return f"{self.ae_title}@{self.network.network_address if one else self.network}"


LOOPBACK: Final = (Allowed("*", IPv4Network("127.0.0.0/8")), Allowed("*", IPv6Network("::1/128")))
"""Programs of this machine."""


def allowed(text: str) -> Allowed:
    """Read one entry (syntax above). Raises UsageError naming the entry and what it should be."""
    title, at, where = text.rpartition("@")
    if not at:
        title, where = text, "*"
    title, where = title.strip(" "), where.strip()
    complaint = f"allow entry '{text}'"
    if not title:
        raise UsageError(
            f"{complaint} has no AE title: write *@{where if at and where else '10.1.2.3'} for any"
        )
    if not _is_title(title.replace("*", "") or "*"):
        raise UsageError(
            f"{complaint}: '{title}' is not an AE title: at most {LONGEST_AE_TITLE} ASCII characters, "
            "no backslash; * stands for any characters"
        )
    if not at and _is_network(title):
        raise UsageError(f"{complaint} is an address without an AE title: write *@{title} for any")
    network = None if where == "*" else _network(where, complaint)
    if not title.strip("*") and (network is None or network.prefixlen == 0):
        raise UsageError(f"{complaint} lets everybody in: if that is meant, say so by --open (open = true)")
    return Allowed(title, network)


def ae_title(text: str) -> str:
    """An AE title without the spaces at its ends. Raises ValueError saying what it needs to be."""
    if not _is_title(text.strip(" ")):
        raise ValueError(f"1 to {LONGEST_AE_TITLE} ASCII characters, no backslash")
    return text.strip(" ")


def _is_title(text: str) -> bool:
    """PS3.5 6.2: the default character repertoire without backslash and control characters."""
    printable = text.isascii() and text.isprintable() and "\\" not in text
    return printable and 0 < len(text) <= LONGEST_AE_TITLE


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _network(text: str, complaint: str) -> Network:
    # The zone of an address (%eth0) is a name of this machine's own, and peers are compared without it.
    if "%" in text or not _is_network(text):
        raise UsageError(
            f"{complaint}: '{text}' is neither an address nor a network such as 10.1.2.3, 10.1.0.0/16 or "
            "2001:db8::/32 (host names are not looked up)"
        )
    try:
        return _unmapped_network(ip_network(text))
    except ValueError:
        raise UsageError(
            f"{complaint}: {text} is an address with the length of a network: write "
            f"{ip_network(text, strict=False)} for the network, or {text.partition('/')[0]} for the address"
        ) from None


def _unmapped_network(network: Network) -> Network:
    """::ffff:10.1.0.0/112 is 10.1.0.0/16."""
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def normalised(address: str) -> Address | None:
    """A peer's address as the system tells it: without zone, and IPv4 where it is mapped into IPv6."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def is_loopback(host: str) -> bool:
    """Whether what listens there can be reached by programs of this machine only."""
    found = normalised(host)
    return host == "localhost" or (found is not None and found.is_loopback)


# --- The decision -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Access:
    """Who may associate."""

    ae_title: str
    """Ours."""
    allow: tuple[Allowed, ...] = ()
    is_open: bool = False
    """Every sender is accepted, whatever `allow` says."""
    require_called_ae: bool = True
    """Senders have to call us by our title."""

    def refusal(self, calling_ae: str, called_ae: str, address: str) -> Refusal | None:
        """Why a peer may not associate, as it is told and as it is logged; None: it may.

        The caller comes first: a stranger does not learn whether it guessed our title. PS3.8 knows no
        diagnostic for addresses, so a wrong one is "calling AE title not recognised" too.
        """
        if not self.is_open and (reason := self._stranger(calling_ae, address)):
            return Refusal(1, 1, 3, reason)
        called = called_ae.strip(" ")
        if self.require_called_ae and called != self.ae_title.strip(" "):
            return Refusal(1, 1, 7, f"it calls us '{_shown(called)}', but we are '{self.ae_title}'")
        return None

    def _stranger(self, calling_ae: str, address: str) -> str:
        """Why the allow-list does not let somebody in; empty: it does."""
        where, title = normalised(address), _shown(calling_ae)
        known = [entry for entry in self.allow if entry.matches_title(calling_ae)]
        if any(entry.matches_address(where) for entry in known):
            return ""
        entry = f"'{title}@{where or address}'"
        if known:
            return f"'{title}' may not send from {where or address}; to let it in, add {entry} to allow"
        return f"'{title}' is not in the allow-list; to let it in, add {entry}"


def _shown(title: str) -> str:
    """An AE title that a peer chose, fit for one line of a log."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in title.strip(" "))[:LONGEST_AE_TITLE]


# --- How many ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Most associations at once."""

    total: int = 64
    per_address: int = 32
    """Of one address, so that one sender cannot take every place."""


class Admission:
    """Counts who is in. Thread-safe."""

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._present: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """How many are in."""
        with self._lock:
            return self._present.total()

    def admit(self, address: str) -> Refusal | None:
        """Take a place, to be given back by `leave`; or tell why there is none: nothing is taken then."""
        key, limits = _key(address), self._limits
        with self._lock:
            if self._present.total() >= limits.total:
                return _full(f"{limits.total} associations are open, which is the most")
            if self._present[key] >= limits.per_address:
                return _full(f"{key} has {limits.per_address} associations open, the most for one sender")
            self._present[key] += 1
        return None

    def leave(self, address: str) -> None:
        """Give a place back. Raises ValueError when nobody from there has one: that is a bug."""
        key = _key(address)
        with self._lock:
            if not self._present[key]:
                del self._present[key]
                raise ValueError(f"nobody is in from {key}")
            self._present[key] -= 1
            if not self._present[key]:
                del self._present[key]  # or addresses seen once would pile up


def _key(address: str) -> str:
    return str(normalised(address) or address)


def _full(reason: str) -> Refusal:
    """Transient, presentation, local limit exceeded: senders try again later."""
    return Refusal(2, 3, 2, reason)
