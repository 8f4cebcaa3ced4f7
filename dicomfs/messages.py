"""DIMSE messages read off a connection: a command, then its data set as it arrives (PS3.7 6.3, PS3.8 E.2).

Raises AssociationEnded when the peer breaks the protocol, aborts or falls silent inside a message. Used by
`association.py` and `reporter.py`.
"""

from collections.abc import Iterator

from dicomfs import dimse
from dicomfs.connection import ABORT, UNEXPECTED_PARAMETER, UNEXPECTED_PDU, Connection, Pace, Pdu, Pdv
from dicomfs.dimse import Command
from dicomfs.errors import AssociationEnded


def command(connection: Connection, head: Pdv, stall_s: float, pace: Pace | None = None) -> Command:
    """The command set that begins with this fragment; each further one is waited for `stall_s` at most.

    `pace`: the least speed of the whole message.
    """
    raw = bytearray()
    for piece in connection.values(_command_fragments(connection, head, stall_s, pace)):
        raw += piece
    try:
        return dimse.decode(bytes(raw))
    except ValueError as error:
        raise AssociationEnded(str(error), UNEXPECTED_PARAMETER) from None


def data_set(
    connection: Connection, context: int, stall_s: float, pace: Pace | None = None
) -> Iterator[memoryview]:
    """The data set of a message as it arrives. Whoever begins to read it has to read it to its end."""
    return connection.values(_data_set_fragments(connection, context, stall_s, pace))


def _command_fragments(connection: Connection, head: Pdv, stall_s: float, pace: Pace | None) -> Iterator[Pdv]:
    context, size = head.context, 0
    while True:
        if not head.is_command or head.context != context:
            raise AssociationEnded("a message does not begin with its command", UNEXPECTED_PARAMETER)
        size += head.length
        if size > dimse.LONGEST:
            raise AssociationEnded("a command set has no end", UNEXPECTED_PARAMETER)
        yield head
        if head.is_last:
            return
        head = _fragment(connection, stall_s, pace)


def _data_set_fragments(
    connection: Connection, context: int, stall_s: float, pace: Pace | None
) -> Iterator[Pdv]:
    is_last = False
    while not is_last:
        head = _fragment(connection, stall_s, pace)
        if head.is_command or head.context != context:
            raise AssociationEnded("a data set is interrupted by another message", UNEXPECTED_PARAMETER)
        yield head
        is_last = head.is_last


def _fragment(connection: Connection, stall_s: float, pace: Pace | None) -> Pdv:
    """The next fragment of a message that has begun."""
    head = connection.next(stall_s)
    if isinstance(head, Pdu):
        if head.kind == ABORT:
            raise AssociationEnded("the peer aborted in the middle of a message")
        raise AssociationEnded(f"a PDU of type {head.kind} came inside a message", UNEXPECTED_PDU)
    if pace is not None:
        pace.step(head.length)
    return head
