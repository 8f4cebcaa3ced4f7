"""What was acknowledged survives a loss of power, not only the death of a process.

A process that is killed leaves its writes in the kernel's cache, so killing one proves nothing about fsync.
Here the file system itself is shut down at once, without writing its journal (EXT4_IOC_SHUTDOWN), and what
a machine would find after its restart is what the next mount finds. The receiver is stopped before that, as
a loss of power would: the kernel may tell a process that goes on that its data is safe when it is not, if
the shutdown comes in the middle of an fsync (the transaction is then neither running nor being committed).
"""

import contextlib
import fcntl
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import UID

from dicomfs.ingest import Ingest
from tests.support import lacking, require, shipped

OBJECTS = 50
PATIENCE_S = 30.0
EXT4_IOC_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
"""_IOR('X', 125, __u32), fs/ext4/ext4.h"""
NO_LOG_FLUSH = 2

SERVICE = """
import sys, logging
from pathlib import Path
from dicomfs.ingest import Ingest
from dicomfs.scp import StorageSCP
ingest = Ingest.open(Path(sys.argv[1]))
scp = StorageSCP.start("127.0.0.1", 0, "DICOMFS", ingest)
print("port", scp.port, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Disk:
    """An ext4 file system in an image file."""

    image: Path
    mountpoint: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.mountpoint], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.mountpoint], check=True)

    def lose_power(self) -> None:
        fd = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH.to_bytes(4, sys.byteorder))
        finally:
            os.close(fd)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mkfs = require("mkfs.ext4")
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        lacking("a loop mount needs root and loop devices")
    made = Disk(tmp_path / "image", tmp_path / "disk")
    made.mountpoint.mkdir()
    with made.image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run([mkfs, "-q", made.image], check=True)
    made.mount()
    try:
        yield made
    finally:
        while os.path.ismount(made.mountpoint):
            made.unmount()


@dataclass(frozen=True)
class Receiver:
    """An SCP in a process of its own."""

    port: int
    pid: int

    def freeze(self) -> None:
        """Nothing of it goes on in user space: what it is doing in the kernel at most comes to its end."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE_S
        while not self._states() <= {"T", "D"}:
            assert time.monotonic() < deadline

    def _states(self) -> set[str]:
        found = set()
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has just ended
                found.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
        return found


@contextlib.contextmanager
def service(store: Path) -> Iterator[Receiver]:
    """Killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield Receiver(int(process.stdout.readline().split()[1]), process.pid)
        finally:
            process.kill()


def objects(folder: Path) -> dict[str, str]:
    """OBJECTS different CT images as files; SOP Instance UID to digest of the pixel data."""
    template = shipped("CT_small.dcm")
    made: dict[str, str] = {}
    for number in range(OBJECTS):
        ds = pydicom.dcmread(template)
        uid = UID(f"1.2.826.0.1.3680043.8.498.7.{number + 1}")
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
        ds.InstanceNumber = number + 1
        ds.PixelData = bytes(byte ^ number for byte in ds.PixelData)
        ds.save_as(folder / f"{number:03}.dcm")
        made[uid] = sha256(ds.PixelData).hexdigest()
    return made


def found(store: Path) -> dict[str, str]:
    """The same of a store's archive, as far as its files can be read; each named by its true content."""
    made: dict[str, str] = {}
    for path in store.glob("archive/*/*.dcm"):
        ds = pydicom.dcmread(path)
        raw = path.read_bytes()
        data_set = raw[144 + int.from_bytes(raw[140:144], "little") :]
        content = sha256(ds.file_meta.TransferSyntaxUID.encode() + b"\0" + data_set).hexdigest()
        assert path.stem.split("-")[0] == content
        made[str(ds.SOPInstanceUID)] = sha256(ds.PixelData).hexdigest()
    return made


def indexed(store: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(store / "index.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [
            uid
            for (uid,) in connection.execute(
                "SELECT sop_uid FROM instances JOIN originals ON originals.instance = instances.id"
            )
        ]


def test_every_acknowledged_object_survives_a_power_loss(disk: Disk, tmp_path: Path) -> None:
    require("storescu")
    folder = tmp_path / "sent"
    folder.mkdir()
    sent = objects(folder)
    store = disk.mountpoint / "store"
    with service(store) as receiver:
        done = subprocess.run(
            ["storescu", "-v", "-aec", "DICOMFS", "+sd", "127.0.0.1", str(receiver.port), folder],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env=os.environ | {"TCP_NODELAY": "1"},
        )
        unsynced = disk.mountpoint / "unsynced"
        unsynced.write_bytes(bytes(range(256)) * 64)
        disk.lose_power()
    acknowledged = re.findall(r"Received Store Response \((.*)\)", done.stdout + done.stderr)
    assert acknowledged == ["Success"] * OBJECTS
    disk.unmount()
    disk.mount()

    assert not unsynced.exists() or unsynced.read_bytes() != bytes(range(256)) * 64, "the simulation bites"
    with Ingest.open(store):
        pass
    assert found(store) == sent
    assert sorted(indexed(store)) == sorted(sent)


def test_power_loss_in_the_middle_keeps_what_was_acknowledged(disk: Disk, tmp_path: Path) -> None:
    """Four senders at full speed; the loss comes between two arbitrary steps of whatever is under way."""
    require("storescu")
    folders = [tmp_path / f"sent{n}" for n in range(4)]
    for folder in folders:
        folder.mkdir()
    sent = objects(folders[0])
    for number, path in enumerate(sorted(folders[0].iterdir())):
        path.rename(folders[number % 4] / path.name)
    store = disk.mountpoint / "store"
    with service(store) as receiver:
        senders = [
            subprocess.Popen(
                ["storescu", "-v", "-aec", "DICOMFS", "+sd", "127.0.0.1", str(receiver.port), folder],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"TCP_NODELAY": "1"},
            )
            for folder in folders
        ]
        deadline = time.monotonic() + PATIENCE_S
        while len(list(store.glob("archive/*/*.dcm"))) < OBJECTS // 4:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        receiver.freeze()
        disk.lose_power()
        os.kill(receiver.pid, signal.SIGKILL)
        logs = []
        for sender in senders:
            with contextlib.suppress(subprocess.TimeoutExpired):
                logs.append(sender.communicate(timeout=PATIENCE_S)[0])
            sender.kill()
            sender.wait()
    disk.unmount()
    disk.mount()

    acknowledged = set()
    for log in logs:
        for path, answer in re.findall(
            r"Sending file: (\S+)(?:(?!Sending file)[\s\S])*?Store Response \((.*)\)", log
        ):
            if answer == "Success":
                acknowledged.add(str(pydicom.dcmread(path).SOPInstanceUID))
    assert len(acknowledged) >= 1
    with Ingest.open(store):
        pass
    rows = indexed(store)
    survivors = found(store)
    assert acknowledged <= set(rows)
    assert len(rows) == len(set(rows))
    assert {uid: survivors.get(uid) for uid in rows} == {uid: sent[uid] for uid in rows}
