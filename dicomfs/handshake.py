"""A-ASSOCIATE: what a peer asks for, and our answer, as PDUs (PS3.8 9.3.2 to 9.3.4), by pynetdicom's codec.

Pure: bytes in, bytes out. What is accepted is decided by `negotiation.py` and by the caller. Used by
`association.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydicom.uid import UID
from pynetdicom import _config
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext

from dicomfs.access import Refusal
from dicomfs.archive import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from dicomfs.connection import ASSOCIATE_RJ, ASSOCIATE_RQ, INVALID_PARAMETER, pdu
from dicomfs.errors import AssociationEnded

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
ACCEPTED, ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 0, 3, 4
"""Result of a presentation context (PS3.8 table 9-18)."""
_LONGEST_UID: Final = 1024


@dataclass(frozen=True, slots=True)
class Proposed:
    """One presentation context of a request."""

    context: int
    abstract_syntax: UID
    transfer_syntaxes: tuple[UID, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What an A-ASSOCIATE-RQ says."""

    calling: str
    called: str
    max_pdu: int
    """Bytes of the longest P-DATA-TF that the peer takes; 0: any."""
    contexts: tuple[Proposed, ...]
    known_protocol: bool
    """Version 1 of the protocol and the application context of DICOM."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """One presentation context that both sides may use."""

    abstract_syntax: UID
    transfer_syntax: UID


def set_up_library() -> None:
    """Process-wide, as pynetdicom's settings are.

    Its logs quote values of the peer; and a UID too long for the standard must not cost a sender its
    association: it comes as far as the receiver, which refuses that one object.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    _config.VALIDATORS["UI"] = lambda uid: (0 < len(uid) <= _LONGEST_UID, "empty or absurdly long")


def decode(body: bytes) -> Request:
    """Read the body of an A-ASSOCIATE-RQ PDU. Raises AssociationEnded when it is none."""
    try:
        request = A_ASSOCIATE_RQ()
        request.decode(pdu(ASSOCIATE_RQ, body))
        information = request.user_information
        contexts = tuple(_proposed(item) for item in request.presentation_context)
        _check_ids([proposed.context for proposed in contexts])
        return Request(
            calling=request.calling_ae_title.strip(),
            called=request.called_ae_title.strip(),
            max_pdu=int(information.maximum_length or 0) if information else 0,
            contexts=contexts,
            known_protocol=bool(request.protocol_version & 1)
            and request.application_context_name == APPLICATION_CONTEXT,
        )
    except Exception as error:  # noqa: BLE001
        # The codec was not made for hostile bytes: they provoke anything in it. Its text may quote them.
        raise AssociationEnded(
            f"its association request cannot be read ({type(error).__qualname__})", INVALID_PARAMETER
        ) from None


def _check_ids(contexts: Sequence[int]) -> None:
    """Odd numbers, each once (PS3.8 9.3.2.2). Raises ValueError."""
    if len(set(contexts)) < len(contexts) or any(number % 2 == 0 for number in contexts):
        raise ValueError("presentation context ids have to be odd, and different")


def _proposed(item: Any) -> Proposed:
    syntaxes = tuple(UID(str(uid)) for uid in item.transfer_syntax if uid)
    return Proposed(int(item.presentation_context_id), UID(str(item.abstract_syntax or "")), syntaxes)


def choose(
    contexts: Sequence[Proposed], preferred: Callable[[UID, Iterable[UID], Collection[UID]], list[UID]]
) -> dict[int, Accepted]:
    """The contexts that are accepted, by id.

    `preferred` gives the proposed transfer syntaxes of an abstract syntax that are taken, the best first; it
    is told which of that abstract syntax have a context to themselves.
    """
    accepted = {}
    alone: defaultdict[UID, set[UID]] = defaultdict(set)
    for proposed in contexts:
        if len(proposed.transfer_syntaxes) == 1:
            alone[proposed.abstract_syntax].update(proposed.transfer_syntaxes)
    for proposed in contexts:
        if taken := preferred(
            proposed.abstract_syntax, proposed.transfer_syntaxes, alone[proposed.abstract_syntax]
        ):
            accepted[proposed.context] = Accepted(proposed.abstract_syntax, taken[0])
    return accepted


def accept(request: Request, accepted: dict[int, Accepted], max_pdu: int) -> bytes:
    """An A-ASSOCIATE-AC PDU. What is not in `accepted` is answered "abstract syntax not supported"."""
    answer = A_ASSOCIATE()
    answer.application_context_name = UID(APPLICATION_CONTEXT)
    answer.calling_ae_title, answer.called_ae_title = request.calling, request.called
    answer.result, answer.result_source = 0, 1
    answer.presentation_context_definition_results_list = [
        _result(proposed, accepted.get(proposed.context)) for proposed in request.contexts
    ]
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(IMPLEMENTATION_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION
    answer.user_information = [length, implementation, version]
    return A_ASSOCIATE_AC(answer).encode()


def _result(proposed: Proposed, taken: Accepted | None) -> PresentationContext:
    context = PresentationContext()
    context.context_id = proposed.context
    context.abstract_syntax = proposed.abstract_syntax
    # Not significant when the context is refused, but has to be one (PS3.8 9.3.3.2).
    context.transfer_syntax = [taken.transfer_syntax if taken else proposed.transfer_syntaxes[0]]
    context.result = ACCEPTED if taken else ABSTRACT_SYNTAX_NOT_SUPPORTED
    return context


def reject(refusal: Refusal) -> bytes:
    """An A-ASSOCIATE-RJ PDU."""
    return pdu(ASSOCIATE_RJ, bytes((0, refusal.result, refusal.source, refusal.diagnostic)))
