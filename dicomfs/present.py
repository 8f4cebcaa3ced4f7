"""From a file of the tree to its bytes: one window per pool, exact sizes, one render per rendition.

Ties tree, renditions, cache and workers together, and follows what comes in: a pool that has grown and
is quiet again is decided anew (a new version, a new inode), and new images are rendered ahead so that
their sizes are known when somebody looks. Knows no FUSE. Called by `fuse.py` and `mount.py`, on one
trio thread.
"""

import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final

import trio

from dicomfs.cache import Cache
from dicomfs.diskcache import DiskCache
from dicomfs.errors import NotDisplayable, RenderFailed, StoreUnavailable
from dicomfs.figures import CacheFigures, MountFigures, Stopwatch
from dicomfs.index import Index
from dicomfs.model import PoolWindow
from dicomfs.renditions import Decision, Key, Renditions
from dicomfs.tree import LAST_VERSION, Entry, Inode, Picture, Tree
from dicomfs.workers import Rendered, Workers

POLL_S: Final = 0.25
"""How often the index is asked whether something came in; the question costs microseconds."""
QUIET_S: Final = 5.0
"""A pool that has not grown for so long is taken to be complete."""
POOL_SAMPLE: Final = 32
"""Most frames that are looked at to decide a pool's window."""
AHEAD: Final = 48
"""Files that are rendered ahead of somebody who asks for the sizes of a folder one by one."""
WARM_BACKLOG: Final = 20_000
"""Most files waiting to be rendered ahead; what is older is rendered when asked for."""
OLDER_FILES: Final = 20_000
"""Files of the newest instances that are rendered ahead after a start, if their sizes are not known."""
_OLDER_AT_ONCE: Final = 200
_ARRIVALS_AT_ONCE: Final = 1000
_DECISIONS_KEPT: Final = 4096

