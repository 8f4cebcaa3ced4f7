"""Rendering ahead: of somebody who lists a folder, of what has come in, of all that is not known yet."""

import math
import os
import re
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import trio

from dicomfs import ahead, follow
from dicomfs.diskcache import DiskCache
from dicomfs.entries import Entry
from dicomfs.errors import RenderFailed, StoreUnavailable
from dicomfs.index import Index
from dicomfs.inode import Inode, Kind
from dicomfs.model import PoolWindow
from dicomfs.renditions import Key, Renditions
from dicomfs.spans import Spans
from dicomfs.tree import Tree
from dicomfs.turns import Urgency
from tests.made import data_set, save
from tests.presenting import EXAM, PICTURE_S, QUIET_S, Shown, run, showing, take
from tests.support import ROOT, command_line, mounted, require_fuse, running, wait_until

OTHER = {"study_uid": "2.25.22", "series_uid": "2.25.33", "patient_id": "0815", "patient_name": "Roe"}


def unknown(shown: Shown) -> list[Entry]:
    return [entry for entry in shown.entries() if entry.size is None]


async def stat(shown: Shown, entry: Entry) -> None:
    """What the door to the kernel does for a `stat`."""
    now = shown.presenter.tree.entry(entry.inode)
    assert now is not None
    if now.size is None:
        assert await shown.presenter.size(entry.inode)
    else:
        shown.presenter.seen(entry.inode)


@asynccontextmanager
async def walking(folder: Path, *, processes: int = 1) -> AsyncIterator[Shown]:
    """A mount that has nothing left to warm, so that whatever is rendered ahead is so for a reader."""
    async with showing(folder, warm=True, processes=processes, follow=False) as shown:
        shown.painters.processes = trio.CapacityLimiter(processes)
        for scope in shown.presenter.tree.scopes:
            shown.renditions.note_unwarmed(scope, str(Spans()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shown.presenter.follow, _nobody, _nobody)
            yield shown
            nursery.cancel_scope.cancel()


async def _nobody(_: object) -> None:
    """Is told what has changed."""


def interactive(shown: Shown) -> list[int]:
    return [original for original, urgency in shown.painters.jobs if urgency is Urgency.WAITED]


# Walks


def test_listing_keeps_all_processes_busy_to_the_end_of_the_folder(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, 301), pool="")

    async def scenario() -> None:
        async with walking(tmp_path, processes=3) as shown:
            begun = trio.current_time()
            shown.presenter.seen(EXAM)
            for entry in shown.entries():
                await stat(shown, entry)
            assert not unknown(shown)
            assert sorted(interactive(shown)) == list(range(1, 301))  # each of them once
            # On a clock that runs only while pictures are painted: no process has ever waited.
            assert trio.current_time() - begun == pytest.approx(300 / 3 * PICTURE_S)

    run(scenario)


def test_walk_has_two_pictures_for_each_process(tmp_path: Path, writer: Index) -> None:
    """One that it does, and one that lies behind it in its pipe."""
    take(tmp_path, writer, *range(1, 101), pool="")

    async def scenario() -> None:
        async with walking(tmp_path, processes=3) as shown:
            shown.painters.processes = trio.CapacityLimiter(math.inf)
            shown.presenter.seen(EXAM)
            for entry in shown.entries():
                await stat(shown, entry)
            assert shown.painters.most >= 2 * 3

    run(scenario)


def test_listing_from_the_end_is_rendered_ahead_of_too(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, 301), pool="")

    async def scenario() -> None:
        async with walking(tmp_path, processes=2) as shown:
            begun = trio.current_time()
            shown.presenter.seen(EXAM)
            for entry in reversed(shown.entries()):
                await stat(shown, entry)
            assert not unknown(shown)
            assert sorted(interactive(shown)) == list(range(1, 301))
            # After the first steps it is known where he goes: what comes next is what he asks for next.
            order = interactive(shown)[50:]
            assert all(before > after - 10 for before, after in pairwise(order))
            assert trio.current_time() - begun == pytest.approx(300 / 2 * PICTURE_S)

    run(scenario)


