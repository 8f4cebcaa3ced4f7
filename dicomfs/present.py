"""From a file of the tree to its bytes: exact sizes, one render per rendition.

Ties tree, renditions, cache and workers together; what one window is decided over is `pools.py`, what is
rendered before anybody asks `ahead.py`, what comes in `follow.py`. Knows no FUSE. Called by `fuse.py` and
`mount.py`, on one trio thread.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Final

import trio

from dicomfs.ahead import Ahead, Effort
from dicomfs.cache import Cache
from dicomfs.diskcache import DiskCache
from dicomfs.entries import Picture
from dicomfs.errors import RenderFailed
from dicomfs.figures import CacheFigures, MountFigures, Stopwatch
from dicomfs.follow import Changed, Follower, Gone
from dicomfs.index import Index
from dicomfs.inode import Inode
from dicomfs.model import PoolWindow
from dicomfs.pools import QUIET_S, Pools
from dicomfs.prefetch import Prefetch
from dicomfs.renditions import Key, Renditions
from dicomfs.tree import Tree
from dicomfs.workers import Rendered, Workers

_OPENED_KEPT: Final = 65_536

log = logging.getLogger(__name__)


class Presenter:
    """What one mount shows. Run `follow` in the background to keep it alive."""

    def __init__(
        self,
        tree: Tree,
        index: Index,
        renditions: Renditions,
        workers: Workers,
        cache: Cache[Key, bytes],
        *,
        warm: bool,
        quiet_s: float = QUIET_S,
        processes: int = 1,
        disk: DiskCache | None = None,
    ) -> None:
        """`quiet_s`: see `pools.QUIET_S`; `processes`: how many pictures can be rendered at once."""
        self.tree = tree
        self.index = index
        self._renditions = renditions
        self._workers = workers
        self._cache = cache
        self._disk = disk
        self._rendered, self._rendered_ahead = Stopwatch(), Stopwatch()
        self._opened: dict[int, Key] = {}
        """Keys of files that were opened, by the numbers of their inodes; see `at_hand`."""
        self._opened_version = index.data_version()
        """Of the index: all of `_opened` is true as long as it stays."""
        self._hurried: set[Key] = set()
        """Keys of what is being rendered ahead and somebody waits for by now."""
        self.resized: Callable[[Inode], None] = lambda _: None
        """Called when a picture has another size than was announced: the kernel may believe the old one."""
        self._pools = Pools(tree, index, renditions, workers, quiet_s=quiet_s)
        self._ahead = (
            Ahead(tree, index, renditions, self._pools, self._render_ahead, processes=processes)
            if warm
            else None
        )
        self._prefetch = (
            Prefetch(
                tree,
                cache.__contains__,
                lambda inode: self.contents(inode, background=True, is_use=False),
                tasks=max(1, processes - 1),
            )
            if warm
            else None
        )
        self._follower = Follower(tree, index, renditions, self._pools, self._ahead)

    def render_with(self, workers: Workers) -> None:
        """Go on with other render processes; the former ones have ended."""
        self._workers = self._pools.workers = workers

    def statistics(self) -> str:
        """Counters of cache and workers, for the log."""
        return f"cache: {self._cache.statistics()}; workers: {self._workers.statistics()}"

    def figures(self) -> MountFigures:
        """What caches and renders have counted so far."""
        memory, renders = self._cache.statistics(), self._workers.statistics()
        return MountFigures(
            memory=CacheFigures(
                hits=memory.hits + memory.joined,
                misses=memory.misses,
                evictions=memory.evictions,
                bytes=memory.bytes,
                limit_bytes=memory.limit_bytes,
                items=memory.items,
            ),
            disk=None if self._disk is None else self._disk.statistics(),
            rendered=self._rendered.times(),
            ahead=self._rendered_ahead.times(),
            failed=renders.failed,
            crashed=renders.crashed,
            timed_out=renders.timed_out,
            loop={},
        )

    async def follow(self, changed: Changed, gone: Gone) -> None:
        """Watch the index until cancelled; `changed` is told of (folder, name) pairs that show another inode,
        `gone` of names that are not shown any more.

        *Cancellation*: at any time; nothing is left half recorded.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follower.watch, changed, gone)
            nursery.start_soon(self._follower.settle, changed)
            if self._ahead is not None:
                nursery.start_soon(self._ahead.run)
            if self._prefetch is not None:
                nursery.start_soon(self._prefetch.run)

    def record_sizes(self) -> None:
        """Write sizes once there are many; for who renders a whole view and does not `follow`."""
        self._renditions.record_many()

    # On demand

    def at_hand(self, number: int) -> bytes | None:
        """Bytes of a rendered file, by the number of its inode, that was opened before and is in memory.

        Asks the index only whether anything was committed, so that opening a file again costs next to
        nothing. Whoever learns that names change in another way calls `forget_opened`. None also for what
        was rendered ahead of somebody: `contents` has to see how far he got. Raises StoreUnavailable.
        """
        key = self._opened.get(number)
        if key is None or (self._prefetch is not None and self._prefetch.is_awaited(key)):
            return None
        version = self.index.data_version()
        if version != self._opened_version:
            # Something may have been forgotten, of which nobody has been told yet.
            self.forget_opened()
            self._opened_version = version
            return None
        return self._cache.peek(key)

    def forget_opened(self) -> None:
        """Files that were opened before may have gone, or show something else: see `at_hand`."""
        self._opened.clear()

    async def contents(
        self, inode: Inode, *, background: bool = False, opening: bool = False, is_use: bool = True
    ) -> bytes | None:
        """Bytes of a rendered file; None when there is no such file in this view.

        `opening`: somebody looks at it, and may go on to the next of its series. `is_use`: somebody has
        asked for this very file, and it is not only rendered ahead.

        Raises RenderFailed or StoreUnavailable when it cannot be had now. Their number is the size that
        was announced, or this raises RenderFailed and announces the new one.
        *Cancellation*: a render that others also wait for goes on.
        """
        picture = self.tree.picture(inode)
        if picture is None:
            return None
        # Asked before the render: what was announced then is what the caller may have been told.
        announced = self._renditions.size(picture.key)
        data = self._cache.peek(picture.key, is_use=is_use)
        if opening and self._prefetch is not None:
            self._prefetch.opened(picture, was_kept=data is not None)
        if data is not None and len(data) == announced:
            # Nothing was awaited since the index was asked: what goes after that is still to be told.
            if len(self._opened) >= _OPENED_KEPT:
                del self._opened[next(iter(self._opened))]
            self._opened[inode.number] = picture.key
            return data
        if data is None:
            window = await self._pools.window(picture, background=background)
            # It may wait in the queue of those rendered ahead, or for the disk before it gets there.
            joining = None if background else partial(self._hurry, picture, window)
            data = await self._cache.get(
                picture.key,
                lambda: self._render(inode, picture, window, background=background, is_use=is_use),
                joining=joining,
                is_use=is_use,
            )
        if announced is None:
            # Rendered by this very call, unless it was in the cache and the renditions have been deleted.
            announced = self._renditions.size(picture.key)
        if announced != len(data):
            self._announce_anew(inode, picture.key, announced, len(data))
        return data

    def _hurry(self, picture: Picture, window: PoolWindow | None) -> None:
        self._hurried.add(picture.key)
        self._workers.hurry(picture.source, picture.recipe, window, asker=picture.folder)

    def _announce_anew(self, inode: Inode, key: Key, announced: int | None, size: int) -> None:
        """Somebody may have been told another size: then this read fails, and the next one is right."""
        self._announce(inode, key, size, "")
        if announced is not None:
            self._resize(inode)  # here, too: it may have been another mount that has just announced it
            raise RenderFailed(
                f"original {key.original} frame {key.frame + 1} was announced with {announced} bytes "
                f"and has {size}: announced anew"
            )

    def _announce(self, inode: Inode, key: Key, size: int, failure: str) -> None:
        """Note a size, unless it is what was announced."""
        announced = self._renditions.size(key)
        if announced == size:
            return
        self._renditions.announce(key, size, failure)
        if announced is not None:
            self._resize(inode)

    def _resize(self, inode: Inode) -> None:
        """Somebody may believe another size: told here, since background work raises to nobody."""
        self._opened.pop(inode.number, None)
        self.resized(inode)

    def failure(self, inode: Inode) -> str:
        """Why a rendered file is a notice instead of a picture; empty when it is one, or is not known yet."""
        picture = self.tree.picture(inode)
        return self._renditions.failure(picture.key) if picture else ""

    async def size(self, inode: Inode) -> int | None:
        """Exact bytes of a rendered file, rendered now if need be; None when there is no such file.

        Raises as `contents`.
        """
        picture = self.tree.picture(inode)
        if picture is None:
            return None
        known = self._renditions.size(picture.key)
        if known is not None:
            return known
        with self._ahead.reader(inode) if self._ahead is not None else nullcontext():
            if self.tree.is_uncompressed(inode):
                await self._tell_lengths([picture], background=False)
                if (known := self._renditions.size(picture.key)) is not None:
                    return known
            data = await self.contents(inode)
        return None if data is None else len(data)

    async def _tell_lengths(self, pictures: Sequence[Picture], *, background: bool) -> None:
        """Announce sizes that are certain without a render; pictures of one recipe."""
        sources = [picture.source for picture in pictures]
        try:
            lengths = await self._workers.lengths(sources, pictures[0].recipe, background=background)
        except RenderFailed as error:
            log.info("sizes have to be found by rendering: %s", error)
            return
        for picture, length in zip(pictures, lengths, strict=True):
            if length is not None and self._renditions.size(picture.key) is None:
                self._renditions.announce(picture.key, length, "")

    def seen(self, inode: Inode) -> None:
        """Somebody lists this folder, or asks for this file, whose size is known. Raises StoreUnavailable."""
        if self._ahead is not None:
            self._ahead.seen(inode)

    async def _render_ahead(self, inodes: Sequence[Inode], effort: Effort) -> None:
        """See `ahead.Render`."""
        if self.tree.is_uncompressed(inodes[0]):
            unknown = [picture for _, picture in self._unknown(inodes)]
            if unknown:
                await self._tell_lengths(unknown, background=effort is not Effort.WANTED)
        for inode, picture in self._unknown(inodes):
            await self._render_one_ahead(inode, picture, effort)

    def _unknown(self, inodes: Sequence[Inode]) -> list[tuple[Inode, Picture]]:
        """Those of which there is a picture and no size."""
        pictures = [(inode, self.tree.picture(inode)) for inode in inodes]
        return [(i, p) for i, p in pictures if p is not None and self._renditions.size(p.key) is None]

    async def _render_one_ahead(self, inode: Inode, picture: Picture, effort: Effort) -> None:
        if effort is Effort.OLD:
            # Not through the cache. Who asks for it meanwhile has it rendered for himself, at once.
            window = await self._pools.window(picture, background=True)
            await self._render(inode, picture, window, background=True, is_use=False, is_kept=False)
        else:
            await self.contents(inode, background=effort is not Effort.WANTED, is_use=False)

    async def _render(
        self,
        inode: Inode,
        picture: Picture,
        window: PoolWindow | None,
        *,
        background: bool,
        is_use: bool,
        is_kept: bool = True,
    ) -> bytes:
        """From the disk cache, or from a render process.

        `is_kept`: on disk, too; what is rendered for its size alone must not push out what is used.
        """
        try:
            kept = await self._kept_on_disk(picture, window, is_use=is_use)
            if kept is not None:
                return kept
            # What was begun as background work may have somebody who waits by now, and no job to hurry yet.
            background = background and picture.key not in self._hurried
            return await self._have_rendered(
                inode, picture, window, background=background, is_use=is_use, is_kept=is_kept
            )
        finally:
            self._hurried.discard(picture.key)

    async def _have_rendered(
        self,
        inode: Inode,
        picture: Picture,
        window: PoolWindow | None,
        *,
        background: bool,
        is_use: bool,
        is_kept: bool,
    ) -> bytes:
        if self._ahead is not None and not background:
            self._ahead.rendering()
        began = trio.current_time()
        rendered: Rendered = await self._workers.render(
            picture.source, picture.recipe, window, background=background, asker=picture.folder
        )
        (self._rendered_ahead if background else self._rendered).note(trio.current_time() - began)
        self._announce(inode, picture.key, len(rendered.data), rendered.failure or "")
        if rendered.failure:
            log.warning(
                "original %d frame %d cannot be displayed: %s",
                picture.key.original,
                picture.key.frame + 1,
                rendered.failure,
            )
        elif self._disk is not None and is_kept:
            # No notice: another start may have more memory, or a decoder.
            self._disk.keep(picture.key, window, rendered.data, is_use=is_use)
        return rendered.data

    async def _kept_on_disk(
        self, picture: Picture, window: PoolWindow | None, *, is_use: bool
    ) -> bytes | None:
        """From the disk cache, if it is there and as long as was announced."""
        kept = None if self._disk is None else await self._disk.get(picture.key, window, is_use=is_use)
        if kept is None:
            return None
        announced = self._renditions.size(picture.key)
        if announced is None:
            self._renditions.announce(picture.key, len(kept), "")
        return kept if announced in (None, len(kept)) else None
