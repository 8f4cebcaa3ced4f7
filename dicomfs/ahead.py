"""Rendering before anybody asks, so that sizes are known when somebody does.

Two kinds of work. *Walks*: somebody asks for the sizes of a folder one after the other, as `ls -l` and smbd
do; what follows is rendered ahead of him, to the end of the folder, on all processes, one file of each such
folder in turn, for as long as he goes on. *Warming*: everything else whose sizes are not known, newest first,
when nobody waits for anything. What is still to be looked at is a few spans of ids (`spans.py`), kept in the
renditions: memory does not grow with the archive, and a mount goes on where the last one stopped.

It renders nothing itself and keeps no picture: `present.py` makes one and tells it what is asked for,
`follow.py` what has come in. Everything here belongs to trio's thread, and yields after each file.
"""

import logging
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import trio

from dicomfs.errors import RenderFailed, StoreUnavailable
from dicomfs.index import Index
from dicomfs.inode import Inode, Kind
from dicomfs.pools import Pools
from dicomfs.renditions import Renditions
from dicomfs.spans import Spans
from dicomfs.tree import Tree

GONE_S: Final = 3.0
"""Who has not asked for anything in a folder for so long has gone."""
MOST_WALKS: Final = 64
"""Folders that are walked at once; the one that was asked for longest ago goes first."""
NOTE_S: Final = 5.0
"""How often it is noted what is still to be warmed."""
TROUBLE_S: Final = 5.0
"""Before the store is tried again."""
PEOPLE_S: Final = 0.5
"""Warming stands back for so long after somebody had to wait for a render: he may go on."""
STARVED_S: Final = 1.0
"""Then it goes on, one picture at a time, even if people wait without end."""
FAILED_S: Final = 1.0
"""After a picture that cannot be had now: when none can, what is to be warmed must not run out."""
_SEEN_S: Final = 0.5
"""Who asks for files whose sizes are known is noted so often."""
_PAGE: Final = 32
_FAR: Final = 256
"""Files of a folder that are kept in mind while pools are being decided."""
_TOGETHER: Final = 16
"""Files that are asked about at once when nothing has to be rendered: some milliseconds' work."""
_LOOKS: Final = 32
"""Instances that are looked at between two rests when all is known of them."""
_REST_S: Final = 0.01
_YIELD_S: Final = 0.1
"""While people wait for renders, warming looks so often whether they still do."""
_LONGEST_REST_S: Final = 1.0
_EVER: Final = 2**62
"""Above every id."""

log = logging.getLogger(__name__)


class Effort(Enum):
    """Why a file is rendered ahead."""

    WANTED = "somebody is about to ask for it: as if he did"
    NEW = "it has just come in: in the background, and the picture is kept"
    OLD = "for its size alone: the picture is not kept, or it would drive out what people use"


Render = Callable[[Sequence[Inode], Effort], Awaitable[None]]
"""Makes sizes of files of one view known, as far as they are not. Raises RenderFailed, StoreUnavailable."""


@dataclass(eq=False, slots=True)
class _Walk:
    """Somebody's way through a folder, and ours ahead of him."""

    folder: Inode
    asked: float
    """When he last asked (trio's clock)."""
    here: int
    """Cookie of the file that he last asked for."""
    place: int
    """Cookie from which we go on."""
    backwards: bool = False
    again: bool = False
    """All of the folder is gone through once more: for what was jumped over."""
    done: bool = False
    waiting: int = 0
    """Asks that are waiting for a render."""
    found: deque[Inode] = field(default_factory=deque)
    """Files beyond him that are not taken up yet."""

    def turn(self, here: int) -> None:
        """He asks for the file at `here`."""
        backwards = here < self.here if here != self.here else self.backwards
        is_ahead = here < self.place if self.backwards else here > self.place
        if backwards != self.backwards or is_ahead:
            self.backwards, self.place = backwards, here
            self.again = self.done = False
            self.found.clear()
        self.here = here


