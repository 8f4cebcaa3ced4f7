"""A view that goes back so many days, while days pass: what is too old goes, and the kernel is told."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from dicomfs.cache import Cache
from dicomfs.changes import Changes
from dicomfs.entries import Disappearance
from dicomfs.errors import StoreUnavailable
from dicomfs.gate import Gate
from dicomfs.index import Index
from dicomfs.inode import Inode
from dicomfs.model import Header
from dicomfs.present import Presenter
from dicomfs.renditions import Renditions
from dicomfs.selection import Since
from dicomfs.spelling import Layout
from dicomfs.tree import Tree
from tests.made import add, header, tree, walk


@dataclass
class Calendar:
    """A clock of days."""

    today: date

    def __call__(self) -> date:
        return self.today


def exam(number: int, study_date: str, **changes: Any) -> Header:
    uids = {"study_uid": f"2.25.{number}0", "series_uid": f"2.25.{number}1"}
    return header(sop_instance_uid=f"2.25.{number}2", study_date=study_date, **uids, **changes)


RECEIVED = datetime(2024, 2, 1, 1, tzinfo=UTC).timestamp()
OLD, NEW, OTHER = exam(1, "20240101"), exam(2, "20240201"), exam(3, "20240101", patient_id="2")


def names(shown: Tree) -> list[str]:
    return [path for path, entry in walk(shown).items() if entry.is_folder]


def pass_a_day(calendar: Calendar, shown: Tree, index: Index, renditions: Renditions) -> list[str]:
    """Follow the index until 2 February 2024; paths that the kernel is told to have gone."""
    heard: list[str] = []

    async def changed(pairs: Sequence[tuple[Inode, str]]) -> None:
        raise AssertionError(pairs)

    async def gone(left: Sequence[Disappearance]) -> None:
        heard.extend("/".join(entry.name for entry in old.way) for old in left)

    async def follow() -> None:
        cache: Cache[Any, bytes] = Cache(1, len)
        presenter = Presenter(shown, index, renditions, cast(Any, None), cache, warm=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(presenter.follow, changed, gone)
            await trio.sleep(10)
            assert not heard
            calendar.today = date(2024, 2, 2)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()

    trio.run(follow, clock=trio.testing.MockClock(autojump_threshold=0.01))
    return heard


@pytest.mark.parametrize(
    ("layout", "before", "after", "told"),
    [
        (
            Layout.PATIENT_DATE,
            [
                *("Doe Jane", "Doe Jane/2024-01-01", "Doe Jane/2024-02-01"),
                *("Doe Jane (2)", "Doe Jane (2)/2024-01-01"),
            ],
            ["Doe Jane", "Doe Jane/2024-02-01"],
            ["Doe Jane/2024-01-01", "Doe Jane (2)/2024-01-01", "Doe Jane (2)"],
        ),
        (
            Layout.DATE_PATIENT,
            [
                *("2024-01-01", "2024-01-01/Doe Jane", "2024-01-01/Doe Jane (2)"),
                *("2024-02-01", "2024-02-01/Doe Jane"),
            ],
            ["2024-02-01", "2024-02-01/Doe Jane"],
            ["2024-01-01/Doe Jane", "2024-01-01/Doe Jane (2)", "2024-01-01"],
        ),
    ],
)
def test_an_exam_leaves_the_window_and_the_kernel_is_told(
    tmp_path: Path, layout: Layout, before: list[str], after: list[str], told: list[str]
) -> None:
    calendar = Calendar(date(2024, 2, 1))
    with closing(Index(tmp_path / "index.sqlite3", create=True)) as index:
        add(index, OLD, NEW, OTHER, received=RECEIVED)
        shown, renditions = tree(tmp_path, index, layout=layout, since=Since("31d"), today=calendar)
        with closing(renditions):
            assert names(shown) == before
            root_before = shown.entry(shown.root)
            heard = pass_a_day(calendar, shown, index, renditions)
            assert names(shown) == after
            assert heard == told
            for path in set(before) - set(after):
                parent, _, name = path.rpartition("/")
                folder = shown.lookup(shown.root, parent) if parent else shown.entry(shown.root)
                assert folder is None or shown.lookup(folder.inode, name) is None
            root_after = shown.entry(shown.root)
            assert root_before is not None
            assert root_after is not None
            assert root_after.modified > root_before.modified


def test_the_kernel_is_told_although_renditions_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_warnings: list[logging.LogRecord]
) -> None:
    calendar = Calendar(date(2024, 2, 1))

    def full(*_: object) -> None:
        raise StoreUnavailable("disk full")

    with closing(Index(tmp_path / "index.sqlite3", create=True)) as index:
        add(index, OLD, NEW, received=RECEIVED)
        shown, renditions = tree(tmp_path, index, since=Since("31d"), today=calendar)
        monkeypatch.setattr(renditions, "note_followed", full)
        with closing(renditions):
            assert pass_a_day(calendar, shown, index, renditions) == ["Doe Jane/2024-01-01"]
    assert len(expected_warnings) == 1  # and not one for each look


def test_a_returning_patient_is_hidden_until_it_is_published(tmp_path: Path) -> None:
    calendar = Calendar(date(2024, 2, 2))
    with closing(Index(tmp_path / "index.sqlite3", create=True)) as index:
        add(index, OLD, received=RECEIVED)
        shown, renditions = tree(tmp_path, index, since=Since("31d"), today=calendar, gate=Gate(1))
        with closing(renditions):
            add(index, NEW, received=RECEIVED)
            assert names(shown) == []
            assert shown.lookup(shown.root, "Doe Jane") is None
            appearing = [new.name for new in Changes(shown, index).appearances(2, 2)]
            assert appearing == ["Doe Jane", "2024-02-01", "Localizer_2_7.jpg"]
            shown.gate.settle(2)
            assert names(shown) == ["Doe Jane", "Doe Jane/2024-02-01"]
