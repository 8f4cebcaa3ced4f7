"""One peer's connection: PDUs of the DICOM upper layer (PS3.8 9.3), read with time limits, data streamed.

The values of P-DATA-TF PDUs are gathered in one re-used buffer, which is handed on when it is full: so
memory is bounded whatever a peer sends, and most objects are handed on in one piece. A thread that waits
for a peer waits in the kernel. Every wait has an end: between PDUs the caller's, inside one `stall_s`, so
that a peer that sends a byte now and then holds nothing for long. Knows no DIMSE. Used by `association.py`.
"""

import contextlib
import errno
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from dicomfs.errors import AssociationEnded, PeerSilent

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
"""PDU types (PS3.8 9.3.1)."""

# Provider reasons of an A-ABORT (PS3.8 table 9-26).
NOT_SPECIFIED, UNRECOGNISED_PDU, UNEXPECTED_PDU = 0, 1, 2
UNEXPECTED_PARAMETER, INVALID_PARAMETER = 5, 6

_HEAD: Final = struct.Struct(">BxL")
_TIME: Final = struct.Struct("ll")
"""A timeval (socket(7), SO_RCVTIMEO); all zero would mean for ever."""
_PDV: Final = struct.Struct(">LBB")
_PDV_FIELDS: Final = 2
"""Context id and control header: counted in a PDV's length."""
_BUFFER_BYTES: Final = 1 << 20
"""A picture of usual size, so that it is hashed, written and looked at in one go."""
_LONGEST_REQUEST: Final = 1 << 20
"""An A-ASSOCIATE-RQ of 128 contexts, each with dozens of transfer syntaxes, has less than 200 000 bytes."""
_LONGEST_OTHER: Final = 1 << 10
_HANG_UP_S: Final = 1.0
HUNG_UP: Final = "the peer hung up"
_TOO_SLOW: Final = "the peer sends too slowly, and was given up"
_LONGEST_POLL_MS: Final = (1 << 31) - 1
_PROBES: Final = 3
_LEAST_BYTES: Final = 4096
"""Of a message, in twice the time that a sender may pause: a modem would manage that."""


@dataclass(frozen=True, slots=True)
class Pdu:
    """A whole PDU that is not P-DATA-TF."""

    kind: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Pdv:
    """Head of one presentation data value: a fragment of a command or a data set (PS3.8 9.3.5.1, E.2)."""

    context: int
    is_command: bool
    is_last: bool
    length: int
    """Bytes of the fragment."""


