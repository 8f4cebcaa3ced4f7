"""TLS for the receiving port: one context by DICOM's BCP 195 profile, made anew when its files change.

The profile is PS3.15 B.12 (BCP 195 with RFC 8996 and RFC 9325), whose cipher suites are also among those of
its retired forerunners B.9 and B.10, so senders of either can connect: TLS 1.2 with the four suites of
RFC 9325 4.2 (ephemeral keys, authenticated encryption), or TLS 1.3; neither compression nor renegotiation.
Never decides who may send: a certificate says that a sender is known to the hospital's authority, the
allow-list says the rest. What is logged of a certificate is its subject, which names a device. Used by
`scp.py`; `cli.py` makes the `Certificates`.
"""

import logging
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from dicomfs.errors import AssociationEnded, UsageError

CIPHERS: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
"""RFC 9325 4.2, by OpenSSL's names; those of TLS 1.3 are OpenSSL's own default (RFC 8446 9.1)."""
RENEW_S: Final = 30 * 86_400.0
"""So long before its end a certificate is worth a warning."""

_HAS_EXPIRED: Final = 10
"""X509_V_ERR_CERT_HAS_EXPIRED."""
_LARGEST_PEM: Final = 1 << 20
_TRIES: Final = 5
_FLIGHTS: Final = 8
"""More than a handshake has."""

LOGGER: Final = logging.getLogger("dicomfs.tls")


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: ssl.SSLContext
    expires: float
    """Seconds since the epoch; endless when it is not known, or has been told already."""
    complaints: tuple[tuple[int, str], ...]
    """Level and text for the log: what is wrong, but not so wrong that nothing works."""


_Marks = tuple[tuple[int, int, int, int] | None, ...]
_ENDLESS: Final = float("inf")


