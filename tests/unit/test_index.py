"""The index: names and collision suffixes, identity, versions of the schema, transactions."""

import sqlite3
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dicomfs import queries, rows
from dicomfs.errors import StoreLocked, StoreMismatch, StoreUnavailable
from dicomfs.index import Index
from dicomfs.indexfile import LOCKED_TIMEOUT_S
from dicomfs.model import Header, Layout, Receipt
from dicomfs.schema import PICTURES, SCHEMA_VERSION
from dicomfs.selection import Selection
from tests.made import RECEIVED, add, header


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path / "index.sqlite3", create=True)
    yield opened
    opened.close()


def patients(index: Index) -> list[str]:
    return [folder.name.folder for folder in index.patient_page(0, 100, Selection(PICTURES))]


def exams(index: Index) -> list[str]:
    found = index.patient_page(0, 100, Selection(PICTURES))
    return [
        exam.folder for patient in found for exam in index.exam_page(patient.id, 0, 100, Selection(PICTURES))
    ]


def images(index: Index) -> list[tuple[str, int, int, str]]:
    found = []
    for patient in index.patient_page(0, 100, Selection(PICTURES)):
        for exam in index.exam_page(patient.id, 0, 100, Selection(PICTURES)):
            for row in index.name_page(exam.id, 0, 100, Selection(PICTURES), sized=False):
                found += [(row.label, row.series_number, row.number, row.suffix)]
    return found


def other(number: int, **changes: object) -> Header:
    """An image of another study."""
    uids = {name: f"2.25.{number}{place}" for place, name in enumerate(("study_uid", "series_uid"))}
    return header(**{"sop_instance_uid": f"2.25.{number}2", **uids, **changes})


def test_rows_of_images_are_selected_in_the_order_of_their_fields() -> None:
    columns = [column.key for column in queries.IMAGE.selected_columns]
    assert columns == list(rows.ImageRow._fields)
    for statement in queries.NAME_PAGE.values():
        assert statement._statement.selected_columns.keys() == list(rows.NameRow._fields)


# Patients


def test_namesakes_get_two_folders(index: Index) -> None:
    add(index, other(1), other(2, patient_id="0815"))
    assert patients(index) == ["Doe Jane", "Doe Jane (0815)"]


def test_namesakes_without_a_distinguishing_id_are_told_apart_by_birth_date(index: Index) -> None:
    add(index, other(1, patient_id=""), other(2, patient_id="", birth_date="19990909"))
    first, second = patients(index)
    assert first == "Doe Jane"
    assert second.startswith("Doe Jane (")


def test_same_id_of_two_issuers_is_two_patients(index: Index) -> None:
    add(index, other(1, issuer="A"), other(2, issuer="B"), other(3, issuer="A"))
    assert len(patients(index)) == 2


def test_an_id_with_another_name_and_another_birth_date_is_another_patient(index: Index) -> None:
    add(index, other(1), other(2, patient_name="Roe^Max", birth_date="19800808"))
    assert patients(index) == ["Doe Jane", "Roe Max"]


@pytest.mark.parametrize("change", [{"patient_name": "Smith^Jane"}, {"birth_date": "19700201"}])
def test_an_id_with_only_one_of_them_changed_is_the_same_patient(
    index: Index, change: dict[str, str]
) -> None:
    add(index, other(1), other(2, **change))
    assert patients(index) == ["Doe Jane"]


def test_spelling_variants_are_one_patient(index: Index) -> None:
    spellings = ["Müller^Jane", "MÜLLER^JANE^^", "Müller Jane", unicodedata.normalize("NFD", "Müller^Jane ")]
    add(index, *(other(n, patient_id="", patient_name=name) for n, name in enumerate(spellings)))
    assert patients(index) == ["Müller Jane"]


def test_names_that_only_case_tells_apart_do_not_share_a_folder(index: Index) -> None:
    add(index, other(1), other(2, patient_name="DOE^JANE", patient_id="x"))
    assert patients(index) == ["Doe Jane", "DOE JANE (x)"]


def test_studies_of_nobody_known_are_not_mixed(index: Index) -> None:
    nobody = {"patient_id": "", "patient_name": "", "birth_date": ""}
    add(index, other(1, **nobody), other(2, **nobody), other(1, sop_instance_uid="2.25.99", **nobody))
    assert len(patients(index)) == 2
    assert len(images(index)) == 3


def test_many_namesakes_all_have_a_folder(index: Index) -> None:
    long = "x" * 64  # ids that are equal where a suffix is cut
    add(index, *(other(n, patient_id=f"{long}{n}") for n in range(20)))
    assert len({name.casefold() for name in patients(index)}) == 20


