"""A modality for tests: it stores, asks for storage commitment, and waits for the result (pynetdicom)."""

import queue
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_role
from pynetdicom.transport import ThreadedAssociationServer

from tests.support import LOCALHOST, wait_until

COMMITMENT = UID("1.2.840.10008.1.20.1")
INSTANCE = UID("1.2.840.10008.1.20.1.1")
VERIFICATION = UID("1.2.840.10008.1.1")
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Result:
    """One N-EVENT-REPORT."""

    transaction: str
    event_type: int
    committed: list[str]
    """SOP Instance UIDs, in order."""
    failed: list[tuple[str, int]]
    """SOP Instance UID and Failure Reason, in order."""
    calling: str
    """Who told it; empty: it came on the association that asked."""


def information(
    references: Sequence[tuple[str, str]], transaction: str | None = None, **changes: object
) -> Dataset:
    """Action Information of a request: (class, instance) pairs; `changes` by keyword, None removes."""
    ds = Dataset()
    ds.TransactionUID = transaction or generate_uid()
    ds.ReferencedSOPSequence = []
    for sop_class, sop_instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
        ds.ReferencedSOPSequence.append(item)
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


@dataclass
class Modality:
    """Results come into `results`, whichever way they come."""

    ae_title: str = "CT1"
    answer: int = 0x0000
    """Status of its answers to results."""
    results: "queue.Queue[Result]" = field(default_factory=queue.Queue)
    server: ThreadedAssociationServer | None = None
    sockets: list[socket.socket] = field(default_factory=list)
    """The library leaves those open that the other side has closed first."""

    def _note(self, event: evt.Event) -> None:
        connected = event.assoc.dul.socket
        if connected is not None and connected.socket is not None:
            self.sockets.append(connected.socket)

    def _close_sockets(self) -> None:
        while self.sockets:
            self.sockets.pop().close()

    @property
    def port(self) -> int:
        """Where it waits for results."""
        assert self.server is not None
        return int(self.server.server_address[1])

    def listen(self, port: int = 0, ssl_context: Any = None) -> None:
        """Wait for results on associations of the archive."""
        ae = AE(self.ae_title)
        ae.require_called_aet = True
        ae.add_supported_context(COMMITMENT, scu_role=False, scp_role=True)
        self.server = ae.start_server(
            (LOCALHOST, port),
            block=False,
            ssl_context=ssl_context,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._hear), (evt.EVT_CONN_OPEN, self._note)],
        )

    def hang_up(self) -> None:
        """Wait for results no longer."""
        if self.server is not None:
            running = self.server.active_associations
            wait_until(lambda: not any(it.is_alive() for it in running), "the end of the associations")
            self.server.shutdown()
            self.server = None
        self._close_sockets()

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def _hear(self, event: evt.Event) -> tuple[int, None]:
        ds = event.event_information
        request = event.assoc.requestor
        self.results.put(
            Result(
                transaction=str(ds.TransactionUID),
                event_type=int(event.event_type or 0),
                committed=[str(it.ReferencedSOPInstanceUID) for it in ds.get("ReferencedSOPSequence", [])],
                failed=[
                    (str(it.ReferencedSOPInstanceUID), int(it.FailureReason))
                    for it in ds.get("FailedSOPSequence", [])
                ],
                calling="" if request.ae_title == self.ae_title else request.ae_title,
            )
        )
        return self.answer, None

    def result(self) -> Result:
        """The next result, which has to come."""
        return self.results.get(timeout=PATIENCE_S)

    @contextmanager
    def association(
        self, port: int, *classes: str, called: str = "DICOMFS", roles: tuple[bool, bool] | None = None
    ) -> Iterator[Association]:
        """An association for storage commitment, and for storing objects of other classes."""
        ae = AE(self.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
        for uid in (COMMITMENT, VERIFICATION, *classes):
            ae.add_requested_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        negotiation = [build_role(COMMITMENT, scu_role=roles[0], scp_role=roles[1])] if roles else []
        association = ae.associate(
            LOCALHOST,
            port,
            ae_title=called,
            ext_neg=negotiation,  # type: ignore[arg-type]  # takes any list of them
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._hear)],
        )
        assert association.is_established
        assert association.dul.socket is not None
        connected = association.dul.socket.socket
        try:
            yield association
        finally:
            if association.is_established:
                association.release()
            association.join(PATIENCE_S)
            association.dul.join(PATIENCE_S)
            if connected is not None:
                connected.close()

    def ask(self, port: int, ds: Dataset) -> int:
        """Ask on an association of its own, which is released at once; the status of the answer."""
        with self.association(port) as association:
            return ask(association, ds)


def ask(association: Association, ds: Dataset | None, action: int = 1, instance: str = INSTANCE) -> int:
    """One N-ACTION; the status of the answer."""
    status, _ = association.send_n_action(ds, action, COMMITMENT, UID(instance))
    return int(status.Status)
