"""CT images sent by DCMTK's storescu into dicomfs, into DCMTK's storescp and into Orthanc.

dicomfs and Orthanc make every object durable before they answer; storescp only writes files. All get the
same objects in the same round, with TCP_NODELAY, from the same disk to the same disk.
"""

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.images import ImageSet, write_ct
from tests.bench.table import Line, Result, Scale, in_turn
from tests.support import LOCALHOST, command_line, connects, find_tool, free_port, require, running

PDU_BYTES = 131_072
SENDERS = 8
_NO_DELAY = {**os.environ, "TCP_NODELAY": "1"}  # DCMTK's, and so Orthanc's, switch for Nagle's delay


@dataclass(frozen=True, slots=True)
class _Receiver:
    port: int
    aet: str
    command: str
    count: Callable[[], int]
    """Objects it has."""


def measure(scale: Scale, scratch: Path) -> Result:
    """One association, and eight at once."""
    images = write_ct(scratch / "sent", scale.images)
    starters = {"dicomfs": _dicomfs, "storescp": _storescp, "Orthanc": _orthanc}
    tools = {"storescp": "storescp", "Orthanc": "Orthanc"}
    peers = [name for name, tool in tools.items() if name.lower() not in scale.without and find_tool(tool)]
    with ExitStack() as stack:
        receivers = {
            name: stack.enter_context(starters[name](scratch / name.lower())) for name in ("dicomfs", *peers)
        }
        seconds = {
            "1 association": _rounds(scale.rounds, receivers, images, 1),
            f"{SENDERS} associations": _rounds(scale.rounds, receivers, images, SENDERS),
        }
        _check(receivers, images, runs=2 * (scale.rounds + 1))
    lines = [
        Line(f"{case}, {scale.images} images", taken["dicomfs"], peer, taken.get(peer, []))
        for case, taken in seconds.items()
        for peer in tools
    ]
    sender = _sender(receivers["dicomfs"], [Path("IMAGE…")])
    return Result(lines, [f"TCP_NODELAY=1 {' '.join(sender)}", *(r.command for r in receivers.values())])


def _rounds(
    rounds: int, receivers: dict[str, _Receiver], images: ImageSet, senders: int
) -> dict[str, list[float]]:
    work = {
        name: lambda receiver=receiver: _send(receiver, images.paths, senders)
        for name, receiver in receivers.items()
    }
    # The first round of each finds the programs and the images in memory for all that follow.
    in_turn(1, work, images.renew)
    return in_turn(rounds, work, images.renew)


def _sender(receiver: _Receiver, files: list[Path]) -> list[str]:
    argv = ["storescu", "--max-send-pdu", str(PDU_BYTES), "-aec", receiver.aet]
    return [*argv, LOCALHOST, str(receiver.port), *map(str, files)]


def _send(receiver: _Receiver, files: list[Path], senders: int) -> None:
    """Returns when every sender has ended; storescu ends with an error when one object is not taken."""
    share = -(-len(files) // senders)
    parts = [files[start : start + share] for start in range(0, len(files), share)]
    processes = [
        subprocess.Popen(_sender(receiver, part), env=_NO_DELAY, stdin=subprocess.DEVNULL) for part in parts
    ]
    codes = [process.wait(timeout=300) for process in processes]
    if any(codes):
        raise RuntimeError(f"storescu to {receiver.aet} ended with {codes}")


def _check(receivers: dict[str, _Receiver], images: ImageSet, runs: int) -> None:
    """Nobody was fast by dropping something."""
    wanted = runs * len(images.paths)
    for name, receiver in receivers.items():
        if (found := receiver.count()) != wanted:
            raise RuntimeError(f"{name} has {found} objects of {wanted}")


# The receivers


def _dicomfs(folder: Path) -> AbstractContextManager[_Receiver]:
    port = free_port()
    folder.mkdir()
    options = ["--store", folder / "store", "--host", LOCALHOST, "--port", port, "--open", "--quiet"]

    def count() -> int:
        argv = command_line("status", "--json", "--store", folder / "store")
        status = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout)
        return int(status["originals"])

    receiver = _Receiver(port, "DICOMFS", "dicomfs scp --open", count)
    return _running(command_line("scp", *map(str, options)), folder, receiver)


def _storescp(folder: Path) -> AbstractContextManager[_Receiver]:
    port, received = free_port(), folder / "received"
    received.mkdir(parents=True)
    argv = [require("storescp"), "--fork", "-pdu", str(PDU_BYTES), "-od", str(received), str(port)]
    command = f"TCP_NODELAY=1 storescp --fork -pdu {PDU_BYTES}"
    count = lambda: sum(1 for _ in received.iterdir())  # noqa: E731  a def would say no more
    return _running(argv, folder, _Receiver(port, "STORESCP", command, count))


def _orthanc(folder: Path) -> AbstractContextManager[_Receiver]:
    port, http = free_port(), free_port()
    folder.mkdir()
    # Its own defaults where they matter: SQLite index, no compression, synchronised storage.
    configuration = {
        "Name": "bench",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "StorageCompression": False,
        "Plugins": [],
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "DicomAlwaysAllowStore": True,
        "MaximumPduLength": PDU_BYTES,
        "HttpPort": http,
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration), encoding="utf-8")

    def count() -> int:
        with urllib.request.urlopen(f"http://{LOCALHOST}:{http}/statistics", timeout=60) as answer:
            return int(json.load(answer)["CountInstances"])

    return _running(
        [require("Orthanc"), str(path)],
        folder,
        _Receiver(port, "ORTHANC", "TCP_NODELAY=1 Orthanc (MaximumPduLength 131072, else defaults)", count),
    )


@contextmanager
def _running(argv: list[str], folder: Path, receiver: _Receiver) -> Iterator[_Receiver]:
    ready = lambda: connects(receiver.port)  # noqa: E731  a def would say no more
    with running(argv, folder / "log", ready, f"{receiver.aet} answers", env=_NO_DELAY, seconds=60):
        yield receiver
