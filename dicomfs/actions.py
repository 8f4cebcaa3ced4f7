"""What one association asks and hears of storage commitment: N-ACTION and N-EVENT-REPORT (PS3.4 J.3).

A request is answered as soon as it is durable. Its result may go on the same association (PS3.4 J.3.3.1.2):
modalities that expect it there keep the association open and say nothing, the others release it at once or
go on sending. So a result is due here only when the association has been still for a while; when it ends
first, the result takes an association of its own. A broken request never ends an association: the standard
has a status for it. Holds no socket. Used by `association.py`.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomfs import commitment, dimse
from dicomfs.access import ae_title
from dicomfs.commitment import SOP_CLASS_UID, SOP_INSTANCE_UID, Report, Request
from dicomfs.dimse import Command
from dicomfs.errors import AssociationEnded, RequestRefused, StoreError, StoreFull
from dicomfs.handshake import Accepted
from dicomfs.logtext import plain, where
from dicomfs.negotiation import preferred

LOGGER: Final = logging.getLogger("dicomfs.scp")
_SYNTAXES: Final = frozenset({ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian})
_SUCCESS: Final = 0x0000
_SCU, _SCP = 0, 1


class CommitmentTaker(Protocol):
    """Who takes requests: `commitmentservice.CommitmentService`. Called by many threads."""

    def accept(
        self, request: Request, ae_title: str, address: str, called_ae: str, holder: object
    ) -> int: ...

    def result(self, transaction: int, holder: object) -> Report | None: ...

    def told(self, transaction: int, holder: object, status: int) -> None: ...

    def let_go(self, transactions: Iterable[int], holder: object, *, is_averse: bool) -> None: ...


def taken(proposed: Iterable[UID], roles: tuple[bool, bool]) -> list[UID]:
    """The transfer syntaxes that a storage commitment context may have, the best first.

    `roles`: SCU and SCP, as proposed for the peer (PS3.7 D.3.3.4). We are no SCU: none for who is only SCP.
    """
    return [uid for uid in preferred(proposed, ()) if uid in _SYNTAXES] if roles[_SCU] else []


class Actions:
    """The storage commitments of one association, used by its thread."""

    def __init__(self, taker: CommitmentTaker, address: str, calling: str, called: str) -> None:
        """`address`: of the peer, without port; `calling`, `called`: AE titles, the peer's and ours."""
        self._taker = taker
        self._address = address
        self._calling = calling
        self._called = called
        self._held: dict[int, int] = {}
        """Context of each transaction whose result is still awaited."""
        self._told: int | None = None
        """The transaction whose result has been sent and not been answered."""
        self._message_id = 0

    @property
    def is_awaiting(self) -> bool:
        """Whether there may be something to be told (`due`)."""
        return bool(self._held) and self._told is None

    def answer(
        self, command: Command, context: int, accepted: Accepted, data_set: Iterator[memoryview]
    ) -> bytes:
        """One N-ACTION (PS3.7 10.1.4): the answer, without data set."""
        status = self._status(command, context, str(accepted.transfer_syntax), data_set)
        return dimse.response(command, status)

    def _status(
        self, command: Command, context: int, transfer_syntax: str, data_set: Iterator[memoryview]
    ) -> int:
        try:
            commitment.check_addressee(command.sop_class_uid, command.sop_instance_uid, command.action_type)
            request = commitment.read_request(_bounded(data_set), transfer_syntax)
            transaction = self._taker.accept(request, *self._names(), self)
        except AssociationEnded:
            raise
        except RequestRefused as error:
            return self._refused(error.status, str(error), logging.WARNING)
        except StoreFull as error:
            return self._refused(commitment.RESOURCE_LIMITATION, str(error), logging.ERROR)
        except StoreError as error:
            return self._refused(commitment.PROCESSING_FAILURE, str(error), logging.ERROR)
        except Exception as error:  # noqa: BLE001  the door: every request is answered, whatever went wrong
            return self._refused(
                commitment.PROCESSING_FAILURE, f"internal error {where(error)}", logging.ERROR
            )
        self._held[transaction] = context
        LOGGER.info(
            "storage commitment %s of %s at %s: asked for %d objects",
            *(request.transaction_uid, plain(self._calling, 16), self._address, len(request.references)),
        )
        return _SUCCESS

    def _names(self) -> tuple[str, str, str]:
        """AE title of the peer, its address, our AE title. Raises RequestRefused."""
        try:
            return ae_title(self._calling), self._address, ae_title(self._called)
        except ValueError:
            text = "the AE titles of its association are none, so it could not be told the result"
            raise RequestRefused(text, commitment.PROCESSING_FAILURE) from None

    def _refused(self, status: int, why: str, level: int) -> int:
        LOGGER.log(
            level,
            "storage commitment of %s at %s refused (%04X): %s",
            *(plain(self._calling, 16), self._address, status, why),
        )
        return status

    def due(self, syntaxes: dict[int, Accepted]) -> tuple[int, bytes, bytes] | None:
        """Context, command and data set of a result that can be told now; its answer goes to `answered`."""
        for transaction, context in self._held.items():
            try:
                report = self._taker.result(transaction, self)
            except StoreError as error:
                LOGGER.warning("the result of a storage commitment cannot be told now: %s", error)
                return None
            if report is not None:
                self._message_id = self._message_id % 0xFFFF + 1
                self._told = transaction
                command = dimse.event_report(
                    self._message_id, SOP_CLASS_UID, SOP_INSTANCE_UID, report.event_type
                )
                return context, command, commitment.encoded(report, syntaxes[context].transfer_syntax)
        return None

    def answered(self, command: Command) -> None:
        """A response has come; to what, it says."""
        is_ours = command.field == dimse.N_EVENT_REPORT_RQ | dimse.RESPONSE
        if self._told is not None and is_ours and command.responded_to == self._message_id:
            transaction, self._told = self._told, None
            del self._held[transaction]
            self._taker.told(transaction, self, command.status)

    def end(self, *, is_released: bool) -> None:
        """The association is over; what was not told is told elsewhere."""
        is_averse = self._told is not None and not is_released
        self._taker.let_go(self._held, self, is_averse=is_averse)


def _bounded(data_set: Iterator[memoryview]) -> bytes:
    """A data set that is no longer than requests are. Raises RequestRefused; the rest can still be read."""
    raw = bytearray()
    for piece in data_set:
        raw += piece
        if len(raw) > commitment.LONGEST_BYTES:
            raise RequestRefused(
                f"it has more than {commitment.LONGEST_BYTES} bytes", commitment.RESOURCE_LIMITATION
            )
    return bytes(raw)
