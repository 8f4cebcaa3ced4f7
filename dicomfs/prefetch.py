"""The next pictures of somebody who steps through a series, rendered before he asks for them.

Decided by `stepping.py` from what is opened; it yields to everybody who waits, and goes into the cache only.
Of pictures that are in memory already nothing is noted: the next ones are likely there, too. Called by
`present.py`, on trio's thread.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import trio

from dicomfs.entries import Picture
from dicomfs.errors import RenderFailed, StoreUnavailable
from dicomfs.inode import Inode
from dicomfs.naming import FileName
from dicomfs.renditions import Key
from dicomfs.stepping import Stepping
from dicomfs.tree import Tree

_FETCHED_KEPT: Final = 1024

log = logging.getLogger(__name__)


class _Series(NamedTuple):
    """Files whose names differ in one number: that of the image, or that of the frame."""

    folder: Inode
    name: FileName
    """With 0 for that number."""
    by_frame: bool


class Prefetch:
    """Follows what is opened. Run `run` in the background."""

    def __init__(
        self,
        tree: Tree,
        is_kept: Callable[[Key], bool],
        render: Callable[[Inode, Picture], Awaitable[object]],
        *,
        tasks: int,
    ) -> None:
        """`is_kept`: whether a picture is in memory; `render`: puts it there, as `Urgency.NEXT`.

        `tasks`: how many at once. `render` raises RenderFailed or StoreUnavailable.
        """
        self._tree = tree
        self._is_kept = is_kept
        self._render = render
        self._tasks = tasks
        self._stepping: Stepping[_Series] = Stepping()
        self._fetched: dict[Key, Picture] = {}
        """What was rendered here and has not been opened yet, the latest last."""
        self._wanted = trio.lowlevel.ParkingLot()

    def opened(self, picture: Picture, *, was_kept: bool) -> None:
        """Somebody opens this picture, which was in memory or not."""
        if was_kept and picture.key not in self._fetched:
            return
        self._fetched.pop(picture.key, None)
        name = picture.name
        by_frame = bool(name.frame)
        blank = name._replace(frame=0) if by_frame else name._replace(instance_number=0)
        number = name.frame if by_frame else name.instance_number
        self._stepping.opened(_Series(picture.folder, blank, by_frame), number)
        self._wanted.unpark_all()

    def reached(self, key: Key) -> None:
        """Somebody opens a picture that is in memory; nothing is noted unless it was rendered here."""
        if (picture := self._fetched.get(key)) is not None:
            self.opened(picture, was_kept=True)

    async def run(self) -> None:
        """Render what is wished for until cancelled.

        *Cancellation*: at any time.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(self._tasks):
                nursery.start_soon(self._follow)

    async def _follow(self) -> None:
        while True:
            wish = self._stepping.take()
            if wish is None:
                await self._wanted.park()
                continue
            try:
                await self._fetch(*wish)
            except (RenderFailed, StoreUnavailable) as error:
                log.info("the next picture of a series was not rendered ahead: %s", error)
            await trio.lowlevel.checkpoint()

    async def _fetch(self, series: _Series, number: int) -> None:
        name = series.name
        name = name._replace(frame=number) if series.by_frame else name._replace(instance_number=number)
        found = self._tree.beside(series.folder, name)
        if found is None:
            self._stepping.gave_up(series)
            return
        inode, picture = found
        if not self._is_kept(picture.key):
            await self._render(inode, picture)
            if len(self._fetched) >= _FETCHED_KEPT:
                del self._fetched[next(iter(self._fetched))]
            self._fetched[picture.key] = picture
