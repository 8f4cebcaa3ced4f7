"""A scrub finds every kind of damage, is silent of what is just coming in, and makes repair possible."""

import fcntl
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dicomfs.archive import Archive
from dicomfs.errors import StoreMismatch, StoreUnavailable
from dicomfs.filemeta import DATA_SET_OFFSET
from dicomfs.findings import Finding, Kind, Report
from dicomfs.index import Index
from dicomfs.ingest import Ingest
from dicomfs.model import Receipt, Stored
from dicomfs.scrub import scrub
from dicomfs.spool import Spool
from tests.made import RECEIVED
from tests.upkeep import (
    RECEIPT,
    digest_of,
    execute,
    fill,
    image,
    leave_behind,
    original,
    overwrite,
    path_of,
    read_archived_meta,
)

IMAGES = 6


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a few originals, numbered from 1, to be copied."""
    store = tmp_path_factory.mktemp("filled")
    fill(store, *range(1, IMAGES + 1))
    return store


@pytest.fixture
def store(tmp_path: Path, filled: Path) -> Path:
    """A copy of that."""
    return shutil.copytree(filled, tmp_path / "store")


@pytest.fixture
def victim(store: Path) -> Path:
    """The third of its originals."""
    return original(store, 3)


def flip(path: Path, at: int) -> None:
    """Invert one bit."""
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 0x10]))


def repairs(report: Report) -> list[tuple[Kind, bool]]:
    return [(finding.kind, finding.repaired) for finding in report.findings]


def found(report: Report) -> list[tuple[Kind, str, int | None, str]]:
    return [(f.kind, f.path, f.sequence, f.sop_instance_uid) for f in report.findings]


@pytest.mark.parametrize("quick", [False, True])
def test_a_whole_store_is_clean(store: Path, quick: bool) -> None:
    report = scrub(store, quick=quick)
    assert (report.is_clean, report.originals, report.findings) == (True, IMAGES, ())
    assert not any(report.counts.values())


def _truncated(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, DATA_SET_OFFSET + 10)


def _headless(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, 10)


def _lengthened(path: Path) -> None:
    overwrite(path, path.stat().st_size, b"more")


def _linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "kind", "seen_by_quick"),
    [
        (Path.unlink, Kind.MISSING, True),
        (lambda path: flip(path, DATA_SET_OFFSET + 300), Kind.DAMAGED, False),
        (_truncated, Kind.DAMAGED, True),
        (_headless, Kind.DAMAGED, True),
        (_lengthened, Kind.DAMAGED, True),
        (_linked, Kind.DAMAGED, True),
        (_piped, Kind.DAMAGED, True),
        (lambda path: flip(path, 130), Kind.MISLABELLED, True),
        (lambda path: flip(path, 141), Kind.MISLABELLED, True),
        (lambda path: overwrite(path, 0, bytes(DATA_SET_OFFSET)), Kind.MISLABELLED, True),
        (
            lambda path: overwrite(path, path.read_bytes().index(b'"received":') + 12, b"2"),
            Kind.MISLABELLED,
            True,
        ),
        (
            lambda path: overwrite(path, path.read_bytes().index(b"SCANNER"), b"SPANNER"),
            Kind.MISLABELLED,
            True,
        ),
    ],
    ids=[
        *("missing", "bit", "short", "headless", "long", "link", "pipe"),
        *("prefix", "group length", "meta", "time", "sender"),
    ],
)
def test_every_damage_is_found_and_named(
    store: Path, victim: Path, damage: Callable[[Path], None], kind: Kind, seen_by_quick: bool
) -> None:
    damage(victim)
    expected = [(kind, str(victim.relative_to(store)), 3, "2.25.503")]
    report = scrub(store)
    assert found(report) == expected
    assert (report.originals, report.wrong, report.is_clean) == (IMAGES, 1, False)
    assert found(scrub(store, quick=True)) == (expected if seen_by_quick else [])


def test_what_does_not_belong_there_is_named(store: Path) -> None:
    other = original(store, 1)
    wrong = store / "archive" / ("00" if other.parent.name != "00" else "01") / other.name
    wrong.write_bytes(other.read_bytes())
    (other.parent / "note\n.txt").touch()
    (store / "archive" / "backup").mkdir()
    report = scrub(store)
    assert {finding.kind for finding in report.findings} == {Kind.FOREIGN}
    assert {finding.path for finding in report.findings} == {
        "archive/backup",
        f"archive/{other.parent.name}/note\\n.txt",
        str(wrong.relative_to(store)),
    }
    # Nobody knows what they are: no repair touches them.
    assert not scrub(store, repair=True).is_clean
    assert wrong.exists()


def test_spool_files_count_only_when_nobody_writes_them(store: Path) -> None:
    for name, size in (("held", 2000), ("left", 2000), ("fresh", 0)):  # which may not yet be locked
        (store / "incoming" / name).write_bytes(bytes(size))
    with (store / "incoming" / "held").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        report = scrub(store)
        assert found(report) == [(Kind.ABANDONED, "incoming/left", None, "")]
        assert report.is_clean  # they go by themselves
        scrub(store, repair=True)
        assert sorted(path.name for path in (store / "incoming").iterdir()) == ["fresh", "held"]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE counter SET last_sequence = 2", "counter"),
        ("UPDATE instances SET shown = 99 WHERE id = 4", "instance 4 shows"),
        ("UPDATE originals SET instance = 77 WHERE id = 4", "row 4 of originals"),
    ],
)
def test_an_index_that_contradicts_itself(store: Path, statement: str, said: str) -> None:
    execute(store, statement)
    assert any(said in finding.detail for finding in scrub(store).of(Kind.INDEX))


def test_damaged_pages_of_the_index_are_found(store: Path) -> None:
    """An entry of an SQL index that is not that of its row."""
    path = store / "index.sqlite3"
    with closing(sqlite3.connect(path)) as raw:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'instances_by_sop_uid'"
        page = raw.execute(query).fetchone()[0]
        size = raw.execute("PRAGMA page_size").fetchone()[0]
    raw_bytes = path.read_bytes()
    at = raw_bytes.index(b"2.25.503", (page - 1) * size)
    assert at < page * size
    overwrite(path, at, b"2.25.903")
    assert scrub(store).of(Kind.INDEX)


# Orphans


def test_an_orphan_is_found_and_taken_in_under_the_next_number(store: Path) -> None:
    path = leave_behind(store, image(7), 7)
    fill(store, 8)  # has got its number meanwhile
    report = scrub(store)
    assert found(report) == [(Kind.ORPHANED, str(path.relative_to(store)), None, "")]
    assert not report.is_clean
    report = scrub(store, repair=True)
    assert [(f.kind, f.repaired, f.sop_instance_uid) for f in report.findings] == [
        (Kind.ORPHANED, True, "2.25.507")
    ]
    assert report.is_clean
    again = scrub(store)
    assert (again.findings, again.originals) == ((), IMAGES + 2)
    assert not path.exists()
    meta = read_archived_meta(path_of(store, image(7), 8))
    assert (meta.receipt.received, meta.receipt.source_ae) == (RECEIVED, "SCANNER")


def test_an_orphan_whose_number_is_the_next_keeps_it(store: Path) -> None:
    path = leave_behind(store, image(7), IMAGES + 1)
    assert scrub(store, repair=True).is_clean
    assert path.exists()
    assert scrub(store).findings == ()


def test_an_orphan_takes_nobodys_place(store: Path) -> None:
    """Its sender was never answered: what is shown under its UIDs stays."""
    leave_behind(store, image(3, ImageComments="another"), 7)
    index = Index(store / "index.sqlite3")
    with closing(index):
        before = index.image(3)
        assert scrub(store, repair=True).is_clean
        assert index.image(3) == before
        assert [original.sequence for original in index.originals_of(3)] == [3, 7]


@pytest.mark.parametrize("quick", [False, True])
def test_an_orphan_whose_content_is_kept_under_another_number_goes(store: Path, quick: bool) -> None:
    """A crash, then the same was sent again."""
    path = leave_behind(store, image(3), 99)
    assert found(scrub(store)) == [(Kind.ORPHANED, str(path.relative_to(store)), None, "")]
    assert scrub(store, repair=True, quick=quick).is_clean
    assert not path.exists()
    assert scrub(store).findings == ()


def test_a_good_copy_never_goes_while_the_kept_one_is_damaged(store: Path, victim: Path) -> None:
    """A quick scrub does not see that it is."""
    path = leave_behind(store, image(3), 99)
    flip(victim, DATA_SET_OFFSET + 300)
    assert not scrub(store, repair=True, quick=True).is_clean
    assert path.exists()
    assert scrub(store, repair=True).is_clean
    assert victim.read_bytes()[DATA_SET_OFFSET:] == image(3)
    assert scrub(store).findings == ()


@pytest.mark.parametrize("quick", [False, True])
def test_a_wrong_number_is_put_right(store: Path, victim: Path, quick: bool) -> None:
    wrong = victim.rename(path_of(store, image(3), 8))
    expected = [(Kind.MISLABELLED, str(wrong.relative_to(store)), 3, "2.25.503")]
    assert found(scrub(store, quick=quick)) == expected
    assert not victim.exists()
    report = scrub(store, quick=quick, repair=True)
    assert (found(report), report.is_clean) == (expected, True)
    assert victim.exists()
    assert not wrong.exists()
    assert scrub(store).findings == ()


@pytest.mark.parametrize("is_torn", [False, True])
@pytest.mark.parametrize("repair", [False, True])
def test_what_goes_at_the_next_start_is_no_orphan(store: Path, repair: bool, is_torn: bool) -> None:
    """A receiver was killed after it had published: it still has its second name in the spool.

    Torn: a loss of power has left the names of what was not synced yet, and nothing of its content.
    """
    path = leave_behind(store, image(7), 7)
    if is_torn:
        path.chmod(0o640)
        path.write_bytes(b"")
    second = store / "incoming" / "left"
    second.hardlink_to(path)
    kept = store / "incoming" / "kept"
    kept.hardlink_to(original(store, 3))  # killed after the row was committed
    report = scrub(store, repair=repair)
    assert report.is_clean
    assert {finding.kind for finding in report.findings} == {Kind.ABANDONED}
    assert path.exists() == second.exists() == kept.exists() == (not repair)
    with Ingest.open(store):
        assert not path.exists()
    assert scrub(store).findings == ()


def test_an_orphan_that_is_not_whole_is_set_aside(store: Path) -> None:
    path = leave_behind(store, image(7), 7)
    flip(path, DATA_SET_OFFSET + 300)
    content = path.read_bytes()
    assert found(scrub(store)) == [(Kind.BROKEN, str(path.relative_to(store)), None, "")]
    assert scrub(store, repair=True).is_clean
    (aside,) = (store / "damaged").iterdir()
    assert aside.read_bytes() == content
    assert scrub(store).findings == ()


def test_an_orphan_that_is_no_dicom_object_stays(store: Path) -> None:
    path = leave_behind(store, b"nothing", 7)
    report = scrub(store, repair=True)
    assert repairs(report) == [(Kind.ORPHANED, False)]
    assert "cannot be taken in" in report.findings[0].detail
    assert path.exists()


# Repair


def test_damage_is_only_reported_unless_repair_is_asked_for(store: Path, victim: Path) -> None:
    flip(victim, DATA_SET_OFFSET + 300)
    before = victim.read_bytes()
    scrub(store)
    assert victim.read_bytes() == before
    assert not (store / "damaged").exists()


def test_a_damaged_original_is_set_aside_and_repaired_by_the_next_of_its_kind(
    store: Path, victim: Path
) -> None:
    meta, whole = read_archived_meta(victim), victim.read_bytes()
    flip(victim, DATA_SET_OFFSET + 300)
    damaged = victim.read_bytes()
    report = scrub(store, repair=True)
    assert repairs(report) == [(Kind.DAMAGED, False)]
    (aside,) = (store / "damaged").iterdir()
    assert aside.read_bytes() == damaged
    assert str(aside.relative_to(store)) in report.findings[0].detail
    assert [f.kind for f in scrub(store).findings] == [Kind.MISSING]
    with Ingest.open(store) as ingest:
        later = Receipt(ExplicitVRLittleEndian, RECEIVED + 500, "OTHER", "DICOMFS")
        assert ingest.receive([image(3)], later).stored is Stored.REPAIRED
    assert scrub(store).findings == ()
    assert victim.read_bytes() == whole
    assert read_archived_meta(victim) == meta
    assert aside.exists()


@pytest.mark.parametrize("quick", [False, True])
def test_file_meta_information_is_written_anew_from_the_row(store: Path, quick: bool) -> None:
    victims = [original(store, number) for number in (2, 3)]
    before = [path.read_bytes() for path in victims]
    overwrite(victims[0], 0, bytes(DATA_SET_OFFSET))
    overwrite(victims[1], before[1].index(b'"received":') + 12, b"2")
    report = scrub(store, repair=True, quick=quick)
    assert repairs(report) == [(Kind.MISLABELLED, True)] * 2
    # Who received it is in no row, so that only survives where it can be read.
    assert victims[0].read_bytes()[DATA_SET_OFFSET:] == before[0][DATA_SET_OFFSET:]
    assert victims[1].read_bytes() == before[1]
    assert read_archived_meta(victims[0]).sequence == 2
    assert scrub(store).findings == ()
    assert not list((store / "incoming").iterdir())


def test_what_was_repaired_meanwhile_is_not_set_aside(
    store: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resend comes between the look at the damaged file and its removal."""
    _truncated(victim)
    write = Index.write

    def resent_before(index: Index) -> object:
        monkeypatch.undo()
        with Ingest.open(store) as ingest:
            assert ingest.receive([image(3)], RECEIPT).stored is Stored.REPAIRED
        return write(index)

    monkeypatch.setattr(Index, "write", resent_before)
    report = scrub(store, repair=True)
    assert repairs(report) == [(Kind.DAMAGED, True)]
    assert victim.exists()
    assert scrub(store).findings == ()


