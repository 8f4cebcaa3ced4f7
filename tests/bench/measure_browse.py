"""A folder of pictures over SMB: a dicomfs mount against the same bytes as files on disk.

Two private smbds of the same configuration; only the path differs. Before the cold runs the files on disk
are put out of the kernel's memory, and the mount is a new one.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dicomfs import samba
from tests.bench.images import write_mr
from tests.bench.table import Line, Result, Scale, in_turn, timed
from tests.support import (
    command_line,
    connects,
    free_port,
    mounted,
    require,
    require_fuse,
    running,
    smbclient,
)

_EXAM = "Measured Often/2024-02-29"
_ON_DISK = "files on disk"


def measure(scale: Scale, scratch: Path) -> Result:
    """Listing and copying: never seen before, after a restart of the mount, and again."""
    require_fuse()
    require("smbd")
    store, mountpoint, real = scratch / "store", scratch / "mount", scratch / "real"
    mountpoint.mkdir()
    pictures = write_mr(scratch / "images", scale.pictures)
    _run(command_line("import", "--quiet", "--store", store, scratch / "images"))
    shutil.rmtree(scratch / "images")
    lines = []

    def line(case: str, ours: list[float], theirs: list[float]) -> None:
        lines.append(Line(f"{case}, {len(pictures.paths)} pictures", ours, _ON_DISK, theirs))

    with _smbd(scratch / "v", mountpoint) as virtual_port, _smbd(scratch / "r", real) as real_port:
        copy_virtual, copy_real = _copier(virtual_port, scratch), _copier(real_port, scratch)
        list_virtual, list_real = _lister(virtual_port, scale), _lister(real_port, scale)
        with _mount(store, mountpoint, scratch):
            first_listing, first_copy = timed(list_virtual), timed(copy_virtual)
            shutil.copytree(mountpoint, real)
            sizes = [path.stat().st_size for path in real.rglob("*.jpg")]
            _forget(real)
            line("list, nothing known", [first_listing], [timed(list_real)])
            _forget(real)
            line("copy after it", [first_copy], [timed(copy_real)])
        with _mount(store, mountpoint, scratch):
            restarted = timed(copy_virtual)
            _forget(real)
            line("copy, mount restarted", [restarted], [timed(copy_real)])
            for case, ours, theirs in (
                ("list again", list_virtual, list_real),
                ("copy again", copy_virtual, copy_real),
            ):
                taken = in_turn(scale.rounds, {"ours": ours, "theirs": theirs}, lambda: None)
                line(case, taken["ours"], taken["theirs"])
    command = f"smbclient --max-protocol=SMB3 -c 'prompt OFF; cd \"{_EXAM}\"; mget *'  and  … -c 'ls'"
    note = f"pictures of {sum(sizes) / len(sizes) / 1000:.0f} kB on average; `dicomfs mount` with defaults"
    return Result(lines, [command], [note])


def _copier(port: int, scratch: Path) -> Callable[[], None]:
    target = scratch / "copied"

    def copy() -> None:
        said = smbclient(port, f'prompt OFF; lcd "{target}"; cd "{_EXAM}"; mget *', seconds=300)
        if "NT_STATUS" in said.stdout + said.stderr or not any(target.iterdir()):
            raise RuntimeError(f"smbclient said: {said.stdout[-500:]} {said.stderr[-500:]}")

    def fresh() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        copy()

    return fresh


def _lister(port: int, scale: Scale) -> Callable[[], None]:
    def listing() -> None:
        said = smbclient(port, f'cd "{_EXAM}"; ls', seconds=300)
        if (found := said.stdout.count(".jpg ")) != scale.pictures:
            raise RuntimeError(f"{found} pictures of {scale.pictures} listed: {said.stdout[-500:]}")

    return listing


def _forget(folder: Path) -> None:
    """Put all files below out of the kernel's memory."""
    os.sync()
    for path in folder.rglob("*.jpg"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _mount(store: Path, mountpoint: Path, scratch: Path) -> Iterator[None]:
    argv = command_line("mount", "--quiet", "--store", store, mountpoint)
    ready = lambda: mounted(mountpoint)  # noqa: E731  a def would say no more
    with running(argv, scratch / "mount.log", ready, "the mount answers", mountpoint=mountpoint):
        yield


@contextmanager
def _smbd(folder: Path, path: Path) -> Iterator[int]:
    smbd = samba.prepare(folder, path, free_port())
    ready = lambda: connects(smbd.port)  # noqa: E731  a def would say no more
    with running(smbd.argv, folder / "said", ready, "smbd answers", env=smbd.env):
        yield smbd.port


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr[-2000:]}")
