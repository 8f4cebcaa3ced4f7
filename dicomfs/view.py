"""One view of a store, put together from its options: index, renditions, workers, cache, tree, presenter.

Owns their lives and knows no FUSE. Used by `mount.py`, which shows the view, and by `offline.py`, which
writes it out.
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import trio

from dicomfs.archive import Archive
from dicomfs.cache import Cache, bytes_in_memory
from dicomfs.cachefolder import CacheFolder
from dicomfs.config import MountOptions
from dicomfs.diskcache import DiskCache
from dicomfs.errors import DicomfsError, WorkerStartFailed
from dicomfs.gate import EVERYTHING, Gate
from dicomfs.index import INDEX_NAME, Index
from dicomfs.inode import STORED, view_key
from dicomfs.model import Recipe
from dicomfs.present import Presenter
from dicomfs.recipes import FORMATS, Kind
from dicomfs.renditions import RENDITIONS_NAME, Key, Renditions
from dicomfs.spelling import Spelling
from dicomfs.tree import Tree
from dicomfs.workers import Workers

RESTART_S: Final = 5.0
"""Between two tries to start render processes."""

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

log = logging.getLogger(__name__)


def run_tasks(main: Callable[[*Arguments], Awaitable[T]], *arguments: *Arguments) -> T:
    """`trio.run`, but of a group of errors only the first of ours gets out: one is enough to tell a user."""
    try:
        return trio.run(main, *arguments)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            raise KeyboardInterrupt from None
        ours = group.subgroup(DicomfsError)
        raise (_first(ours) if ours else group) from group


def _first(group: BaseExceptionGroup[DicomfsError]) -> DicomfsError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


@asynccontextmanager
async def open_view(store: Path, options: MountOptions) -> AsyncIterator[Presenter]:
    """A presenter of this store, with render processes that answer.

    Raises StoreError, WorkerStartFailed. *Cancellation*: processes are killed, files closed.
    """
    index = Index(store / INDEX_NAME)
    try:
        renditions = Renditions(store / RENDITIONS_NAME, index.store_id)
        try:
            with _disk_cache(options, index.store_id) as disk:
                async with _presenter(store, options, index, renditions, disk) as presenter:
                    yield presenter
        finally:
            renditions.close()
    finally:
        index.close()


@contextmanager
def _disk_cache(options: MountOptions, store_id: str) -> Iterator[DiskCache | None]:
    if options.disk_cache is None:
        yield None
        return
    folder = CacheFolder(options.disk_cache, options.disk_cache_size)
    with DiskCache(folder, store_id) as disk:
        yield disk


@asynccontextmanager
async def _presenter(
    store: Path, options: MountOptions, index: Index, renditions: Renditions, disk: DiskCache | None
) -> AsyncIterator[Presenter]:
    processes = options.workers or os.cpu_count() or 1
    rendering = _Rendering(partial(Workers, processes, options.memory, options.time_limit))
    async with trio.open_nursery() as nursery:
        await nursery.start(rendering.keep)
        recipes = {}
        for key, recipe in _recipes(options).items():
            if recipe is not None:
                recipes[key] = (recipe, await rendering.workers.probe(recipe))
        keys = tuple(_recipes(options))
        # What comes in from now on is shown when watchers have been told of it.
        gate = Gate(index.last_sequence() if options.live else EVERYTHING)
        tree = Tree(
            index,
            Archive(store),
            renditions,
            recipes,
            formats=keys,
            frames=options.frames,
            layout=options.layout,
            spelling=Spelling(options.label, options.date_format, options.pad),
            modalities=options.modality,
            since=options.since,
            gate=gate,
        )
        cache: Cache[Key, bytes] = Cache(
            options.cache, bytes_in_memory, on_use=None if disk is None else disk.touch
        )
        presenter = Presenter(
            tree,
            index,
            renditions,
            rendering.workers,
            cache,
            warm=options.warm,
            processes=processes,
            disk=disk,
        )
        rendering.renewed = presenter.render_with
        yield presenter
        nursery.cancel_scope.cancel()


def _recipes(options: MountOptions) -> dict[str, Recipe | None]:
    """Key and recipe of every view that the options ask for, in their order; None: the stored bytes."""
    views: dict[str, Recipe | None] = {}
    for name in options.formats:
        if name == STORED:
            views[name] = None
            continue
        # A window makes no difference to what is not a picture.
        windows = options.window if FORMATS[name].kind is Kind.PICTURE else options.window[:1]
        for number, window in enumerate(windows):
            views[view_key(name, number)] = Recipe(
                name,
                quality=options.quality,
                window=window,
                max_size=options.max_size,
                square=options.square,
                overlays=options.overlays,
                shutters=options.shutters,
                subtraction=options.subtraction,
                marks=options.marks,
            )
    return views


class _Rendering:
    """Render processes for as long as the mount lives.

    When they cannot be started at all, there is no mount. When that happens later (memory is short, a
    library is being updated), names and stored files stay, pictures are EIO, and it is tried again.
    """

    def __init__(self, make: Callable[[], Workers]) -> None:
        self._make = make
        self.workers = make()
        self.renewed: Callable[[Workers], None] = lambda _: None

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled. Raises WorkerStartFailed when the very first cannot start."""
        once = _Once(task_status)
        while True:
            try:
                await self.workers.run(task_status=once)
            except WorkerStartFailed as error:
                if not once.passed:
                    raise
                log.error("no pictures for %g s, then another try: %s", RESTART_S, error)  # noqa: TRY400
            await trio.sleep(RESTART_S)
            self.workers = self._make()
            self.renewed(self.workers)


@dataclass(slots=True)
class _Once:
    """Passes the first `started` on; there may be more."""

    status: trio.TaskStatus[None]
    passed: bool = False

    def started(self, value: None = None) -> None:
        if not self.passed:
            self.passed = True
            self.status.started(value)
