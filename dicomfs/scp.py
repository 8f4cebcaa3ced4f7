"""The receiving door: who may come in, and how long associations last; each in a thread of its own.

Accepts Verification, Storage Commitment and every storage SOP class, private and unknown ones included, in
every transfer syntax; of those a sender proposes for one presentation context, the one that keeps most
(`preferred`).
What an association does is in `association.py`. Here are the listening socket, the limits that all
associations share, and the end: drained, then aborted. Called by `cli.py`, which owns signals and logging
set-up.
"""

import contextlib
import errno
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Self

from pynetdicom import AE

from dicomfs.access import Access, Admission, PeerLimits, Refusal
from dicomfs.actions import CommitmentTaker
from dicomfs.activity import Activity
from dicomfs.association import Association, Limits, Receiver, Terms
from dicomfs.connection import Connection, notice_death
from dicomfs.errors import AssociationEnded, UsageError
from dicomfs.handshake import Request, set_up_library
from dicomfs.logtext import plain
from dicomfs.pressure import Trouble
from dicomfs.tls import Certificates, shake_hands, wrap

LOGGER: Final = logging.getLogger("dicomfs.scp")

_BACKLOG: Final = 128
_PENDING: Final = 64
"""Connections that have not yet asked for an association; when one more comes, an old one has to go."""
_HANG_UP_S: Final = 1.0
_LAST_OBJECT_S: Final = 10.0
_BREATH_S: Final = 0.1


@dataclass(slots=True, eq=False)
class _Guest:
    """One connected peer."""

    address: str
    connection: Connection
    association: Association
    thread: threading.Thread = field(init=False)
    is_admitted: bool = False
    """It has one of the places; until then it is pending."""
    is_dismissed: bool = False
    """It had to go for another one, and will have gone soon."""


