"""A whole session of a sender, its bytes changed at random: the receiver neither hangs, crashes nor leaks."""

import logging
import os
import random
import socket
import struct
import threading
import warnings
from pathlib import Path
from typing import Self

import pytest

from dicomfs.association import Limits
from dicomfs.ingest import Ingest
from dicomfs.scp import StorageSCP
from tests.integration.test_scp import EXPLICIT, MR, Wire, synthetic
from tests.support import LOCALHOST, wait_until

CASES = int(os.environ.get("DICOMFS_FUZZ_CASES", "400"))
PATIENCE_S = 20.0
LENGTHS = (0, 1, 5, 70_000, 0x7FFFFFFF, 0xFFFFFFFF)


class Recorder:
    """A socket that keeps what is sent."""

    def __init__(self, inner: socket.socket) -> None:
        self.inner = inner
        self.sent = b""

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.close()

    def sendall(self, data: bytes) -> None:
        self.sent += data
        self.inner.sendall(data)


def recorded(port: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Association request, a C-STORE in several fragments, release."""
    one = synthetic("1.2.826.0.1.3680043.8.498.200")
    connect = socket.create_connection
    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_connection", lambda *a, **k: Recorder(connect(*a, **k)))
        with Wire(port, [(MR, [EXPLICIT])]) as wire:
            assert wire.store(one.data_set, MR, one.sop_uid) == (0, "")
            recorder = wire.socket
    assert isinstance(recorder, Recorder)
    return recorder.sent


def harmed(whole: bytes, dice: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        # Half of them where the lengths and items are.
        at = dice.randrange(len(data) if dice.random() < 0.5 else min(600, len(data)))
        match dice.randrange(10):
            case 0:
                del data[at : at + dice.randrange(1, 30)]
            case 1:
                data[at:at] = dice.randbytes(dice.randrange(1, 30))
            case 2:
                del data[at + 1 :]
            case 3:
                data[at : at + 4] = struct.pack(">L", dice.choice(LENGTHS))
            case 4:
                data[at : at + 4] = struct.pack("<L", dice.choice(LENGTHS))
            case _:
                data[at] = dice.randrange(256)
        data = data or bytearray(1)
    return bytes(data)


def send(port: int, data: bytes, *, stay: bool) -> None:
    """Returns when the receiver has hung up, if the sender stays for that."""
    try:
        with socket.create_connection((LOCALHOST, port), timeout=PATIENCE_S) as connection:
            connection.sendall(data)
            while stay and connection.recv(65_536):
                pass
    except ConnectionError:
        pass  # it hung up before everything was sent; a time-out is not caught


def descriptors_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_changed_bytes_neither_hang_nor_crash_nor_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    limits = Limits(associations=64, of_one_address=64, handshake_s=0.2, idle_s=0.2, stall_s=0.2)
    dice = random.Random(20_241_124)
    with warnings.catch_warnings(action="ignore"), Ingest.open(tmp_path) as ingest:
        scp = StorageSCP.start(LOCALHOST, 0, "DICOMFS", ingest, limits=limits)
        try:
            whole = recorded(scp.port, monkeypatch)
            wait_until(lambda: not scp.connections, "the recorded sender's end")
            descriptors, threads = descriptors_open(), threading.active_count()
            for _ in range(CASES):
                send(scp.port, harmed(whole, dice), stay=dice.random() < 0.5)
            wait_until(lambda: not scp.connections, "the end of all connections")
            # Threads that flush files are started when they are first needed, and stay.
            assert threading.active_count() <= threads + 8
            assert descriptors_open() <= descriptors + 2
            good = synthetic("1.2.826.0.1.3680043.8.498.201")
            with Wire(scp.port, [(MR, [EXPLICIT])]) as wire:
                assert wire.store(good.data_set, MR, good.sop_uid) == (0, "")
        finally:
            scp.stop(drain_seconds=5)
    assert not list((tmp_path / "incoming").iterdir())
    assert "internal error" not in caplog.text
