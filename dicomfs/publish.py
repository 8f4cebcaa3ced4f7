"""Live folders: what the index has gained, changed or lost is told to whoever watches a folder of the mount.

The kernel tells watchers (inotify, and through it smbd and its clients) of what system calls do, and never
of what a FUSE file system does by itself. So one thread of this process makes the calls, through its own
mount: mkdir or mknod for a name that is new, which `gate.py` hides until `fuse.py` gets that very call;
utimensat for a file that shows something else now; unlink or rmdir for what was forgotten. `fuse.py` asks
`Publisher.step_of` whose call it is; everybody else's ends with EROFS. One call comes after the other, so
a reader waits for one of them at most, and every name has its event. Called by `mount.py`, on the trio
thread.
"""

import contextlib
import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

import trio

from dicomfs.changes import Changes
from dicomfs.entries import Appearance, Disappearance, Entry
from dicomfs.errors import StoreUnavailable
from dicomfs.index import Index
from dicomfs.inode import Inode
from dicomfs.rows import Arrival, Removal
from dicomfs.tree import Tree

POLL_S: Final = 0.1
"""How often the index is asked for news; the question costs microseconds."""
STOP_S: Final = 5.0
"""How long the end of a call under way is waited for."""
_NEWS_AT_ONCE: Final = 200
_STEPS_AT_ONCE: Final = 32
"""Calls for which the thread is entered once."""

log = logging.getLogger(__name__)


class Act(Enum):
    """What becomes of a name."""

    APPEAR = "appears"
    CHANGE = "changes"
    GO = "goes"


@dataclass(frozen=True, slots=True)
class Step:
    """One name, and what is done about it."""

    act: Act
    folder: Inode
    path: tuple[str, ...]
    """Names that lead from the root to the folder."""
    name: str
    is_folder: bool = False
    appearance: Appearance | None = None
    """Of a name that appears: what the gate is told."""
    ghosts: Mapping[tuple[int, str], Entry] = field(default_factory=dict)
    """Of a name that goes: what our lookups find on the way to it, since the index has lost it already."""


class Kernel(Protocol):
    """What is told to the kernel without a system call; may block until a lookup in the folder has ended."""

    def __call__(self, folder: int, name: bytes, /) -> None:
        """Forget a name. Raises OSError, FileNotFoundError when it was not remembered."""


