"""Archive and the way in: content addressing, sequence numbers, rollback, several writers at once."""

import errno
import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dicomfs.archive import Archive
from dicomfs.errors import StoreFull, StoreMismatch, StoreUnavailable, UnreadableDataSet
from dicomfs.filemeta import DATA_SET_OFFSET, file_meta
from dicomfs.index import Index
from dicomfs.ingest import Ingest, Prepared
from dicomfs.model import Header, Outcome, Receipt, Stored
from dicomfs.spool import Spool
from dicomfs.writer import Added, Writer
from tests.made import MR_STORAGE, RECEIVED, data_set, encoded
from tests.support import ROOT, wait_until
from tests.upkeep import read_archived_meta


def receipt(received: float = RECEIVED) -> Receipt:
    return Receipt(ExplicitVRLittleEndian, received, "SCANNER", "DICOMFS")


def image(number: int, *, text: str = "") -> bytes:
    """An encoded data set; the same number is the same SOP instance."""
    return encoded(
        data_set(SOPInstanceUID=f"2.25.77{number}", InstanceNumber=number, ImageComments=text or None)
    )


def take(ingest: Ingest, content: bytes) -> Outcome:
    return ingest.receive([content], receipt())


def originals(store: Path) -> dict[int, Path]:
    """Archived files by the sequence number that they bear; fails when two bear the same."""
    found: dict[int, Path] = {}
    for path in sorted((store / "archive").rglob("*.dcm")):
        sequence = read_archived_meta(path).sequence
        assert sequence not in found
        found[sequence] = path
    return dict(sorted(found.items()))


def numbers(store: Path) -> list[int]:
    """The sequence numbers, sure to be the same in the files as in the rows."""
    files = originals(store)
    found = rows(store, "SELECT id, lower(hex(hash)) FROM originals ORDER BY id")
    assert [(number, path.stem.split("-")[0]) for number, path in files.items()] == found
    return list(files)


def rows(store: Path, query: str) -> list[tuple[object, ...]]:
    raw = sqlite3.connect(store / "index.sqlite3")
    try:
        return raw.execute(query).fetchall()
    finally:
        raw.close()


# Files


def test_archived_file_is_a_dicom_file_around_the_bytes_that_came(tmp_path: Path) -> None:
    content = image(1)
    with Ingest.open(tmp_path) as ingest:
        assert take(ingest, content).stored is Stored.NEW
    (path,) = originals(tmp_path).values()
    whole = path.read_bytes()
    assert whole[DATA_SET_OFFSET:] == content
    assert path.stem == sha256(ExplicitVRLittleEndian.encode() + b"\0" + content).hexdigest() + "-1"
    assert path.parent.name == path.stem[:2]
    ds = pydicom.dcmread(path)
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID == "2.25.771"
    assert ds.file_meta.SourceApplicationEntityTitle == "SCANNER"
    meta = read_archived_meta(path)
    assert (meta.sequence, meta.receipt.received) == (1, RECEIVED)
    assert not list((tmp_path / "incoming").iterdir())
    assert path.stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize("uid", ["1.2", "1.23", "2." + "1" * 62])
@pytest.mark.parametrize("title", ["", "A", "ODD", "X" * 40, "Kötter\\\n"])
def test_file_meta_has_one_length(tmp_path: Path, uid: str, title: str) -> None:
    meta = file_meta(Receipt(ExplicitVRLittleEndian, RECEIVED / 3, title, title), MR_STORAGE, uid)
    assert len(meta) == DATA_SET_OFFSET
    # Group length (0002,0000) counts what follows its own value, the 4 bytes at 140 (PS3.10 table 7.1-1).
    assert int.from_bytes(meta[140:144], "little") == DATA_SET_OFFSET - 144
    path = tmp_path / f"{'ab' * 32}-1000000000001.dcm"
    path.write_bytes(meta)
    assert read_archived_meta(path).sequence == 1_000_000_000_001
    assert read_archived_meta(path).receipt.received == RECEIVED / 3


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_uids_too_long_for_file_meta_are_refused() -> None:
    with pytest.raises(UnreadableDataSet):
        file_meta(receipt(), MR_STORAGE, "1." * 600)


def nobody(_digest: bytes, _sequence: int) -> bool:
    """The index has no row."""
    return False


