"""A-ASSOCIATE: what a peer asks for, and our answer, as PDUs (PS3.8 9.3.2 to 9.3.4), by pynetdicom's codec.

The other way round too: what we ask for as SCP, and the peer's answer. Pure: bytes in, bytes out. What is
accepted is decided by `negotiation.py` and by the caller. Used by `association.py` and `reporter.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydicom.uid import UID
from pynetdicom import _config
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext

from dicomfs.access import Refusal
from dicomfs.connection import ASSOCIATE_AC, ASSOCIATE_RJ, ASSOCIATE_RQ, INVALID_PARAMETER, pdu
from dicomfs.errors import AssociationEnded
from dicomfs.filemeta import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION

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
    roles: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    """Roles proposed for the peer, by SOP class: SCU, SCP (PS3.7 D.3.3.4). Without one it is SCU only."""


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
            roles=_roles(information.role_selection) if information else {},
        )
    except Exception as error:  # noqa: BLE001
        # The codec was not made for hostile bytes: they provoke anything in it. Its text may quote them.
        raise AssociationEnded(
            f"its association request cannot be read ({type(error).__qualname__})", INVALID_PARAMETER
        ) from None


def _roles(items: Mapping[Any, Any]) -> dict[str, tuple[bool, bool]]:
    return {str(uid): (bool(item.scu_role), bool(item.scp_role)) for uid, item in items.items()}


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


def accept(
    request: Request, accepted: dict[int, Accepted], max_pdu: int, scu_only: Collection[str] = ()
) -> bytes:
    """An A-ASSOCIATE-AC PDU. What is not in `accepted` is answered "abstract syntax not supported".

    `scu_only`: SOP classes for which a proposal of roles is answered: the peer may be SCU and not SCP. A
    proposal that is not answered leaves it the same (PS3.7 D.3.3.4.2).
    """
    answer = A_ASSOCIATE()
    answer.application_context_name = UID(APPLICATION_CONTEXT)
    answer.calling_ae_title, answer.called_ae_title = request.calling, request.called
    answer.result, answer.result_source = 0, 1
    answer.presentation_context_definition_results_list = [
        _result(proposed, accepted.get(proposed.context)) for proposed in request.contexts
    ]
    classes = {str(context.abstract_syntax) for context in accepted.values()}
    roles = [_role(uid, is_scp=False) for uid in request.roles if uid in classes and uid in scu_only]
    answer.user_information = [*_about_us(max_pdu), *roles]
    return A_ASSOCIATE_AC(answer).encode()


def _result(proposed: Proposed, taken: Accepted | None) -> PresentationContext:
    context = PresentationContext()
    context.context_id = proposed.context
    context.abstract_syntax = proposed.abstract_syntax
    # Not significant when the context is refused, but has to be one (PS3.8 9.3.3.2).
    context.transfer_syntax = [taken.transfer_syntax if taken else proposed.transfer_syntaxes[0]]
    context.result = ACCEPTED if taken else ABSTRACT_SYNTAX_NOT_SUPPORTED
    return context


def _about_us(max_pdu: int) -> list[Any]:
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(IMPLEMENTATION_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION
    return [length, implementation, version]


def _role(sop_class_uid: str, *, is_scp: bool) -> SCP_SCU_RoleSelectionNegotiation:
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid = UID(sop_class_uid)
    role.scu_role, role.scp_role = not is_scp, is_scp
    return role


def reject(refusal: Refusal) -> bytes:
    """An A-ASSOCIATE-RJ PDU."""
    return pdu(ASSOCIATE_RJ, bytes((0, refusal.result, refusal.source, refusal.diagnostic)))


# --- Calling ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What an A-ASSOCIATE-AC says."""

    max_pdu: int
    """Bytes of the longest P-DATA-TF that the peer takes; 0: any."""
    transfer_syntaxes: Mapping[int, UID]
    """Of each context that was accepted."""


def call(calling: str, called: str, sop_class_uid: str, syntaxes: Sequence[UID], max_pdu: int) -> bytes:
    """An A-ASSOCIATE-RQ PDU of an SCP: one SOP class, a context for each transfer syntax (1, 3, ...).

    It proposes the SCP role for us and not the SCU role (PS3.7 D.3.3.4). Raises ValueError for AE titles
    that are none.
    """
    request = A_ASSOCIATE()
    request.application_context_name = UID(APPLICATION_CONTEXT)
    request.calling_ae_title, request.called_ae_title = calling, called
    contexts = []
    for number, syntax in enumerate(syntaxes):
        context = PresentationContext()
        context.context_id = 2 * number + 1
        context.abstract_syntax, context.transfer_syntax = UID(sop_class_uid), [syntax]
        contexts.append(context)
    request.presentation_context_definition_list = contexts
    request.user_information = [*_about_us(max_pdu), _role(sop_class_uid, is_scp=True)]
    return A_ASSOCIATE_RQ(request).encode()


def decode_answer(body: bytes) -> Answer:
    """Read the body of an A-ASSOCIATE-AC PDU. Raises AssociationEnded when it is none.

    Whether the peer speaks of roles is not looked at: many do not, and mean yes.
    """
    try:
        answer = A_ASSOCIATE_AC()
        answer.decode(pdu(ASSOCIATE_AC, body))
        information = answer.user_information
        return Answer(
            max_pdu=int(information.maximum_length or 0) if information else 0,
            transfer_syntaxes={
                item.presentation_context_id: UID(str(item.transfer_syntax))
                for item in answer.presentation_context
                if item.result == ACCEPTED and item.presentation_context_id
            },
        )
    except Exception as error:  # noqa: BLE001  as for requests
        raise AssociationEnded(
            f"its answer cannot be read ({type(error).__qualname__})", INVALID_PARAMETER
        ) from None