class Connection:
    """A connected socket, TLS or not. Used by one thread; `interrupt` and `hang_up` by any.

    Every method that reads raises AssociationEnded when the peer hangs up, breaks the protocol or keeps
    us waiting too long.
    """

    def __init__(self, connected: socket.socket, *, max_pdu: int, stall_s: float) -> None:
        """`max_pdu`: bytes of the longest P-DATA-TF that is taken, as announced to the peer; 0: any."""
        self._socket = connected
        self._max_pdu = max_pdu
        self._stall_s = stall_s
        self._told_s = -1.0
        """How long a call may wait, as the socket was told."""
        self._news = select.poll()
        self._news.register(connected, select.POLLIN)
        # The kernel fills a buffer and keeps the time: one call for what would otherwise be many, and each
        # of them a hand-over between the threads of a busy receiver.
        self._is_plain = not isinstance(connected, ssl.SSLSocket)
        if self._is_plain:
            connected.settimeout(None)
        self._heads = memoryview(bytearray(_HEAD.size + _PDV.size))
        self._buffer = memoryview(b"")
        self._interrupted = False
        self._left = 0
        """Bytes of the current P-DATA-TF that nobody has read."""

    # Reading

    def next(self, patience_s: float) -> Pdu | Pdv:
        """The next PDU, or the head of the next fragment, whose bytes must be read before the next call.

        Waits `patience_s` for its first byte.
        """
        head = self._heads[_HEAD.size :]
        if not self._left:
            # Both heads at once, since nearly always that is what comes. If not, it is still the beginning
            # of one PDU, because nobody may say more before an answer.
            found = self._fill(self._heads, patience_s, at_least=_HEAD.size)
            kind, length = _HEAD.unpack_from(self._heads)
            if kind != P_DATA_TF:
                return Pdu(kind, self._body(kind, length, bytes(self._heads[_HEAD.size : found])))
            if self._max_pdu and length > self._max_pdu:
                raise AssociationEnded(
                    f"a PDU of {length} bytes came, {self._max_pdu} is the most", INVALID_PARAMETER
                )
            self._left = length
            head = self._heads[found:]
        if self._left < _PDV.size:
            raise AssociationEnded("a P-DATA-TF PDU has no room for its data", INVALID_PARAMETER)
        self._fill(head, self._stall_s)
        length, context, control = _PDV.unpack_from(self._heads, _HEAD.size)
        self._left -= _PDV.size
        if not _PDV_FIELDS <= length <= self._left + _PDV_FIELDS:
            raise AssociationEnded("a fragment is longer than its PDU", INVALID_PARAMETER)
        return Pdv(context, bool(control & 1), bool(control & 2), length - _PDV_FIELDS)

    def is_still(self, seconds: float) -> bool:
        """Wait for the peer to say something; True when it has not within `seconds`. Reads nothing.

        To be asked between two messages.
        """
        if self._left or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            return False
        return not self._news.poll(seconds * 1000)

    def values(self, fragments: Iterable[Pdv]) -> Iterator[memoryview]:
        """The bytes of fragments, each just read by `next`, in pieces of one buffer: as long as that is, but
        for the last one. A piece is valid until the next one is asked for; the last one until `values` is
        called again.
        """
        if not self._buffer:
            self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        filled = 0
        for fragment in fragments:
            left = fragment.length
            while left:
                count = min(left, _BUFFER_BYTES - filled)
                self._fill(self._buffer[filled : filled + count], self._stall_s)
                left -= count
                self._left -= count
                filled += count
                if filled == _BUFFER_BYTES:
                    yield self._buffer
                    filled = 0
        if filled:
            yield self._buffer[:filled]

    def _body(self, kind: int, length: int, begun: bytes) -> bytes:
        if not ASSOCIATE_RQ <= kind <= ABORT:
            raise AssociationEnded(f"what came is no PDU (type {kind:02X})", UNRECOGNISED_PDU)
        if length > (_LONGEST_REQUEST if kind in (ASSOCIATE_RQ, ASSOCIATE_AC) else _LONGEST_OTHER):
            raise AssociationEnded(f"a PDU of type {kind} has {length} bytes", INVALID_PARAMETER)
        if length < len(begun):
            raise AssociationEnded(f"a PDU of type {kind} is followed by something", UNEXPECTED_PDU)
        body = bytearray(begun.ljust(length))
        self._fill(memoryview(body)[len(begun) :], self._stall_s)
        return bytes(body)

    def _fill(self, view: memoryview, seconds: float, at_least: int = 0) -> int:
        """Receive until `view` is full, or has `at_least` so many bytes; how many it has.

        Waits `seconds` for the first byte, then `stall_s` for all of them.
        """
        deadline, found = 0.0, 0
        while found < (at_least or len(view)):
            try:
                # All of it, unless this is the wait for something to begin, of which every byte counts.
                whole = socket.MSG_WAITALL if self._is_plain and seconds == self._stall_s else 0
                self._wait_at_most(seconds)
                count = self._socket.recv_into(view[found:], 0, 0 if at_least else whole)
            except (TimeoutError, BlockingIOError) as error:
                if error.errno == errno.ETIMEDOUT:  # the kernel's word, after its questions (`notice_death`)
                    raise AssociationEnded("the peer's machine does not answer any more") from None
                raise PeerSilent("the peer sent nothing more, and was given up", NOT_SPECIFIED) from None
            except OSError as error:
                raise AssociationEnded(f"the connection broke: {error.strerror or error}") from None
            if not count:
                if self._interrupted:
                    raise AssociationEnded("it did not end in time", NOT_SPECIFIED)
                raise AssociationEnded(HUNG_UP)
            found += count
            now = time.monotonic()
            deadline = deadline or now + self._stall_s
            if now > deadline:
                raise PeerSilent(_TOO_SLOW, NOT_SPECIFIED)
            seconds = self._stall_s
        return found

    def _wait_at_most(self, seconds: float) -> None:
        """Let the next call wait for no longer. Raises TimeoutError when it would have nothing to read."""
        if not self._is_plain:
            if seconds != self._told_s:
                self._told_s = seconds
                self._socket.settimeout(seconds)
            return
        # The kernel is told the usual limit once; any other wait is one call more.
        if self._told_s != self._stall_s:
            self._told_s = self._stall_s
            limit = _TIME.pack(int(self._told_s), int(self._told_s % 1 * 1e6) or int(self._told_s < 1))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        if seconds != self._stall_s and not self._news.poll(min(seconds * 1000, _LONGEST_POLL_MS)):
            raise TimeoutError

    # Writing, and the end

    def send(self, *pdus: bytes) -> None:
        """Send PDUs. Raises AssociationEnded when the peer takes nothing for `stall_s`, or is gone."""
        try:
            self._wait_at_most(self._stall_s)
            self._socket.sendall(b"".join(pdus))
        except (TimeoutError, BlockingIOError):
            raise AssociationEnded("the peer takes no answer, and was given up") from None
        except OSError as error:
            raise AssociationEnded(f"the connection broke: {error.strerror or error}") from None

    def abort(self, reason: int) -> None:
        """Tell the peer that it is over (A-ABORT by the provider), if it still listens."""
        with contextlib.suppress(AssociationEnded):
            self._stall_s = min(self._stall_s, _HANG_UP_S)
            self.send(pdu(ABORT, bytes((0, 0, 2, reason))))

    def close(self, patience_s: float = 0.0) -> None:
        """Close; before that let the peer do it, for `patience_s` (it has our last answer to read).

        A close with unread bytes would make the kernel send a reset, which may overtake that answer.
        """
        with contextlib.suppress(OSError):
            if patience_s:
                _shut_down(self._socket, socket.SHUT_WR)
                deadline = time.monotonic() + patience_s
                self._socket.settimeout(patience_s)
                while time.monotonic() < deadline and self._socket.recv(1 << 16):
                    pass
        with contextlib.suppress(OSError):
            self._socket.close()

    def interrupt(self) -> None:
        """Let the connection's own thread abort, once it reads. May be called by any thread."""
        self._interrupted = True
        with contextlib.suppress(OSError):
            _shut_down(self._socket, socket.SHUT_RD)

    def hang_up(self) -> None:
        """End whatever the connection's own thread waits for. May be called by any thread."""
        with contextlib.suppress(OSError):
            _shut_down(self._socket, socket.SHUT_RDWR)


