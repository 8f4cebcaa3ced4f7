"""A small disk fills up while several senders send: nothing acknowledged is lost; it goes on by itself."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dicomfs.ingest import Ingest
from dicomfs.scp import StorageSCP
from tests.disk import Disk, disk
from tests.made import data_set, save
from tests.stored import contents
from tests.support import LOCALHOST, require
from tests.system.programs import NO_DELAY, acknowledged, original

DISK_BYTES = 32 << 20
LEFT_BYTES = 3 << 20
"""More than the small objects, less than they and what the index's log needs for their rows."""
WATERMARK_BYTES = 1 << 20
SETS = ((40, (16, 16)), (40, (16, 16)), (6, (512, 512)))
"""Of each sender: how many images, and their sides in pixels."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path, DISK_BYTES) as made:
        yield made


def _images(folder: Path) -> list[list[Path]]:
    sets = []
    for sender, (count, sides) in enumerate(SETS):
        sets.append([folder / f"{sender}-{number}" for number in range(count)])
        for number, path in enumerate(sets[-1]):
            pixels = np.full(sides, number, np.uint16)
            save(path, data_set(SOPInstanceUID=f"2.25.{sender + 1}9{number}", pixels=pixels))
    return sets


def _send(port: int, sets: list[list[Path]], folder: Path) -> tuple[list[Path], list[str]]:
    """All at once; the files that were acknowledged, and all answers."""
    logs, senders = [], []
    for number, files in enumerate(sets):
        logs.append(folder / f"{number}.log")
        argv = [
            require("storescu"),
            "-v",
            "--no-halt",
            "-aec",
            "DICOMFS",
            LOCALHOST,
            str(port),
            *map(str, files),
        ]
        with logs[-1].open("wb") as said:
            senders.append(subprocess.Popen(argv, stdout=said, stderr=subprocess.STDOUT, env=NO_DELAY))
    for sender in senders:
        sender.wait(60)
    answers = [answer for log in logs for answer in re.findall(r"Store Response \((.*)\)", log.read_text())]
    return [path for log in logs for path in acknowledged(log)], answers


def _fill(disk: Disk, store: Path) -> Path:
    """A file that leaves little space."""
    ballast = store.with_name("ballast")
    status = os.statvfs(disk.mountpoint)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - LEFT_BYTES)
    return ballast


@pytest.mark.usefixtures("caplog")
@pytest.mark.parametrize("watermark", [0, WATERMARK_BYTES], ids=["to the last byte", "to the watermark"])
def test_full_while_receiving(small: Disk, tmp_path: Path, watermark: int) -> None:
    store = small.mountpoint / "store"
    sets = _images(tmp_path)
    with Ingest.open(store, keep_free=lambda _: watermark) as ingest:
        scp = StorageSCP.start(LOCALHOST, 0, "DICOMFS", ingest)
        ballast = _fill(small, store)
        taken, answers = _send(scp.port, sets, tmp_path)
        assert len(answers) == sum(len(files) for files in sets)
        assert set(answers) == {"Success", "Refused: OutOfResources"}
        digests = {original(path).digest for path in taken}
        now = contents(store)
        assert frozenset(now.rows) == now.archived == digests
        assert now.spool == 0
        ballast.unlink()
        again, answers = _send(scp.port, sets, tmp_path)
        assert set(answers) == {"Success"}
        assert len(again) == sum(len(files) for files in sets)
        scp.stop(5)
    small.lose_power()
    small.restart()
    with Ingest.open(store):
        pass
    now = contents(store)
    assert frozenset(now.rows) == now.archived == {original(path).digest for path in again}
    assert now.spool == 0
