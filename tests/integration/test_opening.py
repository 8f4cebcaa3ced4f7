"""Opening pictures, in-process: out of memory, while they are rendered ahead, one after the other."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from dicomfs import forget
from dicomfs.archive import Archive
from dicomfs.diskcache import DiskCache
from dicomfs.errors import RenderFailed
from dicomfs.index import Index
from dicomfs.inode import Inode, Kind
from dicomfs.model import PoolWindow
from dicomfs.present import ANNOUNCED_S
from dicomfs.removal import Chosen
from dicomfs.renditions import RENDITIONS_NAME, Key, Renditions
from dicomfs.turns import Urgency
from tests.presenting import EXAM, PICTURE_S, Shown, run, showing, take

IMAGES = 80


class SlowDisk:
    """A disk cache that holds nothing, and takes its time to say so."""

    def __init__(self) -> None:
        self.answers = trio.Event()

    async def get(self, _: Key, __: PoolWindow | None, **___: bool) -> None:
        await self.answers.wait()

    def keep(self, _: Key, __: PoolWindow | None, ___: bytes, *, is_use: bool) -> None:
        pass


async def opened(shown: Shown, inode: Inode) -> bytes | None:
    """As `fuse.py` opens a picture."""
    data = shown.presenter.at_hand(inode.number)
    return data if data is not None else await shown.presenter.contents(inode, opening=True)


def test_what_is_forgotten_is_not_opened_out_of_memory(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, pool="")
    take(tmp_path, writer, 2, pool="", study_uid="2.25.1", study_date="20240102", series_uid="2.25.2")

    async def scenario() -> None:
        # Nobody follows: as if there was much else to tell before.
        async with showing(tmp_path, follow=False) as shown:
            first, other = (
                entry.inode for exam in (EXAM, Inode(Kind.EXAM, 2, "jpg")) for entry in shown.entries(exam)
            )
            for inode in (first, other):
                for _ in range(2):
                    data = await opened(shown, inode)
                assert data is not None
                assert shown.presenter.at_hand(inode.number) == data
            chosen = Chosen(exams=frozenset({EXAM.id}))
            forget.carry_out(Archive(tmp_path), writer, chosen, forget.plan(writer, chosen).token)
            assert shown.presenter.at_hand(first.number) is None
            assert await opened(shown, first) is None
            assert await opened(shown, other) == data
            assert shown.presenter.at_hand(other.number) == data

    run(scenario)


def test_who_waits_for_what_is_looked_for_on_disk_is_served_as_one_who_waits(
    tmp_path: Path, writer: Index
) -> None:
    take(tmp_path, writer, 1, 2, pool="")
    disk = SlowDisk()

    async def scenario() -> None:
        async with (
            showing(tmp_path, follow=False, disk=cast(DiskCache, disk)) as shown,
            trio.open_nursery() as nursery,
        ):
            first, second = shown.entries()
            for entry in (first, second):
                nursery.start_soon(partial(shown.presenter.contents, entry.inode, urgency=Urgency.SPARE))
            await trio.sleep(1)
            nursery.start_soon(opened, shown, second.inode)
            await trio.sleep(1)
            assert not shown.painters.jobs
            disk.answers.set()
            await trio.sleep(1)
            assert set(shown.painters.jobs) == {(1, Urgency.SPARE), (2, Urgency.WAITED)}

    run(scenario)


def test_who_steps_through_a_series_again_does_not_wait_either(tmp_path: Path, writer: Index) -> None:
    async def scenario() -> None:
        async with showing(tmp_path, warm=True, processes=2) as shown:
            # Less than half of the series can be kept in memory.
            shown.painters.extra = bytes(30_000)
            take(tmp_path, writer, *range(1, IMAGES + 1), pool="")
            await trio.sleep(60)  # all sizes are known
            inodes = [entry.inode for entry in shown.entries()]
            for is_again in (False, True, True):
                shown.painters.jobs.clear()
                for inode in inodes:
                    assert await opened(shown, inode)
                    await trio.sleep(1)
                if is_again:  # all is rendered again, ahead of him but for the two that show where he goes
                    assert len(shown.painters.jobs) == IMAGES
                    waited = [number for number, urgency in shown.painters.jobs if urgency is Urgency.WAITED]
                    assert waited == [1, 2]

    run(scenario)


def test_who_copies_a_series_has_it_rendered_on_all_processes(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, IMAGES + 1), pool="")

    async def scenario() -> None:
        async with showing(tmp_path, warm=True, processes=3) as shown:
            await trio.sleep(60)  # all sizes are known, and nothing is in memory
            shown.painters.processes = trio.CapacityLimiter(3)
            shown.painters.jobs.clear()
            begun = trio.current_time()
            for entry in shown.entries():
                assert await opened(shown, entry.inode)
            took = trio.current_time() - begun
            assert sorted(number for number, _ in shown.painters.jobs) == list(range(1, IMAGES + 1))
            # On a clock that runs only while pictures are painted: but for the beginning, no process idles.
            assert took <= (2 + 2 + IMAGES / 3) * PICTURE_S

    run(scenario)


def test_what_was_rendered_ahead_is_at_hand_until_the_index_changes(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, *range(1, IMAGES + 1), pool="")

    async def scenario() -> None:
        async with showing(tmp_path, warm=True, processes=2) as shown:
            await trio.sleep(60)
            shown.painters.jobs.clear()
            numbers = [entry.inode.number for entry in shown.entries()]
            for entry in shown.entries()[:2]:
                await opened(shown, entry.inode)
            await trio.sleep(1)
            assert len(shown.painters.jobs) == 4
            # Nothing is looked up for it, and yet it is seen that he goes on.
            assert shown.presenter.at_hand(numbers[2])
            await trio.sleep(1)
            assert len(shown.painters.jobs) == 7
            take(tmp_path, writer, IMAGES + 1, pool="")
            assert shown.presenter.at_hand(numbers[3]) is None

    run(scenario)


def test_what_was_looked_up_before_the_index_changed_is_not_at_hand(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, 2, pool="")

    async def scenario() -> None:
        async with showing(tmp_path, follow=False) as shown, trio.open_nursery() as nursery:
            first, second = (entry.inode for entry in shown.entries())
            await opened(shown, first)
            nursery.start_soon(opened, shown, second)
            await trio.testing.wait_all_tasks_blocked()
            assert len(shown.painters.jobs) == 2  # it is being rendered
            take(tmp_path, writer, 3, pool="")
            assert shown.presenter.at_hand(first.number) is None  # by which the change is seen
            await trio.sleep(1)
            assert shown.presenter.at_hand(second.number) is None
            assert await opened(shown, second)
            assert shown.presenter.at_hand(second.number)

    run(scenario)


def test_what_another_mount_announced_with_another_size_is_not_at_hand(tmp_path: Path, writer: Index) -> None:
    take(tmp_path, writer, 1, pool="")

    async def scenario() -> None:
        async with showing(tmp_path, follow=False) as shown:
            (inode,) = (entry.inode for entry in shown.entries())
            data = await opened(shown, inode)
            assert data is not None
            assert shown.presenter.at_hand(inode.number) == data
            picture = shown.presenter.tree.picture(inode)
            assert picture is not None
            assert shown.renditions.record()
            with closing(Renditions(tmp_path / RENDITIONS_NAME, shown.index.store_id)) as other:
                other.announce(picture.key, len(data) + 1, "")
            assert await shown.presenter.size(inode) == len(data) + 1
            await trio.sleep(ANNOUNCED_S)
            assert shown.presenter.at_hand(inode.number) is None
            with pytest.raises(RenderFailed, match="announced anew"):
                await opened(shown, inode)
            assert await shown.presenter.size(inode) == len(data)

    run(scenario)