class Pace:
    """The least speed of a message: who sends a byte in each PDU, and each PDU just in time, has to go."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._since = time.monotonic()
        self._bytes = 0

    def step(self, count: int) -> None:
        """So many bytes came. Raises PeerSilent when a window has passed with hardly any."""
        self._bytes += count
        now = time.monotonic()
        if now - self._since > self._window_s:
            if self._bytes < _LEAST_BYTES:
                raise PeerSilent(_TOO_SLOW, NOT_SPECIFIED)
            self._since, self._bytes = now, 0


def notice_death(connected: socket.socket, seconds: float) -> None:
    """Have the kernel end a connection whose other machine answers nothing any more for about `seconds`.

    A cable that is pulled, or a machine that is switched off, sends no word: its place would be held until
    the limit for pauses is over, which may be hours. (tcp(7); an answer that is on its way counts too.)
    """
    idle = max(1, round(seconds / 2))
    between = max(1, round((seconds - idle) / _PROBES))
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def _shut_down(connected: socket.socket, how: int) -> None:
    """Of the connection below TLS: an SSLSocket's own method would also end its encryption, and what is
    sent after it would go out in the clear.
    """
    socket.socket.shutdown(connected, how)


def pdu(kind: int, body: bytes) -> bytes:
    """One encoded PDU."""
    return _HEAD.pack(kind, len(body)) + body


def data_pdu(context: int, value: bytes, *, is_command: bool, is_last: bool) -> bytes:
    """One fragment, alone in its P-DATA-TF PDU."""
    return pdu(P_DATA_TF, _PDV.pack(len(value) + _PDV_FIELDS, context, is_command | is_last << 1) + value)


def message(context: int, command: bytes, data_set: bytes, max_pdu: int) -> bytes:
    """A command and its data set, if any, in PDUs that a peer takes that announced `max_pdu` (0: any)."""
    most = (max_pdu or _BUFFER_BYTES) - _PDV.size
    pdus = []
    for value, is_command in ((command, True), (data_set, False)):
        starts = range(0, len(value), most)
        pdus += [
            data_pdu(context, value[at : at + most], is_command=is_command, is_last=at + most >= len(value))
            for at in starts
        ]
    return b"".join(pdus)
