"""Which rows a mount shows already: the gate itself, and the tree through it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from dicomfs.changes import Changes
from dicomfs.gate import EVERYTHING, Gate, Mark
from dicomfs.index import INDEX_NAME, Index
from dicomfs.inode import Inode, Kind
from dicomfs.model import Header
from dicomfs.recipes import ENCAPSULATED_PDF
from dicomfs.removal import Chosen, Remover
from dicomfs.schema import days, exam_contents, patient_contents
from dicomfs.spelling import Layout
from dicomfs.tree import Tree
from tests.made import RECEIVED, add, header, listed, tree, walk

PATIENT, EXAM = Inode(Kind.PATIENT, 1, "jpg"), Inode(Kind.EXAM, 1, "jpg")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    it = Index(tmp_path / INDEX_NAME, create=True)
    yield it
    it.close()


@pytest.fixture
def view(tmp_path: Path, index: Index) -> Iterator[Tree]:
    """A tree whose gate shows what was there when it was made: nothing."""
    it, renditions = tree(tmp_path, index, formats=("jpg", "pdf", "dcm"), gate=Gate(0))
    yield it
    renditions.close()


def image(number: int, **changes: object) -> Header:
    return header(sop_instance_uid=f"2.25.7{number}", instance_number=number, **changes)


def publish(view: Tree, index: Index) -> list[str]:
    """Everything that is new, name after name; each is shown when it is released, and none before."""
    told = []
    for arrival in index.arrivals(view.gate.through, 1000):
        for new in Changes(view, index).appearances(arrival.sequence, arrival.instance):
            assert view.lookup(new.folder, new.name) is None
            assert view.real_name(new.folder, new.name.upper()) is None
            assert new.name not in names(view, new.folder)
            hidden = view.lookup(new.folder, new.name, hidden=True)
            assert hidden is not None
            assert hidden.is_folder == new.is_folder
            view.gate.release(new.rank, new.mark)
            assert view.lookup(new.folder, new.name) == hidden
            assert names(view, new.folder)[-1:] == [new.name]
            told.append("/".join((*(view.path(new.folder) or ()), new.name)))
        view.gate.settle(arrival.sequence)
    return told


def names(view: Tree, folder: Inode) -> list[str]:
    found = [entry.name for entry in listed(view, folder)]
    # However it is cut into pages.
    assert [entry.name for entry in listed(view, folder, page=1)] == found
    return found


def test_marks_only_go_forward() -> None:
    gate = Gate(5)
    gate.release("a", Mark(7, 2))
    gate.release("a", Mark(7, 1))
    gate.release("b", Mark(4))
    assert (gate.mark("a"), gate.mark("b"), gate.through) == (Mark(7, 2), Mark(5), 5)
    gate.settle(6)
    gate.settle(3)
    assert (gate.mark("a"), gate.mark("b"), gate.through) == (Mark(7, 2), Mark(6), 6)
    gate.settle(7)
    assert gate.mark("a") == gate.mark("b") == Mark(7)
    assert Gate().through == EVERYTHING


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 3))), st.integers(0, 9))
def test_what_is_shown_stays_shown(steps: list[tuple[str, int, int]], start: int) -> None:
    gate = Gate(start)
    for rank, sequence, frame in steps:
        before = {one: gate.mark(one) for one in "ab"}
        if frame:
            gate.release(rank, Mark(sequence, frame))
            assert gate.mark(rank) >= (sequence, frame)
        else:
            gate.settle(sequence)
        assert all(gate.mark(one) >= before[one] for one in "ab")


def test_names_are_published_one_after_the_other_folders_first(index: Index, view: Tree) -> None:
    add(
        index,
        image(1),
        image(2, frames=3),
        header(patient_id="other", patient_name="Roe", study_uid="2.25.9"),
    )
    assert walk(view).keys() == {"jpg", "pdf", "dcm"}
    assert publish(view, index) == [
        "jpg/Doe Jane",
        "jpg/Doe Jane/2024-01-31",
        "jpg/Doe Jane/2024-01-31/Localizer_2_1.jpg",
        "dcm/Doe Jane",
        "dcm/Doe Jane/2024-01-31",
        "dcm/Doe Jane/2024-01-31/Localizer_2_1.dcm",
        *(f"jpg/Doe Jane/2024-01-31/Localizer_2_2_{frame}.jpg" for frame in (1, 2, 3)),
        "dcm/Doe Jane/2024-01-31/Localizer_2_2.dcm",
        "jpg/Roe",
        "jpg/Roe/2024-01-31",
        "jpg/Roe/2024-01-31/Localizer_2_7.jpg",
        "dcm/Roe",
        "dcm/Roe/2024-01-31",
        "dcm/Roe/2024-01-31/Localizer_2_7.dcm",
    ]
    assert publish(view, index) == []


def test_folder_is_hidden_in_a_view_until_it_has_something_for_it(index: Index, view: Tree) -> None:
    """A report comes first: the exam is in `dcm` long before there is a picture or a PDF of it."""
    add(index, image(1, has_pixels=False))
    assert [name for name in publish(view, index) if name.count("/") == 1] == ["dcm/Doe Jane"]
    add(index, image(2), image(3, has_pixels=False, sop_class_uid=ENCAPSULATED_PDF))
    assert set(walk(view)) == {
        *("jpg", "pdf", "dcm", "dcm/Doe Jane", "dcm/Doe Jane/2024-01-31"),
        "dcm/Doe Jane/2024-01-31/Localizer_2_1.dcm",
    }
    told = publish(view, index)
    assert [name for name in told if name.count("/") == 1] == ["jpg/Doe Jane", "pdf/Doe Jane"]
    assert {"jpg/Doe Jane/2024-01-31/Localizer_2_2.jpg", "pdf/Doe Jane/2024-01-31/Localizer_2_3.pdf"} < set(
        told
    )


def test_listing_that_goes_on_while_names_are_published(index: Index, view: Tree) -> None:
    add(index, *(image(number) for number in range(1, 6)))
    publish(view, index)
    got, cookie = [], 0
    for number in range(6, 20):
        for item in view.listing(EXAM, cookie, 2):
            got.append(item.entry.name)
            cookie = item.cookie
        add(index, image(number))
        publish(view, index)
    while steps := list(view.listing(EXAM, cookie, 2)):
        got += [step.entry.name for step in steps]
        cookie = steps[-1].cookie
    assert got == [f"Localizer_2_{number}.jpg" for number in range(1, 20)]


def gone(view: Tree, index: Index, after: int = 0) -> list[str]:
    return [
        "/".join((*(view.path(old.top) or ()), *(entry.name for entry in old.way)))
        for removal in index.removals(after, 1000)
        for old in Changes(view, index).disappearances(removal)
    ]


def forget(index: Index, chosen: Chosen, name: str = "name") -> None:
    with index.transaction() as connection:
        remover = Remover(connection)
        remover.forget(remover.plan(chosen), name, RECEIVED)


def test_names_of_what_was_removed(index: Index, view: Tree) -> None:
    first, second, report = add(index, image(1, frames=2), image(2), image(3, has_pixels=False))
    view.gate.settle(report)
    before = set(walk(view))
    forget(index, Chosen(instances=frozenset({first, second})))
    assert gone(view, index) == [
        "jpg/Doe Jane/2024-01-31/Localizer_2_1_1.jpg",
        "jpg/Doe Jane/2024-01-31/Localizer_2_1_2.jpg",
        "dcm/Doe Jane/2024-01-31/Localizer_2_1.dcm",
        "jpg/Doe Jane/2024-01-31/Localizer_2_2.jpg",
        "dcm/Doe Jane/2024-01-31/Localizer_2_2.dcm",
        "jpg/Doe Jane/2024-01-31",
        "jpg/Doe Jane",
    ]
    assert set(walk(view)) == before - set(gone(view, index))


def test_patients_of_several_modalities_are_all_listed_while_one_is_hidden(
    tmp_path: Path, index: Index
) -> None:
    def of(patient: int, modality: str, number: int = 0) -> Header:
        uids = {"study_uid": f"2.25.5{patient}", "series_uid": f"2.25.6{patient}{number}"}
        who = {"patient_id": f"P{patient}", "patient_name": f"Roe {patient}"}
        return image(number or patient, modality=modality, **uids, **who)

    add(index, of(1, "CT"), of(2, "MR"), of(3, "MR"), of(4, "MR"), of(5, "XA"))
    shown, renditions = tree(tmp_path, index, modalities=("MR", "XA"), gate=Gate(5))
    try:
        before = [entry.name for entry in listed(shown, shown.root, 2)]
        assert len(before) == 4
        # The first one's first MR, which is not published yet.
        add(index, of(1, "MR", 9))
        assert [entry.name for entry in listed(shown, shown.root, 2)] == before
    finally:
        renditions.close()


def test_by_date_a_day_goes_with_its_last_exam_of_the_modality(tmp_path: Path, index: Index) -> None:
    other = {"series_uid": "2.25.61", "series_name": "Scout", "modality": "CT"}
    first, second, _ = add(index, image(1, modality="MR"), image(2, modality="MR"), image(3, **other))
    shown, renditions = tree(tmp_path, index, layout=Layout.DATE_PATIENT, modalities=("MR",))
    with closing(renditions):
        before = set(walk(shown))
        forget(index, Chosen(instances=frozenset({first})))
        assert gone(shown, index) == ["2024-01-31/Doe Jane/Localizer_2_1.jpg"]
        assert set(walk(shown)) == before - set(gone(shown, index))
        after = index.last_removal()
        forget(index, Chosen(instances=frozenset({second})), "other")
        assert gone(shown, index, after) == [
            "2024-01-31/Doe Jane/Localizer_2_2.jpg",
            "2024-01-31/Doe Jane",
            "2024-01-31",
        ]
        assert walk(shown) == {}


def test_contents_are_those_of_a_store_that_never_had_what_was_forgotten(tmp_path: Path) -> None:
    """But for the numbers of the originals, which go on."""
    later = {"study_uid": "2.25.9", "study_date": "20240301"}
    kept = [
        image(1, modality="MR"),
        image(2, modality="SR", has_pixels=False, series_uid="2.25.62", series_name="Report"),
        header(patient_id="other", patient_name="Roe", sop_instance_uid="2.25.80", study_uid="2.25.10"),
    ]
    going = [
        image(3, modality="CT", series_uid="2.25.61", series_name="Scout"),
        image(4, **later),
        image(5, patient_id="third", patient_name="Poe", study_uid="2.25.11", study_date="20240401"),
    ]
    with (
        closing(Index(tmp_path / "a.sqlite3", create=True)) as index,
        closing(Index(tmp_path / "b.sqlite3", create=True)) as plain,
    ):
        add(plain, *kept)
        numbers = add(index, *kept, *going)[len(kept) :]
        assert contents(index) > contents(plain)
        forget(index, Chosen(instances=frozenset(numbers)))
        assert contents(index) == contents(plain)


def contents(index: Index) -> set[tuple[object, ...]]:
    with index.transaction() as connection:
        return {
            *(("exam", *row) for row in connection.execute(select(exam_contents))),
            *(("patient", *row) for row in connection.execute(select(patient_contents))),
            *(("day", *row) for row in connection.execute(select(days.c.date))),
        }


def test_removed_numbers_are_not_given_again(index: Index, view: Tree) -> None:
    first = add(index, image(1))[0]
    forget(index, Chosen(patients=frozenset({first})))
    assert index.counts().patients == index.counts().originals == 0
    assert add(index, image(1)) == [first + 1]
    assert publish(view, index)[0] == "jpg/Doe Jane"
    entry = view.lookup(Inode(Kind.TOP, format="jpg"), "Doe Jane")
    assert entry is not None
    assert entry.inode != PATIENT
