"""A rebuilt index is the index it replaces: every row, name, inode and size; whatever has become of that."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dicomfs.archive import Archive
from dicomfs.errors import StoreError, StoreMismatch, StoreUnavailable
from dicomfs.filemeta import DATA_SET_OFFSET
from dicomfs.findings import Kind, Report
from dicomfs.index import INDEX_NAME, Index
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates, Receipt, Stored
from dicomfs.reindex import reindex
from dicomfs.renditions import Key, Renditions
from dicomfs.scrub import scrub
from tests.made import RECEIVED, data_set, encoded, save, tree, walk
from tests.support import ROOT
from tests.upkeep import (
    RECEIPT,
    digest_of,
    execute,
    fill,
    image,
    leave_behind,
    lose_index,
    original,
    overwrite,
    path_of,
    read_archived_meta,
)

TABLES = (
    "patients",
    "identities",
    "exams",
    "series",
    "instances",
    "originals",
    "counter",
    "about",
    "retired",
)


def rows(store: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with closing(sqlite3.connect(f"file:{store}/index.sqlite3?mode=ro", uri=True)) as raw:
        query = "SELECT * FROM "
        return {name: sorted(raw.execute(query + name).fetchall()) for name in TABLES}


def shown(store: Path) -> dict[str, object]:
    """What a mount shows: every name with inode, size and time."""
    index = Index(store / "index.sqlite3")
    view, renditions = tree(store, index, formats=("jpg", "dcm"))
    try:
        return dict(walk(view))
    finally:
        renditions.close()
        index.close()


def without_identity(found: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """All but which store it is and when it was made."""
    return {
        **found,
        "about": [row for row in found["about"] if row[0] not in ("store_id", "created")],
    }


def kinds(report: Report) -> list[tuple[Kind, int | None]]:
    return [(finding.kind, finding.sequence) for finding in report.findings]


# Everything that decides a name


def hospital(store: Path, seed: int) -> None:
    """Patients, namesakes, studies of one day, versions under every policy, gaps; in a random order."""
    chance = random.Random(seed)
    people = [
        {"PatientID": "1", "PatientName": "Doe^Jane"},
        {"PatientID": "2", "PatientName": "Doe^Jane", "PatientBirthDate": "19500101"},
        {"PatientID": "1", "PatientName": "DOE^JANE^^", "PatientBirthDate": ""},
        {"PatientID": "1", "PatientName": "Roe^Max", "PatientBirthDate": "19600606"},
        {"PatientID": "", "PatientName": "Doe^Jane"},
        {"PatientID": "", "PatientName": "", "PatientBirthDate": ""},
        {"PatientID": "3", "PatientName": "Dœ/Jane*", "IssuerOfPatientID": "CLINIC"},
    ]
    objects = []
    for number in range(60):
        who = chance.choice(people)
        study = f"2.25.{chance.randrange(9) + 20}"
        series = f"{study}.{chance.randrange(3)}"
        objects.append(
            data_set(
                **who,
                SpecificCharacterSet="ISO_IR 192",
                StudyInstanceUID=chance.choice([study, study, study, None]),
                SeriesInstanceUID=series,
                SOPInstanceUID=f"{series}.{chance.randrange(4)}",
                StudyDate=chance.choice(["20240131", "20240131", "20240201", None]),
                StudyTime=chance.choice(["101500", "113000", None]),
                SeriesDescription=chance.choice(["cine", "CINE", "fl2d: 5/8", None]),
                SeriesNumber=chance.choice([5, 5, 6, None]),
                InstanceNumber=chance.choice([1, 2, None]),
                ImagePositionPatient=[0, 0, chance.randrange(2)],
                ImageComments=str(number),
                **chance.choice([{}, {"pixels": None}]),
            )
        )
    chance.shuffle(objects)
    for at in range(0, len(objects), 6):
        source = chance.choice(["SCANNER", "", "Kötter\\\n", "A TITLE OF MORE THAN SIXTEEN"])
        received = RECEIVED + chance.randrange(-5000, 5000) + chance.random()
        with Ingest.open(store, chance.choice(list(Duplicates))) as ingest:
            for ds in objects[at : at + 6]:
                receipt = Receipt(ExplicitVRLittleEndian, received, source, "DICOMFS")
                with_refusals(ingest, encoded(ds), receipt)
        if chance.random() < 0.5:
            execute(store, "UPDATE counter SET last_sequence = last_sequence + 3")


def with_refusals(ingest: Ingest, content: bytes, receipt: Receipt) -> None:
    prepared = ingest.prepare([content], receipt)
    with prepared.spool:
        ingest.commit(prepared).exception(timeout=60)  # duplicates may be refused


@pytest.mark.parametrize("seed", range(3))
def test_all_rows_and_names_are_as_before(tmp_path: Path, seed: int) -> None:
    hospital(tmp_path, seed)
    before, tree_before = rows(tmp_path), shown(tmp_path)
    assert len(before["originals"]) > 40
    assert len(before["instances"]) < len(before["originals"])
    report = reindex(tmp_path)
    assert (report.findings, report.originals) == ((), len(before["originals"]))
    assert rows(tmp_path) == before
    assert shown(tmp_path) == tree_before
    # From the archive alone:
    for path in tmp_path.glob("*.sqlite3*"):
        path.unlink()
    assert reindex(tmp_path).findings == ()
    gone = max(row[0] for row in before["originals"])
    expected = without_identity({**before, "counter": [(gone,)]})  # what was given above is known to nobody
    assert without_identity(rows(tmp_path)) == expected
    assert shown(tmp_path) == tree_before
    assert scrub(tmp_path).findings == ()


def test_receiving_goes_on_with_higher_numbers(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    execute(tmp_path, "UPDATE counter SET last_sequence = 10")
    reindex(tmp_path)
    fill(tmp_path, 3)
    assert [row[0] for row in rows(tmp_path)["originals"]] == [1, 2, 11]


def test_all_that_gets_a_row_is_durable_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that was killed may have named a file and not synced it: its next sender is told 0000."""
    fill(tmp_path, 1)
    steps: list[str] = []
    rename = Path.replace

    def noted(old: Path, new: Path) -> Path:
        steps.append(new.name)
        return rename(old, new)

    monkeypatch.setattr(os, "sync", lambda: steps.append("sync"))
    monkeypatch.setattr(Path, "replace", noted)
    reindex(tmp_path)
    assert steps.index("sync") < steps.index(INDEX_NAME)