@pytest.mark.parametrize("apart", [True, False])
def test_pools_of_a_folder_are_decided_at_once(tmp_path: Path, writer: Index, *, apart: bool) -> None:
    """A pool for each slice, whether its phases come one after the other or slice by slice."""
    for number in range(1, 81):
        take(tmp_path, writer, number, pool=f"p{number % 8 if apart else (number - 1) // 10}")

    async def scenario() -> None:
        async with walking(tmp_path, processes=4) as shown:
            shown.painters.decision_s = 0.5
            begun = trio.current_time()
            shown.presenter.seen(EXAM)
            for entry in shown.entries():
                await stat(shown, entry)
            assert shown.painters.decided == 8
            assert shown.painters.rendered == 80
            work_s = 8 * 0.5 + 80 * PICTURE_S
            assert trio.current_time() - begun == pytest.approx(work_s / 4, rel=0.1)

    run(scenario)


def test_two_who_list_get_the_same(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, 101), pool="")
    take(tmp_path, writer, *range(101, 201), pool="", **OTHER)

    async def scenario() -> None:
        async with walking(tmp_path, processes=2) as shown:
            other = Inode(Kind.EXAM, 101, "jpg")

            async def read(exam: Inode) -> None:
                for entry in shown.entries(exam):
                    await stat(shown, entry)

            async with trio.open_nursery() as readers:
                readers.start_soon(read, EXAM)
                readers.start_soon(read, other)
            order = interactive(shown)
            assert sorted(order) == list(range(1, 201))
            for end in range(len(order)):
                of_first = sum(original <= 100 for original in order[:end])
                assert abs(of_first - (end - of_first)) <= 6

    run(scenario)


def test_who_goes_away_is_not_rendered_ahead_of(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, 2, pool="", frames=750)

    async def scenario() -> None:
        async with walking(tmp_path, processes=1) as shown:
            await stat(shown, shown.entries()[0])
            await trio.sleep(ahead.GONE_S + 1)
            assert len(interactive(shown)) == 1  # one picture that somebody opens is no listing
            for entry in shown.entries()[1:3]:
                await stat(shown, entry)
            await trio.sleep(ahead.GONE_S + 1)
            done = len(interactive(shown))
            assert 3 < done < 1500
            await trio.sleep(20)
            assert len(interactive(shown)) == done
            # He comes back.
            for entry in unknown(shown)[-2:]:
                await stat(shown, entry)
            await trio.sleep(ahead.GONE_S + 1)
            assert len(interactive(shown)) > done + 2

    run(scenario)


def test_who_goes_on_among_known_files_is_still_there(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, 2, pool="", frames=750)

    async def scenario() -> None:
        async with walking(tmp_path, processes=1) as shown:
            first = shown.entries()[0]
            for entry in shown.entries()[:2]:
                await stat(shown, entry)
            while unknown(shown):
                shown.presenter.seen(EXAM)
                await stat(shown, first)
                await trio.sleep(ahead.GONE_S / 2)
            assert len(interactive(shown)) == 1500

    run(scenario)


def test_folders_that_are_walked_are_bounded(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "MOST_WALKS", 3)
    for number in range(10):
        of = {"study_uid": f"2.25.22{number}", "series_uid": f"2.25.33{number}"}
        take(tmp_path, writer, *range(10 * number + 1, 10 * number + 4), pool="", **of)

    async def scenario() -> None:
        async with showing(tmp_path, warm=True, follow=False) as shown:
            for exam in range(1, 31, 3):
                for entry in shown.entries(Inode(Kind.EXAM, exam, "jpg"))[:2]:
                    await stat(shown, entry)
            made = shown.presenter._ahead
            assert made is not None
            assert len(made._walks) == 3

    run(scenario)


def test_sizes_that_can_be_told_are_not_rendered_for(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, 101))
    exam = Inode(Kind.EXAM, 1, "bmp")

    async def scenario() -> None:
        for certain in (True, False):
            async with showing(tmp_path, warm=True, processes=2, shown_as="bmp", follow=False) as shown:
                shown.painters.length = 4711 if certain else None
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(shown.presenter.follow, _nobody, _nobody)
                    for entry in shown.entries(exam):
                        await stat(shown, entry)
                    sizes = [entry.size for entry in shown.entries(exam)]
                    nursery.cancel_scope.cancel()
                if certain:
                    assert sizes == [4711] * 100
                    assert shown.painters.rendered == shown.painters.decided == 0
                    assert shown.painters.asked < 200
                else:
                    assert None not in sizes
                    assert shown.painters.rendered == 100
            remove_renditions(tmp_path)

    run(scenario)


# Warming


