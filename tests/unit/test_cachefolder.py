"""The folder of pictures: limits, what is never served, whoever deletes, fills or plants something there."""

import contextlib
import errno
import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomfs.cachefolder import (
    BYTES_PER_FILE,
    COMPARTMENTS,
    LEFTOVER_S,
    CacheFolder,
    UnsafeFolder,
    file_name,
)
from dicomfs.twoqueue import SECOND_USE_S
from tests.disk import fill, small_disk
from tests.support import lacking

LIMIT = 16 << 20
"""1 MiB in each compartment."""
TAG, OTHER_TAG = b"t" * 16, b"u" * 16
SIZE = 20_000
"""20 480 bytes on the disk, so a compartment has room for 51."""
SMALL = 100
"""So small that the number of files is what counts: 64 of them."""
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def names(count: int, compartment: str = "a") -> list[str]:
    """Names of one compartment, so that its limits are the limits."""
    found = (file_name(str(number)) for number in range(1_000_000))
    return [name for name, _ in zip((n for n in found if n[0] == compartment), range(count), strict=False)]


NAMES = names(400)
NAME = NAMES[0]
PICTURE = Random(1).randbytes(SIZE)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path, clock: Clock) -> CacheFolder:
    return CacheFolder(tmp_path, LIMIT, clock=clock)


def put(folder: CacheFolder, *wanted: str, is_use: bool = True) -> None:
    for name in wanted:
        folder.write(name, TAG, PICTURE, is_use=is_use)


def there(folder: CacheFolder, wanted: Sequence[str]) -> list[str]:
    """Which of them are there; looks without using them."""
    return [name for name in wanted if (folder.folder / "dicomfs" / name[0] / name).exists()]


def file(folder: CacheFolder, name: str = NAME) -> Path:
    return folder.folder / "dicomfs" / name[0] / name


def test_what_was_written_is_read_by_the_next_process(folder: CacheFolder) -> None:
    assert folder.read(NAME, TAG) is None
    put(folder, NAME)
    for again in (folder, CacheFolder(folder.folder, LIMIT)):
        assert again.read(NAME, TAG) == PICTURE
    folder.write(NAME, OTHER_TAG, b"newer", is_use=True)
    assert folder.read(NAME, OTHER_TAG) == b"newer"


def test_another_tag_is_another_picture(folder: CacheFolder) -> None:
    put(folder, NAME)
    assert folder.read(NAME, OTHER_TAG) is None
    assert folder.read(NAME, TAG) == PICTURE


def test_nobody_else_may_look(folder: CacheFolder) -> None:
    before = os.umask(0)
    try:
        put(folder, *NAMES[:3])
    finally:
        os.umask(before)
    for where, _, found in os.walk(folder.folder / "dicomfs"):
        assert stat.S_IMODE(Path(where).stat().st_mode) == 0o700
        assert not any(stat.S_IMODE(Path(where, name).stat().st_mode) & 0o077 for name in found)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda raw: raw[:-1],
        lambda raw: raw[:50],
        lambda raw: raw + b"\0",
        lambda raw: bytes(len(raw)),
        lambda raw: raw[:-4096] + bytes(4096),
        lambda _: b"\xff\xd8 a picture of somebody else's program \xff\xd9",
    ],
)
def test_what_is_not_whole_is_never_served(folder: CacheFolder, spoil: Callable[[bytes], bytes]) -> None:
    put(folder, NAME)
    raw = file(folder).read_bytes()
    file(folder).unlink()
    file(folder).write_bytes(spoil(raw))
    assert folder.read(NAME, TAG) is None
    assert folder.totals().damaged == 1
    assert not file(folder).exists()
    put(folder, NAME)
    assert folder.read(NAME, TAG) == PICTURE


def test_no_flipped_bit_is_served(folder: CacheFolder) -> None:
    data = b"picture"
    folder.write(NAME, TAG, data, is_use=True)
    raw = file(folder).read_bytes()
    for place in range(len(raw)):
        file(folder).unlink(missing_ok=True)
        file(folder).write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert folder.read(NAME, TAG) is None, place


def test_a_picture_of_another_name_is_not_served(folder: CacheFolder) -> None:
    put(folder, NAME)
    shutil.copyfile(file(folder), file(folder, NAMES[1]))
    assert folder.read(NAMES[1], TAG) is None
    assert folder.read(NAME, TAG) == PICTURE


def plant_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def plant_fifo(path: Path, _outside: Path) -> None:
    os.mkfifo(path)


def plant_socket(path: Path, _outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):  # the name alone is short
        made.bind(path.name)


