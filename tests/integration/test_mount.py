"""The real mount: exact sizes by every way of reading, a file system that cannot be written, restarts."""

import contextlib
import errno
import mmap
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.filereader import _read_file_meta_info, read_preamble

from dicomfs import mount as mounting
from dicomfs.config import MountOptions
from dicomfs.errors import MountRefused
from dicomfs.filemeta import DATA_SET_OFFSET
from tests.made import data_set, save
from tests.support import (
    ROOT,
    Running,
    command_line,
    lacking,
    mounted,
    require,
    require_fuse,
    running,
    shipped,
    unmount_idle,
    wait_until,
)

pytestmark = pytest.mark.filterwarnings("ignore:Value length.*:UserWarning")
SIZES = {"CT_small.dcm": (128, 128), "MR_small.dcm": (64, 64), "examples_palette.dcm": (800, 350)}
"""Columns and rows, as the pydicom documentation and `dcmdump` give them."""
TRAILERS = {"jpg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}
O_DIRECT = os.O_DIRECT


@dataclass(frozen=True, slots=True)
class Store:
    """A store and where it is mounted."""

    store: Path
    point: Path
    log: Path

    def take(self, *files: Path) -> None:
        """Import files in another process, as a receiver would be one."""
        done = subprocess.run(
            command_line("import", "--store", self.store, *files),
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @contextlib.contextmanager
    def mounted(
        self, options: str = "formats=jpg+png+dcm,frames=3", *, prefix: Sequence[str] = ()
    ) -> Iterator[Running]:
        """The real command, mounted and ready; unmounted at the end."""
        argv = [*prefix, *command_line("mount", "--store", self.store, self.point, "-o", options)]
        with running(argv, self.log, lambda: mounted(self.point), "the mount", mountpoint=self.point) as it:
            yield it

    def files(self, folder: str = "") -> list[Path]:
        """All files in the mount, sorted; names and kinds only, no file is asked for its size."""
        return sorted(Path(where, name) for where, _, names in os.walk(self.point / folder) for name in names)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    require_fuse()
    point = tmp_path / "mnt"
    point.mkdir()
    return Store(tmp_path / "store", point, tmp_path / "log")


def samples() -> list[Path]:
    """Real files: CT, MR, palette colour, multi-frame."""
    names = (*SIZES, "examples_ybr_color.dcm", "JPEG2000.dcm")
    return [shipped(name) for name in names]


# Ways to read a file; each gives all of it.


def by_read(path: Path) -> bytes:
    return path.read_bytes()


def by_pread(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        parts: list[bytes] = []
        while part := os.pread(fd, 1000, sum(map(len, parts))):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def by_mmap(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return bytes(mapped)


def by_sendfile(path: Path) -> bytes:
    target = os.memfd_create("copy")
    with path.open("rb") as file, os.fdopen(target, "w+b") as copy:
        offset = 0
        while sent := os.sendfile(copy.fileno(), file.fileno(), offset, 1 << 20):
            offset += sent
        copy.seek(0)
        return copy.read()


def by_direct(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | O_DIRECT)
    try:
        room = mmap.mmap(-1, 1 << 20)  # page aligned, as O_DIRECT wants
        parts: list[bytes] = []
        while count := os.preadv(fd, [room], sum(map(len, parts))):
            parts.append(room[:count])
        return b"".join(parts)
    finally:
        os.close(fd)


WAYS: list[Callable[[Path], bytes]] = [by_read, by_pread, by_mmap, by_sendfile, by_direct]


@pytest.mark.parametrize("first", WAYS, ids=lambda way: way.__name__)
def test_sizes_are_exact_whoever_reads_first_and_how(store: Store, first: Callable[[Path], bytes]) -> None:
    store.take(*samples())
    with store.mounted("formats=jpg+png+dcm,warm=off,frames=1"):
        shown = store.files()
        assert len(shown) == 3 * len(samples())
        for path in shown:
            # Before anything else: no stat has made the size known.
            content = first(path)
            info = path.stat()
            assert len(content) == info.st_size > 0
            assert info.st_blocks == (info.st_size + 511) // 512
            assert info.st_nlink == 1
            for way in WAYS:
                assert way(path) == content
            assert content.endswith(TRAILERS.get(path.suffix[1:], b""))


def test_pictures_open_and_have_the_right_dimensions(store: Store) -> None:
    files = [path for path in samples() if path.name in SIZES]
    store.take(*files)
    expected = sorted(SIZES[path.name] for path in files)
    with store.mounted("formats=jpg+png"):
        for name in ("jpg", "png"):
            found = []
            for path in store.files(name):
                with Image.open(path) as picture:
                    picture.load()
                    assert picture.format == {"jpg": "JPEG", "png": "PNG"}[name]
                    found.append(picture.size)
            assert sorted(found) == expected


def test_dcm_is_what_was_imported(store: Store) -> None:
    store.take(*samples())
    sent = {}
    for path in samples():
        with path.open("rb") as file:
            read_preamble(file, force=False)
            meta = _read_file_meta_info(file)  # leaves the file at the data set
            sent[str(meta.MediaStorageSOPInstanceUID)] = file.read()
    with store.mounted("formats=dcm"):
        shown = store.files()
        archived = {path.read_bytes() for path in (store.store / "archive").rglob("*.dcm")}
        assert {path.read_bytes() for path in shown} == archived
        for path in shown:
            whole = path.read_bytes()
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            assert whole[DATA_SET_OFFSET:] == sent[str(ds.SOPInstanceUID)]


def test_modified_is_the_acquisition(store: Store, tmp_path: Path) -> None:
    begun = time.time()
    store.take(
        save(tmp_path / "1", data_set()),
        save(
            tmp_path / "2",
            data_set(
                SOPInstanceUID="2.25.9", InstanceNumber=2, AcquisitionDate="20990101", StudyDate="20990101"
            ),
        ),
    )
    with store.mounted("formats=jpg+dcm"):
        for name in ("jpg", "dcm"):
            first, second = store.files(name)
            assert first.stat().st_mtime == 1_706_696_430  # date -u -d '2024-01-31 10:20:30' +%s
            assert begun - 1 <= second.stat().st_mtime <= time.time() + 1
            assert begun - 1 <= second.parent.stat().st_mtime <= time.time() + 1


# Nothing can be written


def error_of(action: Callable[[], object]) -> str:
    """Name of the error that an action ends with."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "no error"


def changes(file: Path) -> dict[str, Callable[[], object]]:
    new = file.with_name("new")
    return {
        "write": lambda: file.open("r+b"),
        "append": lambda: file.open("ab"),
        "truncating open": lambda: file.open("wb"),
        "create": lambda: new.open("xb"),
        "mkdir": new.mkdir,
        "mknod": lambda: os.mknod(new),
        "symlink": lambda: new.symlink_to("x"),
        "link": lambda: os.link(file, new),
        "unlink": file.unlink,
        "rmdir": file.parent.rmdir,
        "rename": lambda: file.rename(new),
        "rename folder": lambda: file.parent.rename(file.parent.with_name("new")),
        "chmod": lambda: file.chmod(0o777),
        "chown": lambda: os.chown(file, 1, 1),
        "truncate": lambda: os.truncate(file, 0),
        "utime": lambda: os.utime(file),
        "setxattr": lambda: os.setxattr(file, "user.x", b"1"),
        "removexattr": lambda: os.removexattr(file, "user.x"),
    }


def test_everything_that_writes_is_refused(store: Store) -> None:
    if os.geteuid() != 0:
        lacking("others than root are refused by the kernel already")
    store.take(*samples()[:1])
    with store.mounted("formats=jpg+dcm"):
        for file in store.files():
            before = file.read_bytes()
            for what, change in changes(file).items():
                assert (what, error_of(change)) == (what, "EROFS")
            assert file.read_bytes() == before


def test_statfs_and_folders(store: Store) -> None:
    store.take(*samples()[:1])
    with store.mounted("formats=jpg"):
        system, disk = os.statvfs(store.point), os.statvfs(store.store)
        assert (system.f_namemax, system.f_bavail) == (255, 0)
        assert system.f_blocks * system.f_frsize == disk.f_blocks * disk.f_frsize
        for folder in (store.point, store.files()[0].parent):
            assert folder.stat().st_nlink == 2
            assert names_in(folder)
        assert os.listxattr(store.files()[0]) == []


def test_who_asks_for_access_lists_of_one_file_is_told_about_all(store: Store) -> None:
    store.take(*samples()[:1])
    with store.mounted("formats=jpg"):
        for path in (store.files()[0], store.files()[0].parent):
            for kind in ("system.posix_acl_access", "security.selinux"):
                assert error_of(partial(os.getxattr, path, kind)) == errno.errorcode[errno.EOPNOTSUPP]
            assert error_of(partial(os.getxattr, path, "user.nothing")) == "ENODATA"


def test_names_that_cannot_be(store: Store) -> None:
    store.take(*samples()[:1])
    with store.mounted("formats=jpg"):
        folder = os.fsencode(store.files()[0].parent)
        for name, expected in [
            (b"\xff\xfe", "ENOENT"),
            (b"caf\xe9_1_1.jpg", "ENOENT"),
            (b"n" * 255, "ENOENT"),
            (b"n" * 256, "ENAMETOOLONG"),
            (b"n" * 2000, "ENAMETOOLONG"),
        ]:
            for where in (folder, os.fsencode(store.point)):
                assert error_of(partial(os.stat, where + b"/" + name)) == expected


def test_common_tools(store: Store, tmp_path: Path) -> None:
    store.take(*samples())
    with store.mounted("formats=jpg+dcm,frames=3"):
        shown = {path.relative_to(store.point): path.read_bytes() for path in store.files()}
        total = sum(map(len, shown.values()))
        said = subprocess.run(["du", "-sb", store.point], capture_output=True, text=True, check=True).stdout
        assert int(said.split()[0]) == total
        found = subprocess.run(
            ["find", ".", "-type", "f", "-size", "+0"],
            cwd=store.point,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\n")
        assert {Path(name) for name in found if name} == set(shown)
        copies = [["cp", "-r", f"{store.point}/.", str(tmp_path / "cp")]]
        if shutil.which("rsync"):
            copies.append(["rsync", "-a", f"{store.point}/", str(tmp_path / "rsync")])
        for argv in copies:
            subprocess.run(argv, check=True, capture_output=True)
            copied = Path(argv[-1])
            assert {
                path.relative_to(copied): path.read_bytes() for path in copied.rglob("*") if path.is_file()
            } == shown
        archive = tmp_path / "all.tar"
        done = subprocess.run(
            ["tar", "-cf", archive, "-C", store.point, "."], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""  # tar would say "file shrank", "changed as we read it"


# Restarts


def facts(store: Store) -> dict[str, tuple[int, int, int, bytes]]:
    return {
        str(path): (info.st_ino, info.st_size, info.st_mtime_ns, path.read_bytes())
        for path in store.files()
        for info in [path.stat()]
    }


def test_killed_mount_comes_back_the_same(store: Store, tmp_path: Path) -> None:
    store.take(*samples(), save(tmp_path / "run", data_set(pixels=np.ones((3, 8, 8), np.uint16))))
    with store.mounted() as it:
        before = facts(store)
        assert len([path for path in before if path.endswith((".jpg", ".png"))]) == 2 * (
            len(samples()) + 2 + 3
        )  # a run of 30, one of 3
        it.process.send_signal(signal.SIGKILL)
        it.process.wait()
        # For a second the kernel may remember the times of the root, which nobody else could tell it now.
        wait_until(lambda: is_dead(store.point), "an error instead of a folder")
        # The dead mount is cleared by the next one. (`mounted` is still true: wait for an answer.)
        argv = command_line(
            "mount", "--store", store.store, store.point, "-o", "formats=jpg+png+dcm,frames=3"
        )
        with running(argv, store.log, lambda: answers(store.point), "a living mount") as again:
            assert facts(store) == before
            assert "dead mount" in again.output()
    for path in store.store.glob("renditions.sqlite3*"):
        path.unlink()
    with store.mounted():
        assert facts(store) == before


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def answers(point: Path) -> bool:
    try:
        return bool(names_in(point))
    except OSError:
        return False


def is_dead(point: Path) -> bool:
    try:
        point.stat()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def test_clean_stop_unmounts(store: Store) -> None:
    store.take(*samples()[:1])
    for number in (signal.SIGTERM, signal.SIGINT):
        with store.mounted() as it:
            store.files()[0].read_bytes()
            it.process.send_signal(number)
            assert it.process.wait(30) == 0
            assert not mounted(store.point)


def test_unmounted_from_outside_ends_it(store: Store) -> None:
    store.take(*samples()[:1])
    with store.mounted() as it:
        unmount_idle(store.point)
        assert it.process.wait(30) == 0


# What comes in while it is mounted


def test_new_images_are_visible_without_remount(store: Store, tmp_path: Path) -> None:
    store.take(save(tmp_path / "0", data_set()))
    with store.mounted("formats=jpg"):
        folder = store.files()[0].parent
        for number in range(2, 6):
            wanted = folder / f"cine_5_{number}.jpg"
            assert not wanted.exists()  # a negative answer must not be remembered
            store.take(
                save(tmp_path / "n", data_set(SOPInstanceUID=f"2.25.8{number}", InstanceNumber=number))
            )
            wait_until(wanted.exists, "a new image by name", 1.0)
            assert wanted.name in names_in(folder)
        other = data_set(
            SOPInstanceUID="2.25.9", StudyInstanceUID="2.25.91", PatientID="x", PatientName="Roe"
        )
        store.take(save(tmp_path / "n", other))
        wait_until((store.point / "Roe" / "2024-01-31").is_dir, "a new patient", 1.0)
        assert names_in(store.point) == ["Doe Jane", "Roe"]


def test_two_mounts_of_one_store(store: Store, tmp_path: Path) -> None:
    store.take(*samples())
    other = Store(store.store, tmp_path / "mnt 2 \\ ü", tmp_path / "log2")
    other.point.mkdir()
    with store.mounted("formats=jpg,frames=1"), contextlib.ExitStack() as stack:
        argv = command_line("mount", "--store", other.store, other.point, "-o", "formats=png+jpg,frames=1")
        stack.callback(
            subprocess.run, ["fusermount3", "-uz", str(other.point)], capture_output=True, check=False
        )
        stack.enter_context(running(argv, other.log, lambda: answers(other.point), "the other mount"))
        assert [p.read_bytes() for p in store.files()] == [p.read_bytes() for p in other.files("jpg")]
        assert len(other.files("png")) == len(samples())
        again = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
        assert again.returncode == 6
        assert "already a mount point" in again.stderr


# Odd objects


def test_damaged_object_shows_a_notice_and_disturbs_nobody(store: Store, tmp_path: Path) -> None:
    short = data_set(SOPInstanceUID="2.25.9", InstanceNumber=2)
    short.PixelData = short.PixelData[:100]
    store.take(save(tmp_path / "1", data_set()), save(tmp_path / "2", short))
    with store.mounted("formats=jpg"):
        good, notice = store.files()
        for path in (good, notice):
            with Image.open(path) as picture:
                picture.load()
            assert path.stat().st_size == len(path.read_bytes())
        with Image.open(good) as picture:
            assert picture.size == (24, 32)
        argv = command_line("status", "--store", store.store)
        said = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=True).stdout
        assert "cannot be displayed" in said


def test_missing_original_is_an_error_for_that_file_alone(store: Store, tmp_path: Path) -> None:
    paths = [
        save(tmp_path / f"{n}", data_set(SOPInstanceUID=f"2.25.9{n}", InstanceNumber=n)) for n in (1, 2, 3)
    ]
    store.take(*paths)
    lost = min((store.store / "archive").rglob("*.dcm"), key=lambda path: sequence_of(store, path))
    hidden = lost.with_suffix(".hidden")
    with store.mounted("formats=jpg+dcm,warm=off"):
        lost.rename(hidden)
        for name in ("jpg", "dcm"):
            first, *others = store.files(name)
            with pytest.raises(OSError, match="Input/output"):
                first.read_bytes()
            for path in others:
                assert len(path.read_bytes()) == path.stat().st_size
        hidden.rename(lost)
        first = store.files("dcm")[0]
        assert len(first.read_bytes()) == first.stat().st_size
        picture = store.files("jpg")[0]
        wait_until(lambda: readable(picture), "the picture, when its original is back", 30)


def sequence_of(store: Store, path: Path) -> int:
    raw = sqlite3.connect(store.store / "index.sqlite3")
    try:
        found = raw.execute(
            "SELECT id FROM originals WHERE hash = ?", (bytes.fromhex(path.stem.split("-")[0]),)
        ).fetchone()
        return int(found[0])
    finally:
        raw.close()


def readable(path: Path) -> bool:
    """False when it is EIO; fails when its size is not what can be read of it."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            assert len(file.read()) == size
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    return True


def test_truncated_original_is_an_error_in_dcm_and_not_a_short_file(store: Store, tmp_path: Path) -> None:
    store.take(save(tmp_path / "1", data_set()))
    (original,) = (store.store / "archive").rglob("*.dcm")
    os.truncate(original, 1100)
    with store.mounted("formats=dcm"), pytest.raises(OSError, match="Input/output"):
        store.files()[0].read_bytes()


def test_objects_without_pixels_and_runs_of_frames(store: Store, tmp_path: Path) -> None:
    run = data_set(SOPInstanceUID="2.25.9", InstanceNumber=2, pixels=np.full((12, 8, 8), 7, np.uint16))
    report = data_set(SOPInstanceUID="2.25.10", InstanceNumber=3, pixels=None)
    store.take(*(save(tmp_path / f"{n}", ds) for n, ds in enumerate([data_set(), run, report])))
    with store.mounted("formats=jpg+dcm,frames=10"):
        frames = [f"cine_5_2_{number}.jpg" for number in range(1, 11)]
        assert names_in(store.files("jpg")[0].parent) == sorted(["cine_5_1.jpg", *frames])
        assert [p.name for p in store.files("dcm")] == ["cine_5_1.dcm", "cine_5_2.dcm", "cine_5_3.dcm"]
        for path in store.files("jpg"):
            assert len(path.read_bytes()) == path.stat().st_size


# Trouble with the index


def test_index_locked_by_a_writer_does_not_stop_readers(store: Store) -> None:
    store.take(*samples()[:2])
    with store.mounted("formats=jpg"):
        writer = sqlite3.connect(store.store / "index.sqlite3", isolation_level=None)
        writer.execute("BEGIN EXCLUSIVE")
        try:
            assert all(len(path.read_bytes()) == path.stat().st_size for path in store.files())
        finally:
            writer.execute("ROLLBACK")
            writer.close()


def test_lost_store_is_an_error_and_no_crash(store: Store) -> None:
    store.take(*samples()[:1])
    with store.mounted("formats=jpg+dcm") as it:
        shown = store.files()
        store.store.rename(store.store.with_name("elsewhere"))
        with pytest.raises(OSError, match="Input/output"):
            os.statvfs(store.point)
        with pytest.raises(OSError, match="Input/output"):
            next(path for path in shown if path.suffix == ".dcm").read_bytes()
        store.store.with_name("elsewhere").rename(store.store)
        wait_until(lambda: all(readable(path) for path in store.files()), "all files again", 30)
        assert it.process.poll() is None


# Refusals


def refused(store: Store, *, options: str = "formats=jpg", point: Path | None = None) -> tuple[int, str]:
    argv = command_line("mount", "--store", store.store, point or store.point, "-o", options)
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_refused_mount_points(store: Store, tmp_path: Path) -> None:
    store.take(*samples()[:1])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    inside = store.store / "mnt"
    inside.mkdir()
    for point, words in [
        (tmp_path / "absent", "does not exist: make it with mkdir"),
        (tmp_path / "full", "is not empty"),
        (tmp_path / "full" / "file", "is not a folder"),
        (inside, "must not lie inside"),
        (tmp_path, "is not empty"),
    ]:
        code, said = refused(store, point=point)
        assert code == 6
        assert words in said
    with store.mounted():
        link = tmp_path / "link"
        link.symlink_to(store.point)
        for point in (store.point, link, store.point / ".." / store.point.name):
            code, said = refused(store, point=point)
            assert code == 6
            assert "already a mount point" in said


def test_unknown_option_lists_the_valid_ones(store: Store) -> None:
    store.take(*samples()[:1])
    code, said = refused(store, options="fromats=jpg")
    assert code == 2
    for name in ("fromats", "formats", "frames", "allow_other", "umask"):
        assert name in said


def test_no_store(store: Store) -> None:
    code, said = refused(store)
    assert code == 5
    assert "not a dicomfs store" in said


def test_no_fuse_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mounting, "FUSE_DEVICE", tmp_path / "none")
    with pytest.raises(MountRefused, match="modprobe fuse"):
        mounting.check_machine(MountOptions())


@pytest.mark.parametrize(
    ("line", "allowed"), [("user_allow_other\n", True), ("#user_allow_other\n", False), ("", False)]
)
def test_allow_other_of_an_ordinary_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, allowed: bool
) -> None:
    (tmp_path / "fuse.conf").write_text(line)
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(mounting, "FUSE_CONF", tmp_path / "fuse.conf")
    monkeypatch.setattr(mounting, "FUSE_DEVICE", tmp_path / "fuse")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    if allowed:
        mounting.check_machine(MountOptions(allow_other=True))
    else:
        with pytest.raises(MountRefused, match="add the line user_allow_other"):
            mounting.check_machine(MountOptions(allow_other=True))


def test_mount_table_with_odd_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # As the kernel writes them: bytes as they are, but blank, tab, newline and backslash as octal escapes.
    table = "29 1 0:5 / /mnt/a\\040b\\134\xfc rw - tmpfs x rw\n"
    table += "30 1 0:6 / /mnt/\u0142\u20ac rw shared:1 - fuse.dicomfs y rw\n"
    file = tmp_path / "mountinfo"
    file.write_bytes(table.encode())
    monkeypatch.setattr(mounting, "MOUNT_TABLE", file)
    assert mounting.mounts() == [
        mounting.Mounted(Path("/mnt/a b\\\xfc"), "tmpfs"),
        mounting.Mounted(Path("/mnt/\u0142\u20ac"), "fuse.dicomfs"),
    ]


# Who may look


def test_permissions(store: Store) -> None:
    store.take(*samples()[:1])
    with store.mounted("formats=jpg"):
        assert stat.S_IMODE(store.point.stat().st_mode) == 0o750
        assert stat.S_IMODE(store.files()[0].stat().st_mode) == 0o440
    with store.mounted("formats=jpg,uid=123,gid=456,umask=077"):
        for path, mode in ((store.point, 0o700), (store.files()[0], 0o400)):
            info = path.stat()
            assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (123, 456, mode)


@pytest.mark.parametrize(
    ("options", "may"), [("", False), (",allow_other", False), (",allow_other,umask=022", True)]
)
def test_other_users(store: Store, tmp_path: Path, options: str, may: bool) -> None:
    if os.geteuid() != 0:
        lacking("only root can become another user")
    require("setpriv")
    store.take(*samples()[:1])
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    with store.mounted(f"formats=jpg{options}"):
        file = store.files()[0]
        someone = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = subprocess.run([*someone, "cat", str(file)], capture_output=True, check=False)
        assert (done.returncode == 0) == may
        assert done.stdout == (file.read_bytes() if may else b"")


def test_who_may_not_write_what_others_would_see_mounts_all_the_same(store: Store) -> None:
    """A mount whose user may write to the store, but not into `run/`, which is somebody else's."""
    if os.geteuid() != 0:
        lacking("only root can give a folder away")
    require("setpriv")
    store.take(*samples()[:1])
    run = store.store / "run"
    run.mkdir(mode=0o755)
    os.chown(run, 65534, 65534)
    # Root like an ordinary user in this: permissions hold for it too.
    ordinary = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    with store.mounted("formats=jpg", prefix=ordinary) as it:
        (file,) = store.files()
        assert file.read_bytes().endswith(TRAILERS["jpg"])
        it.wait_until(
            lambda: "`dicomfs status` cannot tell of this mount" in it.output(), "a line in the log"
        )
    assert list(run.iterdir()) == []
    assert "WARNING" not in store.log.read_text()


# Stress


def workers_of(pid: int) -> list[int]:
    """Processes started by a process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def list_all(store: Store) -> None:
    done = subprocess.run(
        ["ls", "-lR", store.point], capture_output=True, text=True, timeout=120, check=False
    )
    assert not [line for line in done.stderr.splitlines() if "Input/output error" not in line]


def read_all(store: Store) -> None:
    for path in store.files("jpg"):
        readable(path)  # or EIO, but nothing else


class Together:
    """Actions repeated in threads for some seconds; whatever one of them raises is kept."""

    def __init__(self, seconds: float, *actions: Callable[[], object]) -> None:
        self.trouble: list[str] = []
        self._until = time.monotonic() + seconds
        self._threads = [threading.Thread(target=self._repeat, args=(a,), daemon=True) for a in actions]
        for thread in self._threads:
            thread.start()

    def _repeat(self, action: Callable[[], object]) -> None:
        while time.monotonic() < self._until and not self.trouble:
            try:
                action()
            except BaseException as error:  # noqa: BLE001  whatever it is, the test fails with it
                self.trouble.append(f"{action}: {error!r}")

    def join(self, seconds: float) -> None:
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive(), "something hangs"
        assert not self.trouble


def test_listing_reading_importing_and_dying_workers_at_once(store: Store, tmp_path: Path) -> None:
    def one(number: int) -> Path:
        ds = data_set(
            SOPInstanceUID=f"2.25.7{number}",
            InstanceNumber=number,
            ImagePositionPatient=[0, 0, number % 5],
            pixels=np.random.default_rng(number).integers(0, 4000, (128, 128), np.uint16),
        )
        return save(tmp_path / f"{number}.dcm", ds)

    files = [one(number) for number in range(1, 121)]
    store.take(*files[:40])
    coming = iter([files[n : n + 10] for n in range(40, 120, 10)])

    with store.mounted("formats=jpg+dcm") as it:

        def kill_one() -> None:
            for pid in workers_of(it.process.pid)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            threading.Event().wait(0.5)

        listing, reading = partial(list_all, store), partial(read_all, store)
        busy = Together(
            *(6, listing, listing, reading, reading), lambda: store.take(*next(coming, files[:1])), kill_one
        )
        busy.join(150)
        for batch in coming:
            store.take(*batch)
        wait_until(lambda: len(store.files("jpg")) == len(store.files("dcm")) == 120, "every name", 60)
        wait_until(lambda: all(readable(path) for path in store.files()), "every file readable", 60)
        assert it.process.poll() is None
        assert "Traceback" not in it.output()
        assert not any(word in it.output() for word in ("Doe", "4711"))


def test_workers_that_cannot_start_for_a_while_do_not_end_the_mount(store: Store, tmp_path: Path) -> None:
    store.take(save(tmp_path / "1", data_set()), save(tmp_path / "2", data_set(SOPInstanceUID="2.25.9")))
    with store.mounted("formats=jpg+dcm,warm=off,workers=1") as it:
        shown = store.files("jpg")
        stop = threading.Event()

        def kill_all() -> None:
            while not stop.is_set():
                for pid in workers_of(it.process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_all, daemon=True)
        killer.start()
        try:
            wait_until(
                lambda: not any(map(readable, shown)) and "another try" in it.output(), "workers given up", 60
            )
            assert all(map(readable, store.files("dcm")))
        finally:
            stop.set()
            killer.join()
        wait_until(lambda: all(map(readable, shown)), "pictures again", 60)
        assert it.process.poll() is None
