"""Forgetting in two steps: nothing is lost, nothing is half done, nothing comes back by itself."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dicomfs import forget, importer, lock
from dicomfs.archive import Archive
from dicomfs.database import BUSY_TIMEOUT_S
from dicomfs.errors import StoreUnavailable, UsageError
from dicomfs.index import INDEX_NAME, Index
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates, Stored
from dicomfs.reindex import reindex
from dicomfs.removal import Chosen, Remover
from dicomfs.scrub import scrub
from tests.made import data_set, save

JANE = Chosen(patient_ids=frozenset({"4711 "}))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three originals of two images of Jane, and one of somebody else."""
    files = [
        data_set(SOPInstanceUID="2.25.1", InstanceNumber=1),
        data_set(SOPInstanceUID="2.25.2", InstanceNumber=2),
        data_set(SOPInstanceUID="2.25.2", InstanceNumber=2, PatientComments="again"),
        data_set(SOPInstanceUID="2.25.3", StudyInstanceUID="2.25.30", PatientID="x", PatientName="Roe"),
    ]
    paths = [save(tmp_path / f"{number}.dcm", ds) for number, ds in enumerate(files)]
    take(tmp_path / "store", *paths)
    return tmp_path / "store"


@pytest.fixture
def index(store: Path) -> Iterator[Index]:
    it = Index(store / INDEX_NAME, timeout_s=BUSY_TIMEOUT_S)
    yield it
    it.close()


def take(store: Path, *paths: Path) -> list[Stored | None]:
    results: list[importer.Result] = []
    with Ingest.open(store, Duplicates.KEEP_FIRST) as ingest:
        importer.take_in(ingest, importer.find(paths), results.append)
    return [result.outcome.stored if result.outcome else None for result in results]


def archived(store: Path) -> set[str]:
    return {path.name for path in (store / "archive").rglob("*.dcm")}


def aside(store: Path) -> set[str]:
    return {path.name for path in (store / "forgotten").glob("*/*.dcm")}


def test_planning_changes_nothing(store: Path, index: Index) -> None:
    before, counts = archived(store), index.counts()
    plan = forget.plan(index, JANE)
    assert (plan.instances, len(plan.originals), len(plan.exams)) == (2, 3, 1)
    assert (plan.exams[0].patient, plan.exams[0].exam) == ("Doe Jane", "2024-01-31")
    assert (archived(store), index.counts()) == (before, counts)
    assert not (store / "forgotten").exists()


@pytest.mark.parametrize(
    "chosen",
    [
        JANE,
        Chosen(studies=frozenset({"2.25.1002"})),
        Chosen(exams=frozenset({1})),
        Chosen(patients=frozenset({1})),
    ],
)
def test_all_ways_to_name_an_exam_are_one(index: Index, chosen: Chosen) -> None:
    assert forget.plan(index, chosen) == forget.plan(index, JANE)


def test_originals_are_moved_and_rows_go(store: Path, index: Index) -> None:
    before, last = archived(store), index.last_sequence()
    contents = {path.name: path.read_bytes() for path in (store / "archive").rglob("*.dcm")}
    plan, folder = forget.carry_out(Archive(store), index, JANE, forget.plan(index, JANE).token)
    assert len(aside(store)) == forget.count(Archive(store)) == len(plan.originals) == 3
    assert archived(store) | aside(store) == before
    assert {path.name: path.read_bytes() for path in folder.glob("*.dcm")}.items() <= contents.items()
    counts = index.counts()
    assert (counts.patients, counts.exams, counts.series, counts.instances, counts.originals) == (
        1,
        1,
        1,
        1,
        1,
    )
    assert index.last_sequence() == last
    assert {path.name for path in folder.iterdir()} - aside(store) == {forget.CONTENTS}


def test_bringing_them_back(store: Path, index: Index) -> None:
    _, folder = forget.carry_out(Archive(store), index, JANE, forget.plan(index, JANE).token)
    before = index.last_sequence()
    assert take(store, folder).count(None) == 1  # the list of them
    assert len(forget.plan(index, JANE).originals) == 3
    assert min(forget.plan(index, JANE).originals) > before


def test_a_stranger_does_not_get_the_label_of_a_forgotten_patient_s_id(
    tmp_path: Path, store: Path, index: Index
) -> None:
    """In a view that names patients by their IDs; and who comes back bears it again."""
    labels = "SELECT folder, id_suffix FROM patients WHERE id_folder = '4711' ORDER BY id"
    stranger = data_set(
        SOPInstanceUID="2.25.4",
        StudyInstanceUID="2.25.40",
        SeriesInstanceUID="2.25.41",
        PatientName="Else^Somebody",
        PatientBirthDate="19991231",
    )
    jane = data_set(SOPInstanceUID="2.25.1", InstanceNumber=1)
    with closing(sqlite3.connect(store / INDEX_NAME)) as database:
        before = database.execute(labels).fetchall()
        assert before == [("Doe Jane", "")]
        forget.carry_out(Archive(store), index, JANE, forget.plan(index, JANE).token)
        assert take(store, save(tmp_path / "stranger.dcm", stranger)) == [Stored.NEW]
        ((name, suffix),) = database.execute(labels).fetchall()
        assert name == "Else Somebody"
        assert suffix
        assert take(store, save(tmp_path / "again.dcm", jane)) == [Stored.NEW]
        assert database.execute(labels).fetchall() == [(name, suffix), *before]


