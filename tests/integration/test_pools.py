"""Pools that grow: readers go on with the bytes they have, the name gets a new inode, all mounts agree."""

import contextlib
import errno
import logging
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pyfuse3
import pytest
import trio
import trio.testing
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from dicomfs.archive import Archive
from dicomfs.entries import Entry
from dicomfs.errors import RenderFailed, StoreUnavailable
from dicomfs.fuse import Door
from dicomfs.index import Index
from dicomfs.ingest import Ingest
from dicomfs.inode import Inode
from dicomfs.model import Duplicates, PoolWindow, Receipt, Source, Stored
from dicomfs.publish import Publisher
from dicomfs.renditions import Decision, Renditions
from dicomfs.samba import prepare
from dicomfs.turns import Urgency
from dicomfs.workers import Workers
from tests.made import add, data_set, encoded, header, save
from tests.presenting import (
    EXAM,
    QUIET_S,
    Painters,
    Shown,
    on_a_clock_that_jumps,
    showing,
    take,
    window,
)
from tests.smb import client
from tests.support import (
    ROOT,
    command_line,
    connects,
    free_port,
    mounted,
    require,
    require_fuse,
    running,
    wait_until,
)

# In-process


@on_a_clock_that_jumps
async def test_pool_is_decided_once_however_many_ask(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, 21))
    async with showing(tmp_path) as shown, trio.open_nursery() as nursery:
        for entry in shown.entries() * 3:
            nursery.start_soon(shown.presenter.contents, entry.inode)
        await trio.sleep(60)
        assert shown.painters.decided == 1
        assert shown.painters.rendered == 20
        assert len(shown.painters.seen) == 20


@on_a_clock_that_jumps
async def test_who_waits_does_not_wait_for_a_decision_in_the_background(
    tmp_path: Path, writer: Index
) -> None:
    take(tmp_path, writer, 1, 2)

    class Busy(Painters):
        async def decide_pool(
            self, members: Sequence[Source], policy: str = "auto", **how: Any
        ) -> PoolWindow:
            if how["urgency"] is not Urgency.WAITED:
                await trio.sleep_forever()
            return await super().decide_pool(members, policy, **how)

    async with showing(tmp_path) as shown, trio.open_nursery() as nursery:
        shown.presenter.render_with(cast(Workers, Busy(window(100.0))))
        first, second = shown.entries()
        nursery.start_soon(partial(shown.presenter.contents, first.inode, urgency=Urgency.SPARE))
        await trio.sleep(1)
        with trio.fail_after(60):
            assert await shown.presenter.contents(second.inode)
        nursery.cancel_scope.cancel()


@on_a_clock_that_jumps
async def test_who_waits_for_several_pools_of_a_folder_is_one_asker(tmp_path: Path, writer: Index) -> None:
    """A volume is a pool for each slice: each must not count as somebody new."""
    for number in (1, 2, 3):
        take(tmp_path, writer, number, pool=f"pool {number}")
    async with showing(tmp_path) as shown:
        for entry in shown.entries():
            assert await shown.presenter.contents(entry.inode)
        assert shown.painters.askers == [EXAM] * 3


@on_a_clock_that_jumps
async def test_one_failed_decision_answers_all_who_wait(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, 21))
    failed = []
    async with showing(tmp_path) as shown:
        shown.painters.trouble = RenderFailed("took too long")

        async def ask(entry: Entry) -> None:
            with pytest.raises(RenderFailed):
                await shown.presenter.contents(entry.inode)
            failed.append(entry)

        async with trio.open_nursery() as nursery:
            for entry in shown.entries():
                nursery.start_soon(ask, entry)
        assert shown.painters.decided == 1  # not one time-out after the other
        assert len(failed) == 20
        assert shown.renditions.version("1:p", "auto") == 0


