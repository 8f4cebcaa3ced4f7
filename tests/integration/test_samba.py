"""The private smbd and the generated text, with the real Samba."""

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dicomfs.samba import PreparedSmbd, configuration, glusterfs_fuse_available, prepare, samba_version
from tests.smb import client
from tests.support import Running, connects, free_port, lacking, require, running, smbclient, wait_until

CONTENT = bytes(range(256)) * 500


@dataclass(frozen=True, slots=True)
class Share:
    prepared: PreparedSmbd
    running: Running
    scratch: Path


def testparm(config: Path) -> subprocess.CompletedProcess[str]:
    argv = [require("testparm"), "--suppress-prompt", str(config)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


testparm.__test__ = False  # type: ignore[attr-defined]  # its name is that of the program


def complaints(said: str) -> list[str]:
    """Lines of testparm's standard error that are not its usual talk."""
    usual = ("Load smb config files", "Loaded services file OK", "Weak crypto is allowed", "Server role:")
    return [line for line in said.splitlines() if line.strip() and not line.startswith(usual)]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short path: sockets live in it."""
    with TemporaryDirectory(prefix="dicomfs-test-") as folder:
        yield Path(folder).resolve()


@pytest.fixture
def share(scratch: Path) -> Iterator[Share]:
    require("smbd")
    require("smbclient")
    exam = scratch / "share" / "Müller Anna" / "2003-01-10"
    exam.mkdir(parents=True)
    (exam / "FIESTA_4_12.jpg").write_bytes(CONTENT)
    (scratch / "share").chmod(0o700)
    prepared = prepare(scratch / "smb", scratch / "share", free_port())
    with running(
        prepared.argv, scratch / "out", lambda: connects(prepared.port), "smbd", env=prepared.env
    ) as process:
        yield Share(prepared, process, scratch)


@pytest.mark.parametrize("for_macs", [False, True])
def test_testparm_accepts_the_configuration(tmp_path: Path, *, for_macs: bool) -> None:
    config = tmp_path / "smb.conf"
    version = samba_version() or lacking("smbd is not installed")
    text = configuration("dicom", tmp_path, has_glusterfs_fuse=True, version=version, for_macs=for_macs)
    config.write_text(text, encoding="utf-8")
    said = testparm(config)
    assert said.returncode == 0, said.stderr
    assert complaints(said.stderr) == []
    assert "[dicom]" in said.stdout


def test_testparm_complains_where_there_is_reason(tmp_path: Path) -> None:
    config = tmp_path / "smb.conf"
    config.write_text("[global]\n    server mood = good\n")
    assert any("server mood" in line for line in complaints(testparm(config).stderr))


def test_share_lists_and_gives_files(share: Share, tmp_path: Path) -> None:
    listed = smbclient(share.prepared.port, "recurse; ls")
    assert listed.returncode == 0, listed.stdout + share.prepared.log.read_text()
    assert "\\Müller Anna\\2003-01-10" in listed.stdout
    assert re.search(rf"FIESTA_4_12\.jpg +\w+ +{len(CONTENT)} ", listed.stdout)
    got = smbclient(share.prepared.port, 'get "Müller Anna/2003-01-10/FIESTA_4_12.jpg" got.jpg', cwd=tmp_path)
    assert (tmp_path / "got.jpg").read_bytes() == CONTENT, got.stdout


def test_a_long_listing_comes_in_several_replies(share: Share) -> None:
    """So the first of them need not wait for what is known of the last picture."""
    names = [f"FIESTA_4_{number}.jpg" for number in range(1, 1001)]
    folder = share.scratch / "share" / "long"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with client(share.prepared.port, share.prepared.share_name) as smb:
        # With sizes, as smbclient asks for them, a name takes 104 bytes and two for each character.
        assert smb.tree.session.connection.max_transact_size < len(names) * (104 + 2 * len(names[0]))
        assert smb.names("long") == sorted(names)
    listed = smbclient(share.prepared.port, "cd long; ls").stdout
    assert len(re.findall(r"FIESTA_4_[0-9]+\.jpg", listed)) == len(names)


def test_share_speaks_nothing_older_than_smb3(share: Share) -> None:
    require("smbclient")
    argv = ["smbclient", "--configfile=/dev/null", "--no-pass", "--option=client max protocol=SMB2_10"]
    argv += [f"--port={share.prepared.port}", "//127.0.0.1/dicomfs", "--command", "ls"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert said.returncode != 0
    assert "Müller" not in said.stdout


@pytest.mark.parametrize(
    "command",
    [
        "mkdir new",
        "put local.txt new.txt",
        'del "Müller Anna/2003-01-10/FIESTA_4_12.jpg"',
        'rename "Müller Anna" x',
    ],
)
def test_writing_is_refused(share: Share, tmp_path: Path, command: str) -> None:
    before = sorted(share.scratch.joinpath("share").rglob("*"))
    (tmp_path / "local.txt").write_text("x")
    said = smbclient(share.prepared.port, command, cwd=tmp_path)
    # Several commands of smbclient end with 0 whatever happened.
    assert re.search(r"NT_STATUS_(ACCESS_DENIED|MEDIA_WRITE_PROTECTED)", said.stdout + said.stderr)
    assert sorted(share.scratch.joinpath("share").rglob("*")) == before


def test_vetoed_names_are_not_there(share: Share) -> None:
    (share.scratch / "share" / "Thumbs.db").write_bytes(b"x")
    assert "Thumbs.db" not in smbclient(share.prepared.port, "ls").stdout


def test_listens_on_loopback_only(share: Share) -> None:
    argv = [require("ss"), "--listening", "--tcp", "--udp", "--numeric", "--no-header", "--processes"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    smbd = [line.split()[4] for line in lines if f"pid={share.running.process.pid}," in line]
    assert smbd == [f"127.0.0.1:{share.prepared.port}"]


def test_holds_no_file_open_for_writing_outside_of_its_folder(share: Share) -> None:
    assert smbclient(share.prepared.port, "ls").returncode == 0
    pids = group(share.running.process.pid)
    assert share.running.process.pid in pids
    elsewhere = {file for pid in pids for file in written_by(pid) if not file.startswith(f"{share.scratch}/")}
    assert elsewhere == set()


def test_state_is_private(share: Share) -> None:
    assert stat.S_IMODE((share.scratch / "smb").stat().st_mode) == 0o700
    assert share.prepared.log.exists()


@pytest.mark.parametrize("how", ["terminated", "supervisor gone"])
def test_nothing_survives_the_end(share: Share, how: str) -> None:
    # A listing of the shares would start helpers that outlive smbd; it must not.
    subprocess.run(
        ["smbclient", "--configfile=/dev/null", "-N", f"--port={share.prepared.port}", "-L", "//127.0.0.1"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    process = share.running.process
    if how == "terminated":
        process.terminate()
    else:
        assert process.stdin is not None
        process.stdin.close()
    process.wait(20)
    wait_until(lambda: not mentioning(str(share.scratch)), "the end of all of smbd's processes")


def test_runs_without_root(scratch: Path) -> None:
    if os.geteuid() != 0:
        lacking("only root can play another user (all the other tests are run by one anyhow)")
    require("smbd")
    runuser = require("runuser")
    (scratch / "share").mkdir()
    (scratch / "share" / "a.txt").write_text("x")
    prepared = prepare(scratch / "smb", scratch / "share", free_port())
    config = prepared.config.read_text(encoding="utf-8")
    assert "guest account = root" in config
    prepared.config.write_text(config.replace("guest account = root", "guest account = nobody"))
    subprocess.run(["chown", "-R", "nobody", str(scratch)], check=True)
    argv = [runuser, "-u", "nobody", "--", *prepared.argv]
    with running(argv, scratch / "out", lambda: connects(prepared.port), "smbd", env=prepared.env):
        assert "a.txt" in smbclient(prepared.port, "ls").stdout


def test_module_for_true_spelling_is_used_when_it_is_there(scratch: Path) -> None:
    with_module = prepare(scratch / "a", scratch, 4450, smbd="/bin/true", has_glusterfs_fuse=True)
    without = prepare(scratch / "b", scratch, 4450, smbd="/bin/true", has_glusterfs_fuse=False)
    asked = prepare(scratch / "c", scratch, 4450, smbd="/bin/true")
    said = [
        p.config.read_text(encoding="utf-8").count("glusterfs_fuse") for p in (with_module, without, asked)
    ]
    assert said == [1, 0, int(glusterfs_fuse_available())]


def group(leader: int) -> list[int]:
    """Processes of a group that still run."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in pids if alive(pid) and safe_group(pid) == leader]


def safe_group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def alive(pid: int) -> bool:
    try:
        return " Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except (FileNotFoundError, ProcessLookupError):
        return False


def mentioning(text: str) -> list[int]:
    """Running processes whose command line contains `text`."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and int(path.name) != os.getpid():
            try:
                if text.encode() in (path / "cmdline").read_bytes() and alive(int(path.name)):
                    found.append(int(path.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def written_by(pid: int) -> set[str]:
    """Ordinary files that a process holds open for writing."""
    files = set()
    # A process, or one of its files, may be gone meanwhile.
    with suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                target = entry.readlink()
                facts = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
                flags = re.search(r"^flags:\s+(\d+)", facts, re.MULTILINE)
                if flags and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY and target.is_file():
                    files.add(str(target))
    return files
