"""One association from its request to its end: negotiation, then message after message (PS3.7, PS3.8 9.2).

Event-driven in the plainest way: the association's one thread waits in the kernel for the next bytes,
hands a data set to the store while it arrives, and answers. Between the socket and the spool file there
is no queue, no other thread and no copy. A request it does not know is answered "unrecognised operation";
what breaks the protocol ends the association. Objects are named by SOP Instance UID, peers by AE title
and address; nothing of a data set is ever logged. Used by `scp.py`, which owns sockets and threads.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pydicom.uid import UID

from dicomfs import dimse, handshake, messages
from dicomfs.access import Refusal
from dicomfs.actions import Actions, CommitmentTaker, taken
from dicomfs.activity import OTHER_PATIENT, Activity, Visit
from dicomfs.commitment import SOP_CLASS_UID as COMMITMENT
from dicomfs.connection import (
    ABORT,
    ASSOCIATE_RQ,
    HUNG_UP,
    NOT_SPECIFIED,
    RELEASE_RP,
    RELEASE_RQ,
    UNEXPECTED_PARAMETER,
    UNEXPECTED_PDU,
    Connection,
    Pace,
    Pdu,
    Pdv,
    message,
    pdu,
)
from dicomfs.dimse import Command
from dicomfs.errors import (
    AssociationEnded,
    BadInstance,
    DicomfsError,
    DuplicateRefused,
    IdentityMismatch,
    PeerSilent,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    StrangerRefused,
    UnreadableDataSet,
)
from dicomfs.handshake import Accepted, Request
from dicomfs.lane import Lane
from dicomfs.logtext import plain, uid_text, where
from dicomfs.model import Outcome, Receipt
from dicomfs.negotiation import is_storage, preferred
from dicomfs.pressure import Trouble

LOGGER: Final = logging.getLogger("dicomfs.scp")
VERIFICATION: Final = "1.2.840.10008.1.1"
_NO_STORAGE: Final = frozenset({VERIFICATION, COMMITMENT})
_LINGER_S: Final = 5.0
"""How long a peer may take to close the connection after its last answer (ARTIM, PS3.8 9.1.5)."""
_BREATH_S: Final = 0.01
_SHORTLY_S: Final = 1.0
"""In which a sender that is at work comes with its next object."""


class Receiver(Protocol):
    """Where objects go: `ingest.Ingest`. Called from one thread for each association."""

    def lane(self) -> Lane: ...

    def receive(self, parts: Iterable[bytes | memoryview], receipt: Receipt, lane: Lane, /) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sender, or all together, may take."""

    associations: int = 32
    """At once; one more is rejected as "local limit exceeded", which senders take as: try later."""
    of_one_address: int = 32
    """At once, so that one sender cannot take every place."""
    pdu_bytes: int = 131_072
    """Largest PDU we announce to accept; 0 leaves it to the sender."""
    object_bytes: int = 1 << 36
    """Largest data set; what is longer is read to its end, and refused."""
    handshake_s: float = 30.0
    """From the connection to its association request, and for a closing peer to hang up (ARTIM)."""
    idle_s: float = 300.0
    """Between two messages of an open association; scanners pause between series."""
    stall_s: float = 60.0
    """Inside a message that has begun. Without it, half a PDU would hold a thread for ever."""
    dead_s: float = 60.0
    """A peer whose machine does not even answer the kernel's questions for so long has no place any more."""
    pause_s: float = 1.0
    """A peer that says nothing for so long after a commitment request is taken to wait for its result."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all associations of a server have in common."""

    ae_title: str
    limits: Limits
    receiver: Receiver
    judge: Callable[[Request], Refusal | None]
    """Asked when a request has come; None: the peer may associate."""
    trouble: Trouble
    """Of the store."""
    greet: Callable[[], str]
    """What has to be done before anything is read, in the association's own thread: the TLS handshake.
    Gives the name that the peer has proved, if any. Raises AssociationEnded."""
    activity: Activity
    """Where it is counted what associations do."""
    commitment: CommitmentTaker | None = None
    """None: storage commitment is not accepted."""


# --- What is answered -------------------------------------------------------------------------------


class _NoDataSet(BadInstance):
    """A C-STORE request without a data set."""


