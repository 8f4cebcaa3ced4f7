"""What `dicomfs status` gathers: figures by hand, lists against the whole index, an answer on bad days."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydicom.uid import ExplicitVRLittleEndian

from dicomfs import metrics, status, statusview
from dicomfs.activity import OTHER_PATIENT, Activity
from dicomfs.census import ALL, Census
from dicomfs.errors import StoreMismatch
from dicomfs.figures import Times
from dicomfs.index import INDEX_NAME, Index
from dicomfs.model import Duplicates, Header, Receipt
from dicomfs.mountfile import MountReporter
from dicomfs.runfile import Process, Reporter
from dicomfs.scpoptions import Watermark
from dicomfs.status import Space, Status, gather
from tests.made import add, header
from tests.support import ROOT, lacking
from tests.unit.test_mountfile import FIGURES

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86_400.0
FAMILY, IDENTIFIER = "Geheimniskraemer", "PID-4711-X"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with contextlib.closing(Index(tmp_path / INDEX_NAME, create=True)) as made:
        yield made


def look(store: Path, now: float = NOW) -> Status:
    return gather(store, Watermark(1 << 20), now)


def space(store: Path, now: float = NOW) -> Space:
    found = look(store, now).space
    assert found is not None
    return found


def image(number: int, **changes: object) -> Header:
    return header(sop_instance_uid=f"2.25.9.{number}", instance_number=number, **changes)


def put(index: Index, one: Header, policy: Duplicates, content: str, source_ae: str = "CT1") -> int:
    """Store a header as an original of these contents."""
    with index.write() as writer:
        sequence = writer.next_sequence()
        receipt = Receipt(ExplicitVRLittleEndian, NOW + sequence, source_ae, duplicates=policy)
        writer.add(one, receipt, sequence, sha256(content.encode()).digest(), 10)
    return sequence


# Space


def test_days_left_by_hand() -> None:
    gigabyte = 10**9
    # 11 GB free, 1 GB has to stay free; 2 GB come in each day: 5 days.
    one = Space(free=11 * gigabyte, size=0, min_free=gigabyte, rate=2 * gigabyte / DAY, rate_days=7)
    assert one.days_left == pytest.approx(5)
    assert replace(one, free=gigabyte // 2).days_left == 0
    assert replace(one, rate=None).days_left is None


def test_the_rate_of_a_young_store_is_that_of_its_life(tmp_path: Path, index: Index) -> None:
    for days in (4, 2, 1):
        add(index, image(days), received=NOW - days * DAY)  # of 1001, 1002, 1003 bytes
    found = space(tmp_path)
    assert found.rate_days == pytest.approx(4)
    # Each is a file with 1024 bytes more.
    assert found.rate == pytest.approx((1001 + 1002 + 1003 + 3 * 1024) / (4 * DAY))


def test_the_rate_of_an_old_store_is_that_of_seven_days(tmp_path: Path, index: Index) -> None:
    for days in (400, 8, 6, 1):
        add(index, image(days), received=NOW - days * DAY)
    found = space(tmp_path)
    assert found.rate_days == pytest.approx(7)
    assert found.rate == pytest.approx((1003 + 1004 + 2 * 1024) / (7 * DAY))


def test_the_rate_of_a_very_busy_store_is_that_of_its_newest_objects(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hours in (100, 50, 10):
        add(index, image(hours), received=NOW - hours * HOUR)
    monkeypatch.setattr(status, "_RATE_OBJECTS", 1)
    found = space(tmp_path)
    assert found.rate_days == pytest.approx(50 / 24)
    assert found.rate == pytest.approx((1002 + 1003 + 2 * 1024) / (50 * HOUR))


def test_no_rate(tmp_path: Path, index: Index) -> None:
    def words(now: float) -> str:
        return "\n".join(statusview.lines(look(tmp_path, now)))

    assert space(tmp_path).rate is None
    add(index, image(1), received=NOW)
    assert space(tmp_path, NOW + 60).rate is None
    assert "days left: too early to tell" in words(NOW + 60)
    assert space(tmp_path, NOW + 2 * HOUR).rate is not None
    assert "days left at the rate of the last 2 hours" in words(NOW + 2 * HOUR)
    assert space(tmp_path, NOW + 8 * DAY).rate is None
    assert "days left: nothing came in within the last 7 days" in words(NOW + 8 * DAY)


def test_below_the_watermark_is_an_alarm(tmp_path: Path, index: Index) -> None:
    disk = os.statvfs(tmp_path)
    size = disk.f_blocks * disk.f_frsize
    assert [one.kind for one in gather(tmp_path, Watermark(2 * size), NOW).alarms] == ["low_space"]
    # What the receiver was told counts more than what the file says.
    with Reporter(tmp_path, Activity(), Process(1, NOW, "A", 104, min_free=1)):
        assert gather(tmp_path, Watermark(2 * size), NOW).alarms == ()
    with Reporter(tmp_path, Activity(), Process(1, NOW, "A", 104, min_free=2 * size)):
        assert [one.kind for one in look(tmp_path).alarms] == ["low_space"]


# The index


def test_where_a_time_is_among_receipts_with_gaps(index: Index, tmp_path: Path) -> None:
    times = {}
    for number in range(40):
        with index.write() as writer:
            sequence = max(writer.next_sequence() for _ in range(number % 4 + 1))
            received = NOW + 10 * (number // 3)
            receipt = Receipt(ExplicitVRLittleEndian, received)
            writer.add(image(number), receipt, sequence, sha256(b"%d" % number).digest(), 1)
            times[sequence] = received
    with contextlib.closing(Census.of(tmp_path)) as census:
        for since in (0.0, *(NOW + 5 * step for step in range(-1, 30))):
            later = [(sequence, at) for sequence, at in times.items() if at >= since]
            assert census.first_since(since) == min(later, default=None)


def test_the_last_hour_by_sender(tmp_path: Path, index: Index) -> None:
    ages = [("OLD", 2 * HOUR), ("MR1", 3599), ("CT1", 60), ("CT1", 50), ("", 40)]
    for number, (sender, age) in enumerate(ages):
        with index.write() as writer:
            receipt = Receipt(ExplicitVRLittleEndian, NOW - age, sender)
            sequence = writer.next_sequence()
            writer.add(image(number), receipt, sequence, sha256(b"%d" % number).digest(), 100 + number)
    found = look(tmp_path).receiving.last_hour
    assert found is not None
    assert {(one.source_ae, one.objects, one.bytes) for one in found} == {
        ("CT1", 2, 102 + 103),
        ("MR1", 1, 101),
        ("", 1, 104),
    }
    assert found[0].source_ae == "CT1"


def test_what_is_kept_and_not_shown_is_listed(tmp_path: Path, index: Index) -> None:
    """Against the whole table, after every policy has had its turn."""
    for number in range(5):
        for version, policy in enumerate(
            (Duplicates.KEEP_FIRST, Duplicates.NEWEST, Duplicates.KEEP_FIRST, Duplicates.BOTH)
        ):
            patient = "another" if (number, version) in {(1, 1), (2, 2), (3, 3)} else IDENTIFIER
            one = image(number, patient_id=patient, patient_name=f"{FAMILY}^X")
            put(index, one, policy, f"{number} {version}")
    with contextlib.closing(sqlite3.connect(tmp_path / INDEX_NAME)) as plain:
        shown = {row[0] for row in plain.execute("SELECT shown FROM instances")}
        everything = [row[0] for row in plain.execute("SELECT id FROM originals ORDER BY id DESC")]
        conflicting = [
            row[0] for row in plain.execute("SELECT id FROM originals WHERE conflict ORDER BY -id")
        ]
    hidden = [sequence for sequence in everything if sequence not in shown]
    assert len(hidden) == 5 * 2
    assert len(conflicting) == 3
    with contextlib.closing(Census.of(tmp_path)) as census:
        superseded = census.superseded(ALL, 100)
        assert [one.sequence for one in superseded] == hidden
        assert all(one.shown in shown and one.shown != one.sequence for one in superseded)
        assert [one.sequence for one in superseded if one.conflict] == [s for s in hidden if s in conflicting]
        assert [one.sequence for one in census.superseded(hidden[3], 2)] == hidden[4:6]
        assert [one.sequence for one in census.conflicting(ALL, 100)] == conflicting
        assert [one.sequence for one in census.conflicting(conflicting[0], 1)] == conflicting[1:2]
    found = look(tmp_path)
    assert found.superseded == len(hidden)
    assert found.conflicts is not None
    assert (found.conflicts.number, found.conflicts.latest_sequence) == (3, conflicting[0])
    assert found.conflicts.latest_received == NOW + conflicting[0]
    listed = "\n".join(statusview.kept_lines(superseded, 10, NOW))
    assert f"older ones: --before {hidden[-1]}" in listed
    said = listed + "\n".join(statusview.lines(found)) + json.dumps(statusview.facts(found))
    said += metrics.exposition(found) + repr(superseded)
    assert FAMILY not in said
    assert IDENTIFIER not in said


def test_conflicts_are_an_alarm_until_somebody_has_looked(tmp_path: Path, index: Index) -> None:
    def conflict(number: int) -> int:
        put(index, image(number), Duplicates.KEEP_FIRST, f"{number} first")
        return put(index, image(number, patient_id="other"), Duplicates.KEEP_FIRST, f"{number} second")

    assert look(tmp_path).alarms == ()
    latest = conflict(1)
    (alarm,) = look(tmp_path).alarms
    assert alarm.kind == "identity_conflict"
    assert f"--reviewed {latest}" in alarm.text
    status.review(tmp_path, latest)
    assert look(tmp_path).alarms == ()
    assert statusview.facts(look(tmp_path))["identity_conflicts"] == 1
    conflict(2)
    (alarm,) = look(tmp_path).alarms
    assert alarm.text.startswith("1 original with")


def test_the_plans_of_the_lists_read_no_whole_table(tmp_path: Path, index: Index) -> None:
    put(index, image(1), Duplicates.KEEP_FIRST, "one")
    asked: list[str] = []
    with contextlib.closing(Census.of(tmp_path)) as census:
        driver: Any = census._connection.connection.dbapi_connection
        driver.set_trace_callback(asked.append)
        census.superseded(ALL, 10)
        census.conflicting(ALL, 10)
        census.conflicts_after(0)
        census.counts()
        driver.set_trace_callback(None)
        plans = [
            row[3]
            for text in asked
            if "SELECT" in text
            for row in driver.execute(f"EXPLAIN QUERY PLAN {text}")
            if row[3].startswith("SCAN ")
        ]
    assert plans
    for plan in plans:
        assert "INDEX" in plan or plan.endswith("anon_1"), plan


# Receivers


def test_refusals_of_several_receivers_are_told_together(tmp_path: Path, index: Index) -> None:
    first, second = Activity(), Activity()
    process = Process(1, NOW, "DICOMFS", 104, 0)
    for activity, title, ago in ((first, "CT1", 50.0), (second, "CT1", 10.0), (second, "CT2", 4000.0)):
        visit = activity.opened(title, "10.0.0.1", NOW - 5000)
        activity.refused(visit, f"0111 {OTHER_PATIENT}", f"{ago:g} ago", NOW - ago, is_trouble=False)
        activity.failed("aborted", f"{title} at 10.0.0.1", "why", NOW - 2 * DAY)
    with Reporter(tmp_path, first, process), Reporter(tmp_path, second, replace(process, pid=2)):
        found = look(tmp_path)
    assert [(one.who, one.last_hour, one.last_day, one.text) for one in found.receiving.refused] == [
        ("CT1 at 10.0.0.1", 2, 2, "10 ago"),
        ("CT2 at 10.0.0.1", 0, 1, "4000 ago"),
    ]
    assert found.receiving.failed == ()
    assert found.receiving.failed_total == {"aborted": 3}
    assert found.receiving.opened_total == 3
    assert [one.process.pid for one in found.receiving.receivers] == [1, 2]
    (alarm,) = found.alarms
    assert alarm.text.startswith("3 objects refused within a day")


def test_trouble_is_an_alarm_and_a_receiver_that_was_stopped_is_none(tmp_path: Path, index: Index) -> None:
    activity = Activity()
    with Reporter(tmp_path, activity, Process(1, NOW, "DICOMFS", 104, 0)) as reporter:
        visit = activity.opened("CT1", "10.0.0.1", NOW)
        activity.refused(visit, "A700 no", "why", NOW, is_trouble=True)
        activity.closed(visit)
        reporter._report()
        assert [(one.kind, one.text[-7:]) for one in look(tmp_path).alarms] == [
            ("store_unavailable", "A700 no")
        ]
    found = look(tmp_path)
    assert found.alarms == ()
    assert "not running: DICOMFS, port 104, stopped" in "\n".join(statusview.lines(found))


# Bad days


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMismatch):
        look(tmp_path)


def test_renditions_that_cannot_be_opened(tmp_path: Path, index: Index) -> None:
    (tmp_path / "renditions.sqlite3").mkdir()
    found = look(tmp_path)
    assert found.not_displayable is None
    assert "cannot be displayed" in found.troubles[0]
    assert found.troubles[0] in "\n".join(statusview.lines(found))
    assert statusview.facts(found)["not_displayable"] is None


def test_to_look_makes_no_renditions_file(tmp_path: Path, index: Index) -> None:
    assert look(tmp_path).not_displayable == ()
    assert not (tmp_path / "renditions.sqlite3").exists()


def test_an_index_that_is_locked(tmp_path: Path, index: Index) -> None:
    index.close()
    with contextlib.closing(sqlite3.connect(tmp_path / INDEX_NAME, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with Reporter(tmp_path, Activity(), Process(1, NOW, "DICOMFS", 104, 0)):
            found = look(tmp_path)
    assert [one.kind for one in found.alarms] == ["index_unavailable"]
    assert "DICOMFS, port 104, running" in "\n".join(statusview.lines(found))
    assert found.space is not None
    assert statusview.facts(found)["not_known"]
    assert "dicomfs_index_up 0.0" in metrics.exposition(found).splitlines()


PLAYED_BY_NOBODY = """
import os, sys
from pathlib import Path
from dicomfs import statusview
from dicomfs.scpoptions import Watermark
from dicomfs.status import gather
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
found = gather(Path(sys.argv[1]), Watermark(0))
print(*statusview.lines(found), sep="\\n")
"""


@pytest.mark.parametrize("rendered", [False, True])
def test_a_store_that_cannot_be_written(*, rendered: bool) -> None:
    """As on a disk that became read-only: SQLite cannot make the files that it wants beside an index."""
    with tempfile.TemporaryDirectory(prefix="dicomfs-test-") as folder:
        Path(folder).chmod(0o755)
        store = Path(folder, "store")
        store.mkdir()
        with contextlib.closing(Index(store / INDEX_NAME, create=True)) as made:
            add(made, image(1), image(2))
        if rendered:
            with contextlib.closing(sqlite3.connect(store / "renditions.sqlite3")) as plain:
                plain.execute("PRAGMA journal_mode = WAL")
                plain.execute("CREATE TABLE about (key, value)")
        for path in store.iterdir():
            path.chmod(0o444)
        (store / "quarantine").mkdir(mode=0)
        store.chmod(0o555)
        if os.geteuid() != 0 and os.access(store, os.W_OK):
            lacking("this user may write anywhere")
        argv = [sys.executable, "-c", PLAYED_BY_NOBODY, str(store)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
        store.chmod(0o755)
        (store / "quarantine").chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 instances, 2 originals" in done.stdout
    assert ("what cannot be displayed is not known" in done.stdout) == rendered
    assert "what is in quarantine is not known: this user may not look into" in done.stdout


# Mounts


@contextlib.contextmanager
def two_mounts(store: Path) -> Iterator[None]:
    """One with a disk cache in trouble, one without any, and nothing done yet."""
    idle = replace(FIGURES, disk=None, rendered=Times(), failed=0, crashed=0, timed_out=0, loop={})
    busy, quiet = (MountReporter(store, Path(where), NOW - 5) for where in ("/srv/dicom", "/srv/other"))
    busy.report(FIGURES)
    quiet.report(replace(idle, memory=replace(FIGURES.memory, hits=0, misses=0)))
    try:
        yield
    finally:
        busy.close()
        quiet.close()


def test_what_mounts_do_for_people(tmp_path: Path, index: Index) -> None:
    assert not [line for line in statusview.lines(look(tmp_path)) if line.startswith("mount")]
    with two_mounts(tmp_path):
        said = list(statusview.lines(look(tmp_path)))
    first, second = (place for place, line in enumerate(said) if line.startswith("mount"))
    assert "/srv/dicom, running since" in said[first]
    told = "\n".join(said[first:second])
    for words in (
        "in memory: 90.0 % found of 100; 7 pictures, 1.0 MB of 268.4 MB; 3 evicted",
        "on disk: 40.0 % found of 10; 7 pictures, 1.0 MB of 268.4 MB; 3 evicted; 6 written, 1 not, 2 damaged",
        "the disk cache is not in use: No space left",
        "rendered for people: 3 (half within 2 ms, 99 % within 2 ms); ahead: 0",
        "2 renders failed, 1 out of time; 1 crashed a process",
        "event loop: longest_turn_seconds 0.03",
    ):
        assert words in told
    assert said[second + 1].strip() == (
        "in memory: nothing asked for yet; 7 pictures, 1.0 MB of 268.4 MB; 3 evicted"
    )
    assert said[second + 2].strip() == "rendered for people: 0; ahead: 0"


def test_what_mounts_do_for_machines(tmp_path: Path, index: Index) -> None:
    with two_mounts(tmp_path):
        found = look(tmp_path)
    busy, quiet = json.loads(json.dumps(statusview.facts(found)))["mounts"]
    assert (busy["mountpoint"], busy["memory"]["hits"], busy["disk"]["written"]) == ("/srv/dicom", 90, 6)
    assert (busy["rendered"]["count"], busy["rendered"]["within"]["0.002"]) == (3, 3)
    assert (busy["rendered"]["median"], busy["ahead"]["median"], quiet["disk"]) == (0.002, None, None)
    text = metrics.exposition(found)
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    where = ("mountpoint", "/srv/dicom")
    assert values["dicomfs_mounts",] == 2
    assert values["dicomfs_mount_start_time_seconds", where] == NOW - 5
    for tier, hits, misses in (("memory", 90, 10), ("disk", 4, 6)):
        assert values["dicomfs_cache_hits_total", where, ("tier", tier)] == hits
        assert values["dicomfs_cache_misses_total", where, ("tier", tier)] == misses
        assert values["dicomfs_cache_evictions_total", where, ("tier", tier)] == 3
        assert values["dicomfs_cache_bytes", where, ("tier", tier)] == 1 << 20
        assert values["dicomfs_cache_limit_bytes", where, ("tier", tier)] == 1 << 28
        assert values["dicomfs_cache_pictures", where, ("tier", tier)] == 7
    assert values["dicomfs_disk_cache_written_total", where] == 6
    assert values["dicomfs_disk_cache_dropped_total", where] == 1
    assert values["dicomfs_disk_cache_damaged_total", where] == 2
    assert values["dicomfs_disk_cache_up", where] == 0
    priority = ("priority", "interactive")
    buckets = {
        bound: values["dicomfs_render_seconds_bucket", ("le", bound), where, priority]
        for bound in ("0.001", "0.002", "60", "+Inf")
    }
    assert buckets == {"0.001": 0, "0.002": 3, "60": 3, "+Inf": 3}
    assert values["dicomfs_render_seconds_count", where, priority] == 3
    assert values["dicomfs_render_seconds_sum", where, priority] == 0.004
    assert values["dicomfs_render_failures_total", where, ("reason", "time_limit")] == 1
    assert values["dicomfs_render_failures_total", where, ("reason", "other")] == 1
    assert values["dicomfs_render_crashes_total", where] == 1
    assert values["dicomfs_event_loop_longest_turn_seconds", where] == 0.03
    assert ("dicomfs_disk_cache_up", ("mountpoint", "/srv/other")) not in values


# Metrics


def test_metrics_are_what_prometheus_reads(tmp_path: Path, index: Index) -> None:
    activity = Activity()
    visit = activity.opened('EVIL"AE\\n', "10.0.0.1", NOW)
    visit.bytes = 1234
    activity.refused(visit, "A900 SOP UIDs differ", "why", NOW, is_trouble=False)
    activity.refused(visit, "A900 SOP UIDs differ", "why", NOW, is_trouble=False)
    activity.failed("rejected: local limit exceeded", "EVIL at 10.0.0.1", "why", NOW)
    add(index, image(1), image(2), received=NOW - 2 * DAY)
    with Reporter(tmp_path, activity, Process(1, NOW - 5, "DICOMFS", 104, min_free=1)):
        text = metrics.exposition(look(tmp_path))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values["dicomfs_objects_refused_total", "A900", "SOP UIDs differ"] == 2
    assert values["dicomfs_associations_failed_total", "rejected: local limit exceeded"] == 1
    assert values["dicomfs_associations_opened_total",] == 1
    assert values["dicomfs_received_bytes_total",] == 1234
    assert values["dicomfs_originals",] == 2
    assert values["dicomfs_receivers",] == values["dicomfs_associations",] == 1
    assert values["dicomfs_receiver_start_time_seconds",] == NOW - 5
    assert values["dicomfs_last_receipt_timestamp_seconds",] == NOW - 2 * DAY
    assert values["dicomfs_archive_growth_bytes_per_second",] == pytest.approx(
        (1001 + 1002 + 2048) / (2 * DAY)
    )
    assert "EVIL" not in text
    for family in families.values():
        assert family.documentation
        assert family.name.startswith("dicomfs_")
        is_counter = family.type == "counter"
        assert {sample.name.endswith("_total") for sample in family.samples} <= {is_counter}


def test_every_alarm_has_its_metric(tmp_path: Path, index: Index) -> None:
    found = replace(look(tmp_path), alarms=(status.Alarm("low_space", "text"),))
    (family,) = [
        family
        for family in text_string_to_metric_families(metrics.exposition(found))
        if family.name == "dicomfs_alarm"
    ]
    assert {sample.labels["kind"]: sample.value for sample in family.samples} == {
        kind: float(kind == "low_space") for kind in status.ALARMS
    }


def test_json_has_everything(tmp_path: Path, index: Index) -> None:
    add(index, image(1), received=NOW - 60)
    (tmp_path / "quarantine").mkdir()
    for second in (10, 30, 20):
        note = tmp_path / "quarantine" / f"{int(NOW) + second}000000000-abc.txt"
        note.write_text(f"{ExplicitVRLittleEndian}\nreason {second}\n")
    found = look(tmp_path)
    facts = json.loads(json.dumps(statusview.facts(found)))
    assert found.counts is not None
    assert {name: facts[name] for name in asdict(found.counts)} == asdict(found.counts)
    assert facts["quarantined"] == 3
    assert facts["quarantine_newest"] == [
        {"time": NOW + second, "reason": f"reason {second}"} for second in (30, 20, 10)
    ]
    assert facts["last_receipt"] == NOW - 60
    assert facts["last_hour"] == [{"source_ae": "", "objects": 1, "bytes": 1001}]
