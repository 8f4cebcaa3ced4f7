"""How an open folder is handed out: in parts, again from where somebody goes back to, fetched ahead."""

import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyfuse3
import pytest
import trio

from dicomfs.entries import Listed
from dicomfs.errors import StoreUnavailable
from dicomfs.fuse import Door
from dicomfs.index import Index
from dicomfs.inode import Inode
from dicomfs.publish import Publisher
from dicomfs.renditions import Decision
from tests.made import add_at_once, header
from tests.presenting import EXAM, Shown, on_a_clock_that_jumps, showing, take, window

_MANY = 1700
"""More than is kept of an open folder behind the one who lists it."""


@dataclass
class _Kernel:
    """What `readdir_reply` is called with; takes so many names of an answer."""

    room: int = 0
    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    cookies: list[int] = field(default_factory=list)

    def reply(self, token: "_Kernel", name: bytes, attr: pyfuse3.EntryAttributes, cookie: int) -> bool:
        assert token is self
        if len(self.names) == self.room:
            return False
        self.names.append(name.decode())
        self.sizes.append(attr.st_size)
        self.cookies.append(cookie)
        return True


@dataclass
class _Folder:
    """An open folder of a mount."""

    door: Door
    shown: Shown
    handle: pyfuse3.FileHandleT
    patch: pytest.MonkeyPatch
    fetched: list[int] = field(default_factory=list)
    """Cookies after which the tree was asked for a page."""

    async def read(self, start: int, room: int = 10_000) -> _Kernel:
        """One READDIR of so many names at most."""
        kernel = _Kernel(room)
        self.patch.setattr(pyfuse3, "readdir_reply", kernel.reply)
        await self.door.readdir(self.handle, start, cast("pyfuse3.ReaddirToken", kernel))
        return kernel

    async def all_of_it(self, start: int = 0, room: int = 749) -> _Kernel:
        """As many READDIRs as it takes."""
        whole = _Kernel()
        while (part := await self.read(start, room)).names:
            whole.names += part.names
            whole.sizes += part.sizes
            whole.cookies += part.cookies
            start = part.cookies[-1]
        return whole

    async def open_again(self) -> None:
        self.handle = await self.door.opendir(
            pyfuse3.InodeT(EXAM.number), cast("pyfuse3.RequestContext", None)
        )


