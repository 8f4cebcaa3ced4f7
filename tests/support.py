"""What tests and the demonstration share: waiting for a condition, real programs, the real command line."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from pydicom.data import get_testdata_file

ROOT = Path(__file__).resolve().parent.parent
LOCALHOST = "127.0.0.1"
POLL_S = 0.05
STOP_S = 45.0
"""Longer than the commands' own limits for a clean stop."""

_ADMIN_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


def lacking(what: str) -> NoReturn:
    """Skip the test because the machine lacks something; a failure when DICOMFS_TEST_REQUIRE is set."""
    if os.environ.get("DICOMFS_TEST_REQUIRE", "") not in ("", "0"):
        pytest.fail(f"{what}, and DICOMFS_TEST_REQUIRE is set", pytrace=False)
    pytest.skip(what)


def require(tool: str) -> str:
    """Path of a program, found in the administrator's folders too; see `lacking` if it is not there."""
    return find_tool(tool) or lacking(f"{tool} is not installed")


def require_fuse() -> None:
    """See `lacking` if nothing can be mounted by this user on this machine."""
    require("fusermount3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        lacking("/dev/fuse is missing or closed to this user")


def shipped(name: str) -> Path:
    """A file of the pydicom or pydicom-data wheel; both are locked, so it is there."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"{name} is in neither wheel"
    return Path(path)


def find_tool(tool: str) -> str | None:
    """Path of a program, found in the administrator's folders too."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:{_ADMIN_FOLDERS}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago; for programs that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return int(probe.getsockname()[1])


def connects(port: int, host: str = LOCALHOST) -> bool:
    """Whether something accepts a TCP connection there."""
    with suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = 20.0, *, poll_seconds: float = POLL_S
) -> None:
    """Poll until `condition()` is true; AssertionError naming `what` when it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(poll_seconds)


def mounted(point: Path) -> bool:
    """Whether a file system is mounted exactly there; never touches the mount."""
    # Not point.resolve(): that asks the mount, and a dead one answers with an error.
    return str(point.parent.resolve() / point.name) in _mount_points()


def _mount_points() -> set[str]:
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    # Space, tab, newline and backslash are written as octal escapes there.
    return {
        line.split(" ")[1]
        .encode("utf-8", "surrogateescape")
        .decode("unicode_escape")
        .encode("latin-1")
        .decode()
        for line in lines
    }


def smbclient(
    port: int, command: str, *, share: str = "dicomfs", cwd: Path | None = None, seconds: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run smbclient commands against a share on 127.0.0.1, as guest, over SMB3, and return what it said.

    smbclient ends with 0 whatever a command met: look for `NT_STATUS_` in the output.
    """
    # The machine's own smb.conf, if any, has no say.
    argv = [require("smbclient"), "--configfile=/dev/null", "--no-pass", "--max-protocol=SMB3"]
    argv += ["--timeout=120", f"--port={port}", f"//{LOCALHOST}/{share}", "--command", command]
    return subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
    )


@dataclass(frozen=True, slots=True)
class Running:
    """A program that runs, and the file that receives all that it says."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        """All that it said so far, both channels."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
        """Like `wait_until`, but fails at once, with its output, when the program has ended."""
        died = False

        def met() -> bool:
            nonlocal died
            if condition():
                return True
            died = self.process.poll() is not None
            return died

        try:
            wait_until(met, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.output()}") from None
        if died:
            raise AssertionError(
                f"ended with {self.process.returncode} before {what}; it said:\n{self.output()}"
            )


@contextmanager
def running(
    argv: Sequence[str | Path],
    log: Path,
    ready: Callable[[], object],
    what: str,
    *,
    seconds: float = 30.0,
    env: Mapping[str, str] | None = None,
    mountpoint: Path | None = None,
) -> Iterator[Running]:
    """Run a program until the end of the block: SIGTERM, SIGKILL to its group if that does not help.

    Enters the block when `ready()` is true. Whatever happened, `mountpoint` is not mounted afterwards.
    Its standard input is a pipe that stays open.
    """
    with log.open("ab") as said:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=ROOT,
            process_group=0,
        )
    try:
        it = Running(process, log)
        it.wait_until(ready, what, seconds)
        yield it
    finally:
        stop(process)
        if mountpoint is not None:
            unmount(mountpoint)


def command_line(*arguments: str | Path) -> list[str]:
    """The real command line, in the interpreter of the tests."""
    return [sys.executable, "-m", "dicomfs.cli", *map(str, arguments)]


def stop(process: subprocess.Popen[bytes], seconds: float = STOP_S) -> int:
    """SIGTERM; after `seconds`, SIGKILL to its group. Returns the exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    return process.returncode


def unmount_idle(mountpoint: Path) -> None:
    """Unmount as an administrator does: who is told that it is busy waits, and tries again.

    For a moment it is: the mount itself looks at its root when it starts, and when it tells what is new.
    """
    said: list[str] = []

    def done() -> bool:
        argv = [require("fusermount3"), "-u", str(mountpoint)]
        ended = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
        said.append(ended.stderr)
        return ended.returncode == 0

    try:
        wait_until(done, f"{mountpoint} unmounted")
    except AssertionError as error:
        raise AssertionError(f"{error}: {said[-1]}") from None


def unmount(mountpoint: Path) -> None:
    """Lazily unmount, if something is mounted there; looks at the mount table only."""
    if mounted(mountpoint):
        subprocess.run(["fusermount3", "-uz", str(mountpoint)], check=False, capture_output=True, timeout=30)


def opened_below(folder: Path) -> list[Path]:
    """Files below a folder that this process has open, by the names that they had."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, as that of the folder is
            path = Path(str(link.readlink()).removesuffix(" (deleted)"))
            if folder in path.parents:
                found.append(path)
    return found
