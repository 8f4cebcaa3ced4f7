"""Options of `dicomfs scp`, each described once: for the command line, for [scp] in the file, for `--help`.

Texts and TOML values become frozen values here; a wrong one is an error that names it and says what is
valid. Reads no file. Used by `config.py`, and by `cli.py` for its flags.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from dicomfs.access import LOOPBACK, Access, Allowed, ae_title, allowed, is_loopback
from dicomfs.errors import UsageError
from dicomfs.model import Duplicates
from dicomfs.peers import Peer, address_book, peer
from dicomfs.values import bounded_size, size_text, switch, whole


@dataclass(frozen=True, slots=True)
class Watermark:
    """How much of the disk has to stay free, as bytes or as a share of it; both 0: nothing."""

    size_bytes: int = 0
    percent: int = 0

    def of(self, disk_bytes: int) -> int:
        """In bytes, for a disk of that size."""
        return max(self.size_bytes, disk_bytes * self.percent // 100)

    def __str__(self) -> str:
        return f"{self.percent}%" if self.percent else size_text(self.size_bytes)


_MOST_PERCENT: Final = 90


def _watermark(text: str) -> Watermark:
    try:
        if text.strip().endswith("%"):
            return Watermark(percent=whole(0, _MOST_PERCENT)(text.strip()[:-1]))
        return Watermark(bounded_size(0, 1 << 50)(text))
    except ValueError:
        raise ValueError(f"a size such as 10G, or a share of the disk from 0% to {_MOST_PERCENT}%") from None


def _word(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return parse


def _duplicates(text: str) -> Duplicates:
    return Duplicates(_word(*(policy.value for policy in Duplicates))(text))


def _file(text: str) -> Path:
    if not text:
        raise ValueError("the name of a file")
    return Path(text)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a value of [scp] is written: as one of these types in the file; its word in `--help`."""

    types: tuple[type, ...]
    words: str
    metavar: str = ""


_TEXT: Final = _Kind((str,), "a text in quotes", "TEXT")
_FILE: Final = _Kind((str,), "a path in quotes", "FILE")
_NUMBER: Final = _Kind((int,), "a whole number", "N")
_SECONDS: Final = _Kind((int,), "a whole number", "S")
_SIZE: Final = _Kind((int, str), 'a number of bytes, or a size such as "4G"', "SIZE")
_SHARE: Final = _Kind((int, str), 'a size such as "10G", or a share such as "5%"', "SIZE|N%")
_SWITCH: Final = _Kind((bool,), "true or false")
_LIST: Final = _Kind((list,), 'a list such as ["CT1@10.1.2.3"]', "ENTRY")
_PEERS: Final = _Kind((list,), 'a list such as ["CT1@10.1.2.3:104"]', "AE@HOST:PORT")


def _meta(kind: _Kind, parse: Callable[[str], object], text: str) -> dict[str, object]:
    return {"kind": kind, "parse": parse, "help": text}


