"""What a service owes the machine it runs on: readiness told to systemd, no orphans. Knows no DICOM."""

import ctypes
import os
import resource
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
PARENT_VARIABLE: Final = "DICOMFS_PARENT"
"""Process id of a `serve` that we are a part of: when it ends, so do we."""
MOST_DESCRIPTORS: Final = 65_536
_PR_SET_PDEATHSIG: Final = 1


def raise_descriptor_limit() -> None:
    """Allow this process as many open files as it may allow itself, up to `MOST_DESCRIPTORS`.

    The usual soft limit of 1 024 is there for programs that use select(2), and is soon reached by senders.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def notify(state: str, environment: Mapping[str, str]) -> None:
    """Tell the service manager our state (sd_notify(3)), if one is listening. Never fails."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), os.fsencode(address))
    except OSError:
        return


def end_with_parent(environment: Mapping[str, str]) -> None:
    """Have the kernel send us SIGTERM when the process named in `PARENT_VARIABLE` ends, however it ends."""
    parent = environment.get(PARENT_VARIABLE, "")
    if parent:
        end_with(int(parent) if parent.isdecimal() else 0, signal.SIGTERM)


def end_with(parent: int, how: signal.Signals) -> None:
    """Have the kernel send us a signal when the thread of this process that has started us ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(how), 0, 0, 0)
    if os.getppid() != parent:  # it ended before we could ask
        raise SystemExit("the process that this was a part of has ended")


def python_path() -> str:
    """`PYTHONPATH` for a process of our own package, which may be where no child looks, as in a test."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