def test_clean_removes_what_nobody_writes_any_more(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.create()
    with archive.spool(ExplicitVRLittleEndian) as busy:
        (archive.incoming / "killed").touch()
        assert archive.clean(nobody) == 1
        assert list(archive.incoming.iterdir()) == [busy.path]


def killed_after_publishing(store: Path, number: int, sequence: int) -> Path:
    """What is left of a receiver that was killed between two steps of its last object."""
    archive = Archive(store)
    archive.create()
    spool = archive.spool(ExplicitVRLittleEndian)
    spool.write(image(number))
    spool.seal(file_meta(receipt(), MR_STORAGE, f"2.25.77{number}"))
    archive.publish(spool, sequence)
    os.close(spool.fd)
    assert spool.published is not None
    return spool.published


def test_what_was_published_and_not_committed_goes_at_the_next_start(tmp_path: Path) -> None:
    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(1))
    orphan = killed_after_publishing(tmp_path, 2, 2)
    with Ingest.open(tmp_path) as ingest:
        assert not orphan.exists()
        assert not list((tmp_path / "incoming").iterdir())
        take(ingest, image(3))
        take(ingest, image(2))
    assert numbers(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("left", [b"", bytes(600), None], ids=["empty", "blank", "blank data set"])
def test_what_was_published_and_lost_its_content_goes_too(tmp_path: Path, left: bytes | None) -> None:
    """It had its name before it was durable, and then the power went: nothing says where it belongs."""
    Ingest.open(tmp_path).close()
    orphan = killed_after_publishing(tmp_path, 2, 1)
    (spooled,) = (tmp_path / "incoming").iterdir()
    whole = orphan.read_bytes()
    orphan.chmod(0o640)
    orphan.write_bytes(whole[:DATA_SET_OFFSET] + bytes(500) if left is None else left)
    assert spooled.stat().st_nlink == 2
    (tmp_path / "archive" / "README").write_text("somebody's")  # is looked at by nobody
    with Ingest.open(tmp_path) as ingest:
        assert not orphan.exists()
        assert not spooled.exists()
        take(ingest, image(2))
    assert numbers(tmp_path) == [1]


def test_what_is_replaced_is_gone_only_when_the_new_file_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that is behind its archive, from a backup, gives the number of an original again."""
    Ingest.open(tmp_path).close()
    good = killed_after_publishing(tmp_path, 1, 1)
    (spooled,) = (tmp_path / "incoming").iterdir()
    spooled.unlink()
    content = good.read_bytes()

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "on purpose")

    with Ingest.open(tmp_path) as ingest:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StoreUnavailable):
                take(ingest, image(1))
        assert good.read_bytes() == content


def test_what_fails_when_it_has_its_name_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Path.hardlink_to

    def broken(new: Path, old: Path) -> None:
        link(new, old)
        raise OSError(errno.EIO, "on purpose")

    with Ingest.open(tmp_path) as ingest:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "hardlink_to", broken)
            with pytest.raises(StoreUnavailable):
                take(ingest, image(1))
        assert numbers(tmp_path) == []
        assert not list((tmp_path / "incoming").iterdir())


@pytest.mark.parametrize("has_links", [True, False])
def test_a_damaged_original_is_repaired_whatever_the_file_system_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_links: bool
) -> None:
    link = Path.hardlink_to

    def without(new: Path, old: Path) -> None:
        # As link(2): that there is such a name is found out first.
        raise OSError(errno.EEXIST if new.exists() else errno.EPERM, "on purpose")

    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(1))
        (original,) = originals(tmp_path).values()
        whole = original.read_bytes()
        original.unlink()
        original.write_bytes(whole[:1100])
        for left in (tmp_path / "incoming").iterdir():
            left.unlink()
        spool_of = ingest.archive.spool

        def spool(syntax: str) -> Spool:
            made = spool_of(syntax)
            made.path.with_name(f"{made.path.name}+").touch()  # as a process left it that was killed
            return made

        monkeypatch.setattr(ingest.archive, "spool", spool)
        monkeypatch.setattr(Path, "hardlink_to", link if has_links else without)
        assert take(ingest, image(1)).stored is Stored.REPAIRED
        assert original.read_bytes() == whole
        assert not list((tmp_path / "incoming").iterdir())


def test_what_was_committed_stays_if_only_its_spool_name_was_left(tmp_path: Path) -> None:
    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(1))
    (original,) = originals(tmp_path).values()
    (tmp_path / "incoming" / "left").hardlink_to(original)
    with Ingest.open(tmp_path):
        assert not list((tmp_path / "incoming").iterdir())
    assert numbers(tmp_path) == [1]
    assert original.stat().st_nlink == 1


def test_a_spool_file_that_is_cleaned_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(tmp_path)
    archive.create()
    lock = fcntl.flock
    cleaned: list[bool] = []

    def overtaken(fd: int, how: int) -> None:
        if not cleaned:
            cleaned.append(True)
            monkeypatch.undo()
            assert archive.clean(nobody) == 1
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", overtaken)
    with archive.spool(ExplicitVRLittleEndian) as spool:
        assert cleaned
        assert spool.path.exists()
    assert not list(archive.incoming.iterdir())


def test_spool_that_is_not_published_goes(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.create()
    with archive.spool(ExplicitVRLittleEndian) as spool:
        spool.write(b"1234")
        with spool.reader() as file:
            assert file.read() == b"1234"
    assert not list(archive.incoming.iterdir())


def test_withdraw_undoes_publish(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.create()
    with archive.spool(ExplicitVRLittleEndian) as spool:
        spool.write(b"1234")
        path = archive.path(spool.digest, 7)
        archive.publish(spool, 7)
        assert path.exists()
        archive.withdraw(spool)
        assert not path.exists()
        archive.publish(spool, 7)
        assert path.exists()
        archive.withdraw(spool)
        archive.withdraw(spool)  # nothing to undo
    assert not list(archive.incoming.iterdir())


def test_a_spool_that_cannot_be_removed_does_not_stop_the_committer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path, *, missing_ok: bool = False) -> None:
        raise OSError(5, "Input/output error")

    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(1))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", fail)
            assert take(ingest, image(1)).stored is Stored.ALREADY_THERE
        assert take(ingest, image(2)).stored is Stored.NEW


def test_quarantine_is_bounded_and_the_oldest_go_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10**18, 2 * 10**18, 5, 10**17, 10**18])
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    archive = Archive(tmp_path)
    archive.create()
    for number in range(5):
        with archive.spool(ExplicitVRLittleEndian) as spool:
            spool.write(bytes([number]))
            assert archive.keep_aside(spool, Receipt(ExplicitVRLittleEndian, 0.0), f"reason {number}", 3)
    kept = sorted(archive.quarantine.glob("*.dcm"))
    assert [path.read_bytes()[DATA_SET_OFFSET:] for path in kept] == [b"\2", b"\3", b"\4"]
    assert len(list(archive.quarantine.iterdir())) == 6


@pytest.mark.parametrize("wrong_s", [-1e9, 0.0, 1e9], ids=["past", "now", "future"])
def test_left_overs_go_whatever_the_clock_says(tmp_path: Path, wrong_s: float) -> None:
    archive = Archive(tmp_path)
    archive.create()
    left = archive.incoming / "1-left"
    left.write_bytes(b"half")
    os.utime(left, (time.time() + wrong_s,) * 2)
    assert archive.clean(nobody) == 1
    assert not left.exists()


def test_folder_that_is_not_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StoreMismatch, match="neither empty nor a dicomfs store"):
        Ingest.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# One data set after another


def test_equal_resend_changes_nothing(tmp_path: Path) -> None:
    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(1))
        (path,) = originals(tmp_path).values()
        before = path.stat()
        assert take(ingest, image(1)).stored is Stored.ALREADY_THERE
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert take(ingest, image(2)).stored is Stored.NEW
    assert len(numbers(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_resend_repairs(tmp_path: Path, damage: str) -> None:
    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(1))
        take(ingest, image(2))
        path = originals(tmp_path)[1]
        whole = path.read_bytes()
        path.unlink()
        if damage == "cut short":
            path.write_bytes(whole[:-1])
        outcome = ingest.receive([image(1)], receipt(RECEIVED + 99))
        assert outcome.stored is Stored.REPAIRED
        assert path.read_bytes() == whole  # first sequence and first time of receipt included
        assert take(ingest, image(1)).stored is Stored.ALREADY_THERE


def test_other_bytes_are_kept_and_the_first_is_shown(tmp_path: Path) -> None:
    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(1))
        outcome = take(ingest, image(1, text="edited"))
    assert outcome.stored is Stored.OTHER_VERSION
    assert "2.25.771" not in outcome.warnings  # the caller names it
    assert len(originals(tmp_path)) == 2
    assert rows(tmp_path, "SELECT id, shown FROM instances") == [(1, 1)]
    assert rows(tmp_path, "SELECT id, instance FROM originals") == [(1, 1), (2, 1)]


def test_after_closing_nothing_is_taken_in_and_nobody_hangs(tmp_path: Path) -> None:
    ingest = Ingest.open(tmp_path)
    ingest.close()
    ingest.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        take(ingest, image(1))
    assert not originals(tmp_path)
    assert not list((tmp_path / "incoming").iterdir())


# When it fails


def test_rollback_leaves_no_file_and_gives_the_number_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Writer.add
    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(1))

        def full(*_: object) -> list[str]:
            raise StoreFull("on purpose")

        monkeypatch.setattr(Writer, "add", full)
        with pytest.raises(StoreFull):
            take(ingest, image(2))
        assert list(originals(tmp_path)) == [1]
        assert not list((tmp_path / "incoming").iterdir())
        monkeypatch.setattr(Writer, "add", whole)
        take(ingest, image(3))
        take(ingest, image(2))
    assert numbers(tmp_path) == [1, 2, 3]
    assert rows(tmp_path, "SELECT last_sequence FROM counter") == [(3,)]


def test_one_sync_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    whole = Spool.sync

    def count(spool: Spool) -> None:
        synced.append(spool.fd)
        whole(spool)

    monkeypatch.setattr(Spool, "sync", count)
    with Ingest.open(tmp_path) as ingest:
        for number in range(3):
            take(ingest, image(number))
    assert len(synced) == 3


def test_two_processes_share_the_numbers(tmp_path: Path) -> None:
    with Ingest.open(tmp_path) as first, Ingest.open(tmp_path) as second:
        for number in range(0, 6, 2):
            take(first, image(number))
            take(second, image(number + 1))
    assert numbers(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_what_fails_takes_nothing_from_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a rollback and its clearing up, somebody else stores the same object, and is answered."""
    withdraw, add = Ingest._withdraw, Writer.add
    with Ingest.open(tmp_path) as first, Ingest.open(tmp_path) as second:
        outcomes: list[Outcome] = []
        calls: list[object] = []

        def meanwhile(self: Ingest, batch: list[Prepared]) -> bool:
            outcomes.append(take(second, image(1)))
            return withdraw(self, batch)

        def once(self: Writer, *rest: object) -> Added:
            calls.append(rest)
            if len(calls) == 1:
                raise StoreFull("on purpose")
            return add(self, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Ingest, "_withdraw", meanwhile)
        monkeypatch.setattr(Writer, "add", once)
        with pytest.raises(StoreFull):
            take(first, image(1))
    assert [outcome.stored for outcome in outcomes] == [Stored.NEW]
    assert numbers(tmp_path) == [1]
    assert not list((tmp_path / "incoming").iterdir())


@pytest.mark.usefixtures("expected_warnings")
def test_what_cannot_be_withdrawn_is_cleared_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Ingest.open(tmp_path) as ingest:
        take(ingest, image(1))
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "add", fail)
            patch.setattr(Archive, "withdraw", fail)
            with pytest.raises(StoreUnavailable):
                take(ingest, image(2))
        assert len(list((tmp_path / "archive").rglob("*.dcm"))) == 2
    with Ingest.open(tmp_path) as ingest:
        assert numbers(tmp_path) == [1]
        assert not list((tmp_path / "incoming").iterdir())
        assert take(ingest, image(2)).stored is Stored.NEW