def test_suffix_out_of_a_hostile_id(index: Index) -> None:
    add(index, other(1), other(2, patient_id="../../etc/passwd"), other(3, patient_id="///"))
    assert len(set(patients(index))) == 3
    assert not any("/" in name or name.startswith(".") for name in patients(index))


def test_anonymised_studies_of_one_filler_are_a_folder_each(index: Index) -> None:
    nobody = {"patient_id": "0000", "patient_name": "ANONYMOUS", "birth_date": "19000101", "sex": ""}
    days = ["20240131", "20240201", "20240201", ""]
    times = ["101500", "101500", "174501", ""]
    add(index, *(other(n, study_date=days[n], study_time=times[n], **nobody) for n in range(4)))
    first, second, third, fourth = patients(index)
    assert (first, second) == ("ANONYMOUS", "ANONYMOUS (2024-02-01)")
    assert third == "ANONYMOUS (2024-02-01 17.45.01)"
    assert fourth.startswith("ANONYMOUS (")


def test_an_emergency_patient_keeps_the_folder_when_the_name_is_known(index: Index) -> None:
    add(index, other(1, patient_name="Unbekannt^", birth_date="", sex=""), other(2))
    assert patients(index) == ["Unbekannt"]


def test_a_phantom_is_one_folder(index: Index) -> None:
    phantom = {"patient_id": "QA", "patient_name": "TEST^PHANTOM", "birth_date": "", "sex": ""}
    add(index, *(other(n, study_date=f"2024010{n}", **phantom) for n in range(1, 5)))
    assert patients(index) == ["TEST PHANTOM"]
    assert len(exams(index)) == 4


def test_namesakes_of_one_id_are_told_apart_by_issuer_and_birth_date(index: Index) -> None:
    add(
        index,
        *(other(1), other(2, issuer="B", birth_date="19800808"), other(3, issuer="C", birth_date="19900909")),
        other(4, birth_date="19440404", sex="M"),
        other(5, birth_date="19440405", patient_id=""),
    )
    assert patients(index) == [
        *("Doe Jane", "Doe Jane (4711)", "Doe Jane (4711 C)", "Doe Jane (born 1944-04-04)"),
        "Doe Jane (born 1944-04-05)",
    ]


def test_nameless_data_of_an_id_that_strangers_share_is_nobodys(index: Index) -> None:
    strangers = (other(1), other(2, patient_name="Roe^Max", birth_date="19800808", sex="M"))
    nameless = {"patient_name": "", "birth_date": "", "sex": ""}
    add(index, *strangers, other(3, **nameless), other(1, sop_instance_uid="2.25.77", **nameless))
    assert patients(index) == ["Doe Jane", "Roe Max", "4711"]
    first = index.patient_page(0, 9, Selection(PICTURES))[0]
    (exam,) = index.exam_page(first.id, 0, 9, Selection(PICTURES))
    # Of the same study: hers.
    assert len(index.name_page(exam.id, 0, 9, Selection(PICTURES), sized=False)) == 2


def test_an_id_that_very_many_bear_costs_no_more_and_identifies_nobody(index: Index) -> None:
    words = [f"{one}{two}{three}" for one in "bcdfgh" for two in "bcdfgh" for three in "bcd"]
    add(index, *(other(n, patient_name=word, birth_date="") for n, word in enumerate(words)))
    add(index, other(200, patient_name="New", birth_date=""), other(201, patient_name="BBB", birth_date=""))
    assert [row.name.folder for row in index.patient_page(0, 1000, Selection(PICTURES))] == [*words, "New"]
    # Without a name it may be anybody, and with a part of one it is nobody who is known.
    add(index, other(202, patient_name="", birth_date=""), other(203, patient_name="bcb^x", birth_date=""))
    assert len(index.patient_page(0, 1000, Selection(PICTURES))) == len(words) + 3


# Exams, series, images


def test_second_study_of_a_day_has_its_time(index: Index) -> None:
    add(index, other(1), other(2, study_time="174501"), other(3, study_time="174501"))
    first, second, third = exams(index)
    assert (first, second) == ("2024-01-31", "2024-01-31 (17.45.01)")
    assert third.startswith("2024-01-31 (")
    assert third != second


def test_equal_series_names_and_numbers(index: Index) -> None:
    add(index, header(), header(series_uid="2.25.33", sop_instance_uid="2.25.4", series_name="LOCALIZER"))
    (label, *_), (other_label, number, instance, suffix) = images(index)
    assert label == "Localizer"
    assert other_label.startswith("LOCALIZER (")
    assert (number, instance, suffix) == (2, 7, "")


