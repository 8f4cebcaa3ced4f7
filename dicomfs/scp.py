"""The receiving door: C-ECHO and C-STORE over TCP, each object handed to the store exactly as it came.

Accepts Verification and every storage SOP class, private and unknown ones included, in every transfer
syntax; of those a sender proposes for one presentation context, the one that keeps most (`preferred`).
Answers 0000 only after the receiver returned, that is when the object is durable; every refusal has its
status in one table (`_ANSWERS`). Never decodes, transcodes or changes a data set, and never logs what is
in one: objects are named by SOP Instance UID, peers by AE title and address. Called by `cli.py`, which
owns signals and logging set-up.

pynetdicom starts two threads for each association, so `Receiver.receive` is called from many at once.
"""

import errno
import logging
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # the module makes it at run time
from pynetdicom.transport import ThreadedAssociationServer

from dicomfs.errors import (
    BadInstance,
    DicomfsError,
    IdentityMismatch,
    StoreFull,
    StoreUnavailable,
    UnreadableDataSet,
    UsageError,
)
from dicomfs.model import Outcome, Receipt
from dicomfs.negotiation import is_storage, preferred

LOGGER: Final = logging.getLogger("dicomfs.scp")


class Receiver(Protocol):
    """Where objects go: `ingest.Ingest`. Called from one thread for each association."""

    def receive(self, parts: Iterable[bytes | memoryview], receipt: Receipt) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sender, or all together, may take."""

    associations: int = 32
    """At once; one more is rejected as "local limit exceeded", which senders take as: try later."""
    pdu_bytes: int = 131_072
    """Largest PDU we announce to accept; 0 leaves it to the sender."""
    handshake_s: float = 30.0
    """From the connection to its association request, and for a closing peer to hang up (ARTIM)."""
    idle_s: float = 300.0
    """Between two PDUs of an open association; scanners pause between series."""
    stall_s: float = 60.0
    """Inside a PDU that has begun. Without it, half a PDU would hold a thread for ever."""


# --- What is answered -------------------------------------------------------------------------------


class _NoDataSet(BadInstance):
    """A C-STORE request without a data set."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    comment: str
    """Error Comment (0000,0902), LO: at most 64 characters. Fixed, so that it cannot tell on a patient."""
    level: int


_SUCCESS: Final = 0x0000
_UNRECOGNISED_OPERATION: Final = 0x0211

# PS3.4 table B.2-1 (and PS3.7 C.5 for 0110). The first class that matches counts. A store that cannot be
# written now answers A700 like a full one, not 0110: A7xx speaks of the receiver's state, so senders keep
# the object and try again; 0110 is what they get for a bug of ours, where the same would happen again.
_ANSWERS: Final[Sequence[tuple[type[DicomfsError], _Answer]]] = (
    (StoreFull, _Answer(0xA700, "Out of space; object not stored, please send again", logging.ERROR)),
    (StoreUnavailable, _Answer(0xA700, "Archive unavailable; object not stored, send again", logging.ERROR)),
    (IdentityMismatch, _Answer(0xA900, "SOP UIDs of command and data set differ", logging.WARNING)),
    (_NoDataSet, _Answer(0xC001, "No data set in the message", logging.WARNING)),
    (UnreadableDataSet, _Answer(0xC000, "Data set cannot be read, or has no SOP UIDs", logging.WARNING)),
    (BadInstance, _Answer(0xC000, "Object cannot be understood", logging.WARNING)),
)
_BUG: Final = _Answer(0x0110, "Internal error; object not stored", logging.ERROR)


def _answer_to(error: Exception) -> _Answer:
    return next((answer for kind, answer in _ANSWERS if isinstance(error, kind)), _BUG)


def _response(answer: _Answer) -> Dataset:
    response = Dataset()
    response.Status = answer.status
    response.ErrorComment = answer.comment
    return response


# --- Texts for the log ------------------------------------------------------------------------------


