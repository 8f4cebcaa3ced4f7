"""Peers that are slow, silent, deaf or dead: they give their places back, and others are served meanwhile."""

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dicomfs.association import Limits
from dicomfs.scp import StorageSCP
from dicomfs.tls import Certificates
from tests.certificates import Authority
from tests.integration.test_scp import (
    COMMAND,
    DATA,
    EXPLICIT,
    IMPLICIT,
    MR,
    PATIENCE_S,
    VERIFICATION,
    Scripted,
    Wire,
    scripted,
)
from tests.support import ROOT, lacking, require, wait_until

PDV_OF_ONE_BYTE = struct.pack(">BBLLBB", 4, 0, 7, 3, 1, DATA) + b"x"
CROWD = 300


def descriptors_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def nothing_left(scp: StorageSCP) -> Iterator[None]:
    """After the block neither connections nor threads nor descriptors are more than before."""
    threads, descriptors = threading.active_count(), descriptors_open()
    yield
    wait_until(lambda: not scp.connections, "the end of all connections")
    wait_until(lambda: threading.active_count() <= threads, "the end of their threads")
    wait_until(lambda: descriptors_open() <= descriptors, "the end of their descriptors")


def check_all_places(port: int, places: int) -> None:
    """So many can be in at once, and are served."""
    with contextlib.ExitStack() as stack:
        for _ in range(places):
            wire = stack.enter_context(Wire(port, [(MR, [EXPLICIT])]))
            assert wire.store(b"bytes", MR, "1.2.3") == (0, "")


# A byte now and then