def test_one_that_fails_does_not_fail_those_committed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Writer.add

    def picky(self: Writer, header: Header, *rest: object) -> Added:
        if header.instance_number == 5:
            raise StoreUnavailable("on purpose")
        return whole(self, header, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "add", picky)
    with Ingest.open(tmp_path) as ingest, ThreadPoolExecutor(10) as threads:
        # While the lock is held all ten gather, so that they are one batch.
        blocker = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        futures = [threads.submit(take, ingest, image(number)) for number in range(10)]
        wait_until(lambda: len(list((tmp_path / "incoming").iterdir())) == 10, "ten spool files")
        blocker.execute("ROLLBACK")
        blocker.close()
        outcomes = [future.exception() or future.result().stored for future in futures]
    assert [o for o in outcomes if o is not Stored.NEW] == [outcomes[5]]
    assert isinstance(outcomes[5], StoreUnavailable)
    assert len(numbers(tmp_path)) == 9
    assert not list((tmp_path / "incoming").iterdir())


def test_who_has_to_wait_is_synced_before_its_turn_and_who_has_not_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one commit after the other would wait for the disk, or one journal commit too many be made."""
    steps: list[tuple[str, int]] = []
    sync, publish = Spool.sync, Archive.publish

    def noted_sync(spool: Spool) -> None:
        if not spool.is_synced:
            steps.append(("sync", spool.size))
        sync(spool)

    def noted_publish(archive: Archive, spool: Spool, sequence: int) -> Path:
        steps.append(("name", spool.size))
        return publish(archive, spool, sequence)

    monkeypatch.setattr(Spool, "sync", noted_sync)
    monkeypatch.setattr(Archive, "publish", noted_publish)
    with Ingest.open(tmp_path) as ingest, ThreadPoolExecutor(2) as threads:
        blocker = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        first, second = image(1), image(2, text="longer")
        done = [threads.submit(take, ingest, first)]
        wait_until(ingest._turn.locked, "somebody commits")
        done.append(threads.submit(take, ingest, second))
        wait_until(lambda: bool(steps), "the other one is synced")
        blocker.execute("ROLLBACK")
        blocker.close()
        assert {future.result().stored for future in done} == {Stored.NEW}
    a, b = len(first), len(second)
    assert [step for step in steps if step[1] == a] == [("name", a), ("sync", a)]
    assert [step for step in steps if step[1] == b] == [("sync", b), ("name", b)]


def test_closing_waits_for_who_commits_for_himself(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        ingest = Ingest.open(tmp_path)
        blocker = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        taken = threads.submit(take, ingest, image(1))
        wait_until(ingest._turn.locked, "somebody commits")
        closed = threads.submit(ingest.close)
        wait_until(lambda: not ingest._committer.is_alive(), "the committer has ended")
        assert not closed.done()
        blocker.execute("ROLLBACK")
        blocker.close()
        assert taken.result(30).stored is Stored.NEW
        closed.result(30)
        with pytest.raises(StoreUnavailable, match="being closed"):
            take(ingest, image(2))
    assert numbers(tmp_path) == [1]


def test_folder_made_by_somebody_who_was_killed_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry may be in the kernel's memory only; what is published there would be lost with it."""
    (tmp_path / "archive" / "ab").mkdir(parents=True)
    synced: list[Path] = []
    monkeypatch.setattr("dicomfs.archive.sync_directory", synced.append)
    Archive(tmp_path).create()
    assert {tmp_path, tmp_path / "archive"} <= set(synced)
    assert len(list((tmp_path / "archive").iterdir())) == 256


