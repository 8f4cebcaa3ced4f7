"""Where pictures are compared: a store, its mount, the same pictures as files on disk, and an smbd for each.

A store is made once for all benchmarks of a run that ask for the same exams. What a mount knows of sizes is
one file of the store, which is put there as it was in one of these states before each mount:

    unknown     nobody has ever looked
    known       every picture was rendered once; nothing is in memory
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from dicomfs import samba
from dicomfs.renditions import RENDITIONS_NAME
from tests.bench.images import ImageSet, write_ct
from tests.bench.table import Scale
from tests.support import (
    Running,
    command_line,
    connects,
    free_port,
    mounted,
    require_fuse,
    running,
    smbclient,
)

PATIENT: Final = "Measured Often"
FOLDER: Final = f"{PATIENT}/2024-02-29"
"""The exam of `scale.pictures` CT images."""
BESIDE: Final = f"{PATIENT}/2024-03-01"
"""Another one, of few."""
_BESIDE_IMAGES: Final = 40
UNKNOWN, KNOWN = "unknown", "known"

Write = Callable[[Path], ImageSet]
"""Writes the DICOM files of one exam."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount that runs."""

    running: Running

    def told(self) -> str:
        """What it says of itself so far."""
        before = self.running.output().count("so far:")
        self.running.process.send_signal(signal.SIGUSR1)
        self.running.wait_until(lambda: self.running.output().count("so far:") > before, "its figures")
        return self.running.output().rpartition("so far:")[2]

    def jobs(self) -> int:
        """Renders so far, with the few by which a mount finds out how it encodes."""
        found = re.search(r"workers: .*?\bdone=(\d+)", self.told())
        if found is None:
            raise RuntimeError("a mount that does not tell how much it has rendered")
        return int(found[1])

    def longest_stall(self) -> float | None:
        """Seconds for which its event loop did nothing else; None: it does not tell."""
        found = re.search(r"event loop: longest ([\d.]+) ms", self.told())
        return float(found[1]) / 1000 if found else None


@dataclass(frozen=True, slots=True)
class Stage:
    """One store and what belongs to it."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def images(self) -> Path:
        """The DICOM files, a folder for each exam."""
        return self.folder / "images"

    @property
    def point(self) -> Path:
        """Where it is mounted."""
        return self.folder / "mount"

    @property
    def real(self) -> Path:
        """What the mount shows, as files."""
        return self.folder / "real"

    @contextmanager
    def mounted(self, state: str, options: str = "") -> Iterator[Mount]:
        """`dicomfs mount`, new, and what it knows of sizes."""
        for path in self.store.glob(f"{RENDITIONS_NAME}*"):
            path.unlink()
        for path in (self.folder / state).glob("*"):
            shutil.copyfile(path, self.store / path.name)
        argv = command_line("mount", "--store", self.store, self.point)
        argv += ["-o", options] if options else []
        log = self.folder / "mount.log"
        log.unlink(missing_ok=True)
        ready = lambda: mounted(self.point)  # noqa: E731  a def would say no more
        with running(argv, log, ready, "the mount answers", mountpoint=self.point) as it:
            (self.point / PATIENT).stat()  # it is in the kernel's table before it answers
            yield Mount(it)

    def keep(self, state: str) -> None:
        """What is known of sizes now is that state from now on; nothing is mounted."""
        (self.folder / state).mkdir(exist_ok=True)
        for path in self.store.glob(f"{RENDITIONS_NAME}*"):
            shutil.copyfile(path, self.folder / state / path.name)


def ct_folder(scale: Scale, scratch: Path) -> Stage:
    """One exam of `scale.pictures` CT images in `FOLDER`, and another in `BESIDE`."""
    beside = min(_BESIDE_IMAGES, scale.pictures)
    exams: dict[str, Write] = {
        "long": partial(write_ct, count=scale.pictures),
        "beside": partial(write_ct, count=beside, day="20240301"),
    }
    return staged(scale.shared or scratch, "ct", exams)


def staged(home: Path, name: str, exams: Mapping[str, Write]) -> Stage:
    """A store of these exams, received in that order; the one that is there, if it is."""
    require_fuse()
    stage = Stage(home / f"stage-{name}")
    if (stage.folder / KNOWN).exists():
        return stage
    stage.point.mkdir(parents=True)
    for exam, write in exams.items():
        write(stage.images / exam)
    received = [stage.images / exam for exam in exams]
    run(command_line("import", "--quiet", "--store", stage.store, *received))
    (stage.folder / UNKNOWN).mkdir()
    with stage.mounted(UNKNOWN):
        shutil.copytree(stage.point, stage.real)
    stage.keep(KNOWN)
    return stage


# What one does with it


@contextmanager
def shared(folder: Path, path: Path) -> Iterator[int]:
    """A private smbd; its port."""
    smbd = samba.prepare(folder, path, free_port())
    ready = lambda: connects(smbd.port)  # noqa: E731  a def would say no more
    with running(smbd.argv, folder / "said", ready, "smbd answers", env=smbd.env):
        yield smbd.port


def copy(port: int, target: Path, count: int, folder: str = FOLDER) -> None:
    """smbclient's mget of all `count` pictures of a folder into a new one."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    said = smbclient(port, f'prompt OFF; lcd "{target}"; cd "{folder}"; mget *', seconds=600)
    found = sum(1 for _ in target.iterdir())
    if "NT_STATUS" in said.stdout + said.stderr or found != count:
        raise RuntimeError(f"{found} of {count} were copied: {said.stdout[-500:]} {said.stderr[-500:]}")


def forget(folder: Path, *, names: bool = False) -> None:
    """Put files out of the kernel's memory; with `names`, also what it knows of any file system's names."""
    os.sync()
    for path in folder.rglob("*.jpg"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if names:
        with suppress(PermissionError, FileNotFoundError):  # names stay in memory, then, in our disfavour
            Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")


def run(argv: list[str], cwd: Path | None = None) -> str:
    """A program to its end; what it said. Raises RuntimeError if it failed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{argv[:8]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
