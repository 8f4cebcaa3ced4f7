"""The presenting side in-process, on a clock that jumps, with workers that are quick and countable."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import pytest
import trio
import trio.testing

from dicomfs.archive import Archive
from dicomfs.cache import Cache
from dicomfs.diskcache import DiskCache
from dicomfs.entries import Entry
from dicomfs.index import Index
from dicomfs.inode import Inode, Kind
from dicomfs.model import PoolWindow, Recipe, Source
from dicomfs.present import Presenter
from dicomfs.renditions import Renditions
from dicomfs.turns import Urgency
from dicomfs.workers import Rendered, Workers
from tests.made import add, header, listed, tree

P = ParamSpec("P")
T = TypeVar("T")

QUIET_S = 5.0
PICTURE_S = 0.01
EXAM = Inode(Kind.EXAM, 1, "jpg")


@dataclass(eq=False)
class Painters:
    """Render workers without processes: a picture says which window it was made with."""

    window: PoolWindow
    askers: list[Hashable] = field(default_factory=list)
    """Of each decision that was begun."""
    rendered: int = 0
    most: int = 0
    """Most pictures that were painted at once."""
    _busy: int = 0
    decision_s: float = PICTURE_S
    trouble: Exception | None = None
    seen: list[Source] = field(default_factory=list)
    jobs: list[tuple[int, Urgency]] = field(default_factory=list)
    """Original and urgency of each picture that was begun."""
    processes: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(math.inf))
    """How many can be painted at once; each takes `PICTURE_S`."""
    extra: bytes = b""
    length: int | None = None
    """What is told of every file without painting it."""
    asked: int = 0
    """How many it was told of."""

    @property
    def decided(self) -> int:
        """How many decisions were begun."""
        return len(self.askers)

    async def decide_pool(
        self,
        members: Sequence[Source],
        policy: str = "auto",  # noqa: ARG002  as Workers
        *,
        urgency: Urgency = Urgency.WAITED,  # noqa: ARG002  as Workers
        asker: Hashable = None,
    ) -> PoolWindow:
        self.askers.append(asker)
        self.seen = list(members)
        window = self.window
        async with self.processes:
            await trio.sleep(self.decision_s)
        if self.trouble:
            raise self.trouble
        return window

    async def render(
        self,
        source: Source,
        recipe: Recipe,  # noqa: ARG002  as Workers
        window: PoolWindow | None,
        *,
        urgency: Urgency = Urgency.WAITED,
        asker: Hashable = None,  # noqa: ARG002  as Workers
    ) -> Rendered:
        self.rendered += 1
        self.jobs.append((int(source.path.stem.rpartition("-")[2]), urgency))
        async with self.processes:
            self._busy += 1
            self.most = max(self.most, self._busy)
            await trio.sleep(PICTURE_S)
            self._busy -= 1
        if self.trouble:
            raise self.trouble
        return Rendered(f"{source.path.name} {source.frame} {window}".encode() + self.extra, None)

    async def lengths(
        self,
        members: Sequence[Source],
        recipe: Recipe,  # noqa: ARG002  as Workers
        *,
        urgency: Urgency = Urgency.WAITED,  # noqa: ARG002  as Workers
    ) -> list[int | None]:
        async with self.processes:
            self.asked += len(members)
            await trio.sleep(0.001)
        if self.trouble:
            raise self.trouble
        return [self.length] * len(members)

    def hurry(
        self, source: Source, recipe: Recipe, window: PoolWindow | None, *, asker: Hashable = None
    ) -> None:
        pass


@dataclass(eq=False)
class Shown:
    """One presenter over a store, followed in the background."""

    presenter: Presenter
    index: Index
    renditions: Renditions
    painters: Painters
    changed: list[tuple[Inode, str]]

    def entries(self, exam: Inode = EXAM) -> list[Entry]:
        return listed(self.presenter.tree, exam)


def window(high: float) -> PoolWindow:
    return PoolWindow(0.0, high, "test")


def take(folder: Path, writer: Index, *numbers: int, pool: str = "p", **changes: Any) -> None:
    """Receive images of one pool; their originals are empty files."""
    for number in numbers:
        uid = f"2.25.9{number}"
        add(writer, header(**{"sop_instance_uid": uid, "instance_number": number, "pool": pool} | changes))
        row = writer.image(writer.last_sequence())
        assert row is not None
        path = Archive(folder).path(row.hash, row.original)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@asynccontextmanager
async def showing(
    folder: Path,
    high: float = 100.0,
    *,
    warm: bool = False,
    processes: int = 1,
    follow: bool = True,
    frames: int = 1000,
    shown_as: str = "jpg",
    disk: DiskCache | None = None,
) -> AsyncIterator[Shown]:
    index = Index(folder / "index.sqlite3")
    view, renditions = tree(folder, index, formats=(shown_as,), frames=frames)
    painters = Painters(window(high))
    changed: list[tuple[Inode, str]] = []
    presenter = Presenter(
        view,
        index,
        renditions,
        cast("Workers", painters),
        Cache(1 << 20, len),
        warm=warm,
        quiet_s=QUIET_S,
        processes=processes,
        disk=disk,
    )

    async def note(names: Sequence[tuple[Inode, str]]) -> None:
        changed.extend(names)

    async def no_one(_: object) -> None:
        """Is told of what went."""

    try:
        async with trio.open_nursery() as nursery:
            if follow:
                nursery.start_soon(presenter.follow, note, no_one)
            await trio.sleep(1)  # the clock jumps: the first look at the index is done
            yield Shown(presenter, index, renditions, painters, changed)
            nursery.cancel_scope.cancel()
    finally:
        renditions.close()
        index.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """To its end, on a clock that jumps ahead whenever nobody has anything to do."""
    with pytest.MonkeyPatch.context() as patch:
        # The clock would jump ahead while a thread works.
        patch.setattr(trio.to_thread, "run_sync", _here_and_now)
        trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def on_a_clock_that_jumps(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """An asynchronous test, as `run` runs it."""

    @wraps(test)
    def started(*args: P.args, **kwargs: P.kwargs) -> None:
        run(partial(test, *args, **kwargs))

    return started


async def _here_and_now(work: Callable[..., T], *arguments: object, **_: object) -> T:
    await trio.lowlevel.checkpoint()
    return work(*arguments)