def plant_file_of_another_user(path: Path, outside: Path) -> None:
    if os.geteuid() != 0:
        lacking("only root can give a file away")
    shutil.copyfile(outside, path)
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize("plant", [plant_link, plant_fifo, plant_socket, plant_file_of_another_user])
def test_what_others_have_planted_is_neither_followed_nor_served(
    folder: CacheFolder, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    put(folder, NAME)
    outside = tmp_path / "outside"
    file(folder).rename(outside)
    content = outside.read_bytes()
    plant(file(folder), outside)
    assert folder.read(NAME, TAG) is None
    plant(file(folder), outside)
    folder.touch(NAME)
    plant(file(folder), outside)
    put(folder, NAME)
    assert folder.read(NAME, TAG) == PICTURE
    assert outside.read_bytes() == content
    assert folder.totals().damaged == 2


def test_a_folder_in_the_place_of_a_picture_is_no_picture(folder: CacheFolder) -> None:
    put(folder, NAMES[1])
    file(folder).mkdir()
    assert folder.read(NAME, TAG) is None
    with pytest.raises(OSError, match="directory"):
        put(folder, NAME)
    assert not [path for path in file(folder).parent.iterdir() if path.suffix]
    assert folder.read(NAMES[1], TAG) == PICTURE


@pytest.mark.parametrize("part", ["dicomfs", "dicomfs/a"])
@pytest.mark.parametrize("how", ["link", "open", "owner"])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, part: str, how: str) -> None:
    place = tmp_path / "given" / part
    place.parent.mkdir(parents=True, mode=0o700)
    if how == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir(mode=0o750 if how == "open" else 0o700)
    if how == "owner":
        if os.geteuid() != 0:
            lacking("only root can give a folder away")
        os.chown(place, 12345, 12345)
    folder = CacheFolder(tmp_path / "given", LIMIT)
    with pytest.raises(NotADirectoryError if how == "link" else UnsafeFolder):
        put(folder, NAME)
    with pytest.raises(OSError, match=r"0700|Not a directory"):
        folder.read(NAME, TAG)
    assert not (tmp_path / "elsewhere").exists() or not list((tmp_path / "elsewhere").iterdir())


def test_the_folder_itself_is_never_made(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path / "not mounted", LIMIT)
    with pytest.raises(FileNotFoundError, match="make it, or mount its disk"):
        put(folder, NAME)
    assert not folder.folder.exists()


@pytest.mark.parametrize("what", ["dicomfs", f"dicomfs/{NAME[0]}", f"dicomfs/{NAME[0]}/{NAME}"])
def test_anything_may_be_deleted_at_any_time(folder: CacheFolder, what: str) -> None:
    put(folder, NAME)
    victim = folder.folder / what
    if victim.is_dir():
        shutil.rmtree(victim)
    else:
        victim.unlink()
    folder.touch(NAME)
    assert folder.read(NAME, TAG) is None
    put(folder, NAME)
    assert folder.read(NAME, TAG) == PICTURE
    shutil.rmtree(folder.folder / "dicomfs")
    folder.survey(NAME[0])
    assert folder.totals().files == 0


def test_when_the_whole_folder_comes_back_it_is_used_again(folder: CacheFolder) -> None:
    put(folder, NAME)
    shutil.rmtree(folder.folder)
    with pytest.raises(FileNotFoundError):
        put(folder, NAME)
    folder.folder.mkdir()
    put(folder, NAME)
    assert folder.read(NAME, TAG) == PICTURE