def test_everything_is_warmed_the_newest_first(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, 101), pool="")

    async def scenario() -> None:
        async with showing(tmp_path, warm=True) as shown:
            await trio.sleep(60)
            assert not unknown(shown)
            assert shown.painters.jobs == [(number, Urgency.SPARE) for number in range(100, 0, -1)]
            # Rendered for their sizes: nobody has asked for these pictures.
            assert shown.presenter._cache.statistics().items == 0
            take(tmp_path, writer, 101, pool="")
            await trio.sleep(10)
            assert shown.painters.jobs[100:] == [(101, Urgency.SPARE)]
            assert shown.presenter._cache.statistics().items == 1

    run(scenario)


class NotingDisk:
    """Stands for a disk cache that holds nothing, and knows what it was told."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []
        self.kept: list[tuple[int, bool]] = []

    async def get(self, key: Key, window: PoolWindow | None, *, is_use: bool) -> bytes | None:  # noqa: ARG002  as there
        self.asked.append((key.original, is_use))
        await trio.lowlevel.checkpoint()
        return None

    def keep(self, key: Key, window: PoolWindow | None, data: bytes, *, is_use: bool) -> None:  # noqa: ARG002  as there
        self.kept.append((key.original, is_use))


def test_only_what_somebody_asks_for_is_a_use_on_disk(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, 2, 3)
    disk = NotingDisk()

    async def scenario() -> None:
        async with showing(tmp_path, disk=cast(DiskCache, disk)) as shown:
            opened, walked, prefetched = (entry.inode for entry in shown.entries())
            await shown.presenter.contents(opened)
            await shown.presenter.contents(walked, is_use=False)
            await shown.presenter.contents(prefetched, urgency=Urgency.SPARE, is_use=False)
        assert disk.asked == disk.kept
        assert [is_use for _, is_use in disk.kept] == [True, False, False]

    run(scenario)


def test_what_is_older_than_the_mount_is_not_put_on_disk(tmp_path: Path, writer: Index) -> None:
    """Only its size is wanted, and there may be years of it."""
    take(tmp_path, writer, 1, 2)
    disk = NotingDisk()

    async def scenario() -> None:
        async with showing(tmp_path, warm=True, disk=cast(DiskCache, disk)) as shown:
            await trio.sleep(60)
            assert not unknown(shown)
            assert disk.kept == []
            take(tmp_path, writer, 3, pool="another")
            await trio.sleep(60)
            assert not unknown(shown)
            assert [is_use for _, is_use in disk.kept] == [False]

    run(scenario)


@pytest.mark.parametrize("opening", [False, True], ids=["waits", "is rendered ahead of"])
def test_warming_stands_back_for_somebody(tmp_path: Path, writer: Index, *, opening: bool) -> None:
    take(tmp_path, writer, 1, pool="", **OTHER, frames=500)
    take(tmp_path, writer, 2, pool="", frames=1000)

    async def scenario() -> None:
        async with (
            showing(tmp_path, warm=True, processes=2, follow=False) as shown,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(shown.presenter.follow, _nobody, _nobody)
            before = 0
            for number, entry in enumerate(shown.entries()[:300]):
                assert await shown.presenter.contents(entry.inode, opening=opening)
                background = sum(urgency is Urgency.SPARE for _, urgency in shown.painters.jobs)
                if not number:
                    before = background
            waited_s = 300 * PICTURE_S
            assert background - before <= waited_s / ahead.STARVED_S + 2
            await trio.sleep(60)
            assert not unknown(shown)
            nursery.cancel_scope.cancel()

    run(scenario)


def test_next_mount_goes_on_where_the_last_one_stopped(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(tmp_path, writer, *range(1, 401), pool="")
    looked: list[int] = []
    files_of = Tree.files_of

    def noted(tree: Tree, instance: int) -> list[Entry]:
        looked.append(instance)
        return files_of(tree, instance)

    monkeypatch.setattr(Tree, "files_of", noted)

    async def scenario() -> None:
        async with showing(tmp_path, warm=True) as shown:
            await trio.sleep(3)
            assert 50 < shown.painters.rendered < 400
        before = set(looked)
        looked.clear()
        take(tmp_path, writer, *range(401, 411), pool="")  # while no mount runs
        async with showing(tmp_path, warm=True) as shown:
            await trio.sleep(60)
            assert not unknown(shown)
            assert len(before & set(looked)) <= 2  # what was in hand
            assert before | set(looked) == set(range(1, 411))
        looked.clear()
        async with showing(tmp_path, warm=True) as shown:
            await trio.sleep(60)
            assert shown.painters.rendered == 0
        assert looked == []

    run(scenario)


def test_another_view_is_warmed_for_itself(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, 11), pool="", frames=5)

    async def scenario() -> None:
        for frames, expected in ((2, 20), (4, 20), (4, 0), (3, 0)):
            async with showing(tmp_path, warm=True, frames=frames) as shown:
                await trio.sleep(60)
                assert not unknown(shown)
                assert shown.painters.rendered == expected

    run(scenario)


def test_crash_at_any_moment_leaves_nothing_out(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "NOTE_S", 0.0)
    take(tmp_path, writer, *range(1, 101), pool="")
    moments: list[int] = []

    async def scenario() -> None:
        async with showing(tmp_path, warm=True, follow=False) as shown, trio.open_nursery() as nursery:
            nursery.start_soon(shown.presenter.follow, _nobody, _nobody)
            on_disk = Renditions(tmp_path / "renditions.sqlite3", shown.index.store_id)
            (scope,) = shown.presenter.tree.scopes
            for _ in range(100):
                await trio.sleep(follow.POLL_S / 3)
                noted = on_disk.unwarmed(scope)
                rest = Spans.of(noted) if noted is not None else Spans([(1, 100)])
                assert rest is not None
                sizes = on_disk.sizes("digest of jpg", range(1, 101), (0, 0))
                assert all((number, 0, 0) in sizes or number in rest for number in range(1, 101))
                moments.append(len(sizes))
            on_disk.close()
            assert moments[-1] == 100
            nursery.cancel_scope.cancel()

    run(scenario)
    assert len(set(moments)) > 3  # it was looked at while it was going on


def test_more_than_is_kept_apart_comes_in_and_none_is_left_out(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomfs.spans.MOST_SPANS", 3)
    monkeypatch.setattr(Spans.__init__, "__kwdefaults__", {"most": 3})

    async def scenario() -> None:
        async with showing(tmp_path, warm=True) as shown:
            for first in range(1, 600, 60):
                take(tmp_path, writer, *range(first, first + 60), pool="")
                await trio.sleep(2 * follow.POLL_S)
            made = shown.presenter._ahead
            assert made is not None
            assert 1 < len(list(made._unwarmed)) <= 3
            await trio.sleep(60)
            assert not unknown(shown)

    run(scenario)


def test_images_of_a_growing_pool_wait_and_are_not_forgotten(tmp_path: Path, writer: Index) -> None:
    async def scenario() -> None:
        async with showing(tmp_path, warm=True) as shown:
            take(tmp_path, writer, 1, 2, 3)
            await trio.sleep(QUIET_S - 1)
            assert shown.painters.rendered == shown.painters.decided == 0
        # Stopped within the quiet period.
        async with showing(tmp_path, warm=True) as shown:
            await trio.sleep(3 * QUIET_S)
            assert not unknown(shown)
            assert (shown.painters.decided, shown.painters.rendered) == (1, 3)
            # A new version is another rendition of each.
            shown.painters.window = shown.painters.window.__class__(0.0, 200.0, "test")
            take(tmp_path, writer, 4)
            await trio.sleep(3 * QUIET_S)
            assert not unknown(shown)
            assert (shown.painters.decided, shown.painters.rendered) == (2, 7)

    run(scenario)


def test_what_failed_is_tried_again_by_the_next_mount(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, 2, 3, pool="")

    async def scenario() -> None:
        async with showing(tmp_path, warm=True, follow=False) as shown:
            shown.painters.trouble = RenderFailed("took too long")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shown.presenter.follow, _nobody, _nobody)
                await trio.sleep(60)
                assert shown.painters.rendered == 3  # not again and again
                nursery.cancel_scope.cancel()
        async with showing(tmp_path, warm=True) as shown:
            await trio.sleep(60)
            assert not unknown(shown)

    run(scenario)


def remove_renditions(folder: Path) -> None:
    for path in folder.glob("renditions.sqlite3*"):
        path.unlink()


def test_trouble_with_the_index_leaves_nothing_out(
    tmp_path: Path, writer: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(tmp_path, writer, *range(1, 21), pool="")

    def locked(*_: object) -> None:
        raise StoreUnavailable("locked")

    async def scenario() -> None:
        for place, name in ((Index, "instances_before"), (Index, "image"), (Index, "image_shown")):
            async with showing(tmp_path, warm=True, follow=False) as shown, trio.open_nursery() as nursery:
                with monkeypatch.context() as broken:
                    broken.setattr(place, name, locked)
                    nursery.start_soon(shown.presenter.follow, _nobody, _nobody)
                    await trio.sleep(20)
                    assert shown.painters.rendered == 0
                await trio.sleep(60)
                assert not unknown(shown)
                nursery.cancel_scope.cancel()
            remove_renditions(tmp_path)

    run(scenario)


def test_nothing_is_rendered_ahead_when_it_is_off(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, 11), pool="")

    async def scenario() -> None:
        async with showing(tmp_path, warm=False) as shown:
            await stat(shown, shown.entries()[0])
            await stat(shown, shown.entries()[0])
            await trio.sleep(60)
            assert interactive(shown) == [1]
            assert shown.painters.rendered == 1

    run(scenario)


# Through the kernel


@dataclass(frozen=True)
class Mounts:
    """A store of pictures, and mounts of it, one after the other."""

    folder: Path

    def take(self, *numbers: int) -> None:
        files = []
        for number in numbers:
            uid = f"2.25.5{number}"
            noise = np.random.default_rng(number).integers(0, 4000, (40, 30 + number % 7), np.uint16)
            ds = data_set(SOPInstanceUID=uid, InstanceNumber=number, Modality="OT", pixels=noise)
            files.append(save(self.folder / f"{number}.dcm", ds))
        argv = command_line("import", "--store", self.folder / "store", *files)
        subprocess.run(argv, check=True, capture_output=True, cwd=ROOT)

    @contextmanager
    def mounted(self, options: str, said: dict[str, int]) -> Iterator[list[Path]]:
        """Pictures of a mount, by names alone; when it has ended, `said` is what workers and cache did."""
        point, log = self.folder / "mnt", self.folder / "log"
        point.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        argv = command_line("mount", "--store", self.folder / "store", point, "-o", options)
        with running(argv, log, lambda: mounted(point), "the mount", mountpoint=point):
            yield sorted(Path(where, name) for where, _, names in os.walk(point) for name in names)
        last = log.read_text().splitlines()[-1]
        for name in ("done", "misses"):
            found = re.search(rf"\b{name}=([0-9]+)", last)
            assert found, last
            said[name] = int(found[1])

    def is_warmed_through(self, sequence: int) -> bool:
        """Whether it is on record that nothing up to this receipt number is left to be warmed."""
        with closing(
            sqlite3.connect(f"file:{self.folder}/store/renditions.sqlite3?mode=ro", uri=True)
        ) as raw:
            noted = raw.execute("SELECT value FROM about WHERE key LIKE 'unwarmed %'").fetchone()
        rest = Spans.of(noted[0]) if noted else None
        return rest is not None and not any(number in rest for number in range(1, sequence + 1))


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    require_fuse()
    return Mounts(tmp_path)


def test_restarted_mount_goes_on(mounts: Mounts) -> None:
    mounts.take(*range(1, 13))
    said: dict[str, int] = {}
    with mounts.mounted("warm=on", said):
        wait_until(lambda: mounts.is_warmed_through(12), "everything to be warmed")
    assert said["done"] >= 12
    mounts.take(13)
    with mounts.mounted("warm=on", said) as pictures:
        wait_until(lambda: mounts.is_warmed_through(13), "what is new to be warmed")
        assert all(picture.stat().st_size for picture in pictures)
    assert said["done"] <= 3  # the encoder's probe, a window, a picture


def test_sizes_outlive_their_pictures(mounts: Mounts) -> None:
    mounts.take(*range(1, 9))
    said: dict[str, int] = {}
    with mounts.mounted("warm=off,cache=1K", said) as pictures:
        before = [picture.stat().st_size for picture in pictures]
        assert sum(before) > 1024
    assert said["misses"] == 8
    with mounts.mounted("warm=off", said) as pictures:
        assert [picture.stat().st_size for picture in pictures] == before
    assert said["misses"] == 0


def test_listing_of_bitmaps_renders_nothing(mounts: Mounts) -> None:
    mounts.take(*range(1, 41))
    said: dict[str, int] = {}
    with mounts.mounted("formats=bmp+tiff,warm=off", said) as pictures:
        sizes = [picture.stat().st_size for picture in pictures]
    assert said["misses"] == 0
    with mounts.mounted("formats=bmp+tiff", said) as pictures:
        assert [len(picture.read_bytes()) for picture in pictures] == sizes
    assert len(sizes) == 80