# Many at once


def check_order(store: Path, expected: int) -> None:
    """Numbers are given once, each to one file and its row; nothing is left over."""
    assert len(numbers(store)) == expected
    assert not list((store / "incoming").iterdir())


def test_eight_threads(tmp_path: Path) -> None:
    contents = [image(number % 60) for number in range(120)]
    with Ingest.open(tmp_path) as ingest, ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda content: take(ingest, content).stored, contents))
    assert outcomes.count(Stored.NEW) == outcomes.count(Stored.ALREADY_THERE) == 60
    check_order(tmp_path, 60)


SENDER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from dicomfs.ingest import Ingest
from tests.unit.test_archive import image, take

first, last = int(sys.argv[2]), int(sys.argv[3])
with Ingest.open(Path(sys.argv[1])) as ingest, ThreadPoolExecutor(4) as threads:
    print("ready", flush=True)
    sys.stdin.readline()
    for outcome in threads.map(lambda number: take(ingest, image(number)), range(first, last)):
        print(outcome.stored.name, flush=True)
"""


def test_two_processes_at_once_on_a_new_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    senders = [
        subprocess.Popen(
            [sys.executable, "-c", SENDER, str(store), str(first), str(first + 60)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for first in (0, 40)  # twenty of them are sent by both
    ]
    try:
        for sender in senders:
            assert sender.stdout is not None
            assert sender.stdout.readline() == "ready\n"
        with_order = Index(store / "index.sqlite3")
        seen: list[int] = []
        for sender in senders:
            assert sender.stdin is not None
            sender.stdin.write("\n")
            sender.stdin.flush()
        # Somebody who reads meanwhile sees numbers appear in order only: no gap is filled later.
        while any(sender.poll() is None for sender in senders):
            now = [arrival.sequence for arrival in with_order.arrivals(0, 1000)]
            assert now[: len(seen)] == seen
            seen = now
        with_order.close()
        said = [sender.communicate(timeout=60)[0].split() for sender in senders]
    finally:
        for sender in senders:
            sender.kill()
            sender.communicate()
    assert [sender.returncode for sender in senders] == [0, 0]
    assert sorted(said[0] + said[1]) == ["ALREADY_THERE"] * 20 + ["NEW"] * 100
    check_order(store, 100)