@on_a_clock_that_jumps
async def test_grown_pool_is_decided_anew_when_it_is_quiet(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, 2)
    async with showing(tmp_path) as shown:
        (before, _) = shown.entries()
        old = await shown.presenter.contents(before.inode)
        size = await shown.presenter.size(before.inode)
        shown.painters.window = window(200.0)
        for number in range(3, 9):
            take(tmp_path, writer, number)
            await trio.sleep(QUIET_S - 1)
            assert shown.painters.decided == 1  # it is still growing
            assert {entry.inode.version for entry in shown.entries()} == {1}
        await trio.sleep(QUIET_S)
        assert shown.painters.decided == 2
        after, *_ = entries = shown.entries()
        assert {entry.inode.version for entry in entries} == {2}
        assert sorted(shown.changed) == sorted((EXAM, entry.name) for entry in entries)
        new = await shown.presenter.contents(after.inode)
        assert after.modified > before.modified
        assert new is not None
        assert b"200.0" in new
        # Whoever holds the old inode goes on with the old bytes, size and time.
        assert await shown.presenter.contents(before.inode) == old
        assert shown.presenter.tree.entry(before.inode) == Entry(
            before.name, before.inode, False, size, before.modified
        )
        await trio.sleep(10 * QUIET_S)
        assert shown.painters.decided == 2


@on_a_clock_that_jumps
async def test_same_window_again_changes_nothing(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1)
    async with showing(tmp_path) as shown:
        (before,) = shown.entries()
        await shown.presenter.contents(before.inode)
        take(tmp_path, writer, 2)
        await trio.sleep(3 * QUIET_S)
        assert shown.painters.decided == 2
        assert shown.entries()[0].inode == before.inode
        assert not shown.changed
        recorded = shown.renditions.decision("1:p", "auto", 1)
        assert recorded is not None
        assert recorded.through == 2


@on_a_clock_that_jumps
async def test_growth_while_no_mount_ran_is_seen_by_the_next(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1)
    async with showing(tmp_path) as shown:
        await shown.presenter.contents(shown.entries()[0].inode)
        await trio.sleep(3 * QUIET_S)
    take(tmp_path, writer, 2)
    async with showing(tmp_path, 200.0) as shown:
        await trio.sleep(3 * QUIET_S)
        assert shown.painters.decided == 1
        assert {entry.inode.version for entry in shown.entries()} == {2}
        await trio.sleep(QUIET_S)
    async with showing(tmp_path, 300.0) as shown:
        await trio.sleep(3 * QUIET_S)
        assert shown.painters.decided == 0  # all of it has been seen


@on_a_clock_that_jumps
async def test_mount_stopped_within_the_quiet_period(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1)
    async with showing(tmp_path) as shown:
        await shown.presenter.contents(shown.entries()[0].inode)
        take(tmp_path, writer, 2)
        await trio.sleep(1)
    async with showing(tmp_path, 200.0) as shown:
        await trio.sleep(3 * QUIET_S)
        assert {entry.inode.version for entry in shown.entries()} == {2}


@on_a_clock_that_jumps
async def test_two_mounts_agree_on_who_was_first(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1)
    async with showing(tmp_path, 100.0) as first, showing(tmp_path, 200.0) as second:
        for turn in range(3):
            # Two decoders that disagree: the first decision on record counts for both.
            first.painters.window = window(turn * 1000 + 100)
            second.painters.window = window(turn * 1000 + 200)
            take(tmp_path, writer, turn + 2)
            await trio.sleep(3 * QUIET_S)
            pictures: list[bytes | None] = []

            async def look(shown: Shown) -> None:
                pictures.append(await shown.presenter.contents(shown.entries()[0].inode))  # noqa: B023

            async with trio.open_nursery() as nursery:
                nursery.start_soon(look, first)
                nursery.start_soon(look, second)
            assert pictures[0] == pictures[1]
            assert first.entries() == second.entries()
            assert {entry.inode.version for entry in first.entries()} == {turn + 1}
        # Each kernel was told, whichever of the two decided.
        assert first.changed == second.changed
        assert first.changed


@on_a_clock_that_jumps
async def test_lost_original_does_not_take_the_pool_with_it(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, 2)
    row = writer.image(1)
    assert row is not None
    Archive(tmp_path).path(row.hash, row.original).unlink()
    async with showing(tmp_path) as shown:
        assert await shown.presenter.contents(shown.entries()[1].inode)
        assert len(shown.painters.seen) == 1