def _plain(text: object, limit: int) -> str:
    """Text that a peer chose, fit for one line of a log."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in str(text).strip())[:limit]


def _uid_text(uid: object) -> str:
    """A UID of a peer; what is not a digit or a point could be anything, even a name."""
    return "".join(c if c in "0123456789." else "?" for c in str(uid or "none").strip())[:128]


def _where(error: BaseException) -> str:
    """Traceback without the messages: those of a library may quote the data set."""
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    cause = error.__cause__ or error.__context__
    text = f"{type(error).__qualname__}\n{frames}"
    return text if cause is None else f"{text}\ncaused by {_where(cause)}"


def _set_up_libraries() -> None:
    """Process-wide, as the settings of pynetdicom and pydicom are.

    Their logs quote values of the peer; what it means for an association or an object is logged here,
    under their names. And a UID too long for the standard must not cost a sender its association: it
    comes as far as the receiver, which refuses that one object.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    _config.VALIDATORS["UI"] = lambda uid: (0 < len(uid) <= _LONGEST_UID, "empty or absurdly long")
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("pynetdicom.events").setLevel(logging.ERROR)  # failures of the handlers below


def _peer(assoc: Association) -> str:
    request = assoc.requestor.primitive
    title = getattr(request, "calling_ae_title", None) or "?"
    return f"{_plain(title, 16)} at {assoc.requestor.address}:{assoc.requestor.port}"


# --- The server -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rejection:
    """A-ASSOCIATE-RJ (PS3.8 table 9-21) and the reason for the log."""

    result: int
    source: int
    diagnostic: int
    reason: str


_STORAGE_SERVICE: Final = UID("1.2.840.10008.4.2")
_LONGEST_UID: Final = 1024
_HANG_UP_S: Final = 1.0
_LAST_OBJECT_S: Final = 10.0


