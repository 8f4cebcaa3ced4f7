"""`mount -t dicomfs`: the helper that mount(8) calls returns when the mount answers, or says why not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import lacking, mounted, require, require_fuse, shipped, unmount, unmount_idle, wait_until
from tests.system.programs import Process, alive, dicomfs, process

HELPER = [sys.executable, "-c", "import sys; from dicomfs.cli import mount_helper; sys.exit(mount_helper())"]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    require_fuse()
    assert dicomfs("import", "-q", "--store", tmp_path / "store", shipped("CT_small.dcm")).returncode == 0
    return tmp_path / "store"


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "pictures"
    point.mkdir()
    yield point
    unmount(point)
    wait_until(lambda: not serving(point), "the mount's process has ended")


def serving(point: Path) -> list[Process]:
    """Processes of a mount on this folder."""
    everybody = [process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [it for it in everybody if it is not None and "dicomfs.cli" in it.words and str(point) in it.words]


def mount(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """What the helper says; ends only when nobody holds its output open any more, as `$(mount …)` does."""
    argv = [*HELPER, *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=40)


def test_the_mount_answers_when_the_helper_returns(store: Path, mountpoint: Path) -> None:
    done = mount(store, mountpoint, "-o", "ro,formats=png")
    assert done.returncode == 0, done.stderr
    (picture,) = mountpoint.rglob("*.*")
    assert picture.suffix == ".png"
    assert picture.read_bytes().startswith(PNG_SIGNATURE)
    (server,) = serving(mountpoint)
    assert os.getsid(server.pid) != os.getsid(0)  # closing the terminal does not end it
    unmount_idle(mountpoint)
    wait_until(lambda: not alive([server]), "the process ends with its mount")


def test_what_mount_and_fstab_add_is_accepted(store: Path, mountpoint: Path) -> None:
    # `mount -s` is sloppy, `-v` verbose, `-n` writes no mtab: mount(8), "External helpers".
    options = "rw,noauto,_netdev,nosuid,nodev,noatime,x-systemd.automount,comment=pictures"
    assert mount(store, mountpoint, "-s", "-v", "-n", "-o", options).returncode == 0
    assert mounted(mountpoint)


def test_fake_mounts_nothing(store: Path, mountpoint: Path) -> None:
    assert mount(store, mountpoint, "-f", "-o", "formats=png").returncode == 0
    assert not mounted(mountpoint)
    assert not serving(mountpoint)


def test_wrong_option(store: Path, mountpoint: Path) -> None:
    done = mount(store, mountpoint, "-o", "colour=green")
    assert done.returncode == 2
    assert "'colour'" in done.stderr
    assert not mounted(mountpoint)


def test_no_such_store(tmp_path: Path, mountpoint: Path) -> None:
    require_fuse()
    done = mount(tmp_path / "nothing", mountpoint)
    assert done.returncode == 5
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not mounted(mountpoint)


def test_missing_mount_point(store: Path, tmp_path: Path) -> None:
    done = mount(store, tmp_path / "missing")
    assert done.returncode == 6
    assert "mkdir" in done.stderr


def test_already_mounted(store: Path, mountpoint: Path) -> None:
    assert mount(store, mountpoint).returncode == 0
    done = mount(store, mountpoint)
    assert done.returncode == 6
    assert "already" in done.stderr
    assert len(serving(mountpoint)) == 1


@contextmanager
def installed(folder: Path) -> Iterator[list[str]]:
    """Words before a command that runs where /usr/sbin has our helper, and nowhere else has."""
    if os.geteuid() != 0:
        lacking("only root may mount(8) by type")
    unshare = require("unshare")
    (folder / "sbin").mkdir()
    helper = folder / "sbin" / "mount.dicomfs"
    helper.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{HELPER[2]}" "$@"\n')
    helper.chmod(0o755)
    overlay = f"mount -t overlay -o lowerdir={folder / 'sbin'}:/usr/sbin overlay /usr/sbin"
    argv = [
        unshare,
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        f'{overlay} && exec sh -ec "$1"',
        "sh",
    ]
    if subprocess.run([*argv, "true"], capture_output=True, check=False, timeout=30).returncode:
        lacking("no private overlay on /usr/sbin can be made here")
    yield argv


def test_mount_by_type(store: Path, mountpoint: Path, tmp_path: Path) -> None:
    script = f"""
        mount -t dicomfs {store} {mountpoint} -o ro,formats=png
        find {mountpoint} -type f
        umount {mountpoint}
    """
    with installed(tmp_path) as within:
        done = subprocess.run([*within, script], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert [Path(line).suffix for line in done.stdout.splitlines()] == [".png"]
    wait_until(lambda: not serving(mountpoint), "the process ends with its mount")