def trickle(connection: socket.socket, piece: bytes) -> None:
    """Send a piece of bytes now and then until the other side hangs up or tells us to go."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if select.select([connection], [], [], 0.05)[0]:
            return
        try:
            connection.sendall(piece)
        except OSError:
            return
    raise AssertionError("nobody hung up")


def _as_request(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"\x01\0\0\0\x40\0")
        trickle(slow, b"\0")


def _in_a_command(port: int) -> None:
    with Wire(port, [(MR, [EXPLICIT])]) as wire, wire.socket as slow:
        trickle(slow, struct.pack(">BBLLBB", 4, 0, 7, 3, 1, COMMAND) + b"\0")


def _in_a_data_set(port: int) -> None:
    with Wire(port, [(MR, [EXPLICIT])]) as wire, wire.socket as slow:
        wire.send_command(0, MR, "1.2.3")
        trickle(slow, PDV_OF_ONE_BYTE)


def _in_a_pdu(port: int) -> None:
    with Wire(port, [(MR, [EXPLICIT])]) as wire, wire.socket as slow:
        wire.send_command(0, MR, "1.2.3")
        slow.sendall(struct.pack(">BBLLBB", 4, 0, 10_006, 10_002, 1, DATA))
        trickle(slow, b"x")


@pytest.mark.parametrize("slowly", [_as_request, _in_a_command, _in_a_data_set, _in_a_pdu])
@pytest.mark.filterwarnings("error")
def test_byte_now_and_then_holds_no_place(
    caplog: pytest.LogCaptureFixture, slowly: Callable[[int], None]
) -> None:
    # Between two messages, time does not run out: what ends the trickle is its slowness.
    limits = Limits(associations=2, handshake_s=0.3, stall_s=0.3, idle_s=300)
    with scripted(Scripted(), limits) as scp, nothing_left(scp):
        peers = [threading.Thread(target=slowly, args=(scp.port,)) for _ in range(2)]
        for peer in peers:
            peer.start()
        for peer in peers:
            peer.join(PATIENCE_S)
            assert not peer.is_alive()
        wait_until(lambda: not scp.associations, "the end of the slow ones")
        check_all_places(scp.port, 2)
    assert caplog.text.count("was given up") == 2


def test_byte_now_and_then_in_the_tls_handshake(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    pair = Authority(tmp_path).sign("archive")
    limits = Limits(associations=1, handshake_s=0.5)
    scp = StorageSCP.start(
        "127.0.0.1",
        0,
        "DICOMFS",
        Scripted(),  # type: ignore[arg-type]  # takes any sequence of parts
        limits=limits,
        certificates=Certificates(pair.certificate, pair.key),
    )
    try:
        with nothing_left(scp), socket.create_connection(("127.0.0.1", scp.port)) as slow:
            slow.sendall(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03")
            trickle(slow, b"\0")
    finally:
        scp.stop(drain_seconds=5)
    assert "the TLS handshake was not finished in time" in caplog.text


def is_cut_off(connection: socket.socket, data: bytes) -> bool:
    """Send for a moment, never read; True when that cannot be done any more."""
    connection.settimeout(0.1)
    try:
        connection.sendall(data)
    except TimeoutError:
        return False  # half a request more: nobody reads on
    except OSError:
        return True
    return False


# Silent crowds, deaf peers


def test_hundreds_that_say_nothing_take_no_place(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(associations=3, handshake_s=300)
    with scripted(Scripted(), limits) as scp, nothing_left(scp), contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(socket.create_connection(("127.0.0.1", scp.port), timeout=PATIENCE_S))
        check_all_places(scp.port, 3)
        wait_until(lambda: scp.connections <= 64, "the end of those who had to go")
        # Those who stay are still connected, and still keep nobody out.
        check_all_places(scp.port, 3)


def test_crowd_of_one_address_drives_out_its_own(expected_warnings: list[object]) -> None:
    with scripted(Scripted(), Limits(handshake_s=300)) as scp, contextlib.ExitStack() as stack:
        quiet = stack.enter_context(
            socket.create_connection(("127.0.0.1", scp.port), PATIENCE_S, ("127.0.0.2", 0))
        )
        wait_until(lambda: scp.connections == 1, "the quiet one")
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", scp.port), timeout=PATIENCE_S))
        wait_until(lambda: scp.connections >= 64, "the crowd")
        check_all_places(scp.port, 1)
        quiet.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            quiet.recv(1)  # nobody has hung up on it
        quiet.sendall(b"GET / HTTP/1.1\r\n")


def test_peer_that_never_reads_our_answers_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    with scripted(Scripted(), Limits(associations=1, stall_s=0.5)) as scp, nothing_left(scp):
        with Wire(scp.port, [(VERIFICATION, [IMPLICIT])]) as wire, wire.socket as deaf:
            command = b"\0\0\0\1\2\0\0\0\x30\0\0\0\x10\1\2\0\0\0\7\0\0\0\0\x08\2\0\0\0\1\1"
            echo = struct.pack(">BBLLBB", 4, 0, len(command) + 6, len(command) + 2, 1, COMMAND | 2) + command
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that it comes soon
            wait_until(lambda: is_cut_off(deaf, echo * 1000), "the end of our patience")
        wait_until(lambda: not scp.associations, "its place")
        check_all_places(scp.port, 1)
    assert "the peer takes no answer, and was given up" in caplog.text


# Peers that are dead


@dataclass(frozen=True)
class Cable:
    """A network name space, and the cable to it."""

    name: str
    ours: str

    def run(self, *words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    def inside(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def pull(self) -> None:
        """No packet goes through any more, and nobody is told."""
        self.run("ip", "-n", self.name, "link", "set", "peer", "down")


@pytest.fixture
def cable() -> Iterator[Cable]:
    require("ip")
    if os.geteuid() != 0:
        lacking("only root can make a network name space")
    name, link = f"dicomfs-{os.getpid()}", f"dcm{os.getpid()}"
    one = Cable(name, "198.51.100.1")
    if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode:
        lacking("no network name space can be made here")
    try:
        one.run("ip", "link", "add", link, "type", "veth", "peer", "name", "peer", "netns", name)
        one.run("ip", "addr", "add", f"{one.ours}/30", "dev", link)
        one.run("ip", "link", "set", link, "up")
        one.run("ip", "-n", name, "addr", "add", "198.51.100.2/30", "dev", "peer")
        one.run("ip", "-n", name, "link", "set", "peer", "up")
        yield one
    finally:
        for words in (["link", "delete", link], ["netns", "delete", name]):
            subprocess.run(["ip", *words], check=False, capture_output=True)


PEER = """
import sys
from tests.integration.test_scp import *
connect = socket.create_connection
socket.create_connection = lambda address, **options: connect((sys.argv[1], address[1]), **options)
with Wire(int(sys.argv[2]), [(MR, [EXPLICIT])]) as wire:
    if sys.argv[3] == "inside":
        wire.send_command(0, MR, "1.2.3")
        wire.send_pdv(0, DATA, b"the first half")
    print("connected", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("when", ["between", "inside"])
def test_dead_machine_gives_its_place_back(caplog: pytest.LogCaptureFixture, cable: Cable, when: str) -> None:
    """However long a sender may pause."""
    limits = Limits(associations=1, dead_s=2, idle_s=3600, stall_s=3600)
    scp = StorageSCP.start("0.0.0.0", 0, "DICOMFS", Scripted(), limits=limits)  # type: ignore[arg-type]  # noqa: S104
    try:
        with nothing_left(scp):
            with subprocess.Popen(
                cable.inside(sys.executable, "-c", PEER, cable.ours, str(scp.port), when),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
            ) as peer:
                assert peer.stdout is not None
                try:
                    assert peer.stdout.readline() == b"connected\n"
                    assert scp.associations == 1
                    cable.pull()
                    wait_until(lambda: not scp.associations, "the place of the dead")
                finally:
                    peer.kill()
            check_all_places(scp.port, 1)
    finally:
        scp.stop(drain_seconds=5)
    assert "the peer's machine does not answer any more" in caplog.text
