"""Readiness as a service manager hears it."""

import os
import resource
import socket
import subprocess
import sys
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


RAISE = """
import resource
from dicomfs import service
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
service.raise_descriptor_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_descriptor_limit_is_raised_as_far_as_allowed() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for hard, expected in ((200, 200), (most, service.MOST_DESCRIPTORS)):
        said = subprocess.check_output([sys.executable, "-c", RAISE.format(hard=hard)], text=True)
        soft = int(said.split()[0])
        assert soft == (expected if most == resource.RLIM_INFINITY else min(expected, most))
