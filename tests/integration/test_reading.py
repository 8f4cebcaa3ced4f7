"""Reading through a real mount: what is rendered once, ahead, again, and not at all."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from dicomfs.inode import Inode
from tests.made import data_set, save
from tests.support import (
    Running,
    command_line,
    mounted,
    require,
    require_fuse,
    running,
    wait_until,
)

IMAGES = 24
JOINED = r"\bjoined=([0-9]+)"
"""Asks for a picture that was being produced for somebody else."""
KEPT = r"\bitems=([0-9]+)"
"""Pictures in memory."""
WAITING = r"\bwaiting=([0-9]+)"
RUNNING = r"\brunning=([0-9]+)"
"""Jobs of the render processes."""


class Mount:
    """A mount of one series, and what it says of itself."""

    def __init__(self, it: Running, point: Path) -> None:
        self._it = it
        self.folder = next(point.glob("*/*"))
        self.paths = {int(re.findall(r"[0-9]+", path.name)[-1]): path for path in self.folder.iterdir()}

    def path(self, number: int) -> Path:
        """The picture of that Instance Number."""
        return self.paths[number]

    def figure(self, pattern: str) -> int:
        """A number out of what the mount says when it is asked (SIGUSR1)."""
        before = self._it.output().count("so far:")
        os.kill(self._it.process.pid, signal.SIGUSR1)
        self._it.wait_until(lambda: self._it.output().count("so far:") > before, "its statistics")
        said = self._it.output().rsplit("so far:", 1)[1].split("\n", 1)[0]
        found = re.search(pattern, said)
        return int(found[1]) if found else 0

    @property
    def done(self) -> int:
        """Jobs that render processes have done."""
        return self.figure(r"\bdone=([0-9]+)")

    def asked(self, what: str) -> int:
        """Requests of the kernel of that kind."""
        return self.figure(rf"\b{what} ([0-9]+)")

    @contextmanager
    def stopped_workers(self) -> Iterator[None]:
        """No render ends inside of the block."""
        pid = self._it.process.pid
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        assert children
        for child in children:
            os.kill(child, signal.SIGSTOP)
        try:
            yield
        finally:
            for child in children:
                os.kill(child, signal.SIGCONT)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one series of small images, numbered from 1, that share a window."""
    require_fuse()
    folder = tmp_path_factory.mktemp("filled")
    (folder / "images").mkdir()
    pixels = np.arange(32 * 24, dtype=np.uint16).reshape(32, 24)
    for number in range(1, IMAGES + 1):
        uid = f"2.25.77{number:03}"
        ds = data_set(InstanceNumber=number, SOPInstanceUID=uid, pixels=np.roll(pixels, number))
        save(folder / "images" / f"{number}.dcm", ds)
    argv = command_line("import", "--quiet", "--store", folder / "store", folder / "images")
    subprocess.run(argv, check=True, timeout=120)
    return folder / "store"


@pytest.fixture
def store(tmp_path: Path, filled: Path) -> Path:
    """The same, of this test's own."""
    return Path(shutil.copytree(filled, tmp_path / "store"))


@contextmanager
def mount(store: Path, options: str) -> Iterator[Mount]:
    """The store, mounted with the real command."""
    point = store.with_name("mnt")
    point.mkdir(exist_ok=True)
    argv = command_line("mount", "--store", store, point, "-o", options)
    log = store.with_name("log")
    with running(argv, log, lambda: mounted(point), "the mount", mountpoint=point) as it:
        yield Mount(it, point)


