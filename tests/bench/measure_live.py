"""From the answer to a C-STORE until somebody with the folder open has the name.

Images are sent one by one at a steady rate, most into an exam that is there, some as new exams of a patient:
smbclient's `notify` on both folders prints names as it is told of them, and beside it both are listed
again and again through the mount.
"""

import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE

from dicomfs import samba
from tests.bench.table import Result, Scale
from tests.made import MR_STORAGE
from tests.shared import image
from tests.support import (
    LOCALHOST,
    command_line,
    connects,
    free_port,
    mounted,
    require,
    require_fuse,
    running,
    wait_until,
)

PER_SECOND = 50
NEW_EXAM_EVERY = 10
PATIENT, EXAM = "Doe Jane", "Doe Jane/2024-01-31"
PATIENCE_S = 60.0


@dataclass(slots=True)
class _Times:
    """When (monotonic clock, seconds) each name was answered for, told of and listed first."""

    answered: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    listed: dict[str, float] = field(default_factory=dict)


def measure(scale: Scale, scratch: Path) -> Result:
    """Median and 99th percentile over all arrivals."""
    require_fuse()
    for tool in ("smbd", "smbclient"):
        require(tool)
    mountpoint, times = scratch / "mount", _Times()
    mountpoint.mkdir()
    with ExitStack() as stack:
        send = stack.enter_context(_dicomfs(scratch, mountpoint))
        send(image(0))
        wait_until((mountpoint / EXAM).is_dir, "the exam", PATIENCE_S)
        smbd = samba.prepare(scratch / "smb", mountpoint, free_port())
        ready = lambda: connects(smbd.port)  # noqa: E731  a def would say no more
        stack.enter_context(running(smbd.argv, scratch / "smbd.log", ready, "smbd answers", env=smbd.env))
        stack.enter_context(_notified(smbd.port, EXAM, times.told, (image(n) for n in count(100_000)), send))
        stack.enter_context(_notified(smbd.port, PATIENT, times.told, map(_exam, count(100_000)), send))
        stack.enter_context(_listing([mountpoint / EXAM, mountpoint / PATIENT], times.listed))
        _send_steadily(scale.arrivals, send, times.answered)
        for seen in (times.told, times.listed):
            wait_until(lambda: times.answered.keys() <= seen.keys(), "every name", PATIENCE_S)  # noqa: B023
    command = f"smbclient -c 'notify \"{EXAM}\"' while {PER_SECOND} images a second come in by C-STORE"
    notes = [
        f"from the answer 0000 {what}: {_percentiles(times.answered, seen)}"
        for what, seen in (
            ("until smbclient is told", times.told),
            ("until a fresh listing has it", times.listed),
        )
    ]
    return Result([], [command], notes)


def _percentiles(answered: dict[str, float], seen: dict[str, float]) -> str:
    # A name that was seen before the sender had read its answer took no time.
    seconds = sorted(max(seen[name] - at, 0.0) for name, at in answered.items())
    values = {percent: seconds[math.ceil(len(seconds) * percent / 100) - 1] for percent in (50, 99, 100)}
    return (
        f"median {values[50]:.3f} s, p99 {values[99]:.3f} s, most {values[100]:.3f} s ({len(seconds)} names)"
    )


def _exam(number: int) -> Dataset:
    """The only image of an exam of its own."""
    years, rest = divmod(number, 12 * 28)
    return image(1, day=f"{1900 + years % 2000:04}{rest // 28 + 1:02}{rest % 28 + 1:02}")


def _send_steadily(arrivals: int, send: Callable[[Dataset], None], answered: dict[str, float]) -> None:
    start = time.monotonic()
    for number in range(1, 1 + arrivals):
        time.sleep(max(start + number / PER_SECOND - time.monotonic(), 0))
        is_exam = number % NEW_EXAM_EVERY == 0
        ds = _exam(number) if is_exam else image(number)
        send(ds)
        day = str(ds.StudyDate)
        answered[f"{day[:4]}-{day[4:6]}-{day[6:]}" if is_exam else f"cine_5_{number}.jpg"] = time.monotonic()


@contextmanager
def _dicomfs(scratch: Path, mountpoint: Path) -> Iterator[Callable[[Dataset], None]]:
    """A receiver and a mount; gives a function that sends one data set and returns when it was answered."""
    store, port = scratch / "store", free_port()
    receive = command_line(
        "scp", "--quiet", "--store", store, "--host", LOCALHOST, "--port", str(port), "--open"
    )
    mount = command_line("mount", "--quiet", "--store", store, mountpoint)
    entity = AE()
    entity.add_requested_context(MR_STORAGE, ExplicitVRLittleEndian)
    with ExitStack() as stack:
        answers = lambda: connects(port)  # noqa: E731  a def would say no more
        stack.enter_context(running(receive, scratch / "scp.log", answers, "the receiver answers"))
        is_there = lambda: mounted(mountpoint)  # noqa: E731  a def would say no more
        stack.enter_context(
            running(mount, scratch / "mount.log", is_there, "the mount", mountpoint=mountpoint)
        )
        association = entity.associate(LOCALHOST, port, ae_title="DICOMFS")
        stack.callback(association.release)

        def send(ds: Dataset) -> None:
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            status = association.send_c_store(ds)
            if status.get("Status") != 0:
                raise RuntimeError(f"an image was answered with {status}")

        yield send


@contextmanager
def _notified(
    port: int,
    folder: str,
    told: dict[str, float],
    probes: Iterator[Dataset],
    send: Callable[[Dataset], None],
) -> Iterator[None]:
    """smbclient with a folder open; it does not say when it has begun to listen, so it is sent probes."""
    argv = ["stdbuf", "--output=L", require("smbclient"), "--configfile=/dev/null", "--no-pass"]
    argv += ["--max-protocol=SMB3", f"--port={port}", f"//{LOCALHOST}/dicomfs", "-c", f'notify "{folder}"']
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    heard = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            action, _, name = line.strip().partition(" ")
            if action == "0001":
                told.setdefault(name, time.monotonic())
                heard.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:

        def is_told() -> bool:
            send(next(probes))
            return heard.wait(0.5)

        wait_until(is_told, f"smbclient to be told of {folder}", PATIENCE_S)
        yield
    finally:
        process.kill()
        process.wait()
        reader.join()


@contextmanager
def _listing(folders: Sequence[Path], listed: dict[str, float]) -> Iterator[None]:
    """List folders again and again, and note when each name is there first."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(0.01):
            for folder in folders:
                names = [path.name for path in folder.iterdir()]
                now = time.monotonic()
                for name in names:
                    listed.setdefault(name, now)

    lister = threading.Thread(target=run, daemon=True)
    lister.start()
    try:
        yield
    finally:
        done.set()
        lister.join()
