"""One mount from start to end: checks, the FUSE session, its tasks, signals, unmount.

`run` blocks until the file system is unmounted or the process is told to stop. On a clean stop it
unmounts; on a crash the dead mount stays, so that nobody takes an empty folder for an empty archive,
and the next start clears it away. Called by `cli.py`.
"""

import errno
import gc
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from dicomfs.config import MountOptions
from dicomfs.errors import MountRefused
from dicomfs.fuse import Door
from dicomfs.mountfile import REPORT_S, MountReporter
from dicomfs.present import Presenter
from dicomfs.publish import Publisher
from dicomfs.stalls import StallMeter
from dicomfs.statement import compile_all
from dicomfs.view import open_view, run_tasks

FUSE_DEVICE: Final = Path("/dev/fuse")
FUSE_CONF: Final = Path("/etc/fuse.conf")
MOUNT_TABLE: Final = Path("/proc/self/mountinfo")
TYPE_NAME: Final = "dicomfs"
MOST_REQUESTS: Final = 1000
"""Requests that may wait for a render at once; beyond that even a lookup would wait."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of /proc/self/mountinfo."""

    point: Path
    type: str


def mounts() -> list[Mounted]:
    """Every mount of this process's namespace, the latest last."""
    found = []
    # Bytes: the kernel writes the bytes of a name as they are, and some as octal escapes, one for each.
    for line in MOUNT_TABLE.read_bytes().splitlines():
        fields, _, rest = line.partition(b" - ")
        point = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), fields.split(b" ")[4])
        found.append(Mounted(Path(os.fsdecode(point)), os.fsdecode(rest.split(b" ")[0])))
    return found


def check_mount_point(mountpoint: Path) -> None:
    """Refuse what cannot be mounted on, saying what to do; clears a dead mount of ours away.

    Raises MountRefused.
    """
    # Symbolic links would make the mount unfindable in the kernel's table.
    mountpoint = mountpoint.resolve()
    _clear_dead(mountpoint)
    try:
        info = mountpoint.stat()
    except FileNotFoundError:
        raise MountRefused(f"mount point {mountpoint} does not exist: make it with mkdir -p") from None
    except OSError as error:
        raise MountRefused(f"mount point {mountpoint} cannot be used: {error.strerror}") from error
    here = [mount for mount in mounts() if mount.point == mountpoint]
    if here:
        raise MountRefused(
            f"{mountpoint} is already a mount point ({here[-1].type}): "
            f"unmount it first (fusermount3 -u {mountpoint}) or choose another folder"
        )
    try:
        if next(os.scandir(mountpoint), None) is not None:
            raise MountRefused(f"mount point {mountpoint} is not empty: choose or make an empty folder")
    except NotADirectoryError:
        raise MountRefused(f"mount point {mountpoint} is not a folder") from None
    except PermissionError:
        if info.st_uid != os.geteuid():
            raise MountRefused(
                f"mount point {mountpoint} belongs to somebody else and cannot be read: chown it to this user"
            ) from None


def _clear_dead(mountpoint: Path) -> None:
    """Unmount what a killed mount process has left here."""
    try:
        mountpoint.stat()
    except OSError as error:
        ours = any(m.point == mountpoint and m.type == f"fuse.{TYPE_NAME}" for m in mounts())
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED) or not ours:
            return
        log.warning("%s is a dead mount of an earlier process: unmounting it", mountpoint)
        unmount(mountpoint)


