"""The file of a mount: seen by others while the mount runs, gone with it, and never in its way."""

import logging
import os
import stat
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dicomfs.figures import BUCKETS_S, CacheFigures, DiskFigures, MountFigures, Stopwatch, Times
from dicomfs.mountfile import SLOT_BYTES, MountReporter, mounts
from dicomfs.slotfile import RUN_FOLDER, SlotFile
from tests.disk import fill, small_disk
from tests.support import ROOT, lacking

MEMORY = CacheFigures(hits=90, misses=10, evictions=3, bytes=1 << 20, limit_bytes=1 << 28, items=7)
DISK = DiskFigures(
    **{**asdict(MEMORY), "hits": 4, "misses": 6}, written=6, dropped=1, damaged=2, trouble="No space left"
)
FIGURES = MountFigures(
    memory=MEMORY,
    disk=DISK,
    rendered=Times((0, 3, *[0] * (len(BUCKETS_S) - 1)), 0.004),
    ahead=Times(),
    failed=2,
    crashed=1,
    timed_out=1,
    loop={"longest_turn_seconds": 0.03},
)
NOW = 1_800_000_000.0


def report(store: Path, figures: MountFigures = FIGURES, mountpoint: str = "/srv/dicom") -> MountReporter:
    reporter = MountReporter(store, Path(mountpoint), NOW)
    reporter.report(figures)
    return reporter


def test_others_see_it_as_long_as_it_runs(tmp_path: Path) -> None:
    reporter = report(tmp_path)
    (record,) = mounts(tmp_path)
    assert (record.mountpoint, record.pid, record.started) == ("/srv/dicom", os.getpid(), NOW)
    assert record.figures == FIGURES
    without = replace(FIGURES, disk=None, failed=3)
    reporter.report(without)
    assert [one.figures for one in mounts(tmp_path)] == [without]
    reporter.close()
    assert mounts(tmp_path) == []
    assert list((tmp_path / RUN_FOLDER).iterdir()) == []


def test_each_mount_has_a_file_of_its_own(tmp_path: Path) -> None:
    first, second = report(tmp_path, mountpoint="/a"), report(tmp_path, mountpoint="/b")
    assert [one.mountpoint for one in mounts(tmp_path)] == ["/a", "/b"]
    first.close()
    third = report(tmp_path, mountpoint="/c")
    assert {one.mountpoint for one in mounts(tmp_path)} == {"/b", "/c"}
    assert len(list((tmp_path / RUN_FOLDER).iterdir())) == 2
    second.close()
    third.close()


def test_a_mount_that_was_killed_is_not_shown_and_its_file_is_used_again(tmp_path: Path) -> None:
    program = (
        "import os, pathlib; from tests.unit.test_mountfile import report;"
        f"report(pathlib.Path({str(tmp_path)!r})); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 9
    assert [path.name for path in (tmp_path / RUN_FOLDER).iterdir()] == ["mount-1"]
    assert mounts(tmp_path) == []
    reporter = report(tmp_path)
    assert len(mounts(tmp_path)) == len(list((tmp_path / RUN_FOLDER).iterdir())) == 1
    reporter.close()


def test_nothing_is_written_while_there_is_no_news(tmp_path: Path) -> None:
    reporter = report(tmp_path)
    path = tmp_path / RUN_FOLDER / "mount-1"
    before = path.read_bytes()
    reporter.report(replace(FIGURES))
    assert path.read_bytes() == before
    reporter.close()


def test_a_file_that_goes_while_another_opens_it_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the former owner removes it: who went on would be seen by nobody."""
    path = tmp_path / "mount-1"
    first = SlotFile.take(tmp_path, "mount", 100)
    opened, removed = os.open, threading.Event()

    def racing(*words: object, **more: object) -> int:
        fd = opened(*words, **more)  # type: ignore[arg-type]  # whatever it is called with
        if not removed.is_set():
            removed.set()
            first.remove()
        return fd

    monkeypatch.setattr(os, "open", racing)
    second = SlotFile.take(tmp_path, "mount", 100)
    monkeypatch.undo()
    assert os.path.samestat(path.stat(), os.fstat(second._fd))
    second.remove()


@pytest.mark.parametrize("written", [{}, {"format": 99}, {"format": 1, "mountpoint": "/a"}])
def test_what_another_version_has_written_is_left_out(tmp_path: Path, written: dict[str, object]) -> None:
    reporter = report(tmp_path)
    assert reporter._file is not None
    reporter._file.write(written)
    assert mounts(tmp_path) == []
    reporter.close()


def test_other_classes_of_times_are_another_version() -> None:
    facts = asdict(FIGURES)
    assert MountFigures.of(facts) == FIGURES
    facts["rendered"]["counts"] = (1, 2)
    with pytest.raises(TypeError):
        MountFigures.of(facts)


def test_the_longest_path_fits(tmp_path: Path) -> None:
    reporter = report(tmp_path, mountpoint=os.fsdecode(b"/" + b"\xff\xc3\xa4" * 1365))
    (record,) = mounts(tmp_path)
    assert record.mountpoint == "/" + "\ufffdä" * 1365
    assert (tmp_path / RUN_FOLDER / "mount-1").stat().st_size == 2 * SLOT_BYTES
    reporter.close()


def test_a_store_that_cannot_be_written_is_no_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / RUN_FOLDER).write_text("in the way")
    with caplog.at_level(logging.INFO, "dicomfs"):
        reporter = report(tmp_path)
        reporter.report(replace(FIGURES, failed=7))
        reporter.close()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    (tmp_path / RUN_FOLDER).unlink()
    reporter.report(FIGURES)
    assert len(mounts(tmp_path)) == 1
    reporter.close()


def test_a_full_disk_has_room_for_the_next_report(tmp_path: Path) -> None:
    with small_disk(tmp_path) as store:
        reporter = report(store)
        fill(store)
        reporter.report(replace(FIGURES, failed=7))
        assert [one.figures.failed for one in mounts(store)] == [7]
        reporter.close()


def test_root_gives_what_it_makes_to_the_owner_of_the_store(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        lacking("only root can give files away")
    os.chown(tmp_path, 12345, 23456)
    reporter = report(tmp_path)
    for path in (tmp_path / RUN_FOLDER, tmp_path / RUN_FOLDER / "mount-1"):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (12345, 23456)
        assert not stat.S_IMODE(found.st_mode) & 0o007
    reporter.close()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    store.mkdir()
    elsewhere.mkdir()
    (store / RUN_FOLDER).symlink_to(elsewhere)
    report(store).close()
    assert list(elsewhere.iterdir()) == []


# Times


def test_times_by_hand() -> None:
    watch = Stopwatch()
    assert watch.times() == Times()
    assert watch.times().quantile(0.5) is None
    for seconds in (0.0005, 0.003, 0.004, 0.005, 0.006):
        watch.note(seconds)
    times = watch.times()
    assert times.count == 5
    assert times.seconds == pytest.approx(0.0185)
    # A time that is a bound itself is in the class that ends there.
    found = {bound: number for bound, number in zip(BUCKETS_S, times.counts, strict=False) if number}
    assert found == {0.001: 1, 0.005: 3, 0.01: 1}
    assert [times.quantile(share) for share in (0, 0.2, 0.21, 0.8, 0.81, 1)] == [
        *(0.001, 0.001, 0.005, 0.005),
        *(0.01, 0.01),
    ]
    watch.note(1000)
    assert watch.times().quantile(0.5) == 0.005
    assert watch.times().quantile(1) is None