def test_equal_series_names_of_other_numbers_need_no_suffix(index: Index) -> None:
    add(index, header(), header(series_uid="2.25.33", sop_instance_uid="2.25.4", series_number=3))
    assert [name[:2] for name in images(index)] == [("Localizer", 2), ("Localizer", 3)]


def test_equal_instance_numbers(index: Index) -> None:
    add(index, header(), header(sop_instance_uid="2.25.4"), header(sop_instance_uid="2.25.5"))
    suffixes = [name[3] for name in images(index)]
    assert suffixes[0] == ""
    assert len(set(suffixes)) == 3


def test_missing_numbers_are_zero(index: Index) -> None:
    add(index, header(series_number=None, instance_number=None))
    assert images(index) == [("Localizer", 0, 0, "")]


def test_one_series_uid_in_two_studies(index: Index) -> None:
    add(index, header(), header(study_uid="2.25.22", sop_instance_uid="2.25.4"))
    assert len(images(index)) == 2


@pytest.mark.parametrize(
    ("acquired", "shown"),
    [
        (RECEIVED - 5, RECEIVED - 5),
        (RECEIVED + 3600, RECEIVED + 3600),
        (RECEIVED + 1e9, RECEIVED),
        (None, RECEIVED),
    ],
)
def test_modified_is_acquisition_unless_it_lies_in_the_future(
    index: Index, acquired: float | None, shown: float
) -> None:
    (number,) = add(index, header(acquired=acquired))
    row = index.image(number)
    assert row is not None
    assert row.modified == shown


# Identity


def test_ids_are_the_sequence_of_the_original_that_created_them(index: Index) -> None:
    first, second, third = add(index, header(), header(sop_instance_uid="2.25.4"), other(9, patient_id="new"))
    assert (first, second, third) == (1, 2, 3)
    assert [p.id for p in index.patient_page(0, 9, Selection(PICTURES))] == [first, third]
    rows = index.name_page(first, 0, 9, Selection(PICTURES), sized=True)
    assert [row.id for row in rows] == [first, second]
    assert index.last_sequence() == 3


def test_other_bytes_of_the_same_identity_are_kept_and_the_first_is_shown(index: Index) -> None:
    add(index, header())
    with index.write() as writer:
        sequence = writer.next_sequence()
        changed = header(series_name="Renamed", patient_name="Roe^Max", birth_date="19800808")
        warnings = writer.add(
            changed, Receipt("1.2.840.10008.1.2", RECEIVED), sequence, b"\1" * 32, 5
        ).warnings
    assert len(warnings) == 2
    assert not any("Roe" in text or "Doe" in text for text in warnings)
    assert images(index) == [("Localizer", 2, 7, "")]
    assert patients(index) == ["Doe Jane"]
    shown = index.image(1)
    assert shown is not None
    assert shown.original == 1
    assert index.counts().originals == 2
    assert [(a.sequence, a.instance) for a in index.arrivals(0, 9)] == [(1, 1), (2, 1)]


def test_rollback_gives_the_number_again(index: Index) -> None:
    def fail() -> None:
        with index.write() as writer:
            sequence = writer.next_sequence()
            writer.add(header(), Receipt("1.2", RECEIVED), sequence, b"\1" * 32, 5)
            raise KeyError("on purpose")

    with pytest.raises(KeyError):
        fail()
    assert index.counts().originals == 0
    assert add(index, header()) == [1]


def test_failed_commit_leaves_no_transaction_behind(index: Index) -> None:
    add(index, header())

    def refused_at_commit() -> None:
        # A deferred constraint is the one thing that lets a healthy SQLite refuse so late.
        with index.write() as writer:
            writer.next_sequence()
            writer._connection.execute("PRAGMA defer_foreign_keys = ON")
            writer._connection.execute("UPDATE instances SET series = 999")

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            refused_at_commit()
    assert add(index, header(sop_instance_uid="2.25.4")) == [2]


def test_reader_sees_what_another_connection_commits(tmp_path: Path, index: Index) -> None:
    reader = Index(tmp_path / "index.sqlite3")
    before = reader.data_version()
    assert reader.data_version() == before
    add(index, header())
    assert reader.data_version() != before
    assert len(reader.patient_page(0, 9, Selection(PICTURES))) == 1
    reader.close()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path, index: Index) -> None:
    add(index, header())
    with index.write() as writer:
        writer.next_sequence()
        reader = Index(tmp_path / "index.sqlite3")
        assert reader.last_sequence() == 1
        reader.close()


# The file


def test_missing_index_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMismatch, match="not a dicomfs store"):
        Index(tmp_path / "index.sqlite3")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("create", [True, False])
