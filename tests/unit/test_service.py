"""Readiness as a service manager hears it."""

import os
import socket
from pathlib import Path

from dicomfs import service


def test_readiness_reaches_the_service_manager(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(address))
        service.notify(service.READY, {"NOTIFY_SOCKET": os.fspath(address)})
        manager.settimeout(5)
        assert manager.recv(100) == b"READY=1"


def test_an_abstract_address_works_too() -> None:
    name = f"dicomfs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        service.notify(service.STOPPING, {"NOTIFY_SOCKET": "@" + name})
        manager.settimeout(5)
        assert manager.recv(100) == b"STOPPING=1"


def test_nobody_listening_is_no_error(tmp_path: Path) -> None:
    service.notify(service.READY, {"NOTIFY_SOCKET": os.fspath(tmp_path / "gone")})
    service.notify(service.READY, {})
    assert not (tmp_path / "gone").exists()