Changed = Callable[[Sequence[tuple[Inode, str]]], Awaitable[None]]
"""Is told of (folder, name) pairs that show another inode now. Raises StoreUnavailable."""

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
        ahead_tasks: int = 1,
        disk: DiskCache | None = None,
    ) -> None:
        """`quiet_s`: see `QUIET_S`; `ahead_tasks`: how many pictures are rendered ahead at once."""
        self.tree = tree
        self.index = index
        self._renditions = renditions
        self._workers = workers
        self._cache = cache
        self._disk = disk
        self._rendered, self._rendered_ahead = Stopwatch(), Stopwatch()
        self._warm = warm
        self._quiet_s = quiet_s
        self._ahead_tasks = ahead_tasks
        self._decisions: Cache[tuple[str, str, int], Decision] = Cache(_DECISIONS_KEPT, lambda _: 1)
        self._growing: dict[str, float] = {}
        """Pools that had arrivals, with the time of the latest (trio's clock, seconds)."""
        self._backlog: deque[Inode] = deque(maxlen=WARM_BACKLOG)
        """Files to be rendered when nobody waits for anything."""
        self._next: deque[Inode] = deque(maxlen=4 * AHEAD)
        """Files that somebody is about to ask for: those who list a folder get all processes."""
        self._ahead_through: dict[Inode, int] = {}
        self._cursor: int | None = None
        """Receipt sequence up to which arrivals have been seen."""
        self._started = 0
        """Receipt sequence when this mount began to follow."""
        self._noted: int | None = None
        self._settling = False
        self._first_day = tree.first_day
        """Of what the kernel has been told so far."""
        self._older = self._older_files()
        self._hungry = trio.lowlevel.ParkingLot()
        """Where `_render_ahead` waits for something in the backlog."""

    def render_with(self, workers: Workers) -> None:
        """Go on with other render processes; the former ones have ended."""
        self._workers = workers

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

    # On demand

    async def contents(self, inode: Inode, *, background: bool = False, is_use: bool = True) -> bytes | None:
        """Bytes of a rendered file; None when there is no such file in this view.

        `is_use`: somebody has asked for this very file, and it is not only rendered ahead.
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
        if data is None:
            window = await self._window(picture, background=background)
            # It may wait in the queue of those rendered ahead.
            joining = (
                None if background else partial(self._workers.hurry, picture.source, picture.recipe, window)
            )
            data = await self._cache.get(
                picture.key,
                lambda: self._render(picture, window, background=background),
                joining=joining,
                is_use=is_use,
            )
        if announced is None:
            # Rendered by this very call, unless it was in the cache and the renditions have been deleted.
            announced = self._renditions.size(picture.key)
        if announced != len(data):
            self._announce_anew(picture.key, announced, len(data))
        return data

    def _announce_anew(self, key: Key, announced: int | None, size: int) -> None:
        """Somebody may have been told another size: then this read fails, and the next one is right."""
        if self._renditions.size(key) != size:
            self._renditions.announce(key, size, "")
        if announced is not None:
            raise RenderFailed(
                f"original {key.original} frame {key.frame + 1} was announced with {announced} bytes "
                f"and has {size}: announced anew"
            )

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
        self._look_ahead(inode)
        data = await self.contents(inode)
        return None if data is None else len(data)

    async def _render(self, picture: Picture, window: PoolWindow | None, *, background: bool) -> bytes:
        kept = await self._kept_on_disk(picture, window)
        if kept is not None:
            return kept
        began = trio.current_time()
        rendered: Rendered = await self._workers.render(
            picture.source, picture.recipe, window, background=background
        )
        (self._rendered_ahead if background else self._rendered).note(trio.current_time() - began)
        if self._renditions.size(picture.key) != len(rendered.data):
            self._renditions.announce(picture.key, len(rendered.data), rendered.failure or "")
        if rendered.failure:
            log.warning(
                "original %d frame %d cannot be displayed: %s",
                picture.key.original,
                picture.key.frame + 1,
                rendered.failure,
            )
        elif self._disk is not None:  # no notice: another start may have more memory, or a decoder
            self._disk.keep(picture.key, window, rendered.data, is_use=not background)
        return rendered.data

    async def _kept_on_disk(self, picture: Picture, window: PoolWindow | None) -> bytes | None:
        """From the disk cache, if it is there and as long as was announced."""
        kept = None if self._disk is None else await self._disk.get(picture.key, window)
        if kept is None:
            return None
        announced = self._renditions.size(picture.key)
        if announced is None:
            self._renditions.announce(picture.key, len(kept), "")
        return kept if announced in (None, len(kept)) else None

    async def _window(self, picture: Picture, *, background: bool) -> PoolWindow | None:
        if not picture.pool:
            return None
        policy, version = picture.policy, picture.key.version
        decision = await self._decisions.get(
            (picture.pool, policy, version),
            lambda: self._decide(picture.pool, policy, version, background=background),
        )
        return decision.window

    async def _decide(self, pool: str, policy: str, version: int, *, background: bool) -> Decision:
        """What is on record for this version; decided now, and read back, if nothing is."""
        decision = self._renditions.decision(pool, policy, version)
        if decision is None:
            window, through = await self._judge(pool, policy, background=background)
            decision = self._renditions.decide(pool, policy, Decision(version, through, window))
        return decision

    async def _judge(self, pool: str, policy: str, *, background: bool) -> tuple[PoolWindow, int]:
        through, sources = self.tree.pool_sources(pool, POOL_SAMPLE)
        # An original that is lost must not take the others' pictures with it.
        sources = [source for source in sources if source.path.exists()]
        if not sources:
            raise RenderFailed("no original of its pool can be found in the archive")
        try:
            window = await self._workers.decide_pool(sources, policy, background=background)
        except NotDisplayable as error:
            window = PoolWindow(None, None, str(error))
        return window, through

    # Following what comes in

    async def follow(self, changed: Changed) -> None:
        """Watch the index until cancelled; `changed` is told of (folder, name) pairs that show another inode.

        *Cancellation*: at any time; nothing is left half recorded.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, changed)
            nursery.start_soon(self._settle, changed)
            for _ in range(self._ahead_tasks):
                nursery.start_soon(self._render_ahead)

    async def _watch(self, changed: Changed) -> None:
        version = -1
        complaining = False
        while True:
            try:
                now_version = self.index.data_version()
                if now_version != version:
                    await self._take_arrivals(changed)
                    version = now_version
                self._note_followed()
                await self._tell_what_left(changed)
                complaining = False
            except StoreUnavailable as error:
                if not complaining:
                    log.warning("cannot look for new images now: %s", error)
                complaining = True
            await trio.sleep(POLL_S)

    async def _take_arrivals(self, changed: Changed) -> None:
        """Go on where this or an earlier mount has stopped; raises StoreUnavailable anywhere between two."""
        if self._cursor is None:
            self._started = self.index.last_sequence()
            self._cursor = self._first_cursor()
        while True:
            arrivals = self.index.arrivals(self._cursor, _ARRIVALS_AT_ONCE)
            for arrival in arrivals:
                # Of what was there before, however much that is: only windows that were decided too early.
                is_news = arrival.sequence > self._started
                if arrival.pool and (is_news or self._is_decided(arrival.pool)):
                    self._growing[arrival.pool] = trio.current_time()
                if arrival.replaces and is_news:
                    await changed([(folder, e.name) for folder, e in self.tree.names_of(arrival.instance)])
                if self._warm and is_news:
                    # What its pool decides waits until the pool is quiet.
                    entries = self.tree.files_of(arrival.instance)
                    self._enqueue(entry for entry in entries if not entry.inode.version)
                self._cursor = arrival.sequence
                await trio.lowlevel.checkpoint()
            if len(arrivals) < _ARRIVALS_AT_ONCE:
                return

    def _is_decided(self, pool: str) -> bool:
        return any(self._renditions.version(pool, policy) for policy in self.tree.policies)

    async def _tell_what_left(self, changed: Changed) -> None:
        """A day has passed: what is too old for this mount's `since` must not go on being remembered."""
        first_day = self.tree.first_day
        if first_day > self._first_day:
            names = self.tree.left(self._first_day, first_day)
            while some := list(islice(names, _ARRIVALS_AT_ONCE)):
                await changed(some)
        self._first_day = first_day

    def _first_cursor(self) -> int:
        noted = [self._renditions.followed(policy) for policy in self.tree.policies]
        if noted and None not in noted:
            return min(n for n in noted if n is not None)
        # Nothing was ever decided: there is nothing to go back for.
        return self._started

    def _note_followed(self) -> None:
        """Everything up to the cursor is settled: the next mount need not look at it again."""
        if self._growing or self._settling or self._cursor is None or self._cursor == self._noted:
            return
        for policy in self.tree.policies:
            self._renditions.note_followed(policy, self._cursor)
        self._noted = self._cursor

    def _enqueue(self, entries: Iterable[Entry]) -> None:
        self._backlog.extend(entry.inode for entry in entries if entry.size is None)
        self._hungry.unpark_all()

    async def _settle(self, changed: Changed) -> None:
        while True:
            now = trio.current_time()
            for pool in [p for p, at in self._growing.items() if at + self._quiet_s <= now]:
                del self._growing[pool]
                self._settling = True
                try:
                    names = await self._settle_pool(pool)
                    if names:
                        await changed(names)
                except (RenderFailed, StoreUnavailable) as error:
                    log.warning("pool %s: its window cannot be decided now: %s", pool, error)
                    self._growing[pool] = trio.current_time()
                self._settling = False
                # A volume is a pool for each slice, all quiet at the same moment.
                await trio.lowlevel.checkpoint()
            await trio.sleep(POLL_S)

    async def _settle_pool(self, pool: str) -> list[tuple[Inode, str]]:
        """Decide a grown pool anew for every policy in use; returns the files that show another inode now."""
        changed = False
        for policy in self.tree.policies:
            latest = self._renditions.version(pool, policy)
            if not latest:
                continue  # nobody has looked yet: the first who does decides over all of it
            recorded = self._renditions.decision(pool, policy, latest)
            if recorded is not None and recorded.through < self.index.pool_through(pool):
                window, through = await self._judge(pool, policy, background=True)
                if (window.low, window.high) == (recorded.window.low, recorded.window.high):
                    self._renditions.extend(pool, policy, latest, through)
                elif latest < LAST_VERSION:
                    self._renditions.decide(pool, policy, Decision(latest + 1, through, window))
            # Another mount may have decided it first: what this kernel remembers is old all the same.
            changed = changed or self._renditions.version(pool, policy) > 1
        members = list(self.tree.members(pool))
        if self._warm:
            self._enqueue(entry for _, entry in members)
        return [(folder, entry.name) for folder, entry in members] if changed else []

    def _look_ahead(self, inode: Inode) -> None:
        """Somebody asks for sizes one by one, as `ls -l` and smbd do: render the next ones meanwhile."""
        place = self.tree.place_of(inode)
        if place is None or not self._warm:
            return
        folder, here = place
        through = self._ahead_through.get(folder, 0)
        # Half of what was scheduled is still ahead: nothing to do yet.
        if here < through and here != 0 and self._next:
            return
        listed = list(self.tree.listing(folder, here, AHEAD))
        if not listed:
            return
        if len(self._ahead_through) > AHEAD:
            self._ahead_through.clear()
        self._ahead_through[folder] = listed[len(listed) // 2].cookie
        self._next.extend(item.entry.inode for item in listed if item.entry.size is None)
        self._hungry.unpark_all()

    def _older_files(self) -> Iterator[Inode]:
        """Newest first, what was there before and was never rendered: an import, an update of a library."""
        looked_at, before = 0, sys.maxsize
        while looked_at < OLDER_FILES:
            page = self.index.instances_before(before, _OLDER_AT_ONCE)
            if not page:
                return
            for before in page:
                entries = self.tree.files_of(before)
                looked_at += max(len(entries), 1)
                yield from (entry.inode for entry in entries if entry.size is None)

    def _take_next(self) -> tuple[Inode | None, bool]:
        """The file to be rendered ahead now, and whether somebody is about to ask for it."""
        if self._next:
            return self._next.popleft(), True
        if self._backlog:
            return self._backlog.popleft(), False
        # Behind everything else: what has just come in is what people wait for.
        return next(self._older, None) if self._warm else None, False

    async def _render_ahead(self) -> None:
        while True:
            try:
                inode, wanted = self._take_next()
            except StoreUnavailable as error:
                log.info("older images are not rendered ahead: %s", error)
                continue
            if inode is None:
                await self._hungry.park()
                continue
            try:
                picture = self.tree.picture(inode)
                if picture is not None and self._renditions.size(picture.key) is None:
                    await self.contents(inode, background=not wanted, is_use=False)
            except (RenderFailed, StoreUnavailable) as error:
                log.info("instance %d was not rendered ahead: %s", inode.id, error)
            await trio.lowlevel.checkpoint()