class Certificates:
    """Certificate, key and senders' authority of a server, read again when their files change. Thread-safe.

    Logs what an administrator should see to (a certificate that ends soon, a key that everybody may read),
    once each.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path | None = None,
        client_ca: Path | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """PEM files: our certificate (its chain after it), our private key (None: in the same file).

        `client_ca`: the authorities of whom one must have signed a sender's certificate; None: senders need
        none. Raises UsageError when a file is missing or wrong, or the key is another certificate's.
        """
        self._certificate = certificate
        self._key = key or certificate
        self._client_ca = client_ca
        self._clock = clock
        self._lock = threading.Lock()
        self._broken: _Marks | None = None
        self._warned = False
        self._marks, self._loaded = self._load()
        self._complain()

    def context(self) -> ssl.SSLContext:
        """The context for a new connection, of the files as they are now.

        While they are broken, the former context stays in use, which is logged once. Running associations
        keep the context that they began with.
        """
        with self._lock:
            if self._look() != self._marks:
                self._renew()
            self._remind()
            return self._loaded.context

    def _complain(self) -> None:
        for level, text in self._loaded.complaints:
            LOGGER.log(level, "%s", text)
        self._remind()

    def _renew(self) -> None:
        try:
            self._marks, self._loaded = self._load()
        except UsageError as error:
            # Tried again at each connection: it may be a permission, which leaves no mark.
            marks = self._look()
            if marks != self._broken:
                LOGGER.error("%s; the former TLS certificate stays in use", error)  # noqa: TRY400
            self._broken = marks
            return
        self._broken, self._warned = None, False
        LOGGER.info("TLS certificate %s was read again", self._certificate)
        self._complain()

    def _look(self) -> _Marks:
        """What tells a file from its successor, for each file."""
        marks = []
        for path in (self._certificate, self._key, self._client_ca):
            try:
                found = path.stat() if path else None
            except OSError:
                found = None
            marks.append(found and (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(marks)

    def _remind(self) -> None:
        """Say once when the certificate ends soon, and once more when it has ended."""
        left = self._loaded.expires - self._clock()
        if left <= 0:
            LOGGER.error("TLS certificate %s has expired: senders will refuse it", self._certificate)
            self._loaded = replace(self._loaded, expires=_ENDLESS)
        elif left < RENEW_S and not self._warned:
            LOGGER.warning("TLS certificate %s expires in %d days", self._certificate, left // 86_400)
            self._warned = True

    def _load(self) -> tuple[_Marks, _Loaded]:
        """Read the files, again if one changed meanwhile: halves of two pairs would not fit."""
        marks = self._look()
        for _ in range(_TRIES):
            before = marks
            try:
                loaded = self._load_once()
            except UsageError:
                if (marks := self._look()) == before:
                    raise
            else:
                if (marks := self._look()) == before:
                    return marks, loaded
        # They never stand still: what was looked at first counts, so that the next connection looks again.
        return before, self._load_once()

    def _load_once(self) -> _Loaded:
        complaints = []
        _check_pem(self._certificate, "tls_certificate", "certificate")
        if _check_pem(self._key, "tls_key", "private key") & stat.S_IRWXO:
            text = f"TLS key {self._key} is open to every user of this machine: chmod o= {self._key}"
            complaints.append((logging.WARNING, text))
        context = _profile(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        try:
            context.load_cert_chain(self._certificate, self._key, self._no_passphrase)
        except OSError as error:
            raise UsageError(self._mismatch(error)) from error
        expires, refusal = self._examine(context)
        if refusal:
            text = f"TLS certificate {self._certificate} will be refused by senders: {refusal}"
            complaints.append((logging.ERROR, text))
        if self._client_ca is not None:
            complaints += self._demand_certificates(context, self._client_ca)
        return _Loaded(context, expires, tuple(complaints))

    def _demand_certificates(self, context: ssl.SSLContext, path: Path) -> list[tuple[int, str]]:
        _check_pem(path, "tls_ca", "certificate")
        try:
            context.load_verify_locations(path)
        except OSError as error:
            raise UsageError(f"tls_ca {path} cannot be used: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
        expired = [
            _subject(authority)
            for authority in context.get_ca_certs()
            if ssl.cert_time_to_seconds(str(authority["notAfter"])) <= self._clock()
        ]
        what = "has expired, so the senders that it signed are refused"
        return [(logging.ERROR, f"tls_ca {path}: the certificate of {name} {what}") for name in expired]

    def _no_passphrase(self) -> NoReturn:
        # OpenSSL would ask for it on the terminal, and a service would wait there for ever.
        raise UsageError(
            f"tls_key {self._key} has a passphrase; keep it without one, readable by this service alone: "
            f"openssl pkey -in {self._key} -out NEW"
        )

    def _mismatch(self, error: OSError) -> str:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            return f"tls_key {self._key} does not belong to tls_certificate {self._certificate}"
        return (
            f"tls_certificate {self._certificate} cannot be used with tls_key {self._key}: {_reason(error)}"
        )

    def _examine(self, context: ssl.SSLContext) -> tuple[float, str]:
        """Shake hands with ourselves, as a sender would who trusts exactly this certificate.

        Returns when the certificate ends, and why senders would refuse it even before (else empty).
        """
        sender = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        sender.check_hostname = False
        sender.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            sender.load_verify_locations(self._certificate)
            server = context.wrap_bio(there, back, server_side=True)
            client = sender.wrap_bio(back, there)
            for _ in range(_FLIGHTS):
                if _has_shaken_hands(client):
                    shown = client.getpeercert() or {}
                    return float(ssl.cert_time_to_seconds(str(shown["notAfter"]))), ""
                _has_shaken_hands(server)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code == _HAS_EXPIRED:
                return 0.0, ""
            return _ENDLESS, error.verify_message
        except OSError as error:
            return _ENDLESS, _reason(error)
        return _ENDLESS, "the handshake has no end"


def _profile(protocol: int) -> ssl.SSLContext:
    """A context by BCP 195."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(CIPHERS))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def calling_context(certificate: Path, key: Path | None, authorities: Path) -> ssl.SSLContext:
    """For a connection of our own: shows our certificate, and wants one that an authority has signed.

    Its name is not compared: devices' certificates name devices and seldom hosts, and the authority is the
    hospital's. Reads the files now. Raises UsageError when they are missing or wrong.
    """
    context = _profile(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        context.load_cert_chain(certificate, key, lambda: "")
        context.load_verify_locations(authorities)
    except OSError as error:
        files = f"tls_certificate {certificate}, tls_key and tls_ca {authorities}"
        raise UsageError(f"{files} cannot be used to call a peer: {_reason(error)}") from error
    return context


def _check_pem(path: Path, what: str, kind: str) -> int:
    """Mode of a file that looks like a PEM file of that kind. Raises UsageError when it does not."""
    try:
        with path.open("rb") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(_LARGEST_PEM)
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror}") from error
    if f"{kind.upper()}-----".encode() not in text:
        raise UsageError(f"{what} {path} holds no {kind} in PEM format (-----BEGIN …)")
    return mode