@pytest.fixture(scope="module")
def it(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that renders nothing ahead, with one render process; each test has pictures of its own."""
    store = Path(shutil.copytree(filled, tmp_path_factory.mktemp("shared") / "store"))
    with mount(store, "workers=1,warm=off") as shared:
        shared.path(IMAGES).read_bytes()  # decides the window of all
        yield shared


@contextmanager
def readers(paths: Sequence[Path]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process for each path that writes what it reads to a pipe; none is left behind."""
    cat = require("cat")
    with ExitStack() as stack:
        yield [stack.enter_context(_reader(cat, path)) for path in paths]


@contextmanager
def _reader(cat: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([cat, "--", path], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_readers_of_one_picture_share_one_render(it: Mount) -> None:
    before, joined = it.done, it.figure(JOINED)
    with ExitStack() as stack:
        with it.stopped_workers():
            processes = stack.enter_context(readers([it.path(1)] * 8))
            wait_until(lambda: it.figure(JOINED) == joined + 7, "one that renders and seven that wait")
            assert it.done == before
        told = [process.communicate()[0] for process in processes]
    assert len(set(told)) == 1
    assert told[0]
    assert it.done == before + 1


def test_who_is_killed_is_let_go_and_his_picture_is_not_rendered(it: Mount) -> None:
    before = it.done
    with ExitStack() as stack:
        with it.stopped_workers():
            first, other = stack.enter_context(readers([it.path(2), it.path(3)]))
            wait_until(lambda: it.figure(WAITING) == 1, "one that is rendered and one that waits")
            (killed,) = stack.enter_context(readers([it.path(4)]))
            wait_until(lambda: it.figure(WAITING) == 2, "a third one")
            killed.kill()
            assert killed.wait(20) == -signal.SIGKILL  # although no render can end
            assert it.figure(WAITING) == 1
        assert first.communicate()[0]
        assert other.communicate()[0]
    assert it.done == before + 2
    # It was nobody else's loss: the next one who asks has it rendered.
    assert it.path(4).read_bytes()
    assert it.done == before + 3


def test_one_of_two_readers_is_killed_and_the_other_gets_the_picture(it: Mount) -> None:
    joined = it.figure(JOINED)
    with ExitStack() as stack:
        with it.stopped_workers():
            (killed,) = stack.enter_context(readers([it.path(5)]))
            wait_until(lambda: it.figure(RUNNING) == 1, "the first one's render")
            (other,) = stack.enter_context(readers([it.path(5)]))
            wait_until(lambda: it.figure(JOINED) == joined + 1, "the second one")
            killed.terminate()
            assert killed.wait(20) == -signal.SIGTERM
        assert other.communicate()[0] == it.path(5).read_bytes()


def test_the_next_pictures_of_a_series_are_ready_before_they_are_opened(store: Path) -> None:
    with mount(store, "warm=off") as it:
        expected = {number: it.path(number).read_bytes() for number in it.paths}
    # All sizes and the window are known, so nothing but steps makes this one render ahead.
    with mount(store, "workers=2") as it:
        before = it.done
        for number in (10, 9, 8):
            it.path(number).read_bytes()
        wait_until(lambda: it.done == before + 7, "the four before the last that was opened")
        for number in (7, 6):
            assert it.path(number).read_bytes() == expected[number]
        wait_until(lambda: it.done == before + 10, "all to the first of the series")


def test_a_size_that_was_wrong_is_not_believed_any_longer(store: Path) -> None:
    with mount(store, "warm=off") as it:
        expected = {number: it.path(number).read_bytes() for number in it.paths}
        inodes = {number: Inode.of(path.stat().st_ino) for number, path in it.paths.items()}
    wrong = {20: -100, 7: -100, 6: 100}
    with closing(sqlite3.connect(store / "renditions.sqlite3")) as renditions:
        for number, change in wrong.items():
            inode = inodes[number]
            assert inode is not None
            where = (change, inode.id)
            renditions.execute("UPDATE sizes SET size = size + ? WHERE original = ?", where)
        renditions.commit()
    with mount(store, "workers=2") as it:
        for number, change in wrong.items():
            assert it.path(number).stat().st_size == len(expected[number]) + change
        # Found out by whoever opens it, or by what is rendered ahead of him who steps through the series.
        with pytest.raises(OSError, match="Input/output error"):
            it.path(20).read_bytes()
        for number in (10, 9, 8):
            it.path(number).read_bytes()
        wait_until(lambda: it.figure(KEPT) == 8, "the four before the last that was opened")
        for number in wrong:
            with it.path(number).open("rb") as file:
                assert os.fstat(file.fileno()).st_size == len(expected[number])
                assert file.read() == expected[number]


def test_opened_again_nothing_is_asked_of_anybody(it: Mount) -> None:
    """The kernel keeps names and pages: what is left is the open itself, and closing asks nothing."""
    first = it.path(6).read_bytes()
    asked = {what: it.asked(what) for what in ("open", "lookup", "read", "flush")}
    for _ in range(5):
        assert it.path(6).read_bytes() == first
    assert {what: it.asked(what) for what in asked} == {**asked, "open": asked["open"] + 5}
    assert asked["flush"] == 1  # of the very first close in this mount


@pytest.mark.parametrize("live", ["on", "off"])
def test_what_was_forgotten_cannot_be_opened_again(store: Path, live: str) -> None:
    with mount(store, f"workers=1,warm=off,live={live}") as it:
        path = it.path(1)
        for _ in range(3):
            path.read_bytes()
        # A descriptor that opens nothing: the name may go, what it stands for can still be asked for.
        handle = os.open(path, os.O_PATH)
        try:
            _forget(store, path)
            wait_until(lambda: not path.exists(), "the name is gone")
            with pytest.raises(OSError, match="Stale file handle"):
                os.open(f"/proc/self/fd/{handle}", os.O_RDONLY)
        finally:
            os.close(handle)


def _forget(store: Path, path: Path) -> None:
    argv = command_line("forget", "--store", store, "--json", path)
    listed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    subprocess.run([*argv, "--yes", json.loads(listed.stdout)["token"]], check=True, timeout=60)
