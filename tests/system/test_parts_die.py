"""`serve` and its parts: whichever is killed, nothing is left running, mounted or lying about."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dicomfs.serve import MOST_REVIVALS
from tests.smb import client
from tests.support import mounted, wait_until
from tests.system.programs import (
    Process,
    Served,
    alive,
    descendants,
    named,
    series,
    serving,
    storescu,
)

PARTS = {
    "the receiver (scp)": re.compile(r"dicomfs\.cli scp "),
    "the mount": re.compile(r"dicomfs\.cli mount "),
    "smbd": re.compile(r"smbd --foreground"),
}
PATIENCE_S = 30.0


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short path: smbd makes sockets in it."""
    with tempfile.TemporaryDirectory(prefix="dicomfs-test-") as folder:
        yield Path(folder).resolve()


def part(served: Served, name: str) -> Process:
    """The process that is this part: a child of `serve`."""
    children = descendants(served.running.process.pid)
    return next(it for it in children if PARTS[name].search(" ".join(it.words)))


def work(served: Served, scratch: Path) -> list[Process]:
    """Have every part do something; returns all processes there are then, `serve` left out."""
    storescu(served.port, *series(scratch / "sent", 3))
    wait_until(lambda: served.smb("recurse ON; ls").count(".jpg ") == 3, "the pictures over SMB")
    processes = descendants(served.running.process.pid)
    assert len(processes) > len(PARTS)  # there are render processes too
    return processes


@pytest.mark.parametrize("name", sorted(PARTS.keys() - {"the mount"}))
def test_a_part_that_dies_takes_everything_along(scratch: Path, name: str) -> None:
    with serving(scratch) as served:
        processes = work(served, scratch)
        os.kill(part(served, name).pid, signal.SIGKILL)
        assert served.running.process.wait(PATIENCE_S) == 1
        assert f"{name} was killed by SIGKILL" in served.running.output()
        assert "Traceback" not in served.running.output()
        # Below the receiver and smbd are processes that end when they see that it is gone.
        wait_until(lambda: not alive(processes), "all parts have ended", PATIENCE_S)
        assert not mounted(served.mount)
        assert list(served.temporary.iterdir()) == []


def test_a_mount_that_dies_comes_back_for_open_sessions_too(scratch: Path) -> None:
    with serving(scratch) as served, client(served.smb_port, "dicomfs") as smb:
        others = [part(served, name) for name in PARTS if name != "the mount"]
        storescu(served.port, *series(scratch / "sent", 2))
        wait_until(lambda: smb.names() == ["Beat Heart"], "the patient over SMB")
        with smb.watch("") as told:
            os.kill(part(served, "the mount").pid, signal.SIGKILL)
            served.running.wait_until(
                lambda: "the mount answers again" in served.running.output(), "another mount", PATIENCE_S
            )
            assert told.names("added") == []
        assert alive(others) == others
        # The same connection and session; Windows connects to the share by itself.
        smb.reconnect()
        wait_until(lambda: len(smb.names("Beat Heart/2024-02-29")) == 2, "both images")
        with smb.watch("") as told:
            storescu(served.port, named(scratch / "late.dcm", "Late^Comer", patient_id="L"))
            wait_until(lambda: told.names("added") == ["Late Comer"], "it is told again")
        assert "Traceback" not in served.running.output()


def revived_or_over(served: Served, times: int) -> bool:
    return (
        served.running.output().count("the mount answers again") == times
        or served.running.process.poll() is not None
    )


def test_a_mount_that_cannot_live_takes_everything_along(scratch: Path) -> None:
    with serving(scratch) as served:
        process = served.running.process
        for deaths in range(1, MOST_REVIVALS + 2):
            os.kill(part(served, "the mount").pid, signal.SIGKILL)
            wait_until(partial(revived_or_over, served, deaths), "another mount", PATIENCE_S)
        assert process.wait(PATIENCE_S) == 1
        assert "the mount was killed by SIGKILL; everything else" in served.running.output()
        assert not mounted(served.mount)


def test_parts_leave_the_group_of_their_caller_alone(scratch: Path) -> None:
    """smbd ends its whole process group; that of a script which runs `serve` must be another one."""
    with serving(scratch) as served:
        group = os.getpgid(served.running.process.pid)
        groups = {name: os.getpgid(part(served, name).pid) for name in PARTS}
        assert group not in groups.values()
        assert len(set(groups.values())) == len(PARTS)
        bystander = subprocess.Popen(["sleep", "600"], process_group=group)
        try:
            served.running.process.terminate()
            assert served.running.process.wait(PATIENCE_S) == 0
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_parts_cleanly(scratch: Path, number: signal.Signals) -> None:
    with serving(scratch) as served:
        processes = work(served, scratch)
        served.running.process.send_signal(number)
        assert served.running.process.wait(PATIENCE_S) == 0
        wait_until(lambda: not alive(processes), "all parts have ended", PATIENCE_S)
        assert not mounted(served.mount)
        assert list(served.temporary.iterdir()) == []
        said = served.running.output()
        assert "Traceback" not in said
        assert " ERROR " not in said


def test_serve_killed_leaves_no_process_and_no_mount(scratch: Path) -> None:
    with serving(scratch) as served:
        processes = work(served, scratch)
        served.running.process.kill()
        wait_until(lambda: not alive(processes), "all parts have ended", PATIENCE_S)
        assert not mounted(served.mount)
    # What it leaves is out of the way of the next one.
    with serving(scratch) as served:
        assert served.smb("recurse ON; ls").count(".jpg ") == 3
