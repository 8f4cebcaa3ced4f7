"""Names never mean another object: shuffled hostile sets through the real index and tree."""

import itertools
import sqlite3
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomfs.entries import Entry
from dicomfs.identity import Verdict, compare, identity_of
from dicomfs.index import Index
from dicomfs.inode import Inode, Kind
from dicomfs.model import Header
from dicomfs.naming import fold
from dicomfs.tree import Tree
from tests.made import add, header, tree, walk

NAMES = (
    *(
        "Doe^Jane",
        "DOE^JANE^^",
        "Doe Jane",
        "Doe^Jane^Mary",
        "Smith^Jane",
        "Roe^Max",
        "",
        "ANONYMOUS",
        "TEST",
    ),
    *(
        "Müller^Jörg",
        "Mu\u0308ller^Jo\u0308rg",
        "MUELLER^JOERG",
        "..",
        "a/b",
        "CON",
        "x" * 300,
        "\u202eenaJ eoD",
    ),
    *(
        "Doe^Jane (1)",
        "doe jane (born 1970-01-02)",
        "Doe Jane\0",
        "山田^太郎",
        "Straße",
        "STRASSE",
        "🇫🇷" * 60,
    ),
)
SERIES = (
    "",
    "FIESTA",
    "fiesta",
    "FIESTA_4_1",
    "FIESTA (ab)",
    "../x",
    "ﬁesta",
    "a\u0301",
    "á",
    "y" * 300,
    "_7",
)


def headers(*, uids: int) -> st.SearchStrategy[Header]:
    """Headers that collide in whatever they can; `uids`: how many SOP instances there are."""
    pick = st.sampled_from
    return st.builds(
        header,
        patient_id=pick(["", "1", "1 ", "2", "0000", "../1", "Z" * 64]),
        issuer=pick(["", "", "A", "B"]),
        patient_name=pick(NAMES),
        birth_date=pick(["", "19700102", "19800808"]),
        sex=pick(["", "F", "M"]),
        study_uid=pick(["2.25.10", "2.25.11", "2.25.12"]),
        study_date=pick(["", "20240131", "20240201"]),
        study_time=pick(["", "101500", "174501"]),
        series_uid=pick(["2.25.20", "2.25.21"]),
        series_name=pick(SERIES),
        series_number=pick([None, 0, 2, -(2**31)]),
        instance_number=pick([None, 7, 8]),
        sop_instance_uid=st.integers(1, uids).map("2.25.3{}".format),
        frames=pick([1, 1, 3]),
        has_pixels=pick([True, True, False]),
    )


SETS = st.lists(headers(uids=40), max_size=14)


@dataclass
class Store:
    """An index and a view of everything in it."""

    folder: Path
    index: Index
    tree: Tree

    def add(self, *headers: Header) -> list[int]:
        return add(self.index, *headers)

    def files(self) -> dict[str, Entry]:
        return {path: entry for path, entry in walk(self.tree).items() if not entry.is_folder}

    def shown(self) -> dict[str, int]:
        """Instance behind each path."""
        return {path: entry.inode.id for path, entry in self.files().items()}


def opened(folder: Path) -> Index:
    """An index that no power loss is going to hit."""
    index = Index(folder / "index.sqlite3", create=True)
    index._connection.exec_driver_sql("PRAGMA synchronous = OFF")
    return index


