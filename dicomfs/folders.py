"""Open folders: their pages fetched ahead, handed out from any cookie, kept for who goes back or asks again.

Nothing here waits: a page comes out of the tree at once. What is kept is bounded, and fetched anew when it
may be true no more. Called by `fuse.py`, on trio's thread; `mount.py` runs `read_ahead`.
"""

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple

import pyfuse3
import trio

from dicomfs.entries import Entry
from dicomfs.errors import StoreUnavailable
from dicomfs.inode import Inode
from dicomfs.pages import Pages
from dicomfs.tree import Tree

_PAGE: Final = 500
_FIRST_PAGE: Final = 100
"""Somebody waits for it, and has nothing to do meanwhile."""
_BEHIND: Final = 2 * _PAGE
"""Names of an open folder that are kept when they have been handed out: more than an answer of smbd has."""
_OPEN_KEPT: Final = 32
"""Open folders of which anything is kept."""
_NAMES_KEPT: Final = 20_000
"""Of folders that were listed."""

log = logging.getLogger(__name__)


class _Name(NamedTuple):
    """One entry of a folder, as the kernel wants it; in the order of cookies."""

    name: bytes
    attributes: pyfuse3.EntryAttributes
    cookie: int


_cookie = attrgetter("cookie")


def _unsized(name: _Name) -> bool:
    return not name.attributes.attr_timeout


@dataclass(slots=True)
class _Listing:
    """An open folder: what was fetched of it, a part of which may have been handed out."""

    inode: Inode
    after: int = 0
    """Cookie in front of what was fetched."""
    fetched: list[_Name] = field(default_factory=list)
    place: int = 0
    """So many of these have been handed out."""

    @property
    def waiting(self) -> int:
        """How many are fetched and not handed out."""
        return len(self.fetched) - self.place

    @property
    def through(self) -> int:
        """Cookie of what was fetched last."""
        return self.fetched[-1].cookie if self.fetched else self.after

    def seek(self, cookie: int) -> None:
        """Go on after a cookie; smbd goes back to the name at which its last answer was full."""
        at = bisect_right(self.fetched, cookie, key=_cookie)
        # From the start: as it is now. And a size that was not known may be known to the kernel by now.
        is_fresh = (cookie or not self.place) and not any(map(_unsized, self.fetched[at : self.place]))
        if is_fresh and cookie == (self.fetched[at - 1].cookie if at else self.after):
            self.place = at
        else:
            self.after, self.place = cookie, 0
            self.fetched.clear()

    def take(self, page: Sequence[_Name]) -> None:
        """What comes next; of what was handed out long ago nothing is kept."""
        if self.place > _BEHIND:
            gone = self.place - _BEHIND
            self.after = self.fetched[gone - 1].cookie
            del self.fetched[:gone]
            self.place = _BEHIND
        self.fetched += page

    def drop(self) -> None:
        """Fetch anew what is not handed out yet."""
        self.after = self.fetched[self.place - 1].cookie if self.place else self.after
        self.place = 0
        self.fetched.clear()


class Folders:
    """The open folders of one mount."""

    def __init__(self, tree: Tree, attributes: Callable[[Entry], pyfuse3.EntryAttributes]) -> None:
        """`attributes`: what `stat` says of an entry; without a time to live if its size is not known."""
        self._tree = tree
        self._attributes = attributes
        self._pages: Pages[_Name] = Pages(_NAMES_KEPT)
        self._open: dict[int, _Listing] = {}
        self._last_handle = 0
        self._reading: dict[int, None] = {}
        """Handles of folders whose next page is to be fetched."""
        self._readers = trio.lowlevel.ParkingLot()
        self._lately: dict[int, None] = {}
        """Handles of folders that were read lately, the last one last."""

    def open(self, folder: Inode) -> pyfuse3.FileHandleT:
        """Begin a listing; returns its handle."""
        self._last_handle += 1
        self._open[self._last_handle] = _Listing(folder)
        return self._last_handle

    def inode(self, fh: int) -> Inode:
        """The folder that is being listed."""
        return self._open[fh].inode

    def hand_out(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries after cookie `start_id`, as many as there is room for. Raises StoreUnavailable."""
        listing = self._open[fh]
        listing.seek(start_id)
        self._keep(fh)
        has_some = False
        # Whoever has some names is busy with them, and what has to be fetched is fetched meanwhile.
        while listing.waiting or self._fetch(listing, only_kept=has_some):
            has_some = True
            name, attributes, cookie = listing.fetched[listing.place]
            if not pyfuse3.readdir_reply(token, name, attributes, cookie):
                break
            listing.place += 1
        if not has_some:
            listing.drop()  # it may stay open for hours: smbd waits for changes
        elif listing.waiting < _PAGE:
            self._reading[fh] = None
            self._readers.unpark_all()

    def _fetch(self, listing: _Listing, *, only_kept: bool = False) -> bool:
        """One page more, with `only_kept` if it is at hand; False at the end of the folder.

        Raises StoreUnavailable.
        """
        page = self._page(listing.inode, listing.through, only_kept=only_kept)
        listing.take(page)
        return bool(page)

    def _keep(self, fh: int) -> None:
        """What is kept of open folders is bounded: nothing, of the one that was read longest ago."""
        self._lately.pop(fh, None)
        self._lately[fh] = None
        if len(self._lately) > _OPEN_KEPT:
            oldest = next(iter(self._lately))
            del self._lately[oldest]
            self._open[oldest].drop()

    async def read_ahead(self) -> None:
        """Fetch next pages of open folders while those who list them are busy with what they have.

        *Cancellation*: at any time.
        """
        while True:
            if not self._reading:
                await self._readers.park()
                continue
            fh, _ = self._reading.popitem()
            try:
                self._fetch(self._open[fh])
            except StoreUnavailable:
                pass  # who goes on is told
            except Exception:
                log.exception("a bug in listing ahead")  # the mount goes on
            await trio.lowlevel.checkpoint()

    def _page(self, folder: Inode, after: int, *, only_kept: bool) -> Sequence[_Name]:
        """Entries of a folder after a cookie, some of them; none at the end. Raises StoreUnavailable."""
        version = self._tree.version()
        page = self._pages.get(folder, after, version)
        if page is not None or only_kept:
            return page or ()
        listed = list(self._tree.listing(folder, after, _PAGE if after else _FIRST_PAGE))
        page = [_Name(it.entry.name.encode(), self._attributes(it.entry), it.cookie) for it in listed]
        if all(it.entry.size is not None for it in listed):
            self._pages.keep(folder, after, page)
        return page

    def close(self, fh: int) -> None:
        """End a listing."""
        del self._open[fh]
        self._reading.pop(fh, None)
        self._lately.pop(fh, None)

    def drop(self) -> None:
        """Fetch anew what is kept of folders, open or not."""
        self._pages.clear()
        for listing in self._open.values():
            listing.drop()
