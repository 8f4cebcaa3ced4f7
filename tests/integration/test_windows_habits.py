"""What Windows does with a share all day, over SMB, on a folder of thousands: and that nothing of it makes
smbd read the folder, which takes seconds there.
"""

import re
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from smbprotocol.exceptions import (
    ObjectNameNotFound,
    ObjectPathNotFound,
    SMBResponseException,
)

from dicomfs.samba import glusterfs_fuse_available
from tests.shared import Shared, image, sharing
from tests.smb import Client, client
from tests.support import lacking, smbclient

COUNT = 5000
LARGE, SMALL = "Doe Jane/2024-02-02", "Müller Jürgen/2024-03-03"
LOOKED_FOR_EVERYWHERE = (
    "desktop.ini",
    "Thumbs.db",
    "autorun.inf",
    ".DS_Store",
    "._cine_5_1_1.jpg",
    "folder.jpg",
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    if not glusterfs_fuse_available():
        lacking("Samba's module glusterfs_fuse is not installed (samba-vfs-modules)")
    with sharing() as it:
        # One image of thousands of frames: as many files, made in no time.
        frames = np.arange(COUNT * 16, dtype=np.uint16).reshape(COUNT, 4, 4)
        it.take(image(1, day="20240202", pixels=frames))
        it.take(
            *(image(n, "Müller^Jürgen", "20240303", SpecificCharacterSet="ISO_IR 192") for n in (1, 2, 10))
        )
        yield it


def is_missing(smb: Client, path: str) -> bool:
    try:
        with smb.open(path):
            return False
    except (ObjectNameNotFound, ObjectPathNotFound):
        return True


def asked(shared: Shared) -> dict[str, int]:
    """What the kernel has asked the mount for so far, as the mount says."""
    mount = shared.mount
    assert mount is not None
    before = mount.output().count("so far: ")
    mount.process.send_signal(signal.SIGUSR1)
    mount.wait_until(lambda: mount.output().count("so far: ") > before, "its counters")
    line = mount.output().rpartition("so far: requests: ")[2]
    return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)[,;]", line.splitlines()[0])}


def test_habits_of_windows(shared: Shared) -> None:
    with shared.mounted("frames=5000,warm=off"), client(shared.port, "dicomfs") as smb:
        # A path is opened without any listing before it.
        whole = smb.whole(f"{LARGE}/cine_5_1_4321.jpg")
        assert whole == (shared.point / LARGE / "cine_5_1_4321.jpg").read_bytes()

        # In whatever case.
        cases: tuple[Callable[[str], str], ...] = (str.upper, str.lower, str.swapcase)
        for change in cases:
            assert smb.whole(change(f"{LARGE}/cine_5_1_4321.jpg")) == whole
            with smb.open(change(f"{SMALL}/cine_5_10.jpg")) as file:
                assert file.size == (shared.point / SMALL / "cine_5_10.jpg").stat().st_size

        # From its end, as viewers do that look for an index there.
        with smb.open(f"{LARGE}/cine_5_1_99.jpg") as file:
            pieces = [file.read(at, min(100, file.size - at)) for at in reversed(range(0, file.size, 100))]
            assert pieces[0].endswith(b"\xff\xd9")
        assert b"".join(reversed(pieces)) == (shared.point / LARGE / "cine_5_1_99.jpg").read_bytes()

        # What is not there.
        for folder in ("", "Doe Jane/", f"{LARGE}/"):
            for name in LOOKED_FOR_EVERYWHERE:
                assert is_missing(smb, folder + name)
        for number in range(100):
            assert is_missing(smb, f"{LARGE}/cine_5_1_{COUNT + 1 + number}.jpg")
        said = smbclient(shared.port, f'cd "{LARGE}"; ' + "; ".join(f"get none{n}.jpg x" for n in range(20)))
        assert said.stdout.count("NT_STATUS_OBJECT_NAME_NOT_FOUND") == 20

        counted = asked(shared)
        assert counted["lookup"] > 100
        assert counted.get("readdir", 0) == 0

        # One name is asked for as a pattern, too; it is answered with the spelling that it has.
        assert smb.names(LARGE, "CINE_5_1_17.JPG") == ["cine_5_1_17.jpg"]
        # Patterns, in whatever case.
        for pattern, names in (
            ("*.JPG", ["cine_5_1.jpg", "cine_5_10.jpg", "cine_5_2.jpg"]),
            ("CINE_5_1*", ["cine_5_1.jpg", "cine_5_10.jpg"]),
            ("Cine_5_?.jpg", ["cine_5_1.jpg", "cine_5_2.jpg"]),
        ):
            assert smb.names(SMALL, pattern) == names
        assert smb.names("", "MÜLL*") == ["Müller Jürgen"]
        with pytest.raises(SMBResponseException, match="NO_SUCH_FILE"):
            smb.names(SMALL, "*.png")
        assert asked(shared)["readdir"] > 0  # so they are counted
