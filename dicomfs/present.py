"""From a file of the tree to its bytes: exact sizes, one render per rendition.

Ties tree, renditions, cache and workers together; what one window is decided over is `pools.py`, what is
rendered before anybody asks `ahead.py`, what comes in `follow.py`. Knows no FUSE. Called by `fuse.py` and
`mount.py`, on one trio thread.
"""

import logging
import math
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
from dicomfs.turns import Urgency
from dicomfs.workers import Rendered, Workers

ANNOUNCED_S: Final = 0.25
"""How often, at most, it is asked whether another mount has announced other sizes."""
_AT_HAND_KEPT: Final = 65_536

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
        self._at_hand: dict[int, Key] = {}
        """Keys of files that were opened or rendered, by the numbers of their inodes; another one as soon as
        names may have changed, so that whoever has looked a file up before adds to the former one."""
        self._announced: set[Key] = set()
        """Of these, what was found to be announced with the size that it has."""
        self._ask_at = -math.inf
        self._announced_version = 0
        """Of the renditions, when they were asked last."""
        self._at_hand_version = index.data_version()
        """Of the index: all of `_at_hand` is true as long as it stays."""
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
                self._render_next,
                # One more than there are processes, so that there is one to put behind another.
                tasks=processes + 1,
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
        """Bytes of a rendered file, by the number of its inode, that somebody opens and that is in memory.

        Asks the index only whether anything was committed, so that opening a file that was opened before,
        or rendered ahead, costs next to nothing. Whoever learns that names change in another way calls
        `forget_opened`. Raises StoreUnavailable.
        """
        key = self._at_hand.get(number)
        if key is None:
            return None
        version = self.index.data_version()
        if version != self._at_hand_version:
            # Something may have been forgotten, of which nobody has been told yet.
            self.forget_opened()
            self._at_hand_version = version
            return None
        data = self._cache.peek(key)
        if data is None or not self._is_announced(key, len(data)):
            return None
        if self._prefetch is not None:
            self._prefetch.reached(key)
        return data

    def _is_announced(self, key: Key, size: int) -> bool:
        """Whether a size is still the announced one: another mount may have announced another."""
        now = trio.current_time()
        if now >= self._ask_at:
            self._ask_at = now + ANNOUNCED_S
            if (version := self._renditions.data_version()) != self._announced_version:
                self._announced_version = version
                self._announced.clear()
        if key not in self._announced:
            if self._renditions.size(key) != size:
                return False
            if len(self._announced) >= _AT_HAND_KEPT:
                self._announced.clear()
            self._announced.add(key)
        return True

    def forget_opened(self) -> None:
        """Files that are in memory may have gone, or show something else: see `at_hand`."""
        self._at_hand = {}
        self._announced.clear()

    async def contents(
        self,
        inode: Inode,
        *,
        urgency: Urgency = Urgency.WAITED,
        opening: bool = False,
        is_use: bool = True,
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
        return await self._contents(inode, picture, announced, urgency, opening=opening, is_use=is_use)

    async def _contents(
        self,
        inode: Inode,
        picture: Picture,
        announced: int | None,
        urgency: Urgency = Urgency.WAITED,
        *,
        opening: bool = False,
        is_use: bool = True,
        at_hand: dict[int, Key] | None = None,
    ) -> bytes:
        """As `contents`, of a file that was looked up, and with it the size that is announced.

        `at_hand`: what `_at_hand` was then; None: what it is now. What has been forgotten since must not get
        into its successor.
        """
        if at_hand is None:
            at_hand = self._at_hand
        data = self._cache.peek(picture.key, is_use=is_use)
        if opening and self._prefetch is not None:
            self._prefetch.opened(picture, was_kept=data is not None)
        if data is None:
            window = await self._pools.window(picture, urgency=urgency)
            # It may wait in the queue of those rendered ahead, or for the disk before it gets there.
            joining = partial(self._hurry, picture, window) if urgency is Urgency.WAITED else None
            data = await self._cache.get(
                picture.key,
                lambda: self._render(inode, picture, window, urgency, is_use=is_use),
                joining=joining,
                is_use=is_use,
            )
        if announced is None:
            # Rendered by this very call, unless it was in the cache and the renditions have been deleted.
            announced = self._renditions.size(picture.key)
        if announced != len(data):
            self._announce_anew(inode, picture.key, announced, len(data))
        if len(at_hand) >= _AT_HAND_KEPT:
            del at_hand[next(iter(at_hand))]
        at_hand[inode.number] = picture.key
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
        if (key := self._at_hand.pop(inode.number, None)) is not None:
            self._announced.discard(key)
        self.resized(inode)

    def failure(self, inode: Inode) -> str:
        """Why a rendered file is a notice instead of a picture; empty when it is one, or is not known yet."""
        picture = self.tree.picture(inode)
        return self._renditions.failure(picture.key) if picture else ""

    async def size(self, inode: Inode) -> int | None:
        """Exact bytes of a rendered file, rendered now if need be; None when there is no such file.

        Raises as `contents`.
        """
        picture, at_hand = self.tree.picture(inode), self._at_hand
        if picture is None:
            return None
        known = self._renditions.size(picture.key)
        if known is not None:
            return known
        reader = self._ahead.reader(picture.folder, picture.cookie) if self._ahead is not None else None
        with reader or nullcontext():
            if self.tree.is_uncompressed(inode):
                await self._tell_lengths([picture], Urgency.WAITED)
                if (known := self._renditions.size(picture.key)) is not None:
                    return known
            return len(await self._contents(inode, picture, None, at_hand=at_hand))

    async def _tell_lengths(self, pictures: Sequence[Picture], urgency: Urgency) -> None:
        """Announce sizes that are certain without a render; pictures of one recipe."""
        sources = [picture.source for picture in pictures]
        try:
            lengths = await self._workers.lengths(sources, pictures[0].recipe, urgency=urgency)
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

    async def _render_next(self, inode: Inode, picture: Picture) -> None:
        """See `prefetch.Prefetch`."""
        announced = self._renditions.size(picture.key)
        await self._contents(inode, picture, announced, Urgency.NEXT, is_use=False)

    async def _render_ahead(self, inodes: Sequence[Inode], effort: Effort) -> None:
        """See `ahead.Render`."""
        urgency = Urgency.WAITED if effort is Effort.WANTED else Urgency.SPARE
        unknown, at_hand = self._unknown(inodes), self._at_hand
        if unknown and self.tree.is_uncompressed(inodes[0]):
            await self._tell_lengths([picture for _, picture in unknown], urgency)
            unknown, at_hand = self._unknown(inodes), self._at_hand
        for inode, picture in unknown:
            if effort is Effort.OLD:
                # Not through the cache. Who asks for it meanwhile has it rendered for himself, at once.
                window = await self._pools.window(picture, urgency=urgency)
                await self._render(inode, picture, window, urgency, is_use=False, is_kept=False)
            else:
                await self._contents(inode, picture, None, urgency, is_use=False, at_hand=at_hand)

    def _unknown(self, inodes: Sequence[Inode]) -> list[tuple[Inode, Picture]]:
        """Those of which there is a picture and no size."""
        pictures = [(inode, self.tree.picture(inode)) for inode in inodes]
        return [(i, p) for i, p in pictures if p is not None and self._renditions.size(p.key) is None]

    async def _render(
        self,
        inode: Inode,
        picture: Picture,
        window: PoolWindow | None,
        urgency: Urgency,
        *,
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
            if picture.key in self._hurried:
                # What was begun when nobody waited had no job to hurry yet.
                urgency = Urgency.WAITED
            return await self._have_rendered(inode, picture, window, urgency, is_use=is_use, is_kept=is_kept)
        finally:
            self._hurried.discard(picture.key)

    async def _have_rendered(
        self,
        inode: Inode,
        picture: Picture,
        window: PoolWindow | None,
        urgency: Urgency,
        *,
        is_use: bool,
        is_kept: bool,
    ) -> bytes:
        if self._ahead is not None and urgency is not Urgency.SPARE:
            self._ahead.rendering()
        began = trio.current_time()
        rendered: Rendered = await self._workers.render(
            picture.source, picture.recipe, window, urgency=urgency, asker=picture.folder
        )
        (self._rendered if urgency is Urgency.WAITED else self._rendered_ahead).note(
            trio.current_time() - began
        )
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
