"""No statement that the kernel or a sender waits for counts, sorts or scans: EXPLAIN QUERY PLAN of each.

Every statement that a module keeps is looked at, used or not, and everything that a tree, a follower and a
writer run beside them.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Executable, Select
from sqlalchemy.dialects.sqlite import dialect

from dicomfs import owners, queries, removal, retired
from dicomfs import renditionsfile as rendering
from dicomfs import writer as writing
from dicomfs.changes import Changes
from dicomfs.index import Index
from dicomfs.inode import Inode, Kind
from dicomfs.model import PoolWindow
from dicomfs.renditions import Decision, Key, Renditions
from dicomfs.selection import Since
from dicomfs.spelling import Label, Layout, Spelling
from dicomfs.statement import Statement
from tests.made import add, header, tree, walk

GROWS = {"FAILURES", "NOT_SHOWN", "_MODALITIES", "_LEFT", "_LEFT_OF_PATIENT"}
"""Statements that may look at many rows, as only an administrator waits: `dicomfs status`, `scrub`; `forget`
does so of one exam or patient."""
BAD = ("SCAN", "TEMP B-TREE")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with tables and some rows; never analysed, as the real ones."""
    folder = tmp_path_factory.mktemp("store")
    with closing(Index(folder / "index.sqlite3", create=True)) as index:
        others = [
            header(sop_instance_uid=f"2.25.9{n}", study_uid=f"2.25.8{n}", series_uid=f"2.25.7{n}", pool="p")
            for n in range(3)
        ]
        add(index, header(), *others)
        with closing(Renditions(folder / "renditions.sqlite3", index.store_id)):
            pass
    return folder


def plan(database: Path, statement: str, parameters: Any) -> list[str]:
    """What SQLite says of the way it takes."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
    harmless = {"SCAN CONSTANT ROW", "SCAN counter"}  # a table of one row
    harmless.add("SCAN given VIRTUAL TABLE INDEX 1:")  # a list that is a parameter
    if statement.startswith("SELECT EXISTS") or " LIMIT 1 " in statement:
        harmless.add("SCAN retired")  # stops at the first row
    if "LIMIT" in statement:
        harmless.add("USE TEMP B-TREE FOR DISTINCT")  # of no more than it gives
    return [row[3] for row in rows if row[3] not in harmless]


def kept(module: Any) -> Iterator[tuple[str, str, int]]:
    """Name, SQL and number of parameters of every statement that a module has built once."""
    for name, value in vars(module).items():
        values = value.values() if isinstance(value, dict) else [value]
        for item in values:
            statement = item._statement if isinstance(item, Statement) else item
            # Tables and columns are clauses, too, and a SELECT without WHERE is the beginning of others.
            if not isinstance(statement, Executable) or (
                isinstance(statement, Select) and statement.whereclause is None
            ):
                continue
            sql = re.sub(r"\(__\[POSTCOMPILE_\w+\]\)", "(?, ?)", str(statement.compile(dialect=dialect())))  # type: ignore[attr-defined]
            yield name, sql, sql.count("?")


KEPT = [
    pytest.param(database, sql, parameters, id=f"{module.__name__}.{name}")
    for module, database in (
        *((queries, "index"), (writing, "index"), (owners, "index"), (retired, "index"), (removal, "index")),
        (rendering, "renditions"),
    )
    for name, sql, parameters in kept(module)
    if name not in GROWS
]


def test_the_statements_are_found() -> None:
    assert len(KEPT) > 40


@pytest.mark.parametrize(("database", "sql", "parameters"), KEPT)
def test_kept_statements_neither_scan_nor_sort(store: Path, database: str, sql: str, parameters: int) -> None:
    told = plan(store / f"{database}.sqlite3", sql, [None] * parameters)
    assert not [line for line in told if any(word in line for word in BAD)], sql


def test_the_check_sees_what_is_bad(store: Path) -> None:
    database = store / "index.sqlite3"
    assert any("SCAN" in line for line in plan(database, "SELECT count(*) FROM instances", []))
    by_name = "SELECT id FROM patients WHERE id > 1 ORDER BY folder"
    assert any("TEMP B-TREE" in line for line in plan(database, by_name, []))


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("modalities", [("",), ("CT", "MR")])
def test_what_a_mount_and_a_receiver_run_neither_scans_nor_sorts(
    tmp_path: Path, layout: Layout, modalities: tuple[str, ...]
) -> None:
    ran: set[tuple[str, str]] = set()
    with closing(Index(tmp_path / "index.sqlite3", create=True)) as index:
        add(index, header())
        shown, renditions = tree(
            *(tmp_path, index),
            formats=("jpg", "dcm"),
            layout=layout,
            modalities=modalities,
            since=Since("2000-01-01"),
            spelling=Spelling(Label.NAME_ID),
        )
        with closing(renditions):
            # Asked of SQLite itself: some statements do not go by way of SQLAlchemy.
            for driver, name in ((index._driver, "index"), (renditions._reader, "renditions")):
                driver.set_trace_callback(partial(_note, ran, f"{name}.sqlite3"))
            add(index, header(sop_instance_uid="2.25.4"), header(sop_instance_uid="2.25.4", rows=1))
            renditions.announce(Key("digest of jpg", 1, 0, 0), 5, "")
            renditions.decide("1:p", "auto", Decision(1, 1, PoolWindow(None, None, "")))
            for path, entry in walk(shown).items():
                parent = shown.root
                for part in path.split("/"):
                    found = shown.lookup(parent, part)
                    assert found is not None
                    shown.real_name(parent, part.upper())
                    parent = found.inode
                assert shown.entry(entry.inode) is not None
                shown.place_of(entry.inode)
                shown.parent(entry.inode)
                picture = shown.picture(entry.inode)
                assert picture is None or shown.beside(picture.folder, picture.name)
            changes = Changes(shown, index)
            assert list(changes.appearances(2, 2))
            assert list(changes.left("20000101", "20250101"))
            index.arrivals(0, 100)
            index.data_version()
            shown.pool_sources("1:p", 4)
            shown.listing_back(Inode(Kind.EXAM, 1, "jpg"), 2**62, 4)
            shown.files_of(1)
            index.pool_span("1:p")
            index.instances_before(9, 1)
    assert len(ran) > 20
    scanning = {
        statement
        for database, statement in ran
        if statement.split()[0] in ("SELECT", "UPDATE", "INSERT", "DELETE")
        for line in plan(tmp_path / database, statement, ())
        if any(word in line for word in BAD)
    }
    assert scanning == set()


def _note(ran: set[tuple[str, str]], database: str, statement: str) -> None:
    """A statement with its values written into it."""
    ran.add((database, statement))
