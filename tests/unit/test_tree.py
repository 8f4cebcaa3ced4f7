"""The tree without FUSE: inodes, names, listings. Whatever the headers say, nothing is hidden."""

import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomfs.entries import Entry
from dicomfs.filemeta import DATA_SET_OFFSET
from dicomfs.index import Index
from dicomfs.inode import FORMAT_CODES, Inode, Kind, view_key
from dicomfs.model import Header, PoolWindow
from dicomfs.naming import fold
from dicomfs.renditions import Decision, Key, Renditions
from dicomfs.selection import ANY, Since
from dicomfs.spelling import DateFormat, Label, Layout, Spelling
from dicomfs.tree import Tree
from tests.made import RECEIVED, add, header, listed, tree, walk


@contextmanager
def view(
    *headers: Header, formats: tuple[str, ...] = ("jpg",), frames: int = 1000, **view_options: Any
) -> Iterator[tuple[Tree, Index, Renditions]]:
    """A tree over these headers, in a scratch folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = Index(folder / "index.sqlite3", create=True)
        add(index, *headers)
        shown, renditions = tree(folder, index, formats=formats, frames=frames, **view_options)
        try:
            yield shown, index, renditions
        finally:
            renditions.close()
            index.close()


def paths(found: dict[str, Entry]) -> list[str]:
    return [path for path, entry in found.items() if not entry.is_folder]


# Inodes

ids = st.integers(1, 2**32 - 1)
keys = st.builds(view_key, st.sampled_from(list(FORMAT_CODES)), st.integers(0, 7))
files = st.builds(
    Inode,
    st.just(Kind.FILE),
    ids,
    keys,
    st.integers(0, 2**14 - 1),
    st.integers(0, 2**8 - 1),
)
none = st.just(0)
folders = st.builds(Inode, st.sampled_from([Kind.PATIENT, Kind.EXAM, Kind.DATE]), ids, keys, none, none)
tops = st.builds(Inode, st.just(Kind.TOP), none, st.just("") | keys, none, none)
inodes = st.one_of(files, folders, tops)


@given(inodes)
def test_inode_numbers_read_back(inode: Inode) -> None:
    assert Inode.of(inode.number) == inode
    assert 0 < inode.number < 2**63


@given(st.lists(inodes, max_size=30))
def test_different_inodes_have_different_numbers(some: list[Inode]) -> None:
    assert len({inode.number for inode in some}) == len(set(some))


@given(st.integers(0, 2**64 - 1))
def test_every_number_is_one_inode_or_none(number: int) -> None:
    inode = Inode.of(number)
    assert inode is None or inode.number == number


def test_root_is_what_fuse_wants() -> None:
    assert Inode(Kind.TOP).number == 1


@pytest.mark.parametrize(
    "inode", [Inode(Kind.TOP, 5, "jpg"), Inode(Kind.EXAM, 5, "jpg", 1), Inode(Kind.PATIENT, 5, "jpg", 0, 1)]
)
def test_numbers_that_nobody_was_told_are_no_inodes(inode: Inode) -> None:
    assert Inode.of(inode.number) is None


# Shape


def test_one_format_begins_with_patients() -> None:
    with view(header()) as (shown, _, _):
        assert paths(walk(shown)) == ["Doe Jane/2024-01-31/Localizer_2_7.jpg"]


def test_several_formats_are_a_folder_each() -> None:
    with view(header(), formats=("png", "dcm")) as (shown, _, _):
        assert paths(walk(shown)) == [
            "png/Doe Jane/2024-01-31/Localizer_2_7.png",
            "dcm/Doe Jane/2024-01-31/Localizer_2_7.dcm",
        ]


def test_objects_without_pixels_are_in_dcm_only() -> None:
    report = header(
        has_pixels=False, study_uid="2.25.9", sop_instance_uid="2.25.8", patient_id="", issuer="x"
    )
    with view(header(), report, formats=("jpg", "dcm")) as (shown, _, _):
        found = paths(walk(shown))
        assert len([path for path in found if path.startswith("jpg/")]) == 1
        assert len([path for path in found if path.startswith("dcm/")]) == 2
        assert len(listed(shown, Inode(Kind.TOP, format="jpg"))) == 1


def test_frames_are_files_up_to_the_limit() -> None:
    run = header(frames=5, sop_instance_uid="2.25.8", instance_number=8)
    with view(header(), run, frames=3, formats=("jpg", "dcm")) as (shown, _, _):
        assert [path.rpartition("/")[2] for path in paths(walk(shown))] == [
            *("Localizer_2_7.jpg", "Localizer_2_8_1.jpg", "Localizer_2_8_2.jpg", "Localizer_2_8_3.jpg"),
            *("Localizer_2_7.dcm", "Localizer_2_8.dcm"),
        ]
        exam = Inode(Kind.EXAM, 1, "jpg")
        for name in (
            "Localizer_2_8.jpg",
            "Localizer_2_8_0.jpg",
            "Localizer_2_8_4.jpg",
            "Localizer_2_7_1.jpg",
        ):
            assert shown.lookup(exam, name) is None
        assert shown.entry(Inode(Kind.FILE, 2, "jpg", 4)) is None


def test_stored_files_have_their_size() -> None:
    with view(header(), formats=("dcm",)) as (shown, _, _):
        (entry,) = [e for e in walk(shown).values() if not e.is_folder]
        assert entry.size == DATA_SET_OFFSET + 1001  # what `add` claims for the first


@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_listing_backwards_is_the_other_way_round(most: int) -> None:
    headers = [
        header(sop_instance_uid=f"2.25.{number}", instance_number=number, frames=1 + number % 3)
        for number in range(1, 9)
    ]
    with view(*headers) as (shown, _, _):
        exam = Inode(Kind.EXAM, 1, "jpg")
        forwards = list(shown.listing(exam, 0, 1000))
        assert len(forwards) == sum(one.frames for one in headers)
        for end in (*(item.cookie for item in forwards), 2**62):
            backwards, place = [], end
            while page := shown.listing_back(exam, place, most):
                assert len(page) <= most
                backwards += page
                place = page[-1].cookie
            assert backwards == [item for item in reversed(forwards) if item.cookie < end]
        assert shown.listing_back(shown.root, 2**62, most) == []


def test_sizes_are_unknown_until_announced() -> None:
    with view(header(frames=3)) as (shown, _, renditions):
        exam = Inode(Kind.EXAM, 1, "jpg")
        assert [entry.size for entry in listed(shown, exam)] == [None, None, None]
        renditions.announce(Key("digest of jpg", 1, 1, 0), 4321, "")
        assert [entry.size for entry in listed(shown, exam)] == [None, 4321, None]
        found = shown.lookup(exam, "Localizer_2_7_2.jpg")
        assert found is not None
        assert found.size == 4321
        assert shown.entry(found.inode) == found


def test_new_pool_version_is_a_later_inode_of_the_same_name() -> None:
    with view(header(pool="p")) as (shown, _, renditions):
        exam = Inode(Kind.EXAM, 1, "jpg")
        (before,) = listed(shown, exam)
        assert before.inode.version == 1
        for version in (1, 2):
            renditions.decide("1:p", "auto", Decision(version, 1, PoolWindow(0.0, 1.0, "test")))
        (after,) = listed(shown, exam)
        assert after.name == before.name
        assert after.inode.version == 2
        assert after.modified > before.modified
        assert shown.lookup(exam, after.name) == after
        old = shown.entry(before.inode)
        assert old == before  # who holds the old one goes on seeing it


def test_pictures_are_found_beside_another_as_they_are_by_their_names() -> None:
    run = header(frames=5, sop_instance_uid="2.25.8", instance_number=8)
    with view(header(pool="p"), run, frames=3, formats=("jpg", "dcm")) as (shown, _, renditions):
        exam = Inode(Kind.EXAM, 1, "jpg")
        for version in (0, 1, 2):
            if version:
                renditions.decide("1:p", "auto", Decision(version, 1, PoolWindow(0.0, 1.0, "test")))
            pictures = [(entry.inode, shown.picture(entry.inode)) for entry in listed(shown, exam)]
            assert len(pictures) == 4
            for inode, picture in pictures:
                assert picture is not None
                assert shown.beside(exam, picture.name) == (inode, picture)
        _, last = pictures[-1]
        assert last is not None
        for change in ({"frame": 4}, {"frame": 0}, {"instance_number": 9}, {"series": "LOCALIZER"}):
            assert shown.beside(exam, last.name._replace(**change)) is None
        for other in (Inode(Kind.EXAM, 2, "jpg"), Inode(Kind.EXAM, 1, "dcm"), Inode(Kind.PATIENT, 1, "jpg")):
            assert shown.beside(other, last.name) is None


# Names


def test_lookup_is_exact_and_real_name_is_not() -> None:
    twin = header(sop_instance_uid="2.25.8")
    with view(header(), twin, formats=("jpg", "png")) as (shown, _, _):
        for path, entry in walk(shown).items():
            parent = shown.root
            for part in path.split("/")[:-1]:
                above = shown.lookup(parent, part)
                assert above is not None
                parent = above.inode
            assert shown.real_name(parent, entry.name.upper()) == entry.name
            assert shown.real_name(parent, entry.name.lower()) == entry.name
            if entry.name != entry.name.swapcase():
                assert shown.lookup(parent, entry.name.swapcase()) is None


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "x" * 300, "Localizer_2_7", "Localizer_2_7.png", "Localizer_2_7.jpg.jpg"),
        *("Localizer_02_7.jpg", "Localizer_2_7_.jpg", "Localizer_2_7_1.jpg", "_2_7.jpg", ".jpg"),
        *("Localizer_2_7 (ab).jpg", "Localizer_2_" + "9" * 4000 + ".jpg", "Localizer_2_7.JPG\n"),
    ],
)
def test_names_that_are_not_there(name: str) -> None:
    with view(header()) as (shown, _, _):
        for inode in (shown.root, Inode(Kind.PATIENT, 1, "jpg"), Inode(Kind.EXAM, 1, "jpg")):
            assert shown.lookup(inode, name) is None


def test_parents() -> None:
    with view(header(), formats=("jpg", "dcm")) as (shown, _, _):
        exam = Inode(Kind.EXAM, 1, "dcm")
        assert shown.parent(exam) == Inode(Kind.PATIENT, 1, "dcm")
        assert shown.parent(Inode(Kind.PATIENT, 1, "dcm")) == Inode(Kind.TOP, format="dcm")
        assert shown.place_of(Inode(Kind.FILE, 1, "dcm")) == (exam, 1 << 14)
    with view(header()) as (shown, _, _):
        assert shown.parent(Inode(Kind.PATIENT, 1, "jpg")) == shown.root


def test_inodes_of_another_format_are_not_in_this_view() -> None:
    with view(header()) as (shown, _, _):
        assert shown.entry(Inode(Kind.FILE, 1, "png")) is None
        assert shown.entry(Inode(Kind.TOP, format="png")) is None
        assert shown.entry(Inode(Kind.FILE, 2, "jpg")) is None


# Nothing is hidden

hostile = (
    st.text(max_size=12)
    | st.text(string.printable, max_size=8)
    | st.sampled_from(
        [
            "",
            "..",
            "/",
            "CON",
            "a_1",
            "a_1_2",
            "Desktop.ini",
            "x" * 300,
            "ß",
            "SS",
            "İ",
            "i",
            "\0",
            "_3_4 (ab)",
            "1 (1)",
            "1 (10.15.00)",
            "10.15.00",
            "1 (study abcd)",
            "x (-)",
            "No patient ID",
        ]
    )
)
few = st.sampled_from(["1", "2", "3"])
made = st.builds(
    header,
    sop_instance_uid=st.uuids(version=4).map(lambda u: f"2.25.{u.int}"),
    study_uid=few.map("2.25.1".__add__),
    series_uid=few.map("2.25.2".__add__),
    patient_id=few | hostile,
    issuer=st.sampled_from(["", "A"]),
    patient_name=few | hostile,
    birth_date=st.sampled_from(["", "19700102", "19800102"]),
    study_date=st.sampled_from(["", "20240131", "20231112"]),
    study_time=st.sampled_from(["", "101500"]),
    series_name=few | hostile,
    series_number=st.sampled_from([None, 0, 1, -5, 2**31 - 1, -(2**31)]),
    instance_number=st.sampled_from([None, 0, 1, 2, -5, 2**31 - 1, -(2**31)]),
    frames=st.sampled_from([1, 1, 2, 7, 2**31 - 1]),
    has_pixels=st.booleans(),
    modality=st.sampled_from(["MR", "mr ", "CT", "", "XA"]),
    pool=st.sampled_from(["", "p"]),
)


def selected(index: Index, number: int, options: dict[str, Any]) -> bool:
    """Whether a view is to show an instance: by the modality of its series and the day of its exam."""
    row = index.image(number)
    assert row is not None
    wanted = options["modalities"]
    first = {"": "", "30d": "20240106"}.get(options["since"].text, options["since"].text.replace("-", ""))
    return (wanted == (ANY,) or row.modality.strip().upper() in wanted) and row.day >= first


@settings(deadline=None, max_examples=60)
@given(
    st.lists(made, max_size=12, unique_by=lambda h: h.sop_instance_uid),
    st.integers(1, 9),
    st.sampled_from([("jpg",), ("dcm",), ("png", "dcm")]),
    st.fixed_dictionaries(
        {
            "layout": st.sampled_from(Layout),
            "spelling": st.builds(
                Spelling,
                st.sampled_from(Label),
                st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%B %d (%Y)", "%Y%m%d"]).map(DateFormat),
                st.sampled_from([0, 4]),
            ),
            "modalities": st.sampled_from([(ANY,), ("MR",), ("XA", "MR"), ("NM",)]),
            "since": st.sampled_from(["", "20240101", "30d", "2024-02-01"]).map(Since),
            "today": st.just(lambda: date(2024, 2, 5)),
        }
    ),
)
def test_nothing_is_hidden(
    headers: list[Header], page: int, formats: tuple[str, ...], options: dict[str, Any]
) -> None:
    limit = 3
    with view(*headers, formats=formats, frames=limit, **options) as (shown, index, _):
        found = walk(shown, page)
        assert found == walk(shown)
        for name in formats:
            expected = sorted(
                number
                for number, one in enumerate(headers, 1)
                if selected(index, number, options)
                for _ in range(1 if name == "dcm" else min(one.frames, limit) * one.has_pixels)
            )
            assert not [
                path
                for path, e in found.items()
                if e.is_folder
                and e.inode.kind is not Kind.TOP
                and not any(p.startswith(f"{path}/") for p in found)
            ]
            shown_ids = [
                e.inode.id for e in found.values() if e.inode.kind is Kind.FILE and e.inode.format == name
            ]
            assert sorted(shown_ids) == expected
        numbers = [entry.inode.number for entry in found.values()]
        assert len(set(numbers)) == len(numbers)
        folders_seen: dict[str, set[str]] = {}
        for path, entry in found.items():
            above, _, name = path.rpartition("/")
            assert name == entry.name
            assert 0 < len(name.encode()) <= 255
            assert fold(name) not in folders_seen.setdefault(above, set())
            folders_seen[above].add(fold(name))
            parent = found[above].inode if above else shown.root
            assert shown.lookup(parent, name) == entry
            assert shown.entry(entry.inode) == entry
            assert shown.real_name(parent, name) == name


# Listings


def test_listing_in_pages_of_one_with_frames() -> None:
    runs = [
        header(sop_instance_uid=f"2.25.5{n}", instance_number=n, frames=f)
        for n, f in enumerate([3, 1, 1, 4, 2])
    ]
    with view(*runs) as (shown, _, _):
        exam = Inode(Kind.EXAM, 1, "jpg")
        for page in range(1, 13):
            assert listed(shown, exam, page) == listed(shown, exam)
        assert len(listed(shown, exam, 1)) == 11


@pytest.mark.parametrize("page", [1, 2, 3, 500])
def test_listing_while_images_arrive_neither_repeats_nor_misses(page: int) -> None:
    def one(number: int) -> Header:
        return header(sop_instance_uid=f"2.25.5{number}", instance_number=-number, frames=1 + number % 3)

    with view(*(one(n) for n in range(10))) as (shown, index, _):
        exam = Inode(Kind.EXAM, 1, "jpg")
        before = {entry.name for entry in listed(shown, exam)}
        seen: list[str] = []
        cookie, arriving = 0, 10
        while steps := list(shown.listing(exam, cookie, page)):
            assert len(steps) <= page
            seen += [step.entry.name for step in steps]
            cookie = steps[-1].cookie
            if arriving < 30:
                add(index, one(arriving))
                arriving += 1
        assert len(seen) == len(set(seen))
        assert before <= set(seen)


def test_long_runs_are_listed_in_pages() -> None:
    with view(header(frames=2**31 - 1), frames=16_000) as (shown, _, _):
        exam = Inode(Kind.EXAM, 1, "jpg")
        assert len(list(shown.listing(exam, 0, 48))) == 48
        assert len(listed(shown, exam)) == 16_000


# Pools


def test_pool_sample_is_spread_evenly_and_needs_no_memory() -> None:
    with view(header(pool="p", frames=2**31 - 1), header(pool="p", sop_instance_uid="2.25.8")) as (
        shown,
        _,
        _,
    ):
        through, sources = shown.pool_sources("1:p", 4)
        assert through == 2
        # 2^31 frames in all: every 2^29th.
        assert [source.frame for source in sources] == [0, 2**29, 2**30, 2**29 * 3]


@given(st.lists(st.integers(1, 6), max_size=8), st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_pool_sample_takes_no_frame_twice(runs: list[int], most: int) -> None:
    members = [header(pool="p", frames=f, sop_instance_uid=f"2.25.5{n}") for n, f in enumerate(runs)]
    with view(*members) as (shown, _, _):
        _, sources = shown.pool_sources("1:p", most)
        assert len(set(sources)) == len(sources) == min(most, sum(runs))


def test_members_of_a_pool_with_their_folders() -> None:
    with view(header(pool="p"), header(pool="p", frames=2, sop_instance_uid="2.25.8", instance_number=8)) as (
        shown,
        _,
        _,
    ):
        found = [(folder, entry.name) for folder, entry in shown.members("1:p")]
        exam = Inode(Kind.EXAM, 1, "jpg")
        assert found == [(exam, f"Localizer_2_{name}.jpg") for name in ("7", "8_1", "8_2")]


def test_modified_of_folders_is_the_latest_receipt() -> None:
    with view(header()) as (shown, index, _):
        add(index, header(sop_instance_uid="2.25.8"), received=RECEIVED + 7)
        times = {path: entry.modified for path, entry in walk(shown).items() if entry.is_folder}
        assert times == dict.fromkeys(["Doe Jane", "Doe Jane/2024-01-31"], RECEIVED + 7)
        root = shown.entry(shown.root)
        assert root is not None
        assert root.modified == RECEIVED + 7