class StorageSCP:
    """A running SCP; made by `start`, ended by `stop`. Thread-safe."""

    def __init__(
        self,
        listener: socket.socket,
        access: Access,
        receiver: Receiver,
        *,
        limits: Limits,
        certificates: Certificates | None,
        activity: Activity,
        commitment: CommitmentTaker | None,
    ) -> None:
        """Use `start`."""
        self._listener = listener
        self._access = access
        self._receiver = receiver
        self._limits = limits
        self._certificates = certificates
        self._activity = activity
        self._commitment = commitment
        self._admission = Admission(PeerLimits(limits.associations, limits.of_one_address))
        self.trouble = Trouble()
        """Of the store, as senders meet it; its `state` for whoever shows it."""
        self._scarcity = Trouble()
        self._guests: list[_Guest] = []
        self._changed = threading.Condition()
        self._draining = False
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)

    @classmethod
    def start(
        cls,
        host: str,
        port: int,
        ae_title: str,
        receiver: Receiver,
        *,
        access: Access | None = None,
        limits: Limits | None = None,
        certificates: Certificates | None = None,
        activity: Activity | None = None,
        commitment: CommitmentTaker | None = None,
    ) -> Self:
        """Listen on `host` (name or address, empty: all of IPv4) and `port` (0: a free one, see `port`).

        Returns at once; associations run in threads of their own. `access`: who may send (None: everybody,
        by whatever title they call us); `certificates`: TLS only; `activity`: where to count what is done;
        `commitment`: who promises to keep what was received (None: nobody). Raises UsageError when that title
        or address cannot be used.
        """
        set_up_library()
        for name in ("pynetdicom", "pydicom"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            title = AE(ae_title=ae_title).ae_title.strip()
        except ValueError as error:
            raise UsageError(
                f"AE title {plain(ae_title, 64)!r} is not valid: 1 to 16 ASCII characters, no backslash"
            ) from error
        listener = _listener(host, port)
        access = access or Access(title, is_open=True, require_called_ae=False)
        scp = cls(
            listener,
            access,
            receiver,
            limits=limits or Limits(),
            certificates=certificates,
            activity=activity or Activity(),
            commitment=commitment,
        )
        scp._thread.start()
        how = " with TLS" if certificates else ""
        LOGGER.info("listening on %s port %d as %s%s", host or "all addresses", scp.port, title, how)
        return scp

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        return int(self._listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """Peers that are connected, associated or not."""
        with self._changed:
            return len(self._guests)

    @property
    def associations(self) -> int:
        """Peers that have a place."""
        with self._changed:
            return sum(guest.is_admitted for guest in self._guests)

    def stop(self, drain_seconds: float) -> bool:
        """Accept nobody new, let running associations finish for `drain_seconds`, then abort the rest.

        Returns True when nobody had to be aborted. Objects that were being written when their association
        was aborted may still be finished (for at most 10 s more): stored, but not acknowledged. Calling it
        again does nothing.
        """
        with self._changed:
            if self._draining:
                return True
            self._draining = True
            pending = [guest for guest in self._guests if not guest.is_admitted]
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for guest in pending:
            guest.connection.hang_up()  # has nothing under way; would only hold us up
        unfinished = self._left_after(drain_seconds)
        if unfinished:
            LOGGER.warning("aborting %d associations that did not end in time", len(unfinished))
            for guest in unfinished:
                guest.connection.interrupt()
            for guest in self._left_after(_HANG_UP_S):
                guest.connection.hang_up()
            self._left_after(_LAST_OBJECT_S)
        LOGGER.info("stopped")
        return not unfinished

    def _left_after(self, seconds: float) -> list[_Guest]:
        """Who is still there after so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._guests, seconds)
            return list(self._guests)

    # The listener's thread

    def _listen(self) -> None:
        while True:
            try:
                connected, address = self._listener.accept()
            except OSError as error:
                if self._draining:
                    return
                if error.errno not in (errno.ECONNABORTED, errno.EINTR):
                    # Out of descriptors or memory: those who are here will go, and free some.
                    self._complain("no further connection can be accepted now", error)
                    time.sleep(_BREATH_S)
                continue
            try:
                self._welcome(connected, address[0], address[1])
            except AssociationEnded as error:
                LOGGER.debug("connection of %s ended: %s", address[0], error)
            except Exception as error:  # noqa: BLE001  without this thread we would be deaf, and nobody knew
                self._complain("a connection could not be served", error)
                connected.close()
            else:
                if self._scarcity.over():
                    LOGGER.warning("connections are accepted again")

    def _complain(self, what: str, error: Exception) -> None:
        if self._scarcity.note(what) is not None:
            why = error.strerror if isinstance(error, OSError) else error
            LOGGER.error("%s: %s; if it lasts, raise LimitNOFILE and TasksMax", what, why or error)

    def _welcome(self, connected: socket.socket, address: str, port: int) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limits = self._limits
        notice_death(connected, limits.dead_s)
        greet: Callable[[], str] = str
        if self._certificates is not None:
            proving = wrap(connected, self._certificates.context())
            greet = partial(shake_hands, proving, limits.handshake_s)
            connected = proving
        connection = Connection(connected, max_pdu=limits.pdu_bytes, stall_s=limits.stall_s)

        def judge(request: Request) -> Refusal | None:
            return self._judge(guest, request)

        terms = Terms(
            self._access.ae_title,
            limits,
            self._receiver,
            judge,
            self.trouble,
            greet,
            self._activity,
            self._commitment,
        )
        guest = _Guest(address, connection, Association(connection, address, port, terms))
        guest.thread = threading.Thread(
            target=self._entertain, args=(guest,), name=f"association {port}", daemon=True
        )
        with self._changed:
            pending = [other for other in self._guests if not (other.is_admitted or other.is_dismissed)]
            self._guests.append(guest)
        if len(pending) >= _PENDING:
            dismissed = _least_deserving(pending)
            dismissed.is_dismissed = True
            dismissed.connection.hang_up()
        try:
            guest.thread.start()
        except BaseException:
            self._farewell(guest)
            raise

    # The threads of associations

    def _entertain(self, guest: _Guest) -> None:
        try:
            guest.association.run()
        finally:
            self._farewell(guest)

    def _farewell(self, guest: _Guest) -> None:
        with self._changed:
            self._guests.remove(guest)
            if guest.is_admitted:
                self._admission.leave(guest.address)
            self._changed.notify_all()

    def _judge(self, guest: _Guest, request: Request) -> Refusal | None:
        """Give the peer a place, or say why it gets none."""
        refusal = self._access.refusal(request.calling, request.called, guest.address)
        if refusal is not None:
            return refusal
        with self._changed:
            if self._draining:
                return Refusal(2, 3, 1, "shutting down", logging.INFO)
            refusal = self._admission.admit(guest.address)
            guest.is_admitted = refusal is None
        return refusal


def _least_deserving(pending: Sequence[_Guest]) -> _Guest:
    """The oldest of the address that has most of them, so that others are not driven out by it."""
    crowd, _ = Counter(guest.address for guest in pending).most_common(1)[0]
    return next(guest for guest in pending if guest.address == crowd)


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or "0.0.0.0",  # noqa: S104  scanners are other machines
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and host == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        raise UsageError(_cannot_listen(host, port, error)) from error
    return listener


def _cannot_listen(host: str, port: int, error: Exception) -> str:
    place = f"{host or 'all addresses'} port {port}"
    number = error.errno if isinstance(error, OSError) else None
    remedies: dict[int, str] = {
        errno.EADDRINUSE: "another program listens there; stop it or choose another --port",
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; choose another --port",
        errno.EADDRNOTAVAIL: "this machine has no such address; choose another --host",
    }
    what = error.strerror if isinstance(error, OSError) and error.strerror else "no such address"
    return f"cannot listen on {place}: {remedies.get(number or 0, what)}"