class Ahead:
    """What one mount renders before it is asked for."""

    def __init__(
        self,
        tree: Tree,
        index: Index,
        renditions: Renditions,
        pools: Pools,
        render: Render,
        *,
        processes: int,
    ) -> None:
        """`processes`: how many pictures can be rendered at once."""
        self._tree = tree
        self._index = index
        self._renditions = renditions
        self._pools = pools
        self._render = render
        self._processes = processes
        self._walks: OrderedDict[Inode, _Walk] = OrderedDict()
        """By folder; whose turn it is stands first."""
        self._asked: dict[Inode, float] = {}
        """When somebody last listed a folder or asked for a size in it; the latest last."""
        self._unwarmed = Spans()
        """Ids of instances that are still to be looked at."""
        self._files: tuple[int, deque[Inode]] = (0, deque())
        """The instance that was looked at last, and its files."""
        self._in_hand: Counter[int] = Counter()
        """Instances of which files are being rendered, or are next; with how many."""
        self._put_off: dict[str, tuple[int, int]] = {}
        """First and last instance of growing pools that were passed over."""
        self._failed = Spans()
        """What could not be rendered: the next mount tries again."""
        self._started = self._through = -1
        """Receipt sequence when this mount began to follow, and up to which they are known; -1: before."""
        self._noted = ""
        self._note_at = 0.0
        self._looked = 0
        self._people_until = self._warmed_at = -math.inf
        """Until when warming stands back for people, and when it last did not."""
        self._walkers = trio.lowlevel.ParkingLot()
        self._warmers = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Render ahead until cancelled. *Cancellation*: at any time; what is in hand is noted as not done."""
        try:
            async with trio.open_nursery() as nursery:
                # Enough to keep two at each process (`schedule.py`), so that none waits for us between two.
                for _ in range(2 * self._processes + 1):
                    nursery.start_soon(self._walk)
                for _ in range(max(1, self._processes - 1)):
                    nursery.start_soon(self._warm)
        finally:
            self.note(now=True)

    # What others tell

    @contextmanager
    def reader(self, folder: Inode, here: int) -> Iterator[None]:
        """Around an ask for the size of a file that is not known, by its cookie in the folder."""
        if not self._is_second(folder):
            yield
            return
        walk = self._walks.get(folder)
        if walk is None:
            walk = self._walks[folder] = _Walk(folder, trio.current_time(), here, here)
            if len(self._walks) > MOST_WALKS:
                del self._walks[min(self._walks.values(), key=lambda one: one.asked).folder]
        walk.turn(here)
        walk.waiting += 1
        self._walkers.unpark_all()
        try:
            yield
        finally:
            walk.waiting -= 1
            walk.asked = trio.current_time()

    def _is_second(self, folder: Inode) -> bool:
        """Whether somebody goes on in a folder: what he asks for first may be one picture that he opens."""
        last = self._asked.pop(folder, -GONE_S)
        self._asked[folder] = trio.current_time()
        if len(self._asked) > MOST_WALKS:
            del self._asked[next(iter(self._asked))]
        return folder in self._walks or last + GONE_S > trio.current_time()

    def seen(self, inode: Inode) -> None:
        """Somebody is still busy in a folder: he lists it, or asks for a file whose size is known."""
        if inode.kind is Kind.EXAM:
            self._is_second(inode)
        elif not any(walk.asked + _SEEN_S < trio.current_time() for walk in self._walks.values()):
            return  # Nobody is about to be taken for gone, and to find the folder costs a query.
        place = self._tree.place_of(inode) if inode.kind is Kind.FILE else (inode, 0)
        if place is not None and (walk := self._walks.get(place[0])) is not None:
            walk.asked = trio.current_time()

    def rendering(self) -> None:
        """Somebody waits for a picture that has to be rendered, or soon will."""
        self._people_until = trio.current_time() + PEOPLE_S

    def begin(self, sequence: int) -> None:
        """Arrivals will be told from this receipt sequence number on. Raises StoreUnavailable."""
        for scope in self._tree.scopes:
            kept = self._renditions.unwarmed(scope)
            spans = Spans.of(kept) if kept is not None else None
            for first, last in spans if spans is not None else ((1, _EVER),):
                self._unwarmed.add(first, last)
        self._unwarmed.cut(sequence + 1)
        self._started = self._through = sequence
        self._warmers.unpark_all()

    def arrived(self, instance: int, sequence: int) -> None:
        """An original of this receipt number has come in, and is shown as this instance."""
        self._unwarmed.add(instance, instance)
        self._through = max(self._through, sequence)
        self._warmers.unpark_all()

    def settled(self, pool: str) -> None:
        """A pool is decided for now. Raises StoreUnavailable."""
        span = self._index.pool_span(pool)
        if span is not None:
            self._unwarmed.add(*span)
            self._warmers.unpark_all()
        self._put_off.pop(pool, None)

    def note(self, *, now: bool = False) -> None:
        """Have it kept, now and then, what is still to be warmed."""
        if self._started < 0 or not (now or self._note_at <= trio.current_time()):
            return
        rest = self._unwarmed.copy()
        for first, last in (*self._put_off.values(), *self._failed, *((one, one) for one in self._in_hand)):
            rest.add(first, last)
        rest.add(self._through + 1, _EVER)
        if str(rest) != self._noted:
            self._noted = str(rest)
            for scope in self._tree.scopes:
                self._renditions.note_unwarmed(scope, self._noted)
        self._note_at = trio.current_time() + NOTE_S

    # Walks

    async def _walk(self) -> None:
        while True:
            try:
                inodes = self._next_wanted()
                if inodes:
                    await self._render(inodes, Effort.WANTED)
                elif not self._walks:
                    await self._walkers.park()
            except RenderFailed as error:
                log.info("a file was not rendered ahead: %s", error)
            except StoreUnavailable as error:
                log.info("no folder is rendered ahead now: %s", error)
                self._walks.clear()  # whoever is in one asks again
            await trio.lowlevel.checkpoint()

    def _next_wanted(self) -> list[Inode]:
        """A file, or some, of the folder whose turn it is; none: look again. Raises StoreUnavailable."""
        while self._walks:
            folder, walk = next(iter(self._walks.items()))
            is_gone = not walk.waiting and walk.asked + GONE_S < trio.current_time()
            if is_gone or (walk.done and not walk.found):
                del self._walks[folder]
                continue
            self._walks.move_to_end(folder)
            if not walk.found:
                self._look_on(walk)
            return self._next_of(walk)
        return []

    def _next_of(self, walk: _Walk) -> list[Inode]:
        """The next file, or some; rather one whose pool is not being decided, or is another."""
        for place, inode in enumerate(walk.found):
            if not self._waits(inode):
                if not place:
                    return self._some(walk.found)
                del walk.found[place]
                return [inode]
        if not walk.again and len(walk.found) < _FAR:
            self._look_on(walk)
            return []
        return self._some(walk.found)

    def _waits(self, inode: Inode) -> bool:
        """Whether a file cannot be rendered before its pool is decided, and somebody is at that."""
        if not inode.version or self._tree.is_uncompressed(inode):
            return False
        picture = self._tree.picture(inode)
        return picture is not None and self._pools.is_deciding(picture)

    def _some(self, found: deque[Inode]) -> list[Inode]:
        """Take the next file; if its size can be told without a render, and those after it, with them."""
        if not found:
            return []
        first = found.popleft()
        some = [first]
        if self._tree.is_uncompressed(first):
            while found and found[0].format == first.format and len(some) < _TOGETHER:
                some.append(found.popleft())
        return some

    def _look_on(self, walk: _Walk) -> None:
        """One page of the folder further."""
        if walk.backwards:
            page = self._tree.listing_back(walk.folder, walk.place, _PAGE)
        else:
            page = list(self._tree.listing(walk.folder, walk.place, _PAGE))
        if page:
            walk.place = page[-1].cookie
            walk.found.extend(item.entry.inode for item in page if item.entry.size is None)
        elif walk.again:
            walk.done = True
        else:
            walk.again, walk.place = True, (_EVER if walk.backwards else 0)

    # Warming

    async def _warm(self) -> None:
        while True:
            if self._people_wait():
                await trio.sleep(_YIELD_S)
                continue
            self._warmed_at = trio.current_time()
            try:
                found = self._next_unwarmed()
            except StoreUnavailable as error:
                log.info("nothing is rendered ahead now: %s", error)
                await trio.sleep(TROUBLE_S)
                continue
            if found is not None:
                await self._warm_some(*found)
            elif not self._unwarmed:
                await self._warmers.park()
            elif self._looked >= _LOOKS:
                self._looked = 0
                await trio.sleep(_REST_S)
            await trio.lowlevel.checkpoint()

    def _people_wait(self) -> bool:
        """Whether warming stands back: it would take processor time from a render that somebody waits for.

        Not for ever, or it would never come to what has just come in.
        """
        now = trio.current_time()
        return bool(self._walks) or now < min(self._people_until, self._warmed_at + STARVED_S)

    async def _warm_some(self, instance: int, inodes: Sequence[Inode]) -> None:
        begun = trio.current_time()
        effort = Effort.NEW if instance > self._started else Effort.OLD
        rest = 0.0
        try:
            await self._render(inodes, effort)
            if effort is Effort.OLD:
                # An archive of years takes hours: half of them for others.
                rest = min(trio.current_time() - begun, _LONGEST_REST_S)
        except StoreUnavailable as error:
            log.info("nothing is rendered ahead now: %s", error)
            self._unwarmed.add(instance, instance)
            rest = TROUBLE_S
        except RenderFailed as error:
            log.info("instance %d was not rendered ahead: %s", instance, error)
            self._failed.add(instance, instance)
            rest = FAILED_S
        # Not when cancelled: then it is still to be done.
        self._let_go(instance)
        await trio.sleep(rest)

    def _let_go(self, instance: int) -> None:
        self._in_hand[instance] -= 1
        if not self._in_hand[instance]:
            del self._in_hand[instance]

    def _next_unwarmed(self) -> tuple[int, list[Inode]] | None:
        """An instance and a file of it, or some, of unknown size. None: look again, if anything is left.

        Raises StoreUnavailable, and has forgotten nothing then.
        """
        if self._files[1]:
            return self._take_up(*self._files)
        span = self._unwarmed.highest()
        if span is None:
            return None
        first, last = span
        found = self._index.instances_before(last + 1, 1)
        if not found or found[0] < first:
            self._unwarmed.cut(first)
            return None
        instance = found[0]
        self._looked += 1
        pool, inodes = self._unknown(instance)
        if pool:
            low, high = self._put_off.get(pool, (instance, instance))
            self._put_off[pool] = min(low, instance), max(high, instance)
        self._files = instance, deque(inodes)
        if inodes:
            self._in_hand[instance] += 1  # for as long as some of its files are not taken up
        self._unwarmed.cut(instance)
        return self._take_up(*self._files) if inodes else None

    def _take_up(self, instance: int, files: deque[Inode]) -> tuple[int, list[Inode]]:
        inodes = self._some(files)
        if files:
            self._in_hand[instance] += 1
        return instance, inodes

    def _unknown(self, instance: int) -> tuple[str, list[Inode]]:
        """Files of an instance whose sizes are not known; the pool for which some have to wait, or empty."""
        inodes = [entry.inode for entry in self._tree.files_of(instance) if entry.size is None]
        if not any(inode.version for inode in inodes):
            return "", inodes
        row = self._index.image(instance)
        if row is None or not self._pools.is_growing(row.pool):
            return "", inodes
        # What its pool decides waits until the pool is quiet.
        return row.pool, [inode for inode in inodes if not inode.version]
