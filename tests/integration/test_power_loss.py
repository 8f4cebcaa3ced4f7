"""What was acknowledged survives a loss of power, not only the death of a process.

`tests/disk.py` says how the power is lost, and why killing a process would prove nothing.
"""

import contextlib
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
from tests.disk import Disk, freeze
from tests.disk import disk as made_disk
from tests.support import require, shipped

OBJECTS = 50
PATIENCE_S = 30.0
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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with made_disk(tmp_path, 128 << 20) as made:
        yield made


@dataclass(frozen=True)
class Receiver:
    """An SCP in a process of its own."""

    port: int
    pid: int


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
    disk.restart()

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
        freeze(receiver.pid)
        disk.lose_power()
        os.kill(receiver.pid, signal.SIGKILL)
        logs = []
        for sender in senders:
            with contextlib.suppress(subprocess.TimeoutExpired):
                logs.append(sender.communicate(timeout=PATIENCE_S)[0])
            sender.kill()
            sender.wait()
    disk.restart()

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