@on_a_clock_that_jumps
async def test_pool_all_of_whose_originals_are_lost_is_not_decided(tmp_path: Path, writer: Index) -> None:
    add(writer, header(pool="p"))
    async with showing(tmp_path) as shown:
        with pytest.raises(RenderFailed):
            await shown.presenter.contents(shown.entries()[0].inode)
        assert shown.renditions.version("1:p", "auto") == 0


@on_a_clock_that_jumps
async def test_original_that_the_disk_does_not_give_counts_as_lost(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch, expected_warnings: list[logging.LogRecord]
) -> None:
    take(tmp_path, writer, 1, 2, 3)
    status = os.stat
    failing: list[str] = []

    def failing_stat(path: Path, **options: Any) -> os.stat_result:
        if Path(path).name in failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return status(path, **options)

    def archived(original: int) -> str:
        row = writer.image(original)
        assert row is not None
        return Archive(tmp_path).path(row.hash, row.original).name

    async with showing(tmp_path) as shown:
        monkeypatch.setattr(os, "stat", failing_stat)
        failing.append(archived(1))
        assert await shown.presenter.contents(shown.entries()[1].inode)
        assert len(shown.painters.seen) == 2
        # While nothing can be had at all, what follows the index in the background goes on trying.
        shown.painters.window = window(200.0)
        take(tmp_path, writer, 4)
        failing.extend(map(archived, (2, 3, 4)))
        await trio.sleep(5 * QUIET_S)
        assert {entry.inode.version for entry in shown.entries()} == {1}
        assert expected_warnings
        failing.clear()
        await trio.sleep(3 * QUIET_S)
        assert {entry.inode.version for entry in shown.entries()} == {2}
        assert len(shown.painters.seen) == 4


# Rendering ahead


@on_a_clock_that_jumps
async def test_new_images_are_rendered_ahead_by_as_many_as_there_are(tmp_path: Path, writer: Index) -> None:
    async with showing(tmp_path, warm=True, processes=3) as shown:
        take(tmp_path, writer, *range(1, 11), pool="")
        await trio.sleep(2)
        assert shown.painters.rendered == 10
        assert shown.painters.most == 2  # one process is left to people
        assert None not in [entry.size for entry in shown.entries()]
        take(tmp_path, writer, *range(11, 21))  # a pool, that is decided when all of it is there
        await trio.sleep(3 * QUIET_S)
        assert shown.painters.rendered == 20
        assert shown.painters.decided == 1
        assert None not in [entry.size for entry in shown.entries()]


@on_a_clock_that_jumps
async def test_trouble_with_the_store_does_not_end_the_mount(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch, expected_warnings: list[logging.LogRecord]
) -> None:
    take(tmp_path, writer, 1)

    def locked(*_: object) -> None:
        raise StoreUnavailable("locked")

    async with showing(tmp_path, warm=True) as shown:
        await shown.presenter.contents(shown.entries()[0].inode)
        for kind, name in (
            (Index, "data_version"),
            (Index, "arrivals"),
            (Index, "image"),
            (Index, "pool_through"),
            (Renditions, "size"),
            (Renditions, "versions"),
            (Renditions, "note_followed"),
        ):
            before = len(writer.arrivals(0, 1000))
            with monkeypatch.context() as broken:
                take(tmp_path, writer, 2 * before, pool="")
                take(tmp_path, writer, 2 * before + 1)
                broken.setattr(kind, name, locked)
                await trio.sleep(3 * QUIET_S)
            await trio.sleep(3 * QUIET_S)
            # Nothing that came meanwhile is missed.
            assert shown.renditions.followed("auto") == writer.last_sequence()
            recorded = shown.renditions.decision("1:p", "auto", 1)
            assert recorded is not None
            assert recorded.through == writer.last_sequence()
        # One line for each trouble, not one for each look.
        assert len(expected_warnings) < 30


# Sizes