def test_token_is_for_exactly_what_was_listed(tmp_path: Path, store: Path, index: Index) -> None:
    token = forget.plan(index, JANE).token
    take(store, save(tmp_path / "late.dcm", data_set(SOPInstanceUID="2.25.4", InstanceNumber=4)))
    before = index.counts()
    for wrong in (token, "", "00000000"):
        with pytest.raises(UsageError, match="look at the list again"):
            forget.carry_out(Archive(store), index, JANE, wrong)
    assert index.counts() == before
    nobody = Chosen(patient_ids=frozenset({"nobody"}))
    with pytest.raises(UsageError):
        forget.carry_out(Archive(store), index, nobody, forget.plan(index, nobody).token)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that is written to handle errors handles it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, where: object, name: str, call: int = 1) -> None:
    """Let the call of that number of a function end everything."""
    original = getattr(where, name)
    calls = 0

    def function(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, function)


def half_forget(store: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are gone and files are not moved: whoever was at it has been killed."""
    token = forget.plan(index, JANE).token
    with monkeypatch.context() as patch:
        killed_at(patch, forget, "finish")
        with pytest.raises(Killed):
            forget.carry_out(Archive(store), index, JANE, token)


@pytest.mark.parametrize(
    ("step", "is_done"),
    [
        ((Remover, "forget", 1), False),  # the list is written, no row removed
        ((forget, "finish", 1), True),  # committed, no file moved
        ((forget, "digest_and_sequence", 2), True),  # one file moved
        ((forget, "sync_directory", 4), True),  # all moved, maybe not durably
        ((Path, "rename", 4), True),  # all moved, the list not renamed
    ],
)
def test_killed_between_two_steps(
    store: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    step: tuple[object, str, int],
    *,
    is_done: bool,
) -> None:
    before = archived(store)
    token = forget.plan(index, JANE).token
    with monkeypatch.context() as patch:
        killed_at(patch, *step)
        with pytest.raises(Killed):
            forget.carry_out(Archive(store), index, JANE, token)
    assert not list((store / "forgotten").glob(f"*/{forget.CONTENTS}"))

    take(store, store.parent / "3.dcm")  # whoever opens the store next puts it in order
    assert not list((store / "forgotten").glob(f"*/{forget.PENDING}"))
    if is_done:
        assert len(aside(store)) == 3
        assert archived(store) == before - aside(store)
        assert index.counts().instances == 1
    else:
        assert (archived(store), aside(store)) == (before, set())
        assert index.counts().instances == 3
        assert list((store / "forgotten").iterdir()) == []
        forget.carry_out(Archive(store), index, JANE, token)
        assert len(aside(store)) == 3


def test_what_comes_in_again_before_it_is_moved_stays(
    store: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_forget(store, index, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(forget, "finish", lambda *_: None)
        assert take(store, store.parent / "0.dcm") == [Stored.NEW]
    forget.finish(Archive(store), index)
    assert len(aside(store)) == 3
    plan = forget.plan(index, JANE)
    assert len(plan.originals) == 1
    assert all(Archive(store).path(digest, number).exists() for number, digest in plan.originals.items())


def test_a_rebuild_brings_back_nothing_that_is_half_forgotten(
    store: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_forget(store, index, monkeypatch)
    index.close()  # a rebuild wants to be alone
    assert reindex(store).is_clean
    assert len(aside(store)) == 3
    with closing(Index(store / INDEX_NAME)) as rebuilt:
        assert rebuilt.counts().instances == 1


def test_a_scrub_that_repairs_takes_in_nothing_that_is_half_forgotten(
    store: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_forget(store, index, monkeypatch)
    scrub(store, repair=True)
    assert index.counts().instances == 1
    assert len(aside(store)) == 3


def test_nothing_is_repaired_while_something_is_being_forgotten(
    store: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(store)
    token = forget.plan(index, JANE).token
    asked: list[Path] = []

    def moving(pending: Path, *_: object) -> None:
        # Rows are gone and files are not: to a scrub they are orphans.
        asked.append(pending)
        with pytest.raises(StoreUnavailable, match=r"process \d+\) is at work in .*archive: try again"):
            scrub(store, repair=True)
        assert scrub(store).originals == 1  # who only looks may look

    with monkeypatch.context() as patch:
        patch.setattr(forget, "_finish", moving)
        patch.setattr(lock, "_command", lambda pid: f"dicomfs forget (process {pid})")
        forget.carry_out(archive, index, JANE, token)
    assert asked
    scrub(store, repair=True)
    assert (index.counts().instances, len(aside(store))) == (1, 3)


def test_nothing_is_forgotten_while_something_is_being_repaired(store: Path, index: Index) -> None:
    archive, token = Archive(store), forget.plan(index, JANE).token
    with lock.mending(archive.root), pytest.raises(StoreUnavailable, match="is at work"):
        forget.carry_out(archive, index, JANE, token)
    assert index.counts().instances == 3
    assert not aside(store)
    forget.carry_out(archive, index, JANE, token)
    assert len(aside(store)) == 3


def test_disk_that_takes_no_list_forgets_nothing(store: Path, index: Index) -> None:
    (store / "forgotten").touch()
    with pytest.raises(StoreUnavailable):
        forget.carry_out(Archive(store), index, JANE, forget.plan(index, JANE).token)
    assert len(forget.plan(index, JANE).originals) == 3
