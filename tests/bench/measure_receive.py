"""Images sent by DCMTK's storescu into dicomfs, into DCMTK's storescp and into Orthanc.

dicomfs and Orthanc make every object durable before they answer; storescp only writes files. All get the
same objects in the same round, with TCP_NODELAY, from the same disk to the same disk.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.images import ImageSet, write_ct, write_mr, write_run
from tests.bench.table import Line, Result, Scale, ended, in_turn
from tests.support import LOCALHOST, command_line, connects, find_tool, free_port, require, running
from tests.system.programs import descendants

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
    pid: int = 0


@dataclass(frozen=True, slots=True)
class _Case:
    what: str
    write: Callable[[Path, int], ImageSet]
    images: int
    senders: int

    @property
    def name(self) -> str:
        return f"{self.images} {self.what}, {self.senders} association{'s' * (self.senders > 1)}"

    @property
    def beside_storescp(self) -> float:
        """The goal beside a receiver that makes nothing durable, and keeps no index."""
        return 3.0 if self.senders == 1 else 4.0


def measure(scale: Scale, scratch: Path) -> Result:
    """One association, and eight at once; then the memory that was needed, and that for a large object."""
    cases = [
        _Case("CT", write_ct, scale.images, 1),
        _Case("CT", write_ct, 2 * scale.images, SENDERS),
        _Case("MR", write_mr, scale.small_images, 1),
        _Case("MR", write_mr, scale.small_images, SENDERS),
    ]
    tools = ("storescp", "Orthanc")
    peers = [name for name in tools if name.lower() not in scale.without and find_tool(name)]
    names = ("dicomfs", *peers)
    lines: list[Line] = []
    (scratch / "stores").mkdir()
    is_spread = _spread(scratch / "stores")
    with _all(names, scratch / "stores") as receivers:
        sent = 0
        for number, case in enumerate(cases):
            images = case.write(scratch / f"sent-{number}", case.images)
            taken = _rounds(scale.rounds, receivers, images, case.senders)
            lines += [
                Line(
                    case.name, taken["dicomfs"], "storescp", taken.get("storescp", []), case.beside_storescp
                ),
                Line(case.name, taken["dicomfs"], "Orthanc", taken.get("Orthanc", []), 0.9, 0.65),
            ]
            # Kept to the end, as all that was received: see `_spread`.
            sent += (scale.rounds + 1) * case.images
        _check(receivers, sent)
        sender = _sender(receivers["dicomfs"], [Path("IMAGE…")])
        commands = [f"TCP_NODELAY=1 {' '.join(sender)}", *(r.command for r in receivers.values())]
        notes = [_SPREAD] if is_spread else []
        notes.append(f"peak memory after all of these: {_peaks(receivers)}")
    shutil.rmtree(scratch / "stores")
    run = write_run(scratch / "run", scale.frames)
    (scratch / "fresh").mkdir()
    with _all(names, scratch / "fresh") as receivers:
        for receiver in receivers.values():
            _send(receiver, [run], 1)
        _check(receivers, 1)
        size = run.stat().st_size / 1e6
        notes.append(f"peak memory for one object of {size:.0f} MB: {_peaks(receivers)}")
    return Result(lines, commands, notes)


_SPREAD = "stores lie in block groups where nothing was deleted before (chattr +T on the folder above them)"


def _spread(folder: Path) -> bool:
    """Have the file system put what is made in this folder far from all else; False where it cannot.

    ext4 does not give out an inode again for some minutes after it was deleted, and at each creation looks
    through all such inodes of the block group: where earlier runs, or other programs, have deleted thousands
    of files, a creation takes many times as long. An archive deletes nothing.
    """
    chattr = find_tool("chattr")
    return (
        chattr is not None
        and not subprocess.run([chattr, "+T", folder], stderr=subprocess.DEVNULL, check=False).returncode
    )


@contextmanager
def _all(names: Sequence[str], folder: Path) -> Iterator[dict[str, _Receiver]]:
    starters = {"dicomfs": _dicomfs, "storescp": _storescp, "Orthanc": _orthanc}
    with ExitStack() as stack:
        # ext4 chooses the block group by the name (see `_spread`): not that of a run a minute ago.
        yield {
            name: stack.enter_context(starters[name](folder / f"{name.lower()}-{secrets.token_hex(4)}"))
            for name in names
        }


def _peaks(receivers: dict[str, _Receiver]) -> str:
    """Largest resident size of each and its child; storescp's children, which do its work, are gone."""
    return ", ".join(
        f"{name} {' + '.join(f'{_peak_mb(pid):.0f}' for pid in _with_children(receiver.pid))} MB"
        for name, receiver in receivers.items()
        if name != "storescp"
    )


def _with_children(pid: int) -> list[int]:
    return [pid, *(process.pid for process in descendants(pid))]


def _peak_mb(pid: int) -> float:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0


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
    codes = [ended(process, 300) for process in processes]
    if any(codes):
        raise RuntimeError(f"storescu to {receiver.aet} ended with {codes}")


def _check(receivers: dict[str, _Receiver], wanted: int) -> None:
    """Nobody was fast by dropping something."""
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
    log, what = folder / "log", f"{receiver.aet} answers"
    with running(argv, log, ready, what, env=_NO_DELAY, seconds=60) as program:
        yield replace(receiver, pid=program.process.pid)
