"""One window for each pool: decided when first asked for, and anew when the pool has grown and is quiet.

Ties tree, renditions and workers together. Every decision is recorded unless another mount was first, and
read back, so that all mounts agree. Renders nothing and tells nobody what has changed: that is `present.py`
and `follow.py`, which call it, on one trio thread.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Final

import trio

from dicomfs.cache import Cache
from dicomfs.entries import Picture
from dicomfs.errors import NotDisplayable, RenderFailed
from dicomfs.index import Index
from dicomfs.inode import LAST_VERSION
from dicomfs.model import PoolWindow, Source
from dicomfs.renditions import Decision, Renditions
from dicomfs.tree import Tree
from dicomfs.turns import Urgency
from dicomfs.workers import Workers

QUIET_S: Final = 5.0
"""A pool that has not grown for so long is taken to be complete."""
POOL_SAMPLE: Final = 32
"""Most frames that are looked at to decide a pool's window."""
_DECISIONS_KEPT: Final = 4096


class Pools:
    """Decisions over pools, and which pools are growing."""

    def __init__(
        self,
        tree: Tree,
        index: Index,
        renditions: Renditions,
        workers: Workers,
        *,
        quiet_s: float = QUIET_S,
    ) -> None:
        self.workers = workers
        self._tree = tree
        self._index = index
        self._renditions = renditions
        self._quiet_s = quiet_s
        self._decisions: Cache[tuple[str, str, int, Urgency], Decision] = Cache(_DECISIONS_KEPT, lambda _: 1)
        """By what is decided, and how urgently: whoever waits must not wait behind background work."""
        self._deciding: set[tuple[str, str, int]] = set()
        self._growing: dict[str, float] = {}
        """Pools that had arrivals, with the time of the latest (trio's clock, seconds)."""

    # Deciding

    async def window(self, picture: Picture, *, urgency: Urgency) -> PoolWindow | None:
        """What is decided for a picture's pool in its version; None when it has none.

        Decided now if nobody has. Raises RenderFailed, StoreUnavailable.
        """
        if not picture.pool:
            return None
        case = _case(picture)
        decision = await self._decisions.get(
            (*case, urgency), lambda: self._decide(*case, urgency=urgency, asker=picture.folder)
        )
        return decision.window

    def is_deciding(self, picture: Picture) -> bool:
        """Whether a picture's pool is being decided: who asks for it would wait."""
        return _case(picture) in self._deciding

    async def _decide(
        self, pool: str, policy: str, version: int, *, urgency: Urgency, asker: Hashable
    ) -> Decision:
        """What is on record for this version; decided now, and read back, if nothing is."""
        decision = self._renditions.decision(pool, policy, version)
        if decision is None:
            self._deciding.add((pool, policy, version))
            try:
                window, through = await self._judge(pool, policy, urgency=urgency, asker=asker)
                decision = await self._record(pool, policy, Decision(version, through, window))
            finally:
                self._deciding.discard((pool, policy, version))
        return decision

    async def _record(self, pool: str, policy: str, decision: Decision) -> Decision:
        """What is on record then. In a thread, since the disk may take its time."""
        return await trio.to_thread.run_sync(self._renditions.decide, pool, policy, decision)

    async def _judge(
        self, pool: str, policy: str, *, urgency: Urgency, asker: Hashable = None
    ) -> tuple[PoolWindow, int]:
        """`asker`: a volume is a pool for each slice, and whoever opens it is one all the same."""
        through, sources = self._tree.pool_sources(pool, POOL_SAMPLE)
        # An original that is lost must not take the others' pictures with it.
        sources = await trio.to_thread.run_sync(_present, sources)
        if not sources:
            raise RenderFailed("no original of its pool can be found in the archive")
        try:
            window = await self.workers.decide_pool(sources, policy, urgency=urgency, asker=asker)
        except NotDisplayable as error:
            window = PoolWindow(None, None, str(error))
        return window, through

    # Growing

    def grew(self, pool: str) -> None:
        """Something has come into a pool just now, or its decision has to be tried again."""
        self._growing[pool] = trio.current_time()

    def is_growing(self, pool: str) -> bool:
        """Whether a decision taken now would soon have to be taken again."""
        return pool in self._growing

    @property
    def any_growing(self) -> bool:
        """Whether something is left to settle."""
        return bool(self._growing)

    def is_decided(self, pool: str) -> bool:
        """Whether any window of it, under a policy in use, is on record."""
        return any(self._renditions.version(pool, policy) for policy in self._tree.policies)

    def take_quiet(self) -> list[str]:
        """Pools that have not grown for `quiet_s`: they are growing no more."""
        now = trio.current_time()
        quiet = [pool for pool, at in self._growing.items() if at + self._quiet_s <= now]
        for pool in quiet:
            del self._growing[pool]
        return quiet

    async def settle(self, pool: str) -> bool:
        """Decide a grown pool anew for every policy in use; True when its files show other inodes now.

        Raises RenderFailed, StoreUnavailable.
        """
        changed = False
        for policy in self._tree.policies:
            latest = self._renditions.version(pool, policy)
            if not latest:
                continue  # nobody has looked yet: the first who does decides over all of it
            recorded = self._renditions.decision(pool, policy, latest)
            if recorded is not None and recorded.through < self._index.pool_through(pool):
                window, through = await self._judge(pool, policy, urgency=Urgency.SPARE)
                if (window.low, window.high) == (recorded.window.low, recorded.window.high):
                    await trio.to_thread.run_sync(self._renditions.extend, pool, policy, latest, through)
                elif latest < LAST_VERSION:
                    await self._record(pool, policy, Decision(latest + 1, through, window))
            # Another mount may have decided it first: what this kernel remembers is old all the same.
            changed = changed or self._renditions.version(pool, policy) > 1
        return changed


def _case(picture: Picture) -> tuple[str, str, int]:
    """What is decided once: pool, policy, version."""
    return picture.pool, picture.policy, picture.key.version


def _present(sources: Sequence[Source]) -> list[Source]:
    """Those whose files are there; not those of which the disk would not tell."""
    return [source for source in sources if _is_there(source.path)]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # EIO, ESTALE, EACCES: no picture would come from there, and it may all be over soon
        return False