class Publisher:
    """Tells watchers of one mount. Run `follow` in the background."""

    def __init__(self, mountpoint: Path, tree: Tree, index: Index, forget: Kernel, *, live: bool) -> None:
        """Before the mount is there, so that all that is committed later is news.

        `live` off: names are shown at once, and the kernel is made to forget what changed or went, but
        nobody is told. Raises StoreUnavailable.
        """
        self._mountpoint = mountpoint
        self._tree = tree
        self._index = index
        self._changes = Changes(tree, index)
        self._forget = forget
        self._live = live
        self._removed = index.last_removal()
        """The latest removal that was told of."""
        self.stale: Callable[[], None] = lambda: None
        """Called before names change or go: what listings under way have fetched is out of date."""
        self._limiter = trio.CapacityLimiter(1)
        self._device = 0
        self._thread = 0
        """Id of the thread while it is making calls: FUSE requests bear it as that of the caller."""
        self._step: Step | None = None
        self._stopping = False
        self._complained = False

    def step_of(self, caller: int) -> Step | None:
        """What is being done by this caller (a thread's id); None when it is anybody else."""
        return self._step if caller == self._thread else None

    async def follow(self) -> None:
        """Watch the index until cancelled, and tell.

        *Cancellation*: at any time. A call under way ends with the mount, or is answered by it.
        """
        if self._live:
            status = await trio.to_thread.run_sync(os.stat, self._mountpoint, abandon_on_cancel=True)
            self._device = status.st_dev
        version = -1
        complaining = False
        while True:
            try:
                now_version = self._index.data_version()
                if now_version != version:
                    await self._take_news()
                    version = now_version
                complaining = False
            except StoreUnavailable as error:
                if not complaining:
                    log.warning("cannot look for news now: %s", error)
                complaining = True
            await trio.sleep(POLL_S)

    async def _take_news(self) -> None:
        """Everything since the last time, in order of receipt. Raises StoreUnavailable between two names."""
        while True:
            # Asked first, so that what was removed to make room for an arrival's name is known by then.
            arrivals = self._index.arrivals(self._tree.gate.through, _NEWS_AT_ONCE)
            while removals := self._index.removals(self._removed, _NEWS_AT_ONCE):
                self.stale()
                going = self._going(removals)
                while some := list(islice(going, _STEPS_AT_ONCE)):
                    await self._tell(some)
                self._removed = removals[-1].id
            if not arrivals:
                return
            appearing = self._appearing(arrivals)
            while batch := list(islice(appearing, _STEPS_AT_ONCE)):
                await self._tell([step for _, step in batch])
                # The last one may have more names.
                self._tree.gate.settle(batch[-1][0] - 1)
            self._tree.gate.settle(arrivals[-1].sequence)

    def _appearing(self, arrivals: Iterable[Arrival]) -> Iterator[tuple[int, Step]]:
        paths: dict[Inode, tuple[str, ...] | None] = {}
        for arrival in arrivals:
            for new in self._changes.appearances(arrival.sequence, arrival.instance):
                path = self._path(new.folder, paths)
                if path is not None:
                    step = Step(Act.APPEAR, new.folder, path, new.name, new.is_folder, new)
                    yield arrival.sequence, step

    def _going(self, removals: Iterable[Removal]) -> Iterator[Step]:
        for removal in removals:
            yield from self._steps_of(self._changes.disappearances(removal))

    def _steps_of(self, names: Iterable[Disappearance]) -> Iterator[Step]:
        for old in names:
            if old.mark > self._tree.gate.mark(old.rank):
                continue  # it was never shown
            folder = old.way[-2].inode if len(old.way) > 1 else old.top
            # The view's own folder, if there are several, is as it always was.
            path = (*(self._tree.path(old.top) or ()), *(entry.name for entry in old.way[:-1]))
            gone = old.way[-1]
            yield Step(Act.GO, folder, path, gone.name, is_folder=gone.is_folder, ghosts=old.ghosts())

    def _path(self, folder: Inode, known: dict[Inode, tuple[str, ...] | None]) -> tuple[str, ...] | None:
        if folder not in known:
            known[folder] = self._tree.path(folder)
        return known[folder]

    async def changed(self, names: Sequence[tuple[Inode, str]]) -> None:
        """Tell that these (folder, name) pairs stand for another inode now. Raises StoreUnavailable.

        *Cancellation*: the rest is not told.
        """
        self.stale()
        paths: dict[Inode, tuple[str, ...] | None] = {}
        steps = (
            Step(Act.CHANGE, folder, path, name)
            for folder, name in names
            if (path := self._path(folder, paths)) is not None
        )
        while batch := list(islice(steps, _STEPS_AT_ONCE)):
            await self._tell(batch)

    async def gone(self, names: Sequence[Disappearance]) -> None:
        """Tell that these names are not shown any more. Raises StoreUnavailable.

        *Cancellation*: the rest is not told.
        """
        self.stale()
        steps = self._steps_of(names)
        while batch := list(islice(steps, _STEPS_AT_ONCE)):
            await self._tell(batch)

    async def stop(self) -> None:
        """Make no further calls; returns when the one under way has ended, or after `STOP_S`.

        A thread that waits for this mount must not be left behind when the mount stops answering.
        """
        self._stopping = True
        with trio.move_on_after(STOP_S):
            async with self._limiter:
                pass

    # The thread

    async def _tell(self, steps: Sequence[Step]) -> None:
        """Make the calls of these steps; a name whose call fails appears all the same."""
        done = 0
        while done < len(steps):
            if self._stopping:
                await trio.sleep_forever()
            count, error = await trio.to_thread.run_sync(
                self._make_calls, steps[done:], limiter=self._limiter, abandon_on_cancel=True
            )
            done += count
            if error is not None:
                self._failed(steps[done], error)
                done += 1

    def _failed(self, step: Step, error: OSError) -> None:
        if step.appearance is not None:
            self._tree.gate.release(step.appearance.rank, step.appearance.mark)
        if isinstance(error, FileNotFoundError) or self._complained:
            return  # it went before it was told of, or never was in the kernel's memory
        self._complained = True
        advice = (
            "; uid= and umask= must let this process itself make folders"
            if error.errno in (errno.EACCES, errno.EPERM)
            else ""
        )
        log.warning("watchers of folders are not told of news (live): %s%s", error.strerror, advice)

    def _make_calls(self, steps: Sequence[Step]) -> tuple[int, OSError | None]:
        """In the thread: the calls of these steps; how many were made, and what the next one failed with."""
        done = 0
        try:
            root = os.open(self._mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if self._live else -1
            try:
                # After an unmount the same path is a folder of the disk, and nothing is made there.
                if self._live and os.fstat(root).st_dev != self._device:
                    raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
                self._thread = threading.get_native_id()
                for step in steps:
                    if self._stopping:
                        break
                    self._step = step
                    self._make_call(step, root)
                    done += 1
            finally:
                self._step, self._thread = None, 0
                if root >= 0:
                    os.close(root)
        except OSError as error:
            return done, error
        return done, None

    def _make_call(self, step: Step, root: int) -> None:
        path = os.path.join("", *step.path, step.name)  # noqa: PTH118  os.* wants a text, as fast as can be
        if step.act is Act.CHANGE or not self._live:
            with contextlib.suppress(FileNotFoundError):
                self._forget(step.folder.number, step.name.encode())
        if not self._live:
            return
        if step.act is Act.CHANGE:
            os.utime(path, dir_fd=root)
        elif step.act is Act.GO:
            (os.rmdir if step.is_folder else os.unlink)(path, dir_fd=root)
        else:
            try:
                if step.is_folder:
                    os.mkdir(path, dir_fd=root)
                else:
                    os.mknod(path, stat.S_IFREG | 0o444, dir_fd=root)
            except FileExistsError:
                os.utime(path, dir_fd=root)
