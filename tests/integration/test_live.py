"""Live folders: whoever has a folder open is told of what is new, has changed or has gone, with no action
of his own: inotify on this machine, CHANGE_NOTIFY over SMB.
"""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dicomfs.cli import main
from dicomfs.database import BUSY_TIMEOUT_S
from dicomfs.index import INDEX_NAME, Index
from dicomfs.model import Duplicates
from tests.made import add_at_once, header
from tests.shared import Shared, image, images, sharing
from tests.smb import client
from tests.support import LOCALHOST, require, running, wait_until
from tests.watch import watching

EXAM = "Doe Jane/2024-01-31"
STUDY = image(1).StudyInstanceUID


def names_in(folder: Path) -> list[str]:
    """A listing, in the order in which it comes."""
    return [path.name for path in folder.iterdir()]


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with sharing(Duplicates.NEWEST) as it, it.mounted("formats=jpg+dcm,warm=off"):
        yield it


@contextmanager
def in_a_loop(*actions: Callable[[], object]) -> Iterator[None]:
    """Do these again and again beside the block, each in a thread; fails with what they fail with."""
    trouble: list[BaseException] = []
    done = threading.Event()

    def repeat(action: Callable[[], object]) -> None:
        try:
            while not done.is_set():
                action()
        except BaseException as error:  # noqa: BLE001  whatever it is, the test fails with it
            trouble.append(error)

    threads = [threading.Thread(target=repeat, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "something hangs"
    assert trouble == []


def test_inotify_tells_of_patient_exam_and_image_in_every_view(shared: Shared, tmp_path: Path) -> None:
    tops = [shared.point / "jpg", shared.point / "dcm"]
    folders = [path for top in tops for path in (top, top / "Doe Jane", top / EXAM)]
    with watching(tmp_path / "log", *folders) as watched:
        shared.take(image(11), image(1, day="20240201"), image(1, "Roe^Richard"))
        for top in tops:
            for folder, name in (
                (top, "Roe Richard"),
                (top / "Doe Jane", "2024-02-01"),
                (top / EXAM, f"cine_5_11.{top.name}"),
            ):
                wait_until(lambda: watched.names("CREATE", folder) == [name], f"{name} in {folder}")  # noqa: B023
        # They are there when their event is, and what is in them.
        assert (shared.point / "jpg" / "Roe Richard" / "2024-01-31" / "cine_5_1.jpg").read_bytes()


def test_smb_client_is_told_while_another_lists(shared: Shared) -> None:
    with (
        client(shared.port, "dicomfs") as watcher,
        client(shared.port, "dicomfs") as other,
        ExitStack() as stack,
    ):
        top, patient, exam = (
            stack.enter_context(watcher.watch(path)) for path in ("jpg", "jpg/Doe Jane", f"jpg/{EXAM}")
        )
        listing = lambda: other.names(f"jpg/{EXAM}")  # noqa: E731  a def would say no more
        with in_a_loop(listing, lambda: names_in(shared.point / "jpg" / EXAM)):
            shared.take(*images(range(21, 41)), image(1, day="20240303"), image(1, "Poe^Paul"))
            for folder, names in (
                (top, ["Poe Paul"]),
                (patient, ["2024-03-03"]),
                (exam, [f"cine_5_{number}.jpg" for number in range(21, 41)]),
            ):
                wait_until(lambda: folder.names("added") == names, f"news: {names}")  # noqa: B023
        # And listed, when it is told of.
        assert set(exam.names("added")) < set(other.names(f"jpg/{EXAM}"))


def test_smbclient_notify_prints_new_names(shared: Shared, tmp_path: Path) -> None:
    argv = [require("smbclient"), "--configfile=/dev/null", "--no-pass", "--max-protocol=SMB3"]
    argv += [f"--port={shared.port}", f"//{LOCALHOST}/dicomfs", "--command", f'notify "jpg/{EXAM}"']
    log = tmp_path / "log"
    with running(["stdbuf", "--output=L", *argv], log, log.exists, "smbclient") as told:
        numbers = iter(range(100, 200))

        def armed() -> bool:
            # It does not say when it has begun to listen.
            shared.take(image(next(numbers)))
            return "cine_5_1" in told.output()

        wait_until(armed, "smbclient listens")
        shared.take(image(200))
        wait_until(lambda: "0001 cine_5_200.jpg" in told.output(), "the name at smbclient")


def test_another_picture_under_the_same_name_is_told(shared: Shared, tmp_path: Path) -> None:
    name = "cine_5_301.jpg"
    folder = shared.point / "jpg" / EXAM
    shared.take(image(301))
    wait_until((folder / name).exists, "the image")
    before = (folder / name).stat()
    with (
        client(shared.port, "dicomfs") as smb,
        smb.watch(f"jpg/{EXAM}") as told,
        watching(tmp_path / "log", folder) as watched,
    ):
        shared.take(image(301, PatientComments="sent again"))
        wait_until(lambda: name in watched.names("ATTRIB", folder), "the event")
        wait_until(lambda: name in told.names("modified"), "the event over SMB")
        after = (folder / name).stat()
        assert after.st_ino != before.st_ino
        assert after.st_mtime > before.st_mtime
        assert watched.names("CREATE", folder) == watched.names("DELETE", folder) == []


def test_what_is_forgotten_goes_and_may_come_back(
    shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared.take(image(1, "Moe^Mary"), image(2, "Moe^Mary"), image(1, "Moe^Mary", "20240505"))
    top = shared.point / "jpg"
    patient, first = top / "Moe Mary", top / "Moe Mary" / "2024-01-31"
    wait_until((patient / "2024-05-05").exists, "the patient")
    with (
        client(shared.port, "dicomfs") as smb,
        smb.watch("jpg") as told,
        watching(tmp_path / "log", top, patient, first) as watched,
    ):
        # An image, an exam, the rest.
        folder = forget(shared, capsys, first / "cine_5_2.jpg")
        wait_until(lambda: watched.names("DELETE", first) == ["cine_5_2.jpg"], "the image's end")
        assert names_in(first) == ["cine_5_1.jpg"]
        forget(shared, capsys, first)
        wait_until(lambda: watched.names("DELETE", patient) == ["2024-01-31"], "the exam's end")
        assert names_in(patient) == ["2024-05-05"]
        forget(shared, capsys, "--patient-id", "Moe^Mary")
        wait_until(lambda: watched.names("DELETE", top) == ["Moe Mary"], "the patient's end")
        wait_until(lambda: told.names("removed") == ["Moe Mary"], "the patient's end over SMB")
        assert not patient.exists()

        assert main(["import", "--quiet", "--store", str(shared.store), str(folder)]) == 0
        wait_until(lambda: "Moe Mary" in watched.names("CREATE", top), "the patient is back")
        wait_until(lambda: "Moe Mary" in told.names("added"), "the patient is back over SMB")
        wait_until((first / "cine_5_2.jpg").exists, "the image is back")
        assert names_in(first) == ["cine_5_2.jpg"]
        assert (first / "cine_5_2.jpg").read_bytes()


def forget(shared: Shared, capsys: pytest.CaptureFixture[str], *what: str | Path) -> Path:
    """Both steps of `dicomfs forget`; returns where the originals are now."""
    argv = ["forget", "--store", str(shared.store), "--json", *map(str, what)]
    capsys.readouterr()
    assert main(argv) == 0
    token = json.loads(capsys.readouterr().out)["token"]
    assert main([*argv, "--yes", token]) == 0
    return Path(json.loads(capsys.readouterr().out)["folder"])


def test_nobody_else_can_make_what_is_hidden(shared: Shared) -> None:
    """Whoever guesses a name before it is published gets what everybody gets."""
    folder = shared.point / "jpg" / EXAM
    answers: set[str] = set()

    def guess() -> None:
        try:
            os.mknod(folder / "cine_5_450.jpg", stat.S_IFREG | 0o444)
        except OSError as error:
            answers.add(type(error).__name__ if isinstance(error, FileExistsError) else str(error.strerror))

    with in_a_loop(guess):
        shared.take(*images(range(401, 451)))
        wait_until((folder / "cine_5_450.jpg").exists, "the last image")
        wait_until(lambda: "FileExistsError" in answers, "a guess after it")
    assert answers <= {"Read-only file system", "FileExistsError"}


def test_everything_at_once_on_one_folder(shared: Shared, tmp_path: Path) -> None:
    count = 300
    folder = shared.point / "jpg" / EXAM
    numbers = range(1001, 1001 + count)
    names = [f"cine_5_{number}.jpg" for number in numbers]
    seen: list[list[str]] = []

    def read() -> None:
        for name in names_in(folder)[-3:]:
            (folder / name).read_bytes()

    with (
        client(shared.port, "dicomfs") as smb,
        client(shared.port, "dicomfs") as other,
        smb.watch(f"jpg/{EXAM}") as told,
        watching(tmp_path / "log", folder) as watched,
    ):
        with in_a_loop(
            lambda: seen.append(names_in(folder)),
            lambda: [(folder / f"{name}x").exists() for name in names],
            lambda: [(folder / name).exists() for name in names],
            read,
            lambda: other.names(f"jpg/{EXAM}"),
        ):
            for start in range(0, count, 30):
                shared.take(*images(numbers[start : start + 30]))
            wait_until(lambda: len(watched.names("CREATE", folder)) >= count, "all events", 60)
            wait_until(lambda: len(told.names("added")) >= count, "all events over SMB", 60)
        assert watched.names("CREATE", folder) == names
        assert told.names("added") == names
    for listing in seen:
        assert len(listing) == len(set(listing)), "a name twice in one listing"
        # Published in order of receipt: a listing misses none that is older than the newest it has.
        shown = [name for name in names if name in set(listing)]
        assert shown == names[: len(shown)]


# Mounts of their own


@pytest.fixture
def store() -> Iterator[Shared]:
    with sharing() as it:
        yield it


def test_a_burst_is_published_to_the_last_name(store: Shared, tmp_path: Path) -> None:
    """Rows alone, in one transaction: they come faster than any scanner sends."""
    count = 1500
    with store.mounted("formats=jpg+dcm,warm=off"):
        folders = [store.point / view / EXAM for view in ("jpg", "dcm")]
        with watching(tmp_path / "log", *folders) as watched:
            usual = header(
                study_uid=STUDY,
                series_uid=f"{STUDY}.1",
                patient_id="Doe^Jane",
                series_name="cine",
                series_number=5,
            )
            index = Index(store.store / INDEX_NAME, timeout_s=BUSY_TIMEOUT_S)
            try:
                add_at_once(
                    index,
                    (
                        replace(usual, sop_instance_uid=f"2.25.{n}", instance_number=n)
                        for n in range(2, 2 + count)
                    ),
                )
            finally:
                index.close()
            for folder, view in zip(folders, ("jpg", "dcm"), strict=True):
                names = [f"cine_5_{n}.{view}" for n in range(2, 2 + count)]
                wait_until(lambda: watched.names("CREATE", folder)[-1:] == names[-1:], "the last event", 60)  # noqa: B023
                assert watched.names("CREATE", folder) == names
                assert set(names) < set(names_in(folder))


def test_live_off_shows_at_once_and_tells_nobody(
    store: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with store.mounted("live=off"), watching(tmp_path / "log", store.point / EXAM) as watched:
        late = store.point / EXAM / "cine_5_2.jpg"
        assert not late.exists()
        store.take(image(2))
        wait_until(late.exists, "the image", 1.0)
        forget(store, capsys, late)
        wait_until(lambda: not late.exists(), "its end")
        assert watched.names("CREATE", store.point / EXAM) == []


ON_A_DAY = """
import sys
from datetime import date
from pathlib import Path
from dicomfs import cli, tree
day = Path(sys.argv.pop(1))
tree.Tree.__init__.__kwdefaults__["today"] = lambda: date.fromisoformat(day.read_text())
sys.exit(cli.main())
"""
"""A mount for which it is the day that a file says."""


@pytest.mark.parametrize("layout", ["patient/date", "date/patient"])
def test_what_a_day_that_passes_takes_away_is_told(store: Shared, tmp_path: Path, layout: str) -> None:
    """To local watchers and over SMB; what stays, stays."""
    is_by_date = layout == "date/patient"
    store.take(image(1, day="20240130"), image(1, "Roe^Richard", day="20240130"))
    day = tmp_path / "day"
    day.write_text("2024-03-01")
    program = [sys.executable, "-c", ON_A_DAY, str(day)]
    old, kept = ("2024-01-30", "2024-01-31") if is_by_date else ("Roe Richard", "Doe Jane")
    inner = {"Doe Jane", "Roe Richard"} if is_by_date else {"2024-01-30"}
    outer = old if is_by_date else kept
    with store.mounted(f"since=31d,layout={layout}", program=program):
        assert names_in(store.point) == sorted([old, kept])
        folders = (store.point, store.point / outer)
        with (
            watching(tmp_path / "log", *folders) as watched,
            client(store.port, "dicomfs") as smb,
            smb.watch("") as told,
        ):
            later = tmp_path / "later"
            later.write_text("2024-03-02")
            later.replace(day)
            wait_until(lambda: watched.names("DELETE", store.point) == [old], "the folder's end")
            wait_until(lambda: told.names("removed") == [old], "the folder's end over SMB")
            # What was in a folder went before it.
            assert set(watched.names("DELETE", store.point / outer)) == inner
        assert names_in(store.point) == [kept]
        assert not (store.point / old).exists()
        assert (store.point / EXAM if not is_by_date else store.point / kept / "Doe Jane").is_dir()


def test_detached_mount_makes_nothing_on_the_disk(store: Shared) -> None:
    """After a lazy unmount the same path is an ordinary folder; who is still inside goes on being served."""
    with store.mounted() as mount:
        inside = os.open(store.point / EXAM, os.O_RDONLY | os.O_DIRECTORY)
        try:
            subprocess.run(["fusermount3", "-uz", store.point], check=True)
            store.take(image(2), image(1, "Roe^Richard"))
            wait_until(
                lambda: "cine_5_2.jpg" in os.listdir(inside),  # noqa: PTH208  a descriptor
                "the image, for who is inside",
            )
            assert names_in(store.point) == []
            assert "not told of news" in mount.output()
        finally:
            os.close(inside)
