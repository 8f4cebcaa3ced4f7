"""A mount with a disk cache: pictures over a restart, and whatever somebody does to the folder meanwhile."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dicomfs import importer, statusview
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates
from dicomfs.mountfile import mounts
from dicomfs.scpoptions import Watermark
from dicomfs.status import gather
from tests.disk import fill, small_disk
from tests.made import save
from tests.shared import images
from tests.support import ROOT, Running, command_line, mounted, require_fuse, running

PICTURES = 8
OPTIONS = "warm=off,workers=1,live=off"


@dataclass(frozen=True, slots=True)
class Store:
    """A store with some images and a disk cache, mounted as often as one likes."""

    scratch: Path

    @property
    def store(self) -> Path:
        return self.scratch / "store"

    @property
    def point(self) -> Path:
        return self.scratch / "mount"

    @property
    def cache(self) -> Path:
        return self.scratch / "cache"

    @property
    def log(self) -> Path:
        return self.scratch / "log"

    @contextmanager
    def mounted(self, cache: Path | None = None, options: str = OPTIONS) -> Iterator[Running]:
        words = f"{options},disk_cache={cache or self.cache}"
        argv = command_line("mount", "--store", self.store, self.point, "-o", words)
        ready = lambda: mounted(self.point) and mounts(self.store)  # noqa: E731  a def would say no more
        with running(argv, self.log, ready, "the mount answers", mountpoint=self.point) as it:
            yield it

    def pictures(self) -> dict[str, bytes]:
        """What every file of the mount holds; its length is what was announced.

        Not from the kernel's memory: what it has of a file is dropped before.
        """
        found = {}
        for path in sorted(self.point.rglob("*.jpg")):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                found[path.name] = file.read()
            assert len(found[path.name]) == path.stat().st_size
        return found

    def told(self, program: Running, **wanted: int | str) -> dict[str, Any]:
        """What the mount says of its disk cache and renders, once it says this."""
        facts: dict[str, Any] = {}

        def is_told() -> bool:
            facts.clear()
            (one,) = statusview.facts(gather(self.store, Watermark(0)))["mounts"]
            facts.update(one["disk"], rendered=one["rendered"]["count"])
            return wanted.items() <= facts.items()

        try:
            program.wait_until(is_told, f"a mount that says {wanted}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it told of {json.dumps(facts)}") from None
        return facts

    def files(self) -> list[Path]:
        """Of the disk cache."""
        return [path for path in (self.cache / "dicomfs").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, bytes]]:
    """One whose pictures are in the disk cache, and nowhere else; and what they are."""
    require_fuse()
    store = Store(tmp_path_factory.mktemp("filled"))
    store.point.mkdir()
    store.cache.mkdir(mode=0o700)
    files = [
        save(store.scratch / f"{number}.dcm", ds) for number, ds in enumerate(images(range(1, PICTURES + 1)))
    ]
    with Ingest.open(store.store, Duplicates.KEEP_FIRST) as ingest:
        importer.take_in(ingest, files, lambda _: None)
    with store.mounted() as program:
        found = store.pictures()
        store.told(program, misses=PICTURES, written=PICTURES, rendered=PICTURES)
    assert len(found) == len(store.files()) == PICTURES
    return store, found


@pytest.fixture
def store(filled: tuple[Store, dict[str, bytes]], tmp_path: Path) -> Store:
    """A copy of it."""
    shutil.copytree(filled[0].scratch, tmp_path, dirs_exist_ok=True)
    it = Store(tmp_path)
    it.log.unlink()
    return it


@pytest.fixture
def pictures(filled: tuple[Store, dict[str, bytes]]) -> dict[str, bytes]:
    return filled[1]


def test_after_a_restart_nothing_is_rendered(store: Store, pictures: dict[str, bytes]) -> None:
    with store.mounted() as program:
        assert store.pictures() == pictures
        told = store.told(program, hits=PICTURES, misses=0, items=PICTURES)
    assert (told["rendered"], told["written"], told["trouble"]) == (0, 0, "")
    assert "WARNING" not in store.log.read_text()
    assert mounts(store.store) == []


def test_sizes_that_were_lost_are_found_without_a_render(store: Store, pictures: dict[str, bytes]) -> None:
    for path in store.store.glob("renditions.sqlite3*"):
        path.unlink()
    with store.mounted() as program:
        listed = {path.name: path.stat().st_size for path in store.point.rglob("*.jpg")}
        assert listed == {name: len(data) for name, data in pictures.items()}
        assert store.told(program, hits=PICTURES)["rendered"] == 0


def test_it_may_be_deleted_while_it_is_in_use(store: Store, pictures: dict[str, bytes]) -> None:
    # Nothing is kept in memory: what is not in the disk cache is rendered.
    with store.mounted(options=f"{OPTIONS},cache=0") as program:
        assert store.pictures() == pictures
        store.told(program, hits=PICTURES, rendered=0)
        for time, delete in enumerate((delete_files, delete_our_folder, delete_all), start=1):
            delete(store)
            assert store.pictures() == pictures
            store.told(program, hits=time * PICTURES, rendered=time * PICTURES, written=time * PICTURES)
            assert store.pictures() == pictures
            store.told(program, hits=(time + 1) * PICTURES, rendered=time * PICTURES)
    assert "WARNING" not in store.log.read_text()


def delete_files(store: Store) -> None:
    for path in store.files():
        path.unlink()


def delete_our_folder(store: Store) -> None:
    shutil.rmtree(store.cache / "dicomfs")


def delete_all(store: Store) -> None:
    """And put an empty one in its place at the same moment: without any it would be in trouble."""
    empty = store.scratch / "empty"
    empty.mkdir()
    delete_our_folder(store)
    empty.rename(store.cache)


def test_damaged_files_are_rendered_anew(store: Store, pictures: dict[str, bytes]) -> None:
    for number, path in enumerate(sorted(store.files())):
        raw = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(raw[: len(raw) // 2] if number % 2 else raw[:-10] + bytes(10))
    with store.mounted(options=f"{OPTIONS},cache=0") as program:
        assert store.pictures() == pictures
        store.told(program, hits=0, damaged=PICTURES, rendered=PICTURES, written=PICTURES)
        assert store.pictures() == pictures
        store.told(program, hits=PICTURES, damaged=PICTURES, rendered=PICTURES)


@pytest.mark.parametrize("is_full", [True, False])
def test_pictures_go_on_without_it(store: Store, pictures: dict[str, bytes], is_full: bool) -> None:
    """One line in the log, and no error for anybody who reads."""
    with ExitStack() as stack:
        if is_full:
            cache, why = stack.enter_context(small_disk(store.scratch)), "No space left on device"
            fill(cache)
        else:
            cache, why = store.scratch / "not mounted", "it is missing: make it, or mount its disk"
        program = stack.enter_context(store.mounted(cache))
        assert store.pictures() == pictures
        told = store.told(program, hits=0, written=0, dropped=PICTURES, rendered=PICTURES)
        assert told["trouble"] == why
    warned = [line for line in store.log.read_text().splitlines() if "WARNING" in line]
    assert len(warned) == 1
    assert warned[0].endswith(f"no disk cache for now, pictures are kept in memory only: {cache}: {why}")


def test_two_mounts_share_it(store: Store, pictures: dict[str, bytes]) -> None:
    """One shows what is there already; pictures of the other's quality are others."""
    second = store.scratch / "second"
    second.mkdir()
    options = f"{OPTIONS},disk_cache={store.cache},quality=50"
    argv = command_line("mount", "--store", store.store, second, "-o", options)
    log = store.scratch / "second.log"

    def hits_and_renders() -> list[tuple[int, int]]:
        found = [one.figures for one in mounts(store.store)]
        return [(one.disk.hits, one.rendered.count) for one in found if one.disk is not None]

    with (
        store.mounted() as it,
        running(argv, log, lambda: mounted(second), "a second mount", mountpoint=second),
    ):
        coarse = {path.name: path.read_bytes() for path in second.rglob("*.jpg")}
        assert store.pictures() == pictures
        it.wait_until(lambda: hits_and_renders() == [(PICTURES, 0), (0, PICTURES)], "both tell of it")
    assert coarse.keys() == pictures.keys()
    assert all(len(coarse[name]) < len(pictures[name]) for name in pictures)
    assert len(store.files()) == 2 * PICTURES


def test_it_must_not_be_in_the_mount(store: Store) -> None:
    options = f"disk_cache={store.point}/cache"
    argv = command_line("mount", "--store", store.store, store.point, "-o", options)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 6
    assert "must not lie inside each other" in done.stderr