def test_the_end_does_not_wait_for_a_folder_that_cannot_be_opened_now(
    folder: CacheFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk hangs; what comes back later opens it anew."""
    opening, goes_on = threading.Event(), threading.Event()
    opened = CacheFolder._opened

    def hang(self: CacheFolder) -> object:
        opening.set()
        goes_on.wait()
        return opened(self)

    monkeypatch.setattr(CacheFolder, "_opened", hang)
    with ThreadPoolExecutor(2) as threads:
        try:
            reading = threads.submit(folder.read, NAME, TAG)
            opening.wait()
            threads.submit(folder.close).result(timeout=10)
            assert not reading.done()
        finally:
            goes_on.set()
        assert reading.result() is None


# Limits


def held(folder: CacheFolder, compartment: str = "a") -> tuple[int, int]:
    """Bytes, in blocks, and files of a compartment, counted by hand."""
    sizes = [path.stat().st_size for path in (folder.folder / "dicomfs" / compartment).iterdir()]
    return sum(-(-size // 4096) * 4096 for size in sizes), len(sizes)


@settings(max_examples=25, deadline=None)  # each writes a folder full of files
@given(sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=80), seed=st.randoms())
def test_two_mounts_together_keep_within_the_limits(
    tmp_path_factory: pytest.TempPathFactory, sizes: Sequence[int], seed: Random
) -> None:
    limit = 4 << 20
    most_bytes, most_files = limit // 16, limit // 16 // BYTES_PER_FILE
    place = tmp_path_factory.mktemp("cache")
    mounts = [CacheFolder(place, limit) for _ in range(2)]
    for name, size in zip(NAMES, sizes, strict=False):
        mount = seed.choice(mounts)
        data = bytes(min(size, mount.largest))
        mount.write(name, TAG, data, is_use=True)
        assert mount.read(name, TAG) == data
        bytes_held, files_held = held(mount)
        assert bytes_held <= most_bytes
        assert files_held <= most_files
    for mount in mounts:
        mount.survey("a")
        assert (mount.totals().bytes, mount.totals().files) == held(mount)
    shutil.rmtree(place)


def test_a_limit_that_was_lowered_holds_after_the_first_look(folder: CacheFolder) -> None:
    put(folder, *NAMES[:80])
    lower = CacheFolder(folder.folder, LIMIT // 2)
    for compartment in COMPARTMENTS:
        lower.survey(compartment)
    assert held(lower)[0] <= LIMIT // 2 // 16
    assert lower.totals().evictions > 0


def test_the_longest_unused_goes_first_over_restarts(folder: CacheFolder, clock: Clock) -> None:
    for name in NAMES[:40]:
        clock.now += 1
        put(folder, name)
    clock.now += 1
    put(folder, *NAMES[:10])  # as new
    later = CacheFolder(folder.folder, LIMIT, clock=clock)
    for name in NAMES[40:65]:
        clock.now += 1
        put(later, name)
    gone = [name for name in NAMES[:65] if name not in there(later, NAMES)]
    assert gone == NAMES[10 : 10 + len(gone)]
    assert len(gone) == later.totals().evictions > 10


@pytest.mark.parametrize("by", ["read", "touch"])
@pytest.mark.parametrize("size", [SIZE, SMALL])
def test_no_scan_evicts_what_was_used_again(folder: CacheFolder, clock: Clock, by: str, size: int) -> None:
    often = NAMES[:28]  # 9 parts of 16: the 13 that are kept, without a quarter
    for name in often:
        folder.write(name, TAG, bytes(size), is_use=True)
    clock.now += SECOND_USE_S
    for name in often:
        folder.read(name, TAG) if by == "read" else folder.touch(name)
    scanning = CacheFolder(folder.folder, LIMIT, clock=clock)
    for name in NAMES[28:]:
        clock.now += 1
        scanning.write(name, TAG, bytes(size), is_use=True)
        scanning.read(name, TAG)
    assert there(scanning, often) == often
    assert scanning.totals().evictions > 200


def test_what_was_made_ahead_is_not_used_again_by_the_first_who_opens_it(
    folder: CacheFolder, clock: Clock
) -> None:
    put(folder, *NAMES[:28], is_use=False)
    clock.now += 3600
    assert all(folder.read(name, TAG) for name in NAMES[:28])
    clock.now += 1
    put(folder, *NAMES[28:200])
    assert there(folder, NAMES[:28]) == []


def test_what_a_killed_process_left_is_cleared_and_what_is_not_ours_is_left_alone(
    folder: CacheFolder, clock: Clock
) -> None:
    put(folder, NAME)
    old, new, strange = (file(folder).with_name(name) for name in (f"{NAME}.7-1", f"{NAME}.7-2", "README"))
    for path in (old, new, strange):
        path.write_bytes(bytes(5000))
    os.utime(old, (NOW - LEFTOVER_S - 1,) * 2)
    os.utime(new, (NOW, NOW))
    folder.survey(NAME[0])
    assert [path.exists() for path in (old, new, strange)] == [False, True, True]
    assert folder.totals().files == 2


# Full disks


def test_on_a_disk_smaller_than_the_limit_new_pictures_go_on(tmp_path: Path) -> None:
    with small_disk(tmp_path) as place:
        folder = CacheFolder(place, 1 << 30)
        put(folder, *NAMES)
        assert folder.read(NAMES[-1], TAG) == PICTURE
        assert 20 < len(there(folder, NAMES)) < 200
        disk = os.statvfs(place)
        assert disk.f_bavail >= disk.f_blocks // 20
        folder.close()


def test_a_disk_that_others_fill_is_given_way_to_and_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path) as place:
        folder = CacheFolder(place, LIMIT)
        put(folder, *NAMES[:40])
        fill(place)
        for _ in range(40):
            with contextlib.suppress(OSError):
                put(folder, NAMES[50])
            fill(place)
        with pytest.raises(OSError, match="No space") as caught:
            put(folder, NAMES[50])
        assert caught.value.errno == errno.ENOSPC
        assert there(folder, NAMES) == []
        assert not [path for path in file(folder).parent.iterdir() if path.suffix]
        (place / "ballast").unlink()
        put(folder, NAMES[50])
        assert folder.read(NAMES[50], TAG) == PICTURE
        folder.close()