def unmount(mountpoint: Path) -> None:
    """Detach a FUSE mount now, even when somebody is still in it. Raises MountRefused."""
    argv = ["fusermount3", "-u", "-z", "--", str(mountpoint)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MountRefused(f"cannot unmount {mountpoint}: install fuse3 (fusermount3 is missing)") from None
    if done.returncode:
        raise MountRefused(f"cannot unmount {mountpoint}: {done.stderr.strip()}")


def check_machine(options: MountOptions) -> None:
    """Refuse when this machine or user may not do such a mount. Raises MountRefused with the remedy."""
    if not FUSE_DEVICE.exists():
        raise MountRefused(
            f"{FUSE_DEVICE} is missing: load the kernel module (modprobe fuse) or, in a "
            "container, pass the device in (--device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if os.geteuid() != 0 and not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise MountRefused(f"this user may not open {FUSE_DEVICE}: give it access, or run as another user")
    if options.allow_other and os.geteuid() != 0 and not _others_allowed():
        raise MountRefused(
            f"allow_other is not permitted to this user: add the line user_allow_other to {FUSE_CONF}, "
            "or leave the option out"
        )


def _others_allowed() -> bool:
    try:
        lines = FUSE_CONF.read_text().splitlines()
    except OSError:
        return False
    return any(line.split("#")[0].strip() == "user_allow_other" for line in lines)


def run(store: Path, mountpoint: Path, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount a store and serve it until SIGTERM, SIGINT or an unmount; `ready` is called once it answers.

    Raises MountRefused, StoreError, WorkerStartFailed.
    """
    check_machine(options)
    check_mount_point(mountpoint)
    mountpoint = mountpoint.resolve()
    check_apart(store, mountpoint)
    if options.disk_cache is not None:
        check_apart(options.disk_cache, mountpoint, "disk cache")
    run_tasks(_serve, store, mountpoint, options, ready)


def check_apart(store: Path, mountpoint: Path, what: str = "store") -> None:
    """Refuse a store (or `what` it is) in its own mount, or a mount in its own store. Raises MountRefused."""
    inner, outer = store.resolve(), mountpoint.resolve()
    if _inside(inner, outer) or _inside(outer, inner):
        raise MountRefused(f"mount point {mountpoint} and {what} {store} must not lie inside each other")


def _inside(inner: Path, outer: Path) -> bool:
    return inner == outer or outer in inner.parents


async def _serve(store: Path, mountpoint: Path, options: MountOptions, ready: Callable[[], None]) -> None:
    async with open_view(store, options) as presenter:
        publisher = Publisher(
            mountpoint, presenter.tree, presenter.index, pyfuse3.invalidate_entry, live=options.live
        )
        stalls = StallMeter()
        trio.lowlevel.add_instrument(stalls)
        reporter = MountReporter(store, mountpoint, time.time())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_report, presenter, stalls, reporter)
                await _session(presenter, publisher, stalls, mountpoint, options, ready=ready)
                nursery.cancel_scope.cancel()
        finally:
            reporter.close()


async def _report(presenter: Presenter, stalls: StallMeter, reporter: MountReporter) -> None:
    """Tell others what this mount does. *Cancellation*: at any time; a disk that hangs is left behind."""
    limiter = trio.CapacityLimiter(1)
    while True:
        loop = stalls.statistics()
        # What changes all the time is left out: an idle mount has no news.
        told = {"longest_turn_seconds": loop.longest_s, "turns_above_50_ms": loop.above_50_ms}
        figures = replace(presenter.figures(), loop=told)
        await trio.to_thread.run_sync(reporter.report, figures, limiter=limiter, abandon_on_cancel=True)
        await trio.sleep(REPORT_S)


async def _session(
    presenter: Presenter,
    publisher: Publisher,
    stalls: StallMeter,
    mountpoint: Path,
    options: MountOptions,
    *,
    ready: Callable[[], None],
) -> None:
    """The FUSE session itself: from init to unmount."""
    door = Door(presenter, publisher, uid=options.uid, gid=options.gid, umask=options.umask)
    fuse_options = set(pyfuse3.default_options) | {f"fsname={TYPE_NAME}", f"subtype={TYPE_NAME}"}
    if options.allow_other:
        fuse_options.add("allow_other")
    try:
        pyfuse3.init(door, str(mountpoint), fuse_options)
    except RuntimeError as error:
        raise MountRefused(
            f"cannot mount on {mountpoint}: {error}; is fuse3 installed, and may this user mount there?"
        ) from error

    def statistics() -> str:
        asked = ", ".join(f"{name} {number}" for name, number in sorted(door.asked.items()))
        return f"requests: {asked or 'none'}; {presenter.statistics()}; event loop: {stalls.statistics()}"

    # Only a clean end unmounts: after a crash an error is better than a folder that looks empty.
    clean = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, publisher, statistics)
            nursery.start_soon(presenter.follow, publisher.changed, publisher.gone)
            nursery.start_soon(publisher.follow)
            nursery.start_soon(door.callers.watch)
            nursery.start_soon(door.folders.read_ahead)
            compile_all()
            # What was imported stays for ever: to look through all of it for garbage would stop everybody.
            gc.collect()
            gc.freeze()
            ready()
            log.info("mounted on %s", mountpoint)
            await pyfuse3.main(max_tasks=MOST_REQUESTS)
            nursery.cancel_scope.cancel()
        clean = True
    finally:
        pyfuse3.close(unmount=clean)
    log.info("unmounted; %s", statistics())


async def _obey_signals(publisher: Publisher, statistics: Callable[[], str]) -> None:
    """SIGTERM and SIGINT end the mount, SIGUSR1 has it say what it has done."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
        async for number in signals:
            if number == signal.SIGUSR1:
                log.info("so far: %s", statistics())
                continue
            log.info("stopping: %s", signal.Signals(number).name)
            await publisher.stop()
            pyfuse3.terminate()


def is_mounted(mountpoint: Path) -> bool:
    """Whether a mount of ours is there, dead or alive."""
    # Only the parent is looked at: the mount itself may be dead, and then even a stat fails.
    point = mountpoint.absolute().parent.resolve() / mountpoint.name
    return any(m.point == point and m.type == f"fuse.{TYPE_NAME}" for m in mounts())