@dataclass(frozen=True, slots=True)
class ScpOptions:
    """Options of `dicomfs scp`: flags of that name, keys of [scp] in the file."""

    host: str = field(
        default="", metadata=_meta(_TEXT, str, "address to listen on (all of IPv4; `::`: IPv6 too)")
    )
    port: int = field(
        default=11112, metadata=_meta(_NUMBER, whole(0, 65_535), "port to listen on (11112); 0: any free one")
    )
    aet: str = field(default="DICOMFS", metadata=_meta(_TEXT, ae_title, "our AE title (DICOMFS)"))
    allow: tuple[Allowed, ...] = field(
        default=(),
        metadata=_meta(
            _LIST,
            allowed,
            "who may send, as AE@ADDRESS, AE@NETWORK or AE; * stands for any characters of an AE title; "
            "to be repeated",
        ),
    )
    peer: tuple[Peer, ...] = field(
        default=(),
        metadata=_meta(
            _PEERS,
            peer,
            "where a sender waits for the results of its storage commitments (port 104 of the address "
            "that it asked from); /tls after it: by TLS; to be repeated",
        ),
    )
    open: bool = field(
        default=False,
        metadata=_meta(_SWITCH, switch, "accept every sender from everywhere, whatever --allow says"),
    )
    require_called_ae: bool = field(
        default=True,
        metadata=_meta(_SWITCH, switch, "senders have to call us by our AE title (they do, unless --no-…)"),
    )
    tls_certificate: Path | None = field(
        default=None,
        metadata=_meta(_FILE, _file, "take TLS connections only: our certificate, PEM, its chain after it"),
    )
    tls_key: Path | None = field(
        default=None,
        metadata=_meta(
            _FILE, _file, "its private key, PEM, without passphrase (else in the file of the certificate)"
        ),
    )
    tls_ca: Path | None = field(
        default=None,
        metadata=_meta(_FILE, _file, "authorities, PEM: senders need a certificate that one of them signed"),
    )
    tls_client: str = field(
        default="required",
        metadata=_meta(
            _Kind((str,), '"required" or "off"', "required|off"),
            _word("required", "off"),
            "off: senders need no certificate of their own (required)",
        ),
    )
    max_associations: int = field(
        default=64, metadata=_meta(_NUMBER, whole(1, 10_000), "associations at once (64)")
    )
    max_associations_per_peer: int = field(
        default=32, metadata=_meta(_NUMBER, whole(1, 10_000), "associations at once of one address (32)")
    )
    max_pdu: int = field(
        default=128 << 10,
        metadata=_meta(
            _SIZE,
            bounded_size(4 << 10, 16 << 20, or_zero=True),
            "largest PDU that senders are asked to send (128K); 0: any",
        ),
    )
    max_object: int = field(
        default=64 << 30,
        metadata=_meta(_SIZE, bounded_size(1 << 20, 1 << 40), "largest object that is stored (64G)"),
    )
    idle_seconds: int = field(
        default=300,
        metadata=_meta(_SECONDS, whole(1, 86_400), "an open association may pause for so long (300)"),
    )
    dimse_seconds: int = field(
        default=60,
        metadata=_meta(_SECONDS, whole(1, 3600), "a sender may stop inside a message for so long (60)"),
    )
    acse_seconds: int = field(
        default=30,
        metadata=_meta(
            _SECONDS,
            whole(1, 3600),
            "from a connection to its association request, and for its TLS handshake (30)",
        ),
    )
    min_free: Watermark = field(
        default=Watermark(1 << 30),
        metadata=_meta(
            _SHARE, _watermark, "refuse objects when less of the disk is free: bytes or percent (1G)"
        ),
    )
    duplicates: Duplicates = field(
        default=Duplicates.KEEP_FIRST,
        metadata=_meta(
            _Kind((str,), "a text in quotes", "|".join(policy.value for policy in Duplicates)),
            _duplicates,
            "other bytes under known UIDs: the first or the newest is shown, or both, or they are rejected "
            "(keep-first)",
        ),
    )
    drain_seconds: int = field(
        default=30,
        metadata=_meta(_SECONDS, whole(0, 86_400), "at a stop, senders may finish for so long (30)"),
    )


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of `dicomfs scp` for the parser of the command line."""

    name: str
    help: str
    metavar: str
    """Empty: a switch, `--name` and `--no-name`."""
    is_list: bool

    @property
    def word(self) -> str:
        """As it is written."""
        return f"--{self.name.replace('_', '-')}"


IMPORT_FLAGS: Final = frozenset({"min_free", "duplicates"})
"""Options that hold for every way into the store: `dicomfs import` has them too."""


def scp_flags() -> list[Flag]:
    """Every option of `dicomfs scp`, in order."""
    return [
        Flag(
            item.name,
            item.metadata["help"],
            item.metadata["kind"].metavar,
            list in item.metadata["kind"].types,
        )
        for item in fields(ScpOptions)
    ]


def import_flags() -> list[Flag]:
    """Those of them that `dicomfs import` has too."""
    return [flag for flag in scp_flags() if flag.name in IMPORT_FLAGS]


def scp_options(given: Mapping[str, bool | str | Sequence[str]], base: ScpOptions) -> ScpOptions:
    """What the command line gives, on top of `base`: name to text, or to a list of texts, or to on and off.

    Raises UsageError naming the flag and what it takes, or options that do not fit each other.
    """
    words = {flag.name: flag.word for flag in scp_flags()}
    options = base
    for name, value in given.items():
        options = _with_scp_option(options, name, value, words[name])
    _check_tls(options)
    address_book(options.peer)
    return options


def scp_table(table: Mapping[str, Any], where: str) -> ScpOptions:
    """Read the table [scp]. Raises UsageError beginning with `where`, naming key and remedy."""
    known = {item.name: item for item in fields(ScpOptions)}
    options = ScpOptions()
    for name, value in table.items():
        if name not in known:
            raise UsageError(f"{where}: unknown key '{name}'; valid ones are: {', '.join(known)}")
        kind: _Kind = known[name].metadata["kind"]
        is_list_of_others = isinstance(value, list) and any(type(part) is not str for part in value)
        if type(value) not in kind.types or is_list_of_others:
            raise UsageError(f"{where}: '{name}' needs {kind.words}, not {value!r}")
        try:
            text = str(value) if type(value) is int else value
            options = _with_scp_option(options, name, text, f"'{name}'")
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    return options


def scp_arguments(options: ScpOptions) -> list[str]:
    """The flags that make `dicomfs scp` use exactly these options."""
    words = []
    for flag in scp_flags():
        value = getattr(options, flag.name)
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(flag.word if value else flag.word.replace("--", "--no-", 1))
        else:
            texts = value if isinstance(value, tuple) else (value,)
            words += [f"{flag.word}={text.value if isinstance(text, Duplicates) else text}" for text in texts]
    return words


def _with_scp_option(
    options: ScpOptions, name: str, value: bool | str | Sequence[str], called: str
) -> ScpOptions:
    parse = next(item for item in fields(ScpOptions) if item.name == name).metadata["parse"]
    try:
        parsed: Any = value
        if isinstance(value, str):
            parsed = parse(value)
        elif not isinstance(value, bool):
            parsed = tuple(parse(text) for text in value)
    except ValueError as error:
        raise UsageError(f"{called} does not take '{value}': it needs {error}") from None
    return replace(options, **{name: parsed})


def _check_tls(options: ScpOptions) -> None:
    if options.tls_certificate is None:
        for name in ("tls_key", "tls_ca"):
            if getattr(options, name) is not None:
                raise UsageError(f"{name} needs tls_certificate: without it there is no TLS")
    elif options.tls_ca is None and options.tls_client == "required":
        raise UsageError(
            "tls_certificate needs tls_ca, the authorities of the senders' certificates; "
            "if senders shall need none: tls_client = off"
        )
    for entry in options.peer:
        if entry.is_tls and options.tls_ca is None:
            raise UsageError(
                f"peer {entry} needs tls_certificate and tls_ca: we show one, and trust the other"
            )


NOBODY_MAY_SEND: Final = """\
nobody may send yet. Either name the senders (AE title, @, address or network), as often as needed:
    --allow CT1@10.1.2.3 --allow 'MR*@10.1.0.0/16'
    or in the file of --config:  [scp]  allow = ["CT1@10.1.2.3", "MR*@10.1.0.0/16"]
or accept every sender that can reach this port:
    --open"""


def access(options: ScpOptions) -> Access:
    """Who may send. Raises UsageError when nobody may: a receiver like that is a mistake.

    What listens on this machine alone (host 127.0.0.1, ::1, localhost) needs no list: who can reach it has
    an account here already. A list, if there is one, holds there too.
    """
    allow = options.allow
    if not allow and not options.open:
        if not is_loopback(options.host):
            raise UsageError(NOBODY_MAY_SEND)
        allow = LOOPBACK
    return Access(options.aet, allow, options.open, options.require_called_ae)


def for_this_machine(options: ScpOptions) -> ScpOptions:
    """The same, listening on this machine alone if nothing says who may send, nor where to listen."""
    if options.allow or options.open or options.host:
        return options
    return replace(options, host="127.0.0.1")