class _TooLong(BadInstance):
    """A data set that is longer than the limit."""


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
    (StoreLocked, _Answer(0xA700, "Index is locked; object not stored, please send again", logging.ERROR)),
    (StoreUnavailable, _Answer(0xA700, "Archive unavailable; object not stored, send again", logging.ERROR)),
    (IdentityMismatch, _Answer(0xA900, "SOP UIDs of command and data set differ", logging.WARNING)),
    (_NoDataSet, _Answer(0xC001, "No data set in the message", logging.WARNING)),
    (_TooLong, _Answer(0xC002, "Object is larger than this archive accepts", logging.WARNING)),
    (StrangerRefused, _Answer(0x0111, OTHER_PATIENT, logging.WARNING)),
    (DuplicateRefused, _Answer(0x0111, "Another object of these UIDs is stored already", logging.WARNING)),
    (UnreadableDataSet, _Answer(0xC000, "Data set cannot be read, or has no SOP UIDs", logging.WARNING)),
    (BadInstance, _Answer(0xC000, "Object cannot be understood", logging.WARNING)),
)
_BUG: Final = _Answer(0x0110, "Internal error; object not stored", logging.ERROR)


def _answer_to(error: Exception) -> _Answer:
    return next((answer for kind, answer in _ANSWERS if isinstance(error, kind)), _BUG)


# --- The association --------------------------------------------------------------------------------