def test_other_schema_version_is_refused(tmp_path: Path, index: Index, create: bool) -> None:
    with sqlite3.connect(tmp_path / "index.sqlite3") as raw:
        raw.execute("UPDATE about SET value = ? WHERE key = 'schema_version'", (str(SCHEMA_VERSION + 1),))
    raw.close()
    with pytest.raises(StoreMismatch, match=f"version {SCHEMA_VERSION + 1}"):
        Index(tmp_path / "index.sqlite3", create=create)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path, create: bool, content: bytes) -> None:
    path = tmp_path / "index.sqlite3"
    path.write_bytes(content)
    with pytest.raises(StoreMismatch):
        Index(path, create=create)
    assert path.read_bytes() == content


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("table", ["songs (title)", "about (author)", "about (key, value)"])
def test_database_of_another_program_is_refused_and_left_alone(
    tmp_path: Path, create: bool, table: str
) -> None:
    path = tmp_path / "index.sqlite3"
    with sqlite3.connect(path) as raw:
        raw.execute(f"CREATE TABLE {table}")
    raw.close()
    with pytest.raises(StoreMismatch):
        Index(path, create=create)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    raw.close()


def test_empty_index_is_no_store_for_readers(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite3").touch()
    with pytest.raises(StoreMismatch, match="empty"):
        Index(tmp_path / "index.sqlite3")


def test_locked_index_is_unavailable_and_not_called_foreign(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomfs.indexfile.BUSY_TIMEOUT_S", 0.05)
    with index.write(), pytest.raises(StoreUnavailable):
        Index(tmp_path / "index.sqlite3", create=True)


def test_damaged_index_is_unavailable(tmp_path: Path, index: Index) -> None:
    add(index, *(other(n, patient_id=f"{n}") for n in range(200)))
    index.close()
    path = tmp_path / "index.sqlite3"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises((StoreUnavailable, StoreMismatch)):
        Index(path).patient_page(0, 1000, Selection(PICTURES))


def test_many_may_make_one_index_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: Index(tmp_path / "new.sqlite3", create=True), range(8)))
    assert len({one.store_id for one in made}) == 1
    for one in made:
        one.close()


def test_after_a_wait_in_vain_nobody_waits_long_until_it_went_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomfs.indexfile.BUSY_TIMEOUT_S", 0.3)
    index = Index(tmp_path / "index.sqlite3", create=True)
    other = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)

    def patience_ms() -> int:
        return int(index._connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())

    other.execute("BEGIN IMMEDIATE")
    assert patience_ms() == 300
    for _ in range(2):
        with pytest.raises(StoreLocked, match="another program"), index.write():
            pass
        assert patience_ms() == 1000 * LOCKED_TIMEOUT_S
    other.execute("ROLLBACK")
    with index.write():
        pass
    assert patience_ms() == 300
    other.close()
    index.close()


def test_a_read_only_index_is_opened_anew(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.sqlite3", create=True)
    former = index._connection
    former.exec_driver_sql("PRAGMA query_only = ON")
    former.rollback()
    with pytest.raises(StoreUnavailable, match="writable for this user"), index.write() as writer:
        writer.next_sequence()
    with index.write() as writer:
        assert writer.next_sequence() == 1
    index.close()


def test_another_store_in_the_place_of_ours_is_not_written(tmp_path: Path) -> None:
    store, elsewhere, strange = tmp_path / "store", tmp_path / "elsewhere", tmp_path / "strange"
    for folder in (store, strange):
        folder.mkdir()
    index = Index(store / "index.sqlite3", create=True)
    Index(strange / "index.sqlite3", create=True).close()
    store.rename(elsewhere)
    store.mkdir()
    with pytest.raises(StoreUnavailable, match="missing: is its file system mounted"), index.write():
        pass
    assert not list(store.iterdir()), "a bare mount point stays bare"
    store.rmdir()
    strange.rename(store)
    with pytest.raises(StoreUnavailable, match="another store's"), index.write():
        pass
    store.rename(strange)
    elsewhere.rename(store)
    with index.write() as writer:
        assert writer.next_sequence() == 1
    index.close()


def test_what_a_render_needs_comes_with_an_image(index: Index) -> None:
    plain = header(sop_instance_uid="2.25.8", outline=b"outline", pixel_offset=1234, pixel_length=4096)
    (first,) = add(index, plain)
    (second,) = add(index, header(sop_instance_uid="2.25.9", pixel_offset=1234, pixel_length=4096))
    found = index.image_shown(first)
    assert found is not None
    assert found.layout == Layout(found.size, 1234, b"outline")
    other = index.image_shown(second)
    assert other is not None
    assert other.layout is None
