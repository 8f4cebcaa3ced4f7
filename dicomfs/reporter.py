"""Results told on an association of our own: N-EVENT-REPORT as SCP that calls its SCU (PS3.4 J.3.3).

The association request proposes the SCP role for us, since whoever requests an association is the SCU
unless it says otherwise (PS3.7 D.3.3.4). Nothing of the peer is believed: every wait has an end. Knows no
store and no schedule. Called by `commitmentservice.py`, in threads that have time.
"""

import logging
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context, build_role

from dicomfs.commitment import SOP_CLASS_UID, SOP_INSTANCE_UID, Report, event_information
from dicomfs.errors import ReportFailed, UsageError
from dicomfs.peers import DEFAULT_PORT, Peer

LOGGER: Final = logging.getLogger("dicomfs.commitment")

CONNECT_S, ASSOCIATE_S, ANSWER_S = 10.0, 30.0, 60.0
"""Longest waits: for the connection, for the answer to the association request, for that to a report."""
TRANSIENT: Final = frozenset({0x0110, 0x0213})
"""Failures of an N-EVENT-REPORT after which it is worth trying again: processing failure, resources."""
_WARNINGS: Final = range(0xB000, 0xC000)
_ATTRIBUTE_WARNINGS: Final = frozenset({0x0001, 0x0107, 0x0116})


def check_answer(status: int | None) -> None:
    """Raise ReportFailed unless the status of an N-EVENT-REPORT response says that it was heard."""
    if status is None:
        raise ReportFailed("it did not answer the report")
    if status and status not in _WARNINGS and status not in _ATTRIBUTE_WARNINGS:
        raise ReportFailed(f"it refused the report, status {status:04X}", is_final=status not in TRANSIENT)


class Reporter:
    """Calls peers. Thread-safe."""

    def __init__(self, peers: Mapping[str, Peer], tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        """`peers`: the address book; `tls`: gives the context for those whose entry says TLS."""
        self._peers = peers
        self._tls = tls
        self._lock = threading.Lock()
        self._associations: set[Association] = set()
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
        association = self._open(peer, called_ae)
        message_id = 0

        def tell(report: Report) -> None:
            nonlocal message_id
            message_id = message_id % 0xFFFF + 1
            try:
                status, _ = association.send_n_event_report(
                    event_information(report),
                    report.event_type,
                    SOP_CLASS_UID,
                    SOP_INSTANCE_UID,
                    msg_id=message_id,
                )
            except (RuntimeError, ValueError):
                # RuntimeError: it has ended the association; ValueError: it accepts no context for this.
                accepts = bool(association.accepted_contexts)
                what = "it ended the association" if accepts else "it accepts no storage commitment"
                raise ReportFailed(f"{peer.place}: {what}") from None
            try:
                check_answer(status.get("Status"))
            except ReportFailed as error:
                raise ReportFailed(f"{peer.place}: {error}", is_final=error.is_final) from None

        try:
            yield tell
        finally:
            self._end(association)

    def _open(self, peer: Peer, calling: str) -> Association:
        caller = AE(ae_title=calling)
        caller.connection_timeout, caller.acse_timeout = CONNECT_S, ASSOCIATE_S
        caller.dimse_timeout = caller.network_timeout = ANSWER_S
        syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        connected = threading.Event()
        with self._lock:
            if self._is_closed:
                raise ReportFailed("the receiver is being stopped")
        association = caller.associate(
            peer.host,
            peer.port,
            [build_context(SOP_CLASS_UID, [syntax]) for syntax in syntaxes],
            peer.ae_title,
            ext_neg=[build_role(SOP_CLASS_UID, scp_role=True)],
            tls_args=(self._context(), "") if peer.is_tls else None,
            evt_handlers=[(evt.EVT_CONN_OPEN, lambda _: connected.set())],
        )
        with self._lock:
            self._associations.add(association)
        if association.is_established:
            return association
        self._end(association)
        if association.is_rejected:
            answer = association.acceptor.primitive
            why = answer.reason_str if answer is not None else "no reason given"
            raise ReportFailed(f"{peer.place} rejected the association: {why}")
        if connected.is_set():
            raise ReportFailed(f"{peer.place} accepted no association for storage commitment")
        raise ReportFailed(f"nobody answers at {peer.place}")

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            raise ReportFailed("its entry says TLS, and there is no certificate for it")
        try:
            return self._tls()
        except UsageError as error:
            raise ReportFailed(str(error)) from None

    def _end(self, association: Association) -> None:
        with self._lock:
            self._associations.discard(association)
        with suppress(RuntimeError):
            if association.is_established:
                association.release()

    def close(self) -> None:
        """Abort what is under way; nobody is called after this."""
        with self._lock:
            self._is_closed = True
            running = list(self._associations)
        for association in running:
            association.abort()
