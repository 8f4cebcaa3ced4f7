"""Results told on an association of our own: N-EVENT-REPORT of an SCP that calls its SCU (PS3.4 J.3.3).

The association request proposes the SCP role for us, since whoever requests an association is the SCU
unless it says otherwise (PS3.7 D.3.3.4). Spoken by the same modules as what is received: every wait has an
end, another thread can end it, and nothing is left open (pynetdicom's requestor leaves a descriptor behind
for each connection that is refused). Knows no store and no schedule. Called by `commitmentservice.py`, in
threads that have time.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomfs import dimse, handshake, messages
from dicomfs.commitment import SOP_CLASS_UID, SOP_INSTANCE_UID, Report, encoded
from dicomfs.connection import (
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    RELEASE_RQ,
    UNEXPECTED_PDU,
    Connection,
    Pdu,
    Pdv,
    message,
    pdu,
)
from dicomfs.errors import AssociationEnded, ReportFailed, UsageError
from dicomfs.handshake import Answer
from dicomfs.peers import DEFAULT_PORT, Peer
from dicomfs.tls import shake_hands

CONNECT_S, ASSOCIATE_S, ANSWER_S, RELEASE_S = 10.0, 30.0, 60.0, 5.0
"""Longest waits: for a connection, for the answers to an association request, a report and a release."""
MAX_PDU: Final = 1 << 16
_SYNTAXES: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
TRANSIENT: Final = frozenset({0x0110, 0x0213})
"""Failures of an N-EVENT-REPORT after which it is worth trying again: processing failure, resources."""
_WARNINGS: Final = range(0xB000, 0xC000)
_ATTRIBUTE_WARNINGS: Final = frozenset({0x0001, 0x0107, 0x0116})


def check_answer(status: int) -> None:
    """Raise ReportFailed unless the status of an N-EVENT-REPORT response says that it was heard."""
    if status and status not in _WARNINGS and status not in _ATTRIBUTE_WARNINGS:
        raise ReportFailed(f"it refused the report, status {status:04X}", is_final=status not in TRANSIENT)


class Reporter:
    """Calls peers. Thread-safe."""

    def __init__(self, peers: Mapping[str, Peer], tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        """`peers`: the address book; `tls`: gives the context for those whose entry says TLS."""
        self._peers = peers
        self._tls = tls
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._is_closed = False

    def destination(self, ae_title: str, address: str) -> Peer:
        """Where this AE title is called: as the address book says, else where its request came from."""
        return self._peers.get(ae_title) or Peer(ae_title, address, DEFAULT_PORT)

    def remedy(self, ae_title: str, address: str) -> str:
        """What an administrator can do when it cannot be reached."""
        if ae_title in self._peers:
            return f"check the entry --peer {self._peers[ae_title]}, and that it knows us"
        example = Peer(ae_title, address, DEFAULT_PORT)
        return (
            f"it is not in the address book, so port {DEFAULT_PORT} of the address that asked was tried: "
            f"name the port where it waits for results, e.g. --peer {example}"
        )

    @contextmanager
    def association(self, ae_title: str, address: str, called_ae: str) -> Iterator[Callable[[Report], None]]:
        """An association with a peer; gives a function that tells it one result.

        `called_ae`: our own AE title, by which the peer knows us. Both raise ReportFailed.
        """
        peer = self.destination(ae_title, address)
        connection: Connection | None = None
        try:
            connection = self._connect(peer)
            answer = _associate(connection, called_ae, peer.ae_title)
            message_ids = iter(range(1, 1 << 16))

            def tell(report: Report) -> None:
                try:
                    check_answer(_tell(connection, answer, next(message_ids, 0), report))
                except ReportFailed as error:
                    raise ReportFailed(f"{peer.place}: {error}", is_final=error.is_final) from None

            yield tell
            _release(connection)
        except AssociationEnded as error:
            raise ReportFailed(f"{peer.place}: {error}") from None
        finally:
            if connection is not None:
                with self._lock:
                    self._connections.discard(connection)
                connection.close()

    def _connect(self, peer: Peer) -> Connection:
        context = self._context() if peer.is_tls else None
        try:
            connected = socket.create_connection((peer.host, peer.port), CONNECT_S)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "no answer"
            raise ReportFailed(f"nobody answers at {peer.place}: {why}") from None
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if context is not None:
                proving = context.wrap_socket(
                    connected, server_hostname=peer.host, do_handshake_on_connect=False
                )
                connected = proving
                shake_hands(proving, ASSOCIATE_S)
            connection = Connection(connected, max_pdu=MAX_PDU, stall_s=ANSWER_S)
        except BaseException:
            connected.close()
            raise
        with self._lock:
            if not self._is_closed:
                self._connections.add(connection)
                return connection
        connection.close()
        raise ReportFailed("the receiver is being stopped")

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            raise ReportFailed("its entry says TLS, and there is no certificate for it")
        try:
            return self._tls()
        except UsageError as error:
            raise ReportFailed(str(error)) from None

    def close(self) -> None:
        """End what is under way; nobody is called after this."""
        with self._lock:
            self._is_closed = True
            for connection in self._connections:
                connection.hang_up()


def _associate(connection: Connection, calling: str, called: str) -> Answer:
    connection.send(handshake.call(calling, called, SOP_CLASS_UID, _SYNTAXES, MAX_PDU))
    head = connection.next(ASSOCIATE_S)
    if isinstance(head, Pdu) and head.kind == ASSOCIATE_RJ:
        raise AssociationEnded(f"it rejected the association ({'/'.join(map(str, head.body[1:4]))})")
    if not isinstance(head, Pdu) or head.kind != ASSOCIATE_AC:
        raise AssociationEnded("it did not accept the association", UNEXPECTED_PDU)
    answer = handshake.decode_answer(head.body)
    if not answer.transfer_syntaxes:
        connection.abort(0)
        raise AssociationEnded("it accepts no storage commitment from us")
    return answer


def _tell(connection: Connection, answer: Answer, message_id: int, report: Report) -> int:
    """Send one report; the status of its answer."""
    context, syntax = next(iter(answer.transfer_syntaxes.items()))
    command = dimse.event_report(message_id, SOP_CLASS_UID, SOP_INSTANCE_UID, report.event_type)
    connection.send(message(context, command, encoded(report, syntax), answer.max_pdu))
    head = connection.next(ANSWER_S)
    if not isinstance(head, Pdv):
        raise AssociationEnded("it ended the association instead of answering the report")
    response = messages.command(connection, head, ANSWER_S)
    if response.has_data_set:
        for _ in messages.data_set(connection, head.context, ANSWER_S):
            pass  # Event Reply: there is none for this SOP class
    if not response.is_response or response.responded_to != message_id:
        raise AssociationEnded("it answered something else than the report", UNEXPECTED_PDU)
    return response.status


def _release(connection: Connection) -> None:
    with suppress(AssociationEnded):  # all has been said
        connection.send(pdu(RELEASE_RQ, bytes(4)))
        connection.next(RELEASE_S)