class Association:
    """One peer, served by `run` in a thread of its own."""

    def __init__(self, connection: Connection, address: str, port: int, terms: Terms) -> None:
        self._connection = connection
        self._terms = terms
        self._host = address
        self._address = f"{address}:{port}"
        self._actions: Actions | None = None
        self._lane = terms.receiver.lane()
        self._accepted: dict[int, Accepted] = {}
        self._request: Request | None = None
        self._proved = ""
        self._visit = Visit("?", address, 0.0)
        """Counted once the association is established."""
        self.is_established = False

    @property
    def peer(self) -> str:
        """Its AE title and address, for the log."""
        return f"{self._title} at {self._address}"

    @property
    def _title(self) -> str:
        return plain(self._request.calling, 16) if self._request else "?"

    def run(self) -> None:
        """Serve the peer until it releases or is given up. Closes the connection; raises nothing."""
        linger = 0.0
        is_released = False
        try:
            self._proved = self._terms.greet()
            if self._negotiate():
                self._visit = self._terms.activity.opened(self._title, self._host, time.time())
                self.is_established = True
                self._serve()
                is_released = True
            linger = min(_LINGER_S, self._terms.limits.handshake_s)
        except AssociationEnded as error:
            # Who has not asked for anything is hung up on without a word (PS3.8 9.2, AA-2).
            if error.abort is not None and (self.is_established or not isinstance(error, PeerSilent)):
                self._connection.abort(error.abort)
                linger = _HANG_UP_S
            if self.is_established:
                LOGGER.warning("association of %s aborted: %s", self.peer, error)
                self._failed("aborted", str(error))
            else:
                # A health check comes and goes; who speaks something else is worth a line.
                level = logging.DEBUG if str(error) == HUNG_UP else logging.WARNING
                LOGGER.log(level, "connection of %s ended before an association: %s", self.peer, error)
                if level > logging.DEBUG:
                    self._failed("ended before an association", str(error))
        except Exception as error:  # noqa: BLE001  one association may fail, never the server
            LOGGER.error("association of %s aborted: internal error %s", self.peer, where(error))  # noqa: TRY400
            self._failed("aborted", "internal error")
            self._connection.abort(0)
        finally:
            if self.is_established:
                self._terms.activity.closed(self._visit)
            self.is_established = False
            self._lane.close()
            if self._actions is not None:
                self._actions.end(is_released=is_released)
            self._connection.close(linger)

    def _failed(self, what: str, text: str) -> None:
        self._terms.activity.failed(what, f"{self._title} at {self._host}", plain(text, 400), time.time())

    # Negotiation

    def _negotiate(self) -> bool:
        """Answer the request; False when it was rejected."""
        limits = self._terms.limits
        first = self._connection.next(limits.handshake_s)
        if not isinstance(first, Pdu) or first.kind != ASSOCIATE_RQ:
            raise AssociationEnded("it did not begin with an association request", UNEXPECTED_PDU)
        self._request = request = handshake.decode(first.body)
        refusal = _malformed(request) or self._terms.judge(request)
        if refusal is not None:
            LOGGER.log(refusal.level, "association of %s rejected: %s", self.peer, refusal.reason)
            self._failed(f"rejected: {refusal.meaning}", refusal.reason)
            self._connection.send(handshake.reject(refusal))
            return False
        self._accepted = handshake.choose(request.contexts, self._taken)
        self._connection.send(
            handshake.accept(request, self._accepted, limits.pdu_bytes, scu_only=(COMMITMENT,))
        )
        if self._terms.commitment is not None:
            called = request.called or self._terms.ae_title
            self._actions = Actions(self._terms.commitment, self._host, request.calling, called)
        proved = f", certificate of {self._proved}" if self._proved else ""
        LOGGER.info("association of %s opened%s", self.peer, proved)
        return True

    def _taken(
        self, abstract_syntax: UID, transfer_syntaxes: Iterable[UID], alone: Collection[UID]
    ) -> list[UID]:
        if abstract_syntax == COMMITMENT and self._terms.commitment is not None:
            roles = self._request.roles if self._request else {}
            return taken(transfer_syntaxes, roles.get(COMMITMENT, (True, False)))
        known = abstract_syntax == VERIFICATION or is_storage(abstract_syntax)
        return preferred(transfer_syntaxes, alone) if known else []

    # Messages

    def _next(self) -> Pdu | Pdv:
        """What the peer says next; while it is still, it is told results that it waits for."""
        limits, end = self._terms.limits, time.monotonic() + self._terms.limits.idle_s
        if not self._is_awaiting and self._connection.is_still(min(_SHORTLY_S, limits.idle_s)):
            self._lane.close()
        while self._is_awaiting and time.monotonic() < end:
            if not self._connection.is_still(min(limits.pause_s, limits.idle_s)):
                break
            self._lane.close()
            if self._actions is not None and (due := self._actions.due(self._accepted)) is not None:
                self._connection.send(message(*due, self._max_pdu))
        return self._connection.next(max(end - time.monotonic(), _BREATH_S))

    @property
    def _is_awaiting(self) -> bool:
        """Whether the peer waits for the result of a commitment."""
        return self._actions is not None and self._actions.is_awaiting

    def _serve(self) -> None:
        """Take messages until the peer releases the association."""
        while True:
            try:
                head = self._next()
            except PeerSilent:
                # Scanners do that, and connect again. An abort says so at once; they would not expect us to
                # ask for a release, and a mere hang-up looks like a fault of the network.
                idle_s = self._terms.limits.idle_s
                LOGGER.info("association of %s ended: idle for %g s (idle_seconds)", self.peer, idle_s)
                self._connection.abort(NOT_SPECIFIED)
                return
            if isinstance(head, Pdv):
                self._message(head)
            elif head.kind == RELEASE_RQ:
                self._lane.close()  # first: who has its release may look, and unmount
                self._connection.send(pdu(RELEASE_RP, bytes(4)))
                LOGGER.info("association of %s released", self.peer)
                return
            elif head.kind == ABORT:
                raise AssociationEnded("the peer aborted")
            else:
                raise AssociationEnded(f"a PDU of type {head.kind} came at the wrong time", UNEXPECTED_PDU)

    def _message(self, head: Pdv) -> None:
        context = head.context
        if context not in self._accepted:
            raise AssociationEnded("a message came on a context that was not accepted", UNEXPECTED_PARAMETER)
        stall_s = self._terms.limits.stall_s
        pace = Pace(2 * stall_s)
        command = messages.command(self._connection, head, stall_s, pace)
        data_set = (
            messages.data_set(self._connection, context, stall_s, pace) if command.has_data_set else iter(())
        )
        accepted = self._accepted[context]
        if command.is_response or command.field == dimse.C_CANCEL_RQ:
            answer = b""  # nothing of ours can be cancelled
            if self._actions is not None:
                self._actions.answered(command)
        elif command.field == dimse.C_STORE_RQ and accepted.abstract_syntax not in _NO_STORAGE:
            answer = self._store(command, accepted, data_set)
        elif command.field == dimse.N_ACTION_RQ and accepted.abstract_syntax == COMMITMENT and self._actions:
            answer = self._actions.answer(command, context, accepted, data_set)
        elif command.field == dimse.C_ECHO_RQ:
            answer = dimse.response(command, _SUCCESS)
        else:
            answer = dimse.response(command, _UNRECOGNISED_OPERATION)
        for _ in data_set:
            pass  # what nobody wanted still has to be read
        if answer:
            self._connection.send(message(context, answer, b"", self._max_pdu))
        self._lane.rest()

    @property
    def _max_pdu(self) -> int:
        return self._request.max_pdu if self._request else 0

    # C-STORE

    def _store(self, command: Command, accepted: Accepted, data_set: Iterator[memoryview]) -> bytes:
        """One C-STORE (PS3.7 9.1.1): store it; the answer."""
        uid = uid_text(command.sop_instance_uid)
        receipt = Receipt(
            transfer_syntax=str(accepted.transfer_syntax),
            received=time.time(),
            source_ae=self._title,
            receiving_ae=self._terms.ae_title,
            # Nothing announced is nothing to compare with, and no reason to lose an image.
            sop_class_uid=command.sop_class_uid or None,
            sop_instance_uid=command.sop_instance_uid or None,
        )
        try:
            outcome = self._terms.receiver.receive(
                _bounded(self._counted(data_set), self._terms.limits.object_bytes), receipt, self._lane
            )
        except AssociationEnded:
            raise
        except Exception as error:  # noqa: BLE001  the door: every request is answered, whatever went wrong
            answer = _answer_to(error)
            what = f"internal error {where(error)}" if answer is _BUG else plain(error, 400)
            level = answer.level
            if isinstance(error, StoreError):
                self._lane.close()
                # Every object of every sender meets it: one line says what is to be done.
                passed = self._terms.trouble.note(type(error).__name__)
                level = logging.DEBUG if passed is None else level
                what += f" ({passed} more since the last line)" if passed else ""
            LOGGER.log(level, "%s from %s not stored (%04X): %s", uid, self.peer, answer.status, what)
            self._refused(answer, error)
            return dimse.response(command, answer.status, answer.comment)
        if refused := self._terms.trouble.over():
            LOGGER.warning("objects are stored again; %d were refused before", refused)
        uid, warnings = uid_text(outcome.sop_instance_uid), outcome.warnings
        if not command.sop_instance_uid:
            warnings = (*warnings, "came by a command that names no SOP Instance UID")
        for warning in warnings:
            LOGGER.warning("%s from %s: %s", uid, self.peer, warning)
        self._terms.activity.stored(self._visit, outcome.stored)
        LOGGER.info("%s from %s: %s", uid, self.peer, outcome.stored.value)
        return dimse.response(command, _SUCCESS)

    def _counted(self, data_set: Iterator[memoryview]) -> Iterator[memoryview]:
        for piece in data_set:
            self._visit.bytes += len(piece)
            yield piece

    def _refused(self, answer: _Answer, error: Exception) -> None:
        self._terms.activity.refused(
            self._visit,
            f"{answer.status:04X} {answer.comment}",
            answer.comment if answer is _BUG else plain(error, 400),
            time.time(),
            is_trouble=isinstance(error, StoreError),
        )


_HANG_UP_S: Final = 1.0


def _malformed(request: Request) -> Refusal | None:
    if not request.known_protocol:
        return Refusal(1, 1, 2, "it does not speak DICOM's application context")
    if not request.contexts or any(
        not proposed.abstract_syntax or not proposed.transfer_syntaxes for proposed in request.contexts
    ):
        return Refusal(1, 2, 1, "a presentation context lacks its abstract or transfer syntax")
    return None


def _bounded(data_set: Iterator[memoryview], limit: int) -> Iterator[memoryview]:
    """A data set that is neither empty nor longer than `limit` bytes; else raises BadInstance."""
    size = 0
    for piece in data_set:
        size += len(piece)
        if size > limit:
            raise _TooLong(f"it has more than {limit} bytes")
        yield piece
    if not size:
        raise _NoDataSet("the message holds no data set")