def _has_shaken_hands(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


# --- Senders ----------------------------------------------------------------------------------------

_WHY: Final = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS: switch TLS on for this destination",
    "HTTP_REQUEST": "it does not speak TLS but HTTP",
    "HTTPS_PROXY_REQUEST": "it does not speak TLS but HTTP",
    "UNSUPPORTED_PROTOCOL": "it speaks an old version of TLS only; 1.2 is the least",
    "VERSION_TOO_LOW": "it speaks an old version of TLS only; 1.2 is the least",
    "NO_SHARED_CIPHER": "it offers none of the cipher suites of BCP 195 for our kind of key",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate; give it one, signed by tls_ca",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust our certificate: give it the authority that signed ours",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it refuses our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired, it says",
    "UNEXPECTED_EOF_WHILE_READING": "it hung up in the middle of the TLS handshake",
}


def wrap(connected: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connected socket that speaks TLS from `shake_hands` on; never blocks.

    Takes `connected` over, which is closed when this fails. Raises AssociationEnded: the sender is gone.

    To end a connection from another thread, shut it down by `socket.socket.shutdown(wrapped, how)`: the
    method of SSLSocket drops its TLS layer, and the thread that uses it would go on in clear text.
    """
    try:
        return context.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
    except (OSError, ValueError):
        connected.close()
        raise AssociationEnded("the peer hung up before the TLS handshake") from None


def shake_hands(connected: ssl.SSLSocket, seconds: float) -> str:
    """Let a sender that has just connected prove itself, for at most `seconds` altogether.

    `connected` comes of `wrap`. Blocks, so call it in the sender's own thread. Returns the subject of the
    sender's certificate, for the log; empty when it showed none. Raises AssociationEnded when it fails;
    there is nobody then who could be told by a PDU.
    """
    try:
        connected.settimeout(seconds)
        connected.do_handshake()
        shown = connected.getpeercert()
    except TimeoutError:
        raise AssociationEnded("the TLS handshake was not finished in time") from None
    except ssl.SSLCertVerificationError as error:
        raise AssociationEnded(f"its certificate is refused: {error.verify_message}") from None
    except ssl.SSLError as error:
        why = _WHY.get(error.reason or "", _reason(error))
        raise AssociationEnded(f"no TLS connection: {why}") from None
    except (OSError, ValueError) as error:
        # ValueError: somebody has closed the socket meanwhile.
        broke = error.strerror if isinstance(error, OSError) else None
        raise AssociationEnded(f"the connection broke in the TLS handshake: {broke or 'closed'}") from None
    return _subject(shown or {})


def _subject(certificate: Mapping[str, Any]) -> str:
    """Distinguished name, such as `CN=CT1, O=Hospital`, fit for one line of a log."""
    names = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU"}
    parts = [
        f"{names[str(name)]}={value}"
        for relative in certificate.get("subject", ())
        for name, value in relative
        if name in names
    ]
    text = ", ".join(reversed(parts))
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _reason(error: OSError) -> str:
    """The system's or OpenSSL's own word for it."""
    word = error.reason if isinstance(error, ssl.SSLError) else None
    return word.replace("_", " ").lower() if word else str(error.strerror or error)
