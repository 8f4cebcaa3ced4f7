"""A disk that loses its power: an ext4 file system in an image file, shut down without writing its journal.

A process that is killed leaves its writes in the kernel's cache, so killing one proves nothing about fsync.
Here the file system itself is shut down at once (EXT4_IOC_SHUTDOWN), and what a machine would find after its
restart is what the next mount finds. Whoever writes has to be frozen before that, as a loss of power would
do: the kernel may tell a process that goes on that its data is safe when it is not, if the shutdown comes in
the middle of an fsync (the transaction is then neither running nor being committed).
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support import lacking, require, wait_until

_EXT4_IOC_SHUTDOWN: Final = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
"""_IOR('X', 125, __u32), fs/ext4/ext4.h"""
_NO_LOG_FLUSH: Final = 2


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted file system; see `disk`."""

    image: Path
    mountpoint: Path

    def mount(self) -> None:
        """After a power loss: with what its journal has."""
        subprocess.run(["mount", "-o", "loop", self.image, self.mountpoint], check=True)

    def unmount(self) -> None:
        """Nothing may be open there."""
        subprocess.run(["umount", self.mountpoint], check=True)

    def lose_power(self) -> None:
        """From now on nothing reaches the disk; every call fails."""
        fd = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, _NO_LOG_FLUSH.to_bytes(4, sys.byteorder))
        finally:
            os.close(fd)

    def restart(self) -> None:
        """What a machine does when the power is back.

        A copy is mounted: whoever has the mount in a name space of his own keeps the one that was shut down.
        """
        copy = self.image.with_name("copy")
        subprocess.run(["cp", "--sparse=always", self.image, copy], check=True)
        self.unmount()
        copy.replace(self.image)
        self.mount()


@contextlib.contextmanager
def disk(folder: Path, size_bytes: int) -> Iterator[Disk]:
    """A new file system, its image in `folder`; unmounted at the end. Skips where that cannot be done."""
    mkfs = require("mkfs.ext4")
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        lacking("a loop mount needs root and loop devices")
    made = Disk(folder / "image", folder / "disk")
    made.mountpoint.mkdir()
    with made.image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([mkfs, "-q", made.image], check=True)
    made.mount()
    try:
        yield made
    finally:
        while os.path.ismount(made.mountpoint):
            made.unmount()
        made.image.unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 2 MiB in memory, mounted in `folder` to the end. Skips where that cannot be done."""
    mountpoint = folder / "small"
    mountpoint.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "dicomfs-test", str(mountpoint)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lacking(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "--lazy", str(mountpoint)], check=True)


def fill(disk: Path) -> None:
    """To its last byte."""
    with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def freeze(pid: int) -> None:
    """Nothing of a process goes on in user space: what it does in the kernel at most comes to its end."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: states(pid) <= {"T", "D", "Z"}, f"process {pid} stands still")


def states(pid: int) -> set[str]:
    """What each thread of a process does, as /proc/PID/stat has it: R, S, D, T (stopped), Z (ended)."""
    found = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # this thread has
                found.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return found