class StorageSCP:
    """A running SCP; made by `start`, ended by `stop`. Thread-safe."""

    def __init__(self, ae: AE, receiver: Receiver, limits: Limits) -> None:
        """Use `start`."""
        self._ae = ae
        self._receiver = receiver
        self._limits = limits
        self._draining = threading.Event()
        self._server: ThreadedAssociationServer

    @classmethod
    def start(
        cls,
        host: str,
        port: int,
        ae_title: str,
        receiver: Receiver,
        *,
        require_called_ae: bool = False,
        limits: Limits | None = None,
    ) -> Self:
        """Listen on `host` (name or address, empty: all of IPv4) and `port` (0: a free one, see `port`).

        Returns at once; associations run in threads of their own. `require_called_ae` rejects senders
        that call us by another title. Raises UsageError when that title or address cannot be used.
        """
        _set_up_libraries()
        limits = limits or Limits()
        try:
            ae = AE(ae_title=ae_title)
        except ValueError as error:
            raise UsageError(
                f"AE title {_plain(ae_title, 64)!r} is not valid: 1 to 16 ASCII characters, no backslash"
            ) from error
        ae.maximum_associations = limits.associations
        ae.maximum_pdu_size = limits.pdu_bytes
        ae.acse_timeout = limits.handshake_s
        ae.network_timeout = limits.idle_s
        ae.require_called_aet = require_called_ae
        ae.add_supported_context(Verification)
        scp = cls(ae, receiver, limits)
        try:
            server = ae.start_server((host, port), block=False, evt_handlers=scp._handlers())
        except OSError as error:
            raise UsageError(_cannot_listen(host, port, error)) from error
        assert isinstance(server, ThreadedAssociationServer)  # noqa: S101  narrows: None only when blocking
        scp._server = server
        LOGGER.info("listening on %s port %d as %s", host or "all addresses", scp.port, ae.ae_title)
        return scp

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        return int(self._server.server_address[1])

    def stop(self, drain_seconds: float) -> bool:
        """Accept nobody new, let running associations finish for `drain_seconds`, then abort the rest.

        Returns True when nobody had to be aborted. Objects that were being written when their association
        was aborted may still be finished (for at most 10 s more): stored, but not acknowledged. Calling it
        again does nothing.
        """
        if self._draining.is_set():
            return True
        deadline = time.monotonic() + drain_seconds
        self._draining.set()
        self._server.shutdown()
        busy = []
        for assoc in self._server.active_associations:
            if assoc.is_established:
                busy.append(assoc)
            else:
                _hang_up(assoc)  # has nothing under way; would only hold us up
        _join(busy, deadline)
        unfinished = [assoc for assoc in busy if assoc.is_alive()]
        if unfinished:
            LOGGER.warning("aborting %d associations that did not end in time", len(unfinished))
            _abort(unfinished)
        LOGGER.info("stopped")
        return not unfinished

    def _handlers(self) -> list[evt.EventHandlerType]:
        return [
            (evt.EVT_CONN_OPEN, self._on_connection),
            (evt.EVT_CONN_CLOSE, self._on_hang_up),
            (evt.EVT_REQUESTED, self._on_request),
            (evt.EVT_SOP_COMMON, self._on_service_classes),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_RELEASED, self._on_released),
            (evt.EVT_ABORTED, self._on_aborted),
            (evt.EVT_C_STORE, self._on_store),
        ]

    def _on_connection(self, event: evt.Event) -> None:
        """Fit the socket for its work; pynetdicom leaves it with Nagle's delay and without a time-out."""
        connection = _socket_of(event.assoc)
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(self._limits.stall_s)

    def _on_hang_up(self, event: evt.Event) -> None:
        """A peer that went without asking for an association, as a health check does, holds no place.

        pynetdicom would wait for its request until the time-out; an empty answer ends the waiting.
        """
        if event.assoc.requestor.primitive is None:
            event.assoc.dul.to_user_queue.put(None)

    def _on_request(self, event: evt.Event) -> None:
        """Before the negotiation: reject the peer, or offer what we take of its proposals.

        pynetdicom catches what a handler of this event raises and goes on; then Verification alone is
        offered, so a failure here never lets anything in.
        """
        assoc = event.assoc
        rejection = self._rejection(assoc)
        if rejection is not None:
            LOGGER.warning("association of %s rejected: %s", _peer(assoc), rejection.reason)
            assoc.acse.send_reject(rejection.result, rejection.source, rejection.diagnostic)
            assoc.kill()
            return
        proposals: dict[UID, list[UID]] = {}
        for context in _proposed(assoc):
            if context.abstract_syntax is not None and is_storage(context.abstract_syntax):
                proposals.setdefault(context.abstract_syntax, []).extend(context.transfer_syntax)
        for abstract_syntax, transfer_syntaxes in proposals.items():
            offer = PresentationContext()
            offer.abstract_syntax = abstract_syntax
            offer.transfer_syntax = list(preferred(transfer_syntaxes))
            assoc.acceptor.supported_contexts.append(offer)

    def _rejection(self, assoc: Association) -> _Rejection | None:
        """Who may not associate at all; limits and called AE title are checked by pynetdicom after this."""
        if self._draining.is_set():
            return _Rejection(2, 3, 1, "shutting down")
        if any(not c.abstract_syntax or not c.transfer_syntax for c in _proposed(assoc)):
            # pynetdicom's thread would die of it and leave the connection open.
            return _Rejection(1, 2, 1, "a presentation context lacks its abstract or transfer syntax")
        return None

    def _on_service_classes(self, event: evt.Event) -> dict[UID, SOPClassCommonExtendedNegotiation]:
        """Tell pynetdicom that what it does not know is storage (PS3.7 D.3.3.6; not sent to the peer).

        Without this a C-STORE of a private SOP class ends in an abort.
        """
        known: dict[UID, SOPClassCommonExtendedNegotiation] = {}
        for context in event.assoc.acceptor.supported_contexts:
            abstract_syntax = context.abstract_syntax
            if abstract_syntax is not None and abstract_syntax != Verification:
                item = SOPClassCommonExtendedNegotiation()
                item.sop_class_uid = abstract_syntax
                item.service_class_uid = _STORAGE_SERVICE
                known[abstract_syntax] = item
        return known

    def _on_rejected(self, event: evt.Event) -> None:
        LOGGER.warning(
            "association of %s rejected: too many at once (or another called AE title)", _peer(event.assoc)
        )

    def _on_established(self, event: evt.Event) -> None:
        LOGGER.info("association of %s opened", _peer(event.assoc))

    def _on_released(self, event: evt.Event) -> None:
        LOGGER.info("association of %s released", _peer(event.assoc))

    def _on_aborted(self, event: evt.Event) -> None:
        LOGGER.warning("association of %s aborted", _peer(event.assoc))

    def _on_store(self, event: evt.Event) -> Dataset | int:
        """One C-STORE: store it, answer with a status."""
        request = event.request
        if not isinstance(request, C_STORE):  # pynetdicom sends every request on a storage context here
            return _UNRECOGNISED_OPERATION
        peer, uid = _peer(event.assoc), _uid_text(request.AffectedSOPInstanceUID)
        receipt = Receipt(
            transfer_syntax=str(event.context.transfer_syntax),
            received=time.time(),
            source_ae=_plain(event.assoc.requestor.ae_title, 16),
            receiving_ae=self._ae.ae_title.strip(),
            sop_class_uid=str(request.AffectedSOPClassUID),
            sop_instance_uid=str(request.AffectedSOPInstanceUID),
        )
        try:
            outcome = self._receiver.receive((_data_set(request),), receipt)
        except Exception as error:  # noqa: BLE001  the door: every request is answered, whatever went wrong
            answer = _answer_to(error)
            what = f"internal error {_where(error)}" if answer is _BUG else _plain(error, 400)
            LOGGER.log(answer.level, "%s from %s not stored (%04X): %s", uid, peer, answer.status, what)
            return _response(answer)
        for warning in outcome.warnings:
            LOGGER.warning("%s from %s: %s", uid, peer, warning)
        LOGGER.info("%s from %s: %s", uid, peer, outcome.stored.value)
        return _SUCCESS