@asynccontextmanager
async def _opened(folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[_Folder]:
    async with showing(folder, follow=False) as shown:
        tree = shown.presenter.tree
        publisher = Publisher(folder, tree, shown.index, lambda *_: None, live=False)
        door = Door(shown.presenter, publisher, uid=0, gid=0, umask=0)
        it = _Folder(door, shown, pyfuse3.FileHandleT(0), patch)
        listing = tree.listing

        def noted(parent: Inode, after: int, most: int) -> Iterator[Listed]:
            it.fetched.append(after)
            return listing(parent, after, most)

        patch.setattr(tree, "listing", noted)
        await it.open_again()
        yield it


def _fill(writer: Index, count: int) -> None:
    images: list[dict[str, Any]] = [
        {"sop_instance_uid": f"2.25.9{n}", "instance_number": n, "pool": ""} for n in range(1, count + 1)
    ]
    add_at_once(writer, (header(**image) for image in images))


def _names(count: int) -> list[str]:
    return [f"Localizer_2_{number}.jpg" for number in range(1, count + 1)]


def _know_sizes(shown: Shown) -> None:
    for entry in shown.entries():
        picture = shown.presenter.tree.picture(entry.inode)
        assert picture is not None
        shown.renditions.announce(picture.key, 100 + picture.key.original, "")


@on_a_clock_that_jumps
async def test_any_place_can_be_gone_back_to(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, _MANY)
    chance = random.Random(7)
    async with _opened(tmp_path, monkeypatch) as it:
        whole = await it.all_of_it()
        assert len(set(whole.names)) == _MANY
        assert whole.names == [entry.name for entry in it.shown.entries()]
        for _ in range(200):
            place = chance.randrange(_MANY)
            start = whole.cookies[place - 1] if place else 0
            room = chance.choice([1, 5, 455, 749])
            part = await it.read(start, room)
            assert part.names == whole.names[place : place + len(part.names)]
            assert part.names


@on_a_clock_that_jumps
async def test_who_goes_back_a_little_costs_the_index_nothing(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    # smbd takes 749 names, gives 455 of them to its client, and next time goes on from there.
    _fill(writer, _MANY)
    async with _opened(tmp_path, monkeypatch) as it:
        _know_sizes(it.shown)
        it.fetched.clear()
        start, names = 0, []
        while (part := await it.read(start, 749)).names:
            names += part.names[:455]
            start = part.cookies[:455][-1]
        assert len(names) == len(set(names)) == _MANY
        pages = [after for after in it.fetched if after < part.cookies[-1]] if part.cookies else it.fetched
        assert len(pages) == len(set(pages))


@on_a_clock_that_jumps
async def test_an_unchanged_folder_is_not_fetched_again(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, _MANY)
    async with _opened(tmp_path, monkeypatch) as it:
        _know_sizes(it.shown)
        first = await it.all_of_it()
        it.fetched.clear()
        await it.open_again()
        second = await it.all_of_it()
        assert it.fetched == []
        assert (first.names, first.sizes) == (second.names, second.sizes)
        assert len(second.names) == _MANY
        assert min(second.sizes) > 100


@on_a_clock_that_jumps
async def test_unknown_sizes_are_asked_for_again(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, 3)
    async with _opened(tmp_path, monkeypatch) as it:
        assert (await it.all_of_it()).sizes == [0, 0, 0]
        _know_sizes(it.shown)
        await it.open_again()
        assert (await it.all_of_it()).sizes == [101, 102, 103]


@on_a_clock_that_jumps
async def test_what_comes_in_is_listed(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, 3)
    async with _opened(tmp_path, monkeypatch) as it:
        _know_sizes(it.shown)
        assert len((await it.all_of_it()).names) == 3
        add_at_once(writer, [header(sop_instance_uid="2.25.94", instance_number=4, pool="")])
        await it.open_again()
        assert (await it.all_of_it()).names == _names(4)


@on_a_clock_that_jumps
async def test_what_is_published_later_is_listed_then(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, 4)
    async with _opened(tmp_path, monkeypatch) as it:
        _know_sizes(it.shown)
        gate = type(it.shown.presenter.tree.gate)(3)
        it.shown.presenter.tree.gate = gate
        assert (await it.all_of_it()).names == _names(3)
        gate.settle(4)  # nothing is written for this
        await it.open_again()
        assert (await it.all_of_it()).names == _names(4)


@on_a_clock_that_jumps
async def test_a_size_that_is_announced_anew_is_listed(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(tmp_path, writer, 1, pool="")
    async with _opened(tmp_path, monkeypatch) as it:
        (entry,) = it.shown.entries()
        told = await it.shown.presenter.size(entry.inode)
        assert (await it.all_of_it()).sizes == [told]
        picture = it.shown.presenter.tree.picture(entry.inode)
        assert picture is not None
        it.shown.presenter._announce(entry.inode, picture.key, 77, "")
        await it.open_again()
        assert (await it.all_of_it()).sizes == [77]


@on_a_clock_that_jumps
async def test_a_size_that_is_announced_anew_is_handed_out_to_who_is_listing(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, 9)
    async with _opened(tmp_path, monkeypatch) as it:
        _know_sizes(it.shown)
        part = await it.read(0, 5)
        assert part.sizes == [101, 102, 103, 104, 105]
        for entry in it.shown.entries()[3:7]:
            picture = it.shown.presenter.tree.picture(entry.inode)
            assert picture is not None
            it.shown.presenter._announce(entry.inode, picture.key, 77, "")
        rest = await it.all_of_it(part.cookies[1])  # back a little
        assert rest.sizes == [103, 77, 77, 77, 77, 108, 109]


@pytest.mark.parametrize("back_to", [0, 2])
@on_a_clock_that_jumps
async def test_sizes_that_have_become_known_are_handed_out_to_who_goes_back(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch, back_to: int
) -> None:
    _fill(writer, 5)
    async with _opened(tmp_path, monkeypatch) as it:
        part = await it.read(0, 4)
        assert part.sizes == [0, 0, 0, 0]
        _know_sizes(it.shown)
        start = part.cookies[back_to - 1] if back_to else 0
        assert (await it.all_of_it(start)).sizes == [101, 102, 103, 104, 105][back_to:]


@on_a_clock_that_jumps
async def test_what_is_listed_from_the_start_again_is_as_it_is_now(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, 3)
    async with _opened(tmp_path, monkeypatch) as it:
        _know_sizes(it.shown)
        await it.read(0, 2)
        add_at_once(writer, [header(sop_instance_uid="2.25.94", instance_number=4, pool="")])
        assert (await it.all_of_it()).names == _names(4)  # as after rewinddir


@on_a_clock_that_jumps
async def test_what_is_kept_of_open_folders_is_bounded(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, 20)
    async with _opened(tmp_path, monkeypatch) as it:
        cookies = {}
        for _ in range(100):
            await it.open_again()
            part = await it.read(0, 10)
            cookies[it.handle] = part.cookies[-1]
        assert sum(len(one.fetched) for one in it.door.folders._open.values()) <= 32 * 20
        for fh, cookie in cookies.items():
            it.handle = fh
            assert (await it.all_of_it(cookie)).names == _names(20)[10:]


@on_a_clock_that_jumps
async def test_a_pool_that_is_decided_anew_shows_other_inodes(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(tmp_path, writer, 1, 2)
    async with _opened(tmp_path, monkeypatch) as it:
        for size, version in ((5, 1), (6, 2)):
            it.shown.renditions.decide("1:p", "auto", Decision(version, 2, window(version)))
            for entry in it.shown.entries():
                assert entry.inode.version == version
                picture = it.shown.presenter.tree.picture(entry.inode)
                assert picture is not None
                it.shown.renditions.announce(picture.key, size, "")
            await it.open_again()
            assert (await it.all_of_it()).sizes == [size, size]


@on_a_clock_that_jumps
async def test_the_next_page_is_fetched_while_nobody_waits(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, _MANY)
    async with _opened(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.door.folders.read_ahead)
        part = await it.read(0, 749)
        assert 0 < len(part.names) < 749  # what is there, rather than wait for more
        start = part.cookies[-1]
        while part.names:
            await trio.sleep(1)
            it.fetched.clear()
            part = await it.read(start, 749)
            assert it.fetched == []
            start = part.cookies[-1] if part.names else start
        nursery.cancel_scope.cancel()


@on_a_clock_that_jumps
async def test_trouble_while_nobody_waits_is_told_to_who_goes_on(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch, expected_warnings: list[logging.LogRecord]
) -> None:
    _fill(writer, _MANY)
    async with _opened(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.door.folders.read_ahead)

        def broken(*_: object) -> Iterator[Listed]:
            raise StoreUnavailable("the disk has gone")

        with monkeypatch.context() as trouble:
            part = await it.read(0, 749)
            trouble.setattr(it.shown.presenter.tree, "listing", broken)
            await trio.sleep(1)
            with pytest.raises(pyfuse3.FUSEError):
                await it.read(part.cookies[-1])
        assert "the disk has gone" in expected_warnings[0].getMessage()
        rest = await it.all_of_it(part.cookies[-1])
        assert len(part.names) + len(rest.names) == _MANY
        nursery.cancel_scope.cancel()


@on_a_clock_that_jumps
async def test_a_bug_while_nobody_waits_does_not_end_the_mount(
    tmp_path: Path,
    writer: Index,
    monkeypatch: pytest.MonkeyPatch,
    expected_warnings: list[logging.LogRecord],
) -> None:
    _fill(writer, _MANY)
    async with _opened(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.door.folders.read_ahead)

        def broken(*_: object) -> Iterator[Listed]:
            raise ZeroDivisionError

        part = await it.read(0, 749)
        with monkeypatch.context() as trouble:
            trouble.setattr(it.shown.presenter.tree, "listing", broken)
            await trio.sleep(1)
        assert expected_warnings[0].exc_info
        rest = await it.all_of_it(part.cookies[-1])
        assert len(part.names) + len(rest.names) == _MANY
        nursery.cancel_scope.cancel()


@on_a_clock_that_jumps
async def test_a_folder_that_is_closed_is_not_fetched(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(writer, _MANY)
    async with _opened(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        await it.read(0, 10)
        await it.door.releasedir(it.handle)
        it.fetched.clear()
        nursery.start_soon(it.door.folders.read_ahead)
        await trio.sleep(1)
        assert it.fetched == []
        nursery.cancel_scope.cancel()