# Beside a receiver


def test_nothing_is_said_of_what_is_just_coming_in(store: Path) -> None:
    """Scrubs while objects come in, each of which is for a moment a file without a row."""
    stop = threading.Event()
    received = []

    def receive() -> None:
        with Ingest.open(store) as ingest:
            number = 1000
            while not stop.is_set():
                ingest.receive([image(number)], RECEIPT)
                received.append(number)
                number += 1

    sender = threading.Thread(target=receive)
    sender.start()
    try:
        reports: list[Report] = []
        while len(received) < 100 or len(reports) < 5:
            reports.append(scrub(store))
    finally:
        stop.set()
        sender.join()
    assert [report.findings for report in reports] == [()] * len(reports)
    assert scrub(store).originals == IMAGES + len(received)


def test_a_file_that_waits_for_its_row_is_neither_orphaned_nor_lost(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published before its folder is listed, committed after its rows were read."""
    late = path_of(store, image(7), IMAGES + 1)
    listed = threading.Event()
    publish = Archive.publish

    def slowly(archive: Archive, spool: Spool, sequence: int) -> Path:
        folder = publish(archive, spool, sequence)
        assert listed.wait(30)
        return folder

    monkeypatch.setattr(Archive, "publish", slowly)

    sender = threading.Thread(target=fill, args=(store, 7))
    sender.start()
    recorded = Index.recorded

    def after_listing(index: Index, after: bytes, last: bytes, most: int) -> object:
        rows = recorded(index, after, last, most)
        if len(after) == 1 and after == bytes.fromhex(late.parent.name) and not listed.is_set():
            assert late.exists()
            assert not [row for row in rows if row.hash.hex() == digest_of(image(7))]
            listed.set()
        return rows

    monkeypatch.setattr(Index, "recorded", after_listing)
    while not late.exists():
        sender.join(0.01)
    report = scrub(store)
    sender.join()
    assert listed.is_set()
    assert (report.findings, report.originals) == ((), IMAGES + 1)


# What it needs


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMismatch, match="not a dicomfs store"):
        scrub(tmp_path)


def test_an_archive_that_is_not_mounted_is_no_damage(store: Path) -> None:
    (store / "archive").rename(store / "elsewhere")
    with pytest.raises(StoreUnavailable, match="mounted"):
        scrub(store)


def test_findings_are_told_at_once_and_progress_is_by_original(store: Path) -> None:
    steps: list[int] = []
    told: list[Finding] = []
    original(store, 2).unlink()

    class Watched:
        def __enter__(self) -> Callable[[], None]:
            return lambda: steps.append(1)

        def __exit__(self, *_: object) -> None:
            pass

    totals = []

    def watch(what: str, total: int) -> Watched:
        totals.append(total)
        return Watched()

    report = scrub(store, watch=watch, found=told.append)
    assert totals == [IMAGES] == [len(steps)]
    assert tuple(told) == report.findings


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before