def _data_set(request: C_STORE) -> memoryview:
    """The bytes as they came, not copied."""
    if request.DataSet is None or not request.DataSet.getbuffer():
        raise _NoDataSet("the message holds no data set")
    return request.DataSet.getbuffer()


def _proposed(assoc: Association) -> Sequence[PresentationContext]:
    request = assoc.requestor.primitive
    return request.presentation_context_definition_list if request is not None else ()


def _socket_of(assoc: Association) -> socket.socket | None:
    return assoc.dul.socket.socket if assoc.dul.socket is not None else None


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    place = f"{host or 'all addresses'} port {port}"
    remedies = {
        errno.EADDRINUSE: "another program listens there; stop it or choose another --port",
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; choose another --port",
        errno.EADDRNOTAVAIL: "this machine has no such address; choose another --host",
    }
    return f"cannot listen on {place}: {remedies.get(error.errno or 0, error.strerror or 'no such address')}"


# --- The end of associations ------------------------------------------------------------------------


def _join(associations: Sequence[Association], deadline: float) -> None:
    for assoc in associations:
        assoc.join(max(0.0, deadline - time.monotonic()))


def _hang_up(assoc: Association) -> None:
    """Close the connection under an association, whatever its threads are doing."""
    connection = _socket_of(assoc)
    if connection is not None:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed meanwhile
    if not assoc.is_established:
        assoc.dul.kill_dul()


def _abort(associations: Sequence[Association]) -> None:
    """Abort politely; hang up on those whose peer does not react; leave no thread of theirs behind.

    `Association.abort` returns only when the peer has hung up too, hence one thread for each, and it
    cannot be sent while a peer leaves us in the middle of a PDU, hence the second step.
    """
    aborts = [
        threading.Thread(target=assoc.abort, name="dicomfs abort", daemon=True) for assoc in associations
    ]
    for abort in aborts:
        abort.start()
    deadline = time.monotonic() + _HANG_UP_S
    for abort in aborts:
        abort.join(max(0.0, deadline - time.monotonic()))
    for assoc in associations:
        if assoc.is_alive():
            _hang_up(assoc)
    deadline = time.monotonic() + _LAST_OBJECT_S
    _join(associations, deadline)
    for abort in aborts:
        abort.join(max(0.0, deadline - time.monotonic()))
