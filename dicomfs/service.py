"""What a service owes the machine it runs on: readiness told to systemd. Knows nothing of DICOM."""

import os
import socket
from collections.abc import Mapping
from typing import Final

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"


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