def test_a_name_that_was_removed_goes_to_nobody_else(tmp_path: Path) -> None:
    """The first has given up its name, as the next index must remember."""
    other = image(2, StudyInstanceUID="2.25.8", SeriesInstanceUID="2.25.9", PatientID="OTHER")
    fill(tmp_path, image(1), other)
    delete = "DELETE FROM {} WHERE id = 1".format
    execute(tmp_path, *map(delete, ("instances", "series", "exams", "patients", "identities", "originals")))
    original(tmp_path, 1).unlink()
    before = rows(tmp_path)
    assert len(before["retired"]) == 5  # a patient has two names, one of them made of the ID
    assert reindex(tmp_path).findings == ()
    assert rows(tmp_path) == before


def test_repaired_originals_keep_their_first_receipt(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    before = rows(tmp_path)
    original(tmp_path, 1).unlink()
    with Ingest.open(tmp_path) as ingest:
        later = replace(RECEIPT, received=RECEIVED + 99, source_ae="LATER")
        assert ingest.receive([image(1)], later).stored is Stored.REPAIRED
    reindex(tmp_path)
    assert rows(tmp_path) == before


# Whatever has become of the old index


OTHER_VERSION = "UPDATE about SET value = '1' WHERE key = 'schema_version'"


def _garbage(index: Path) -> None:
    index.write_bytes(random.Random(5).randbytes(20_000))


def _empty(index: Path) -> None:
    index.write_bytes(b"")


def _cut(index: Path) -> None:
    os.truncate(index, index.stat().st_size // 2)


def _holes(index: Path) -> None:
    content = bytearray(index.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    index.write_bytes(content)


def _sql(*statements: str) -> Callable[[Path], None]:
    return lambda index: execute(index.parent, *statements)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store to be copied."""
    store = tmp_path_factory.mktemp("filled")
    hospital(store, 11)
    return store


@pytest.mark.parametrize(
    "ruin",
    [
        *(_garbage, _empty, _cut, _holes, Path.unlink),
        _sql(OTHER_VERSION),
        _sql("DROP TABLE series"),
        _sql(OTHER_VERSION, "DROP INDEX instances_of_pool", "ALTER TABLE instances DROP COLUMN pool"),
        _sql("ALTER TABLE originals DROP COLUMN duplicates", "DROP TABLE counter"),
    ],
    ids=[
        *("garbage", "empty", "cut", "holes", "gone"),
        *("version", "without a table", "without a column", "old"),
    ],
)
def test_an_index_of_any_kind_is_replaced_and_kept(
    tmp_path: Path, filled: Path, ruin: Callable[[Path], None]
) -> None:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    before, tree_before = rows(tmp_path), shown(tmp_path)
    for journal in tmp_path.glob("index.sqlite3-*"):
        journal.unlink()
    index = tmp_path / "index.sqlite3"
    ruin(index)
    ruined = index.read_bytes() if index.exists() else None
    if ruined != b"":  # an empty file becomes an index, as for a store that is new
        with pytest.raises(StoreError, match="dicomfs reindex"):
            Index(index).close()
        with pytest.raises(StoreError, match="dicomfs reindex"):
            Ingest.open(tmp_path)
    report = reindex(tmp_path)
    assert report.findings == ()
    assert report.originals == len(before["originals"])
    highest = max(row[0] for row in before["originals"])
    (counted,) = rows(tmp_path)["counter"][0]
    assert counted in (highest, before["counter"][0][0])
    assert {**without_identity(rows(tmp_path)), "counter": before["counter"]} == without_identity(before)
    assert shown(tmp_path) == tree_before
    former = tmp_path / "index.sqlite3.before-reindex"
    assert (former.read_bytes() if former.exists() else None) == ruined


def test_rows_that_are_only_in_the_journal_count(tmp_path: Path) -> None:
    """A receiver was killed: its last rows are in the write-ahead log, not in the file."""
    store, copy = tmp_path / "store", tmp_path / "copy"
    with Ingest.open(store) as ingest:
        for number in range(1, 6):
            ingest.receive([image(number)], RECEIPT)
        shutil.copytree(store, copy)
        assert (copy / "index.sqlite3-wal").stat().st_size
        (copy / "index.sqlite3-shm").unlink()
    before = rows(store)
    execute(copy, "UPDATE counter SET last_sequence = 5")
    reindex(copy)
    assert rows(copy) == before
    with closing(sqlite3.connect(copy / "index.sqlite3.before-reindex")) as raw:
        assert raw.execute("SELECT count(*) FROM originals").fetchone() == (5,)


def test_a_journal_of_another_index_is_not_played_into_the_new_one(tmp_path: Path) -> None:
    """The index is gone or garbage, but its write-ahead log lies there."""
    store, copy = tmp_path / "store", tmp_path / "copy"
    with Ingest.open(store) as ingest:
        for number in range(1, 6):
            ingest.receive([image(number)], RECEIPT)
        shutil.copytree(store, copy)
    for name in ("index.sqlite3", "index.sqlite3-shm"):
        (copy / name).unlink()
    assert (copy / "index.sqlite3-wal").stat().st_size
    reindex(copy)
    assert not list(copy.glob("index.sqlite3-*"))
    assert without_identity(rows(copy)) == without_identity(rows(store))


def test_renditions_stay_only_if_all_that_they_are_about_is_the_same(tmp_path: Path) -> None:
    def known() -> int | None:
        index = Index(tmp_path / "index.sqlite3")
        renditions = Renditions(tmp_path / "renditions.sqlite3", index.store_id)
        try:
            return renditions.size(Key("recipe", 1, 0, 0))
        finally:
            renditions.close()
            index.close()

    fill(tmp_path, 1, 2)
    index = Index(tmp_path / "index.sqlite3")
    renditions = Renditions(tmp_path / "renditions.sqlite3", index.store_id)
    renditions.announce(Key("recipe", 1, 0, 0), 4711, "")
    renditions.close()
    index.close()
    reindex(tmp_path)
    assert known() == 4711
    execute(tmp_path, "UPDATE instances SET pool = 'other'")
    reindex(tmp_path)
    assert known() is None


# What a crash leaves, and what is not whole


def test_what_the_former_index_never_knew_comes_last(tmp_path: Path) -> None:
    """Else a file that nobody acknowledged would take the name of one that people have seen."""
    fill(tmp_path, 1, 2)
    leave_behind(tmp_path, image(9, SeriesInstanceUID="2.25.7"), 3)
    fill(tmp_path, image(3, SeriesInstanceUID="2.25.8"))  # has got the number 3, and the series its name
    leave_behind(tmp_path, image(8), 2)
    before, tree_before = rows(tmp_path), shown(tmp_path)
    report = reindex(tmp_path)
    assert kinds(report) == [(Kind.ORPHANED, 4), (Kind.ORPHANED, 5)]
    assert report.is_clean
    after = rows(tmp_path)
    assert before["originals"] == after["originals"][:3]
    assert after["counter"] == [(5,)]
    assert tree_before.keys() < shown(tmp_path).keys()
    assert read_archived_meta(path_of(tmp_path, image(8), 4)).sequence == 4
    assert scrub(tmp_path).findings == ()
    assert reindex(tmp_path).findings == ()
    assert rows(tmp_path) == after


@pytest.mark.parametrize("later", [1, -1])
def test_of_two_with_one_number_the_later_keeps_it_if_nobody_knows_better(tmp_path: Path, later: int) -> None:
    fill(tmp_path, 1, 2, 3)
    leave_behind(tmp_path, image(9), 2, RECEIVED + later)
    lose_index(tmp_path)
    report = reindex(tmp_path)
    assert kinds(report) == [(Kind.ORPHANED, 4)]
    number = {row[2].hex(): row[0] for row in rows(tmp_path)["originals"]}
    assert number[digest_of(image(9))] == (2 if later > 0 else 4)
    assert number[digest_of(image(2))] == (4 if later > 0 else 2)
    assert scrub(tmp_path).findings == ()


def test_a_content_under_two_numbers_keeps_that_of_the_former_index(tmp_path: Path) -> None:
    """A crash, then the same was sent again."""
    fill(tmp_path, 1, 2)
    lower, higher = leave_behind(tmp_path, image(2), 1), leave_behind(tmp_path, image(2), 9)
    before = rows(tmp_path)
    report = reindex(tmp_path)
    assert [(finding.kind, finding.path) for finding in report.findings] == [
        (Kind.ORPHANED, str(path.relative_to(tmp_path))) for path in (lower, higher)
    ]
    assert not report.is_clean
    assert {**rows(tmp_path), "counter": []} == {**before, "counter": []}
    assert rows(tmp_path)["counter"] == [(9,)]  # a number that is seen is never given again
    assert scrub(tmp_path, repair=True).is_clean
    assert not lower.exists()
    assert not higher.exists()
    assert scrub(tmp_path).findings == ()


@pytest.mark.parametrize("contested", [False, True])
def test_a_content_under_two_numbers_without_a_former_index(tmp_path: Path, contested: bool) -> None:
    """The lowest; but a number that was given again belongs to whom it was given."""
    fill(tmp_path, 1, 2, 3)
    leave_behind(tmp_path, image(3), 2 if contested else 9, RECEIVED - 1)
    lose_index(tmp_path)
    assert kinds(reindex(tmp_path)) == [(Kind.ORPHANED, None)]
    found = [(row[0], row[2].hex()) for row in rows(tmp_path)["originals"]]
    assert found == [(number, digest_of(image(number))) for number in range(1, 4)]


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_wrong_number_is_put_right_from_the_former_index(tmp_path: Path, is_broken: bool) -> None:
    """Also when what bears the right one is not whole: that is set aside."""
    fill(tmp_path, 1, 2, 3)
    before, right = rows(tmp_path), original(tmp_path, 2)
    whole = right.read_bytes()
    right.rename(path_of(tmp_path, image(2), 3))
    if is_broken:
        right.write_bytes(whole[:-1])
    report = reindex(tmp_path)
    assert (kinds(report), report.is_clean) == ([(Kind.MISLABELLED, 2)], True)
    assert rows(tmp_path) == before
    assert right.read_bytes() == whole
    assert len(list(tmp_path.glob("damaged/*"))) == is_broken
    assert scrub(tmp_path).findings == ()


def test_an_index_put_back_from_a_backup(tmp_path: Path) -> None:
    """What came after the backup was acknowledged: it keeps its numbers."""
    fill(tmp_path, 1, 2)
    backup = (tmp_path / "index.sqlite3").read_bytes()
    fill(tmp_path, 3, 4)
    before = rows(tmp_path)
    (tmp_path / "index.sqlite3").write_bytes(backup)
    assert len(scrub(tmp_path).of(Kind.ORPHANED)) == 2
    assert reindex(tmp_path).findings == ()
    assert rows(tmp_path) == before


def test_a_file_that_somebody_else_wrote_is_taken_in_if_its_name_is_right(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    path = save(original(tmp_path, 2), data_set(SOPInstanceUID="2.25.502", InstanceNumber=2))
    os.utime(path, (RECEIVED + 5, RECEIVED + 5))
    report = reindex(tmp_path)
    assert kinds(report) == [(Kind.MISLABELLED, 2)]
    assert report.is_clean
    meta = read_archived_meta(path)
    assert (meta.sequence, meta.receipt.received) == (2, RECEIVED + 5)
    assert path.read_bytes()[DATA_SET_OFFSET:] == image(2)
    assert scrub(tmp_path).findings == ()


def test_damaged_file_meta_information_is_written_anew_from_the_former_index(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2, 3)
    before = rows(tmp_path)
    overwrite(original(tmp_path, 2), 0, bytes(DATA_SET_OFFSET))
    report = reindex(tmp_path)
    assert kinds(report) == [(Kind.MISLABELLED, 2)]
    assert rows(tmp_path) == before
    assert scrub(tmp_path).findings == ()


def test_what_is_not_whole_is_left_out_and_its_number_never_given_again(tmp_path: Path) -> None:
    fill(tmp_path, *range(1, 6))
    overwrite(original(tmp_path, 5), DATA_SET_OFFSET + 300, b"XYZ")
    original(tmp_path, 4).unlink()
    damaged = original(tmp_path, 5).read_bytes()
    report = reindex(tmp_path)
    assert sorted(kinds(report), key=lambda found: found[1] or 0) == [(Kind.MISSING, 4), (Kind.DAMAGED, 5)]
    assert {finding.sop_instance_uid for finding in report.findings} == {"2.25.504", "2.25.505"}
    assert not report.is_clean
    assert [row[0] for row in rows(tmp_path)["originals"]] == [1, 2, 3]
    assert original(tmp_path, 5).read_bytes() == damaged
    lose_index(tmp_path)
    assert kinds(reindex(tmp_path)) == [(Kind.BROKEN, None)]
    fill(tmp_path, 6)  # even now: the damaged file says that 5 was given
    assert [row[0] for row in rows(tmp_path)["originals"]] == [1, 2, 3, 6]
    assert scrub(tmp_path, repair=True).is_clean
    fill(tmp_path, 5, 4)  # sent again
    assert scrub(tmp_path).findings == ()


def test_what_is_not_ours_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / "archive" / "zz").mkdir()
    (tmp_path / "archive" / "ab" / "notes.txt").touch()
    assert kinds(reindex(tmp_path)) == [(Kind.FOREIGN, None)] * 2


# Who may not


def test_it_refuses_beside_others_and_they_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 1)
    before = (tmp_path / "index.sqlite3").read_bytes()
    with Ingest.open(tmp_path), pytest.raises(StoreUnavailable, match=rf"process {os.getpid()}\b"):
        reindex(tmp_path)
    assert (tmp_path / "index.sqlite3").read_bytes() == before
    create = Archive.create

    def meanwhile(archive: Archive) -> None:
        monkeypatch.undo()
        create(archive)
        with pytest.raises(StoreUnavailable, match="being rebuilt"):
            Index(tmp_path / "index.sqlite3")
        with pytest.raises(StoreUnavailable, match="being rebuilt"):
            Ingest.open(tmp_path)
        with pytest.raises(StoreUnavailable, match="in use"):
            reindex(tmp_path)

    monkeypatch.setattr(Archive, "create", meanwhile)
    reindex(tmp_path)
    fill(tmp_path, 2)


def test_an_archive_that_is_not_there_replaces_no_index(tmp_path: Path) -> None:
    with pytest.raises(StoreMismatch, match="no archive"):
        reindex(tmp_path)
    assert not list(tmp_path.iterdir())
    fill(tmp_path, 1)
    before = (tmp_path / "index.sqlite3").read_bytes()
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    (tmp_path / "archive").mkdir()  # a mount point without its disk
    with pytest.raises(StoreUnavailable, match="mounted"):
        reindex(tmp_path)
    assert (tmp_path / "index.sqlite3").read_bytes() == before
    assert not (tmp_path / "reindexing").exists()


# Killed

KILLED = """
import itertools, json, os, shutil, signal, sys
from pathlib import Path
from dicomfs import archive, reindex
from dicomfs.index import INDEX_NAME, Index

template, copies = Path(sys.argv[1]), Path(sys.argv[2])
left = 0


def deadly(owner, name):
    real = getattr(owner, name)

    def step(*args, **kwargs):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, step)


for owner, name in (
    (os, "link"), (os, "fsync"), (Path, "unlink"), (Path, "replace"), (Path, "rename"), (Index, "write"),
    (Index, "close"), (reindex, "sync_directory"), (archive, "sync_directory"), (shutil, "rmtree"),
):
    deadly(owner, name)
for left in itertools.count(1):
    copy = copies / str(left)
    shutil.copytree(template, copy)
    child = os.fork()
    if not child:
        reindex.reindex(copy)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(status and 1)
"""


def test_killed_at_any_step_it_leaves_the_old_index_or_the_new_one(tmp_path: Path) -> None:
    template, copies = tmp_path / "store", tmp_path / "copies"
    fill(template, 1, 2)
    leave_behind(template, image(8), 2)
    fill(template, 3)
    with Ingest.open(template) as ingest:
        ingest.receive([image(4)], RECEIPT)
        shutil.copytree(template, tmp_path / "killed")  # with a journal
    template = tmp_path / "killed"
    overwrite(original(template, 2), 0, bytes(DATA_SET_OFFSET))
    copies.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(template), str(copies)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    old, new = rows(template), rows(copies / str(len(list(copies.iterdir()))))
    assert old != new
    seen = [rows(copies / str(step + 1)) for step in range(len(list(copies.iterdir())))]
    assert len(seen) > 12
    assert all(found in (old, new) for found in seen)
    assert seen == sorted(seen, key=lambda found: found == new)  # and never goes back
    assert old in seen
    for copy in copies.iterdir():
        # Else the next start might take an original for one that was never acknowledged.
        assert {path.stat().st_nlink for path in copy.glob("archive/*/*.dcm")} == {1}
        fill(copy, 4)  # receiving goes on, and removes what is left over
        reindex(copy)
        assert rows(copy) == new
        assert scrub(copy).findings == ()
        assert not (copy / "reindexing").exists()