@contextmanager
def store(*shown: Header, reopened: bool = False) -> Iterator[Store]:
    """`reopened`: by a new process, so to say, for each object."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = opened(folder)
        for one in shown:
            if reopened:
                index.close()
                index = opened(folder)
            add(index, one)
        view, renditions = tree(folder, index, formats=("dcm",))
        try:
            yield Store(folder, index, view)
        finally:
            renditions.close()
            index.close()


def rows(folder: Path) -> dict[str, list[Any]]:
    """All that the index says, but who made it when."""
    with sqlite3.connect(folder / "index.sqlite3") as raw:
        tables = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: raw.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in tables}  # noqa: S608
    raw.close()
    return {name: content for name, content in found.items() if name != "about"}


def sop(one: Header) -> tuple[str, str, str]:
    return one.study_uid, one.series_uid, one.sop_instance_uid


def first_of_each(shown: Sequence[Header]) -> dict[int, Header]:
    """The instances that there are to be, by the number of the original that makes them."""
    found: dict[tuple[str, str, str], int] = {}
    for number, one in enumerate(shown, 1):
        found.setdefault(sop(one), number)
    return {number: shown[number - 1] for number in found.values()}


def groups(paths: dict[str, int], depth: int) -> dict[str, list[int]]:
    """Instances by the folder of their path."""
    found: dict[str, list[int]] = {}
    for path, instance in paths.items():
        found.setdefault("/".join(path.split("/")[:depth]), []).append(instance)
    return found


# No loss, no merge, no overwrite


@settings(deadline=None, max_examples=30)
@given(SETS)
def test_every_instance_has_one_path_that_leads_back(shown: list[Header]) -> None:
    with store(*shown) as it:
        paths = it.shown()
        assert sorted(paths.values()) == sorted(first_of_each(shown))
        for path, instance in paths.items():
            at: Inode = it.tree.root
            for part in path.split("/"):
                entry = it.tree.lookup(at, part)
                assert entry is not None
                at = entry.inode
            assert (at.kind, at.id) == (Kind.FILE, instance)
        names: dict[tuple[str, str], str] = {}
        for path in walk(it.tree):
            folder, _, name = path.rpartition("/")
            assert names.setdefault((folder, fold(name)), name) == name  # nothing hides anything
            assert unicodedata.is_normalized("NFC", name)
            assert len(name.encode()) <= 255
            assert len(name.encode("utf-16-le")) <= 2 * 255
        assert all(len(path.encode("utf-16-le")) // 2 <= 259 - 40 - 24 for path in paths)


@settings(deadline=None, max_examples=30)
@given(SETS)
def test_no_folder_holds_what_does_not_belong_together(shown: list[Header]) -> None:
    with store(*shown) as it:
        paths, made_by = it.shown(), first_of_each(shown)
        for instances in groups(paths, 1).values():
            people = [identity_of(made_by[instance]) for instance in instances]
            for one, other in itertools.combinations(people, 2):
                assert compare(one, other) is not Verdict.OTHER
        for instances in groups(paths, 2).values():
            assert len({(made_by[i].study_uid, made_by[i].study_date) for i in instances}) == 1
        for path, instance in paths.items():
            date = made_by[instance].study_date
            expected = f"{date[:4]}-{date[4:6]}-{date[6:]}" if date else "Unknown date"
            assert path.split("/")[1].startswith(expected)


@settings(deadline=None, max_examples=20)
@given(SETS, SETS)
def test_names_that_were_seen_stay_when_more_arrives(before: list[Header], more: list[Header]) -> None:
    with store(*before) as it:
        seen = it.files()
        for one in more:
            it.add(one)
            now = it.files()
            assert seen.items() <= now.items()
            seen = now


@settings(deadline=None, max_examples=12)
@given(SETS)
def test_the_same_originals_in_the_same_order_make_the_same_index(shown: list[Header]) -> None:
    """Whatever a process remembers, and however often it is started."""
    with store(*shown) as one, store(*shown, reopened=True) as other:
        assert rows(one.folder) == rows(other.folder)


# Any order

PEOPLE: tuple[tuple[dict[str, str], ...], ...] = (
    (
        {"patient_id": "1", "patient_name": "Doe^Jane"},
        {"patient_id": "1 ", "patient_name": "DOE^JANE^^"},
        {"patient_id": "1", "patient_name": "Smith^Jane"},  # married
        {"patient_id": "1", "patient_name": "", "sex": ""},
    ),
    ({"patient_id": "1", "patient_name": "Roe^Max", "birth_date": "19800808", "sex": "M"},),
    ({"patient_id": "2", "patient_name": "Doe^Jane"}, {"patient_id": "2", "patient_name": "doe^jane"}),
    ({"patient_id": "1", "patient_name": "Doe^Jane", "issuer": "B", "birth_date": "19991231"},),
    ({"patient_id": "", "patient_name": "Doe^Jane"}, {"patient_id": "0000", "patient_name": "DOE JANE^"}),
    ({"patient_id": "", "patient_name": "Doe^Jane", "birth_date": "19610808"},),
    (
        {"patient_id": "3", "patient_name": "Müller^Jörg"},
        {"patient_id": "3", "patient_name": "MUELLER^JOERG"},
    ),
    ({"patient_id": "", "patient_name": "", "study_uid": "2.25.991"},),
    ({"patient_id": "", "patient_name": "ANONYMOUS", "study_uid": "2.25.992"},),
    ({"patient_id": "", "patient_name": "ANONYMOUS", "study_uid": "2.25.993"},),
)
SPELLINGS = [(number, spelling) for number, person in enumerate(PEOPLE) for spelling in person]


def belong_together(one: dict[str, str], other: dict[str, str]) -> bool:
    return compare(identity_of(header(**one)), identity_of(header(**other))) is not Verdict.OTHER


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[list[tuple[int, Header]], list[tuple[int, Header]]]:
    """One set of objects, each with the number of its person, in two orders."""
    drawn = draw(st.lists(st.tuples(st.sampled_from(SPELLINGS), headers(uids=1)), max_size=14))
    objects = []
    for number, ((person, spelling), one) in enumerate(drawn):
        has_study = "study_uid" in spelling
        of_person = {name: getattr(header(), name) for name in ("birth_date", "sex", "issuer")} | spelling
        of_person |= {} if has_study else {"study_uid": f"{one.study_uid}.{person}"}
        changes = of_person | {"patient_names": (), "sop_instance_uid": f"2.25.5{number}"}
        changes["patient_names"] = (of_person["patient_name"],) if of_person["patient_name"] else ()
        objects.append((person, header(**{**{f: getattr(one, f) for f in one.__slots__}, **changes})))
    return objects, draw(st.permutations(objects))


def shape(objects: Sequence[tuple[int, Header]]) -> dict[str, Any]:
    """By SOP Instance UID: who shares the patient's folder, and the exam's; the names without suffixes."""
    with store(*(one for _, one in objects)) as it:
        paths = it.shown()
        uid = {number: one.sop_instance_uid for number, (_, one) in enumerate(objects, 1)}
        found: dict[str, list[Any]] = {one: [] for one in uid.values()}
        for depth in (1, 2):
            for instances in groups(paths, depth).values():
                for instance in instances:
                    found[uid[instance]].append(frozenset(uid[i] for i in instances))
        for path, instance in paths.items():
            _, exam, file = path.split("/")
            found[uid[instance]] += [
                exam.partition(" (")[0],
                fold(file.partition(" (")[0].rpartition(".")[0]),
            ]
        return found


def test_the_people_of_this_test_are_different_people() -> None:
    for (one, a), (other, b) in itertools.combinations(SPELLINGS, 2):
        if "study_uid" not in a and "study_uid" not in b:  # who is only known by a study is nobody else
            assert belong_together(a, b) is (one == other)


@settings(deadline=None, max_examples=20)
@given(shuffled())
def test_any_order_makes_the_same_tree(orders: tuple[list[Any], list[Any]]) -> None:
    """Apart from who bears the plain name among those who collide."""
    one, other = orders
    assert {uid: parts[:3] for uid, parts in shape(one).items()} == {
        uid: parts[:3] for uid, parts in shape(other).items()
    }


DOE, MARRIED = {"patient_name": "Doe^Jane", "birth_date": ""}, {"patient_name": "Smith^Jane"}
BOTH = {"patient_name": "Doe^Jane"}
NAMELESS, ROE = {"patient_name": ""}, {"patient_name": "Roe^Max"}


@pytest.mark.parametrize(("one", "other", "between"), [(DOE, MARRIED, BOTH), (BOTH, ROE, NAMELESS)])
def test_who_agrees_with_two_that_contradict_each_other_never_unites_them(
    one: dict[str, str], other: dict[str, str], between: dict[str, str]
) -> None:
    """Such a one joins whoever came first: all that depends on the order, but for spelling and suffixes."""
    people = [header(study_uid=f"2.25.{n}", **who) for n, who in enumerate((one, other, between))]
    for order in itertools.permutations(range(3)):
        with store(*(people[n] for n in order)) as it:
            folders = [{order[i - 1] for i in found} for found in groups(it.shown(), 1).values()]
        assert sorted(map(len, folders)) == [1, 2]
        assert {0, 1} not in folders
        assert {order[0], order[1]} in folders or {0, 1} == set(order[:2])


@settings(deadline=None, max_examples=12)
@given(st.permutations(range(1, 7)))
def test_of_those_who_collide_exactly_one_bears_the_plain_name(order: list[int]) -> None:
    namesakes = [
        header(patient_id=f"{n}", study_uid=f"2.25.{n}", sop_instance_uid=f"2.25.7{n}") for n in range(1, 7)
    ]
    with store(*(namesakes[n - 1] for n in order)) as it:
        found = {path.split("/")[0] for path in it.shown()}
    assert found == {"Doe Jane"} | {f"Doe Jane ({n})" for n in order[1:]}


# Removal


def remove(it: Store, instance: int) -> None:
    """Delete an instance, and what is empty then, the way SQL does."""
    with it.index.write() as writer:
        run = writer._connection.execute
        run("DELETE FROM originals WHERE instance = ?", (instance,))
        run("DELETE FROM instances WHERE id = ?", (instance,))
        run("DELETE FROM series WHERE id NOT IN (SELECT series FROM instances)")
        run("DELETE FROM exams WHERE id NOT IN (SELECT exam FROM instances)")
        run("DELETE FROM patients WHERE id NOT IN (SELECT patient FROM exams)")
    it.index._recollection.clear()


@settings(deadline=None, max_examples=20)
@given(st.lists(headers(uids=6), min_size=1, max_size=8), st.data(), st.lists(headers(uids=6), max_size=8))
def test_a_removed_name_goes_to_nothing_else(
    shown: list[Header], data: st.DataObject, more: list[Header]
) -> None:
    with store(*shown) as it:
        made_by = first_of_each(shown)
        bore = {path: (sop(made_by[i]), identity_of(made_by[i])) for path, i in it.shown().items()}
        gone = data.draw(st.sets(st.sampled_from(sorted(made_by)), min_size=1))
        for instance in gone:
            remove(it, instance)
        later = {i: one for i, one in made_by.items() if i not in gone}
        for one in more:
            (number,) = it.add(one)
            later[number] = one
        for path, instance in it.shown().items():
            if path in bore:
                uids, identity = bore[path]
                assert sop(later[instance]) == uids
                assert compare(identity_of(later[instance]), identity) is not Verdict.OTHER


@pytest.mark.parametrize(
    "other",
    [
        lambda: header(patient_id="0815", study_uid="2.25.11"),
        lambda: header(study_uid="2.25.22"),
        lambda: header(series_uid="2.25.33"),
        lambda: header(sop_instance_uid="2.25.44"),
    ],
    ids=["patient", "exam", "series", "image"],
)
def test_the_same_object_sent_again_gets_its_name_back_and_no_other(other: Callable[[], Header]) -> None:
    with store(header()) as it:
        before = it.files()
        remove(it, 1)
        assert it.files() == {}
        it.add(other())
        assert not it.files().keys() & before.keys()
        it.add(header())
        assert it.files().keys() >= before.keys()
        assert len(it.files()) == 2
