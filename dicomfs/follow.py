"""Following the index while a mount lives: what comes in, what is replaced, what has become too old.

A pool that has grown and is quiet again is decided anew, and whoever has to forget old names is told. New
images go to `ahead.py`. It renders nothing. Called by `present.py`, on one trio thread; loops over arrivals
and pools yield after each, because thousands come at once.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final

import trio

from dicomfs.ahead import Ahead
from dicomfs.changes import Changes
from dicomfs.entries import Disappearance
from dicomfs.errors import RenderFailed, StoreUnavailable
from dicomfs.index import Index
from dicomfs.inode import Inode
from dicomfs.pools import Pools
from dicomfs.renditions import Renditions
from dicomfs.tree import Tree

POLL_S: Final = 0.25
"""How often the index is asked whether something came in; the question costs microseconds."""
_ARRIVALS_AT_ONCE: Final = 1000
_LEFT_AT_ONCE: Final = 100

Changed = Callable[[Sequence[tuple[Inode, str]]], Awaitable[None]]
"""Is told of (folder, name) pairs that show another inode now. Raises StoreUnavailable."""
Gone = Callable[[Sequence[Disappearance]], Awaitable[None]]
"""Is told of names that are not shown any more. Raises StoreUnavailable."""

log = logging.getLogger(__name__)


class Follower:
    """One mount's view of what happens in the index."""

    def __init__(
        self, tree: Tree, index: Index, renditions: Renditions, pools: Pools, ahead: Ahead | None
    ) -> None:
        """`ahead`: who is told of new images, if anybody."""
        self._tree = tree
        self._index = index
        self._changes = Changes(tree, index)
        self._renditions = renditions
        self._pools = pools
        self._ahead = ahead
        self._cursor: int | None = None
        """Receipt sequence up to which arrivals have been seen."""
        self._started = 0
        """Receipt sequence when this mount began to follow."""
        self._noted: int | None = None
        self._settling = False
        self._first_day = tree.first_day
        """Of what the kernel has been told so far."""

    async def watch(self, changed: Changed, gone: Gone) -> None:
        """Look for what is new, or has become too old, and write what is to be noted, until cancelled.

        *Cancellation*: any time.
        """
        version = -1
        complaining = False
        while True:
            try:
                now_version = self._index.data_version()
                if now_version != version:
                    await self._take_arrivals(changed)
                    version = now_version
                await self._tell_what_left(gone)
                await self._note_followed()  # last: it alone needs a disk that can be written
                complaining = False
            except StoreUnavailable as error:
                if not complaining:
                    log.warning("cannot look for new images now: %s", error)
                complaining = True
            if self._ahead is not None:
                self._ahead.note()
            await self._write_down()
            await trio.sleep(POLL_S)

    async def _take_arrivals(self, changed: Changed) -> None:
        """Go on where this or an earlier mount has stopped; raises StoreUnavailable anywhere between two."""
        if self._cursor is None:
            started = self._index.last_sequence()
            cursor = self._first_cursor(started)
            if self._ahead is not None:
                self._ahead.begin(started)
            self._started, self._cursor = started, cursor
        while True:
            arrivals = self._index.arrivals(self._cursor, _ARRIVALS_AT_ONCE)
            for arrival in arrivals:
                # Of what was there before, however much that is: only windows that were decided too early.
                is_news = arrival.sequence > self._started
                if arrival.pool and (is_news or self._pools.is_decided(arrival.pool)):
                    self._pools.grew(arrival.pool)
                if arrival.replaces and is_news:
                    await changed([(folder, e.name) for folder, e in self._tree.names_of(arrival.instance)])
                if self._ahead is not None and (is_news or arrival.replaces):
                    self._ahead.arrived(arrival.instance, arrival.sequence)
                self._cursor = arrival.sequence
                await trio.lowlevel.checkpoint()
            if len(arrivals) < _ARRIVALS_AT_ONCE:
                return

    def _first_cursor(self, started: int) -> int:
        noted = [self._renditions.followed(policy) for policy in self._tree.policies]
        if noted and None not in noted:
            return min(n for n in noted if n is not None)
        # Nothing was ever decided: there is nothing to go back for.
        return started

    async def _write_down(self) -> None:
        """Sizes and notes that have come together, in a thread: the disk may take its time."""
        batch = self._renditions.unwritten()
        if batch is not None:
            is_done = await trio.to_thread.run_sync(self._renditions.write, batch)
            self._renditions.written(batch, is_done=is_done)

    async def _note_followed(self) -> None:
        """Everything up to the cursor is settled: the next mount need not look at it again."""
        if self._pools.any_growing or self._settling or self._cursor is None or self._cursor == self._noted:
            return
        cursor = self._cursor
        for policy in self._tree.policies:
            await trio.to_thread.run_sync(self._renditions.note_followed, policy, cursor)
        self._noted = cursor

    async def _tell_what_left(self, gone: Gone) -> None:
        """A day has passed: what is too old for this mount's `since` is not shown any more."""
        first_day = self._tree.first_day
        if first_day > self._first_day:
            names = self._changes.left(self._first_day, first_day)
            while some := list(islice(names, _LEFT_AT_ONCE)):
                await gone(some)
        self._first_day = first_day

    async def settle(self, changed: Changed) -> None:
        """Decide quiet pools anew until cancelled; `changed` is told of files that are others now.

        *Cancellation*: at any time; a pool that was not settled is looked at by the next mount.
        """
        while True:
            quiet = self._pools.take_quiet()
            self._settling = bool(quiet)
            for pool in quiet:
                try:
                    if await self._pools.settle(pool):
                        await changed([(folder, entry.name) for folder, entry in self._tree.members(pool)])
                    if self._ahead is not None:
                        self._ahead.settled(pool)
                except (RenderFailed, StoreUnavailable) as error:
                    log.warning("pool %s: its window cannot be decided now: %s", pool, error)
                    self._pools.grew(pool)
                # A volume is a pool for each slice, all quiet at the same moment.
                await trio.lowlevel.checkpoint()
            self._settling = False
            await trio.sleep(POLL_S)