@on_a_clock_that_jumps
async def test_render_of_another_length_fails_once_and_announces_anew(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, pool="")
    async with showing(tmp_path, follow=False) as shown:
        (entry,) = shown.entries()
        told = await shown.presenter.size(entry.inode)
    async with showing(tmp_path, follow=False) as shown:
        shown.painters.extra = b"more"
        assert await shown.presenter.size(entry.inode) == told
        with pytest.raises(RenderFailed, match="announced anew"):
            await shown.presenter.contents(entry.inode)
        new = await shown.presenter.size(entry.inode)
        data = await shown.presenter.contents(entry.inode)
        assert data is not None
        assert len(data) == new != told


@on_a_clock_that_jumps
async def test_listing_under_way_forgets_old_versions(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(tmp_path, writer, *range(1, 8))
    replied: list[tuple[str, int]] = []

    def reply(token: list[int], name: bytes, attr: pyfuse3.EntryAttributes, cookie: int) -> bool:
        if not token[0]:
            return False
        token[0] -= 1
        replied.append((name.decode(), attr.st_ino))
        token.append(cookie)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    async with showing(tmp_path, follow=False) as shown:
        forgotten: list[bytes] = []
        publisher = Publisher(
            tmp_path,
            shown.presenter.tree,
            shown.index,
            lambda _, name: forgotten.append(name),
            live=False,
        )
        door = Door(shown.presenter, publisher, uid=0, gid=0, umask=0)
        nobody = cast("pyfuse3.RequestContext", None)
        handle = await door.opendir(pyfuse3.InodeT(EXAM.number), nobody)

        async def read(start: int, room: int) -> int:
            token = [room]
            await door.readdir(handle, start, cast("pyfuse3.ReaddirToken", token))
            return token[-1]

        cookie = await read(0, 3)
        for version in (1, 2):
            shown.renditions.decide("1:p", "auto", Decision(version, 7, window(version)))
        await publisher.changed([(EXAM, entry.name) for entry in shown.entries()])
        assert forgotten == [entry.name.encode() for entry in shown.entries()]
        await read(cookie, 100)
    versions = [inode.version for _, number in replied if (inode := Inode.of(number))]
    assert versions == [1, 1, 1, 2, 2, 2, 2]
    assert len({name for name, _ in replied}) == 7


# Through the kernel


NAME = "Doe Jane/2024-01-31/cine_5_1.jpg"


@contextlib.contextmanager
def mount(store: Path, point: Path) -> Iterator[None]:
    point.mkdir()
    argv = command_line("mount", "--store", store, point, "-o", "formats=jpg")
    with running(argv, point.with_suffix(".log"), lambda: mounted(point), "the mount", mountpoint=point):
        yield


def bring_in(store: Path, numbers: Sequence[int], brightness: int) -> None:
    """Import phases of a slice, by the real command."""
    files = []
    for number in numbers:
        noise = np.random.default_rng(number).integers(0, brightness, (96, 80), np.uint16)
        ds = data_set(SOPInstanceUID=f"2.25.5{number}", InstanceNumber=number, pixels=noise)
        files.append(save(store.with_name(f"{number}.dcm"), ds))
    argv = command_line("import", "--store", store, *files)
    subprocess.run(argv, check=True, capture_output=True, cwd=ROOT)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two phases of a slice; the first is `NAME`."""
    require_fuse()
    bring_in(tmp_path / "store", (1, 2), 500)
    return tmp_path / "store"


def grow(store: Path) -> None:
    """More phases, so much brighter that another window suits them all."""
    bring_in(store, range(3, 9), 4000)


def test_pool_grows_under_readers_of_two_mounts(tmp_path: Path, store: Path) -> None:
    points = [tmp_path / "mnt1", tmp_path / "mnt2"]
    stop = threading.Event()
    trouble: list[str] = []
    reads: set[tuple[int, int]] = set()

    def read_on(path: Path) -> None:
        while not stop.wait(0.01):
            try:
                with path.open("rb") as file:
                    info = os.fstat(file.fileno())
                    content = file.read()
                if len(content) != info.st_size or not content.endswith(b"\xff\xd9"):
                    trouble.append(f"{len(content)} bytes read, {info.st_size} announced")
                reads.add((info.st_ino, info.st_size))
            except OSError as error:
                trouble.append(str(error))

    with mount(store, points[0]), mount(store, points[1]):
        names = [point / NAME for point in points]
        old = names[0].read_bytes()
        assert names[1].read_bytes() == old
        before = names[0].stat()
        with names[0].open("rb") as held, mmap.mmap(held.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert bytes(mapped) == old  # cached by the kernel now
            readers = [threading.Thread(target=read_on, args=(name,), daemon=True) for name in names]
            for reader in readers:
                reader.start()
            try:
                grow(store)
                for name in names:
                    wait_until(lambda name=name: name.stat().st_ino != before.st_ino, "a new inode", 40)  # type: ignore[misc]
            finally:
                stop.set()
                for reader in readers:
                    reader.join(30)
            assert not any(reader.is_alive() for reader in readers)
            held.seek(0)
            assert held.read() == bytes(mapped) == old
            assert os.fstat(held.fileno()).st_size == len(old)
        after = names[0].stat()
        assert after.st_mtime > before.st_mtime
        new = names[0].read_bytes()
        assert new != old
        assert len(new) == after.st_size
        with Image.open(names[0]) as picture:
            picture.load()
        # Both mounts show the same, name by name.
        shown = [
            {
                path.name: (path.stat().st_ino, path.stat().st_mtime, path.read_bytes())
                for path in name.parent.iterdir()
            }
            for name in names
        ]
        assert shown[0] == shown[1]
        assert len(shown[0]) == 8
        assert not trouble
        assert len(dict(reads)) == len(reads) == 2  # each inode has one size, and both were seen


def test_pool_grows_under_a_client_of_smb(tmp_path: Path, store: Path) -> None:
    """What a client has open goes on as it was; what it opens then is whole, and of the size it is told."""
    require("smbd")
    point = tmp_path / "mnt"
    with TemporaryDirectory(prefix="dicomfs-test-") as folder, mount(store, point):
        smbd = prepare(Path(folder, "smb"), point, free_port())
        serving = lambda: connects(smbd.port)  # noqa: E731  a def would say no more
        with (
            running(smbd.argv, Path(folder, "log"), serving, "smbd", env=smbd.env),
            client(smbd.port, smbd.share_name) as smb,
        ):
            old = smb.whole(NAME)
            inode = (point / NAME).stat().st_ino
            assert old == (point / NAME).read_bytes()
            with smb.open(NAME) as held:
                assert held.size == len(old)
                first = held.read(0, 100)
                grow(store)
                wait_until(lambda: (point / NAME).stat().st_ino != inode, "a new inode", 40)
                assert first + held.read(100, held.size) == old
                # The same client, by the same name, while the old one is still open.
                wait_until(lambda: smb.whole(NAME) != old, "the new bytes over SMB")
                assert held.read(0, held.size) == old
            for path in sorted((point / NAME).parent.iterdir()):
                with smb.open(str(path.relative_to(point))) as file:
                    assert file.read(0, file.size) == path.read_bytes()
                    assert file.size == path.stat().st_size


def test_newest_version_takes_the_place_of_what_a_mount_shows(tmp_path: Path, store: Path) -> None:
    """Under `duplicates=newest`: same name, another inode, a later time; who has it open keeps the former."""
    with mount(store, tmp_path / "mnt"):
        name = tmp_path / "mnt" / NAME
        old, before = name.read_bytes(), name.stat()
        with name.open("rb") as held, Ingest.open(store, Duplicates.NEWEST) as ingest:
            ds = data_set(
                SOPInstanceUID="2.25.51", InstanceNumber=1, pixels=np.eye(64, dtype=np.uint16) * 900
            )
            outcome = ingest.receive([encoded(ds)], Receipt(ExplicitVRLittleEndian, time.time()))
            assert outcome.stored is Stored.OTHER_VERSION
            wait_until(lambda: name.stat().st_ino != before.st_ino, "a new inode")
            assert held.read() == old
        after = name.stat()
        assert after.st_mtime > before.st_mtime
        new = name.read_bytes()
        assert len(new) == after.st_size
        with Image.open(name) as picture:
            assert picture.size == (64, 64)
        assert sorted(path.name for path in name.parent.iterdir()) == ["cine_5_1.jpg", "cine_5_2.jpg"]
