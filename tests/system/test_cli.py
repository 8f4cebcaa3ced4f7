"""The command line as a user or a script meets it: exit codes, texts, JSON; no traceback, no name."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dicomfs import __version__
from dicomfs.config import MountOptions, option_help
from tests.support import (
    LOCALHOST,
    ROOT,
    command_line,
    connects,
    free_port,
    lacking,
    mounted,
    require,
    require_fuse,
    running,
    shipped,
    wait_until,
)
from tests.system.programs import dicomfs, named, storescu

OK, FAILED, USAGE, NOT_ALL, STORE_TROUBLE, MOUNT_REFUSED = 0, 1, 2, 3, 5, 6
"""Written down here too: scripts rely on them."""
COMMANDS = ("scp", "mount", "import", "serve", "status", "scrub", "reindex", "samba-config")


def complaint(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """What it said on standard error, after it ended with this code and without a traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
    return done.stderr


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    done = dicomfs(command, "--help")
    assert (done.returncode, done.stderr) == (OK, "")
    assert f"usage: dicomfs {command}" in done.stdout
    assert "--store" in done.stdout


def test_help_of_all_names_every_command_and_exit_code() -> None:
    said = dicomfs("--help").stdout
    assert all(re.search(rf"^ +{command}\b", said, re.MULTILINE) for command in COMMANDS)
    assert all(re.search(rf"\b{code}\s+\w", said.partition("Exit codes:")[2]) for code in range(8))


def test_help_of_mount_explains_every_option() -> None:
    said = dicomfs("mount", "--help").stdout
    for name, text in option_help():
        assert re.search(rf"^ +{name} .*{re.escape(text)}", said, re.MULTILINE), name


def test_version() -> None:
    assert dicomfs("--version").stdout == f"dicomfs {__version__}\n"


# What is wrong, and what is said about it


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "samba-config"),
        (["scp", "--frobnicate"], "--frobnicate"),
        (["scp", "--port", "many"], "many"),
        (["scp", "--port", "65536"], "65535"),
        (["scp", "-v"], "nobody may send yet"),
        (["scp", "--host", "::"], "--allow CT1@10.1.2.3"),
        (["serve", "--mount", "/nowhere", "--host", "10.0.0.1"], "--open"),
        (["serve", "--mount", "/nowhere", "--host", "::"], "nobody may send yet"),
        (["scp", "--allow", "CT1@ct1.example"], "host names are not looked up"),
        (["scp", "--allow", "CT1@10.0.0.1", "--allow", "10.0.0.2"], "*@10.0.0.2"),
        (["scp", "--open", "--max-pdu", "100"], "4K to 16M"),
        (["scp", "--open", "--duplicates", "newer"], "keep-first, newest, both, reject"),
        (["scp", "--open", "--tls-key", "/etc/key.pem"], "needs tls_certificate"),
        (["scp", "--open", "--tls-certificate", "/etc/cert.pem"], "tls_client = off"),
        (
            ["scp", "--open", "--tls-certificate", "/no/cert.pem", "--tls-client", "off"],
            "cannot read tls_certificate /no/cert.pem: No such file",
        ),
        (["status", "--superseded", "--most", "0"], "at least 1"),
        (["status", "--json", "--metrics"], "not allowed with"),
        (["mount"], "mountpoint"),
        (["import"], "PATH"),
        (["serve"], "--mount"),
        (["mount", "/nowhere", "-o", "quality=101"], "1 to 100"),
        (["mount", "/nowhere", "-o", "formats=jpg+doc"], "jpg, png, tiff"),
        (["mount", "/nowhere", "-o", "quality"], "quality="),
        (["serve", "--mount", "/nowhere", "-o", "cache=lots"], "64M"),
        (["import", "/no/such/path"], "/no/such/path"),
        (["samba-config", "/srv/pictures", "--name", "a/b"], "a/b"),
        (["samba-config", "/srv/100%"], "100%"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], said: str) -> None:
    where = ["--store", str(tmp_path / "store")] if arguments[1:] else []
    assert said in complaint(dicomfs(*arguments, *where), USAGE)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", [["mount", "/nowhere"], ["serve", "--mount", "/nowhere"]])
def test_unknown_mount_option_lists_the_valid_ones(tmp_path: Path, command: list[str]) -> None:
    said = complaint(dicomfs(*command, "--store", tmp_path / "s", "-o", "ro,colour=green"), USAGE)
    assert "'colour'" in said
    listed = said.partition("valid ones are: ")[2].strip().split(", ")
    assert listed == [name for name, _ in option_help()]
    assert set(listed) == set(MountOptions.__slots__)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('stores = "/srv"', "'stores'.*store, scp, mount"),
        ("[scp]\nports = 1", "'ports'.*port"),
        ("[mount]\ncolour = 1", "'colour'.*formats"),
        ('[scp]\nport = "11112"', "'port'"),
        ("[scp]\nport = 99999", "99999"),
        ("[mount]\nquality = 0", "'quality'"),
        ("store = 3", "'store'"),
        ("scp = 3", "scp"),
        ("mount = true", "mount"),
        ("not toml", "TOML"),
        (None, "No such file"),
    ],
)
def test_wrong_configuration_file(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "dicomfs.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    done = dicomfs("scp", "--config", path, "--store", tmp_path / "store")
    error = complaint(done, USAGE)
    assert re.search(said, error)
    assert str(path) in error


def test_store_of_the_configuration_file_and_of_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "dicomfs.toml"
    path.write_text(f'store = "{tmp_path / "one"}"\n', encoding="utf-8")
    image = shipped("CT_small.dcm")
    assert dicomfs("import", "--config", path, image).returncode == OK
    env = {**os.environ, "DICOMFS_STORE": str(tmp_path / "two")}
    assert dicomfs("import", "--config", path, image, env=env).returncode == OK
    assert dicomfs("import", "--config", path, image, "--store", tmp_path / "three", env=env).returncode == OK
    for name in ("one", "two", "three"):
        assert (tmp_path / name / "index.sqlite3").exists(), name


@pytest.mark.parametrize("command", ["status", "mount", "import", "scp"])
def test_folder_that_is_no_store(tmp_path: Path, command: str) -> None:
    store = tmp_path / "papers"
    store.mkdir()
    (store / "thesis.txt").write_text("mine")
    (tmp_path / "m").mkdir()
    arguments: dict[str, list[str | Path]] = {
        "mount": [tmp_path / "m"],
        "import": [shipped("CT_small.dcm")],
        "scp": ["--open"],
    }
    rest = arguments.get(command, [])
    if command == "mount":
        require_fuse()
    assert str(store) in complaint(dicomfs(command, "--store", store, *rest), STORE_TROUBLE)
    assert [path.name for path in store.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("command", ["status", "mount", "scrub", "reindex"])
def test_store_that_is_not_there_is_not_made_by_looking(tmp_path: Path, command: str) -> None:
    (tmp_path / "m").mkdir()
    if command == "mount":
        require_fuse()
    rest = [tmp_path / "m"] if command == "mount" else []
    complaint(dicomfs(command, "--store", tmp_path / "store", *rest), STORE_TROUBLE)
    assert not (tmp_path / "store").exists()


def test_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = dicomfs("scp", "--open", "--port", "0", "--store", tmp_path / "file" / "store")
    assert str(tmp_path / "file" / "store") in complaint(done, STORE_TROUBLE)


AS_NOBODY = """
import os, sys
from dicomfs.cli import main
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(main())
"""


def test_a_store_of_somebody_else(tmp_path: Path) -> None:
    """A forgotten sudo: one line, no traceback."""
    if os.geteuid() != 0:
        lacking("only root can play another user")
    with tempfile.TemporaryDirectory(prefix="dicomfs-test-") as folder:
        store = Path(folder, "store")
        assert dicomfs("import", "-q", "--store", store, shipped("CT_small.dcm")).returncode == OK
        Path(folder).chmod(0o755)
        # Becomes the other user late: an interpreter in root's home is not for everybody.
        argv = [sys.executable, "-c", AS_NOBODY, "status", "--store", str(store)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert "may not look into" in complaint(done, STORE_TROUBLE)


@pytest.mark.parametrize("port", ["0", "-1", "99999"])
def test_an_smb_port_that_is_none(tmp_path: Path, port: str) -> None:
    require_fuse()
    (tmp_path / "m").mkdir()
    done = dicomfs("serve", "--store", tmp_path / "s", "--mount", tmp_path / "m", f"--samba-port={port}")
    assert port in complaint(done, USAGE)
    assert not (tmp_path / "s").exists()


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    # Works for root too, who may write where the permissions say no.
    done = dicomfs("import", "--store", "/proc/sys/dicomfs", shipped("CT_small.dcm"))
    assert "/proc/sys/dicomfs" in complaint(done, STORE_TROUBLE)


def test_mount_points_that_are_refused(tmp_path: Path) -> None:
    require_fuse()
    assert dicomfs("import", "-q", "--store", tmp_path / "store", shipped("CT_small.dcm")).returncode == OK
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for point, remedy in (
        (tmp_path / "missing", "mkdir"),
        (tmp_path / "full", "empty"),
        (tmp_path / "full" / "file", "folder"),
    ):
        for command in (["mount", str(point)], ["serve", "--port", "0", "--mount", str(point)]):
            done = dicomfs(*command, "--store", tmp_path / "store")
            assert remedy in complaint(done, MOUNT_REFUSED)


@pytest.mark.parametrize("command", ["scp", "serve"])
def test_port_in_use(tmp_path: Path, command: str) -> None:
    mountpoint = tmp_path / "m"
    mountpoint.mkdir()
    if command == "serve":
        require_fuse()
    rest = ["--mount", str(mountpoint)] if command == "serve" else []
    with socket.create_server((LOCALHOST, 0)) as taken:
        port = taken.getsockname()[1]
        done = dicomfs(
            command, "--host", LOCALHOST, "--port", str(port), "--store", tmp_path / "store", *rest
        )
    assert str(port) in complaint(done, USAGE)
    assert not mounted(mountpoint)


def test_samba_port_in_use(tmp_path: Path) -> None:
    require_fuse()
    require("smbd")
    mountpoint = tmp_path / "m"
    mountpoint.mkdir()
    with socket.create_server((LOCALHOST, 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--host", LOCALHOST, "--port", "0", "--samba-port", str(port)]
        done = dicomfs("serve", *options, "--store", tmp_path / "store", "--mount", mountpoint)
    said = complaint(done, USAGE)
    assert str(port) in said
    assert "shared as" not in said  # it never was
    assert not mounted(mountpoint)


# Import and status


def test_import_of_a_folder_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("nothing to see")
    done = dicomfs("import", "-v", "--store", tmp_path / "store", tmp_path / "in")
    assert "notes.txt" in complaint(done, NOT_ALL)
    assert re.search(r"^ +0 stored$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +1 skipped$", done.stdout, re.MULTILINE)


def test_import_of_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = dicomfs("import", "--store", tmp_path / "store", tmp_path / "in")
    assert done.returncode == NOT_ALL  # who names a folder expects something in it
    assert re.search(r"^ +0 stored$", done.stdout, re.MULTILINE)


def mixed(folder: Path) -> Path:
    """Three images (one of them twice), one cut short, one text."""
    folder.mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm"):
        (folder / name).write_bytes(shipped(name).read_bytes())
    (folder / "deeper").mkdir()
    (folder / "deeper" / "CT_again").write_bytes(shipped("CT_small.dcm").read_bytes())
    (folder / "short.dcm").write_bytes(shipped("CT_small.dcm").read_bytes()[:500])
    (folder / "notes.txt").write_text("nothing to see")
    return folder


def test_import_of_a_mixed_folder_as_json(tmp_path: Path) -> None:
    done = dicomfs("import", "--json", "--store", tmp_path / "store", mixed(tmp_path / "in"))
    complaint(done, NOT_ALL)
    summary = json.loads(done.stdout)
    assert (summary["files"], summary["new"], summary["already_there"]) == (6, 3, 1)
    assert (summary["refused"], summary["skipped"], summary["not_tried"]) == (1, 1, 0)
    assert sum(summary["reasons"].values()) == 2
    assert {"CT_small.dcm", "CT_again"}.isdisjoint(done.stderr.split("/"))
    status = json.loads(dicomfs("status", "--json", "--store", tmp_path / "store").stdout)
    assert (status["originals"], status["instances"]) == (3, 3)


def test_import_of_a_mixed_folder_for_people(tmp_path: Path) -> None:
    done = dicomfs("import", "--store", tmp_path / "store", mixed(tmp_path / "in"))
    said = complaint(done, NOT_ALL)
    assert "short.dcm" in said
    assert "notes.txt" not in said  # -v names it
    assert re.search(r"^ +1 refused$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +1 skipped$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +3 stored$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +1 already there$", done.stdout, re.MULTILINE)


def test_status_of_an_empty_store(tmp_path: Path) -> None:
    assert dicomfs("import", "--store", tmp_path / "store", ROOT / "pyproject.toml").returncode == NOT_ALL
    done = dicomfs("status", "--json", "--store", tmp_path / "store")
    assert done.returncode == OK
    status = json.loads(done.stdout)
    assert {
        status[name] for name in ("patients", "exams", "series", "instances", "originals", "quarantined")
    } == {0}
    assert status["not_displayable"] == []
    assert dicomfs("status", "--store", tmp_path / "store").returncode == OK


def test_status_tells_what_cannot_be_shown(tmp_path: Path) -> None:
    require_fuse()
    broken = bytearray(shipped("JPEG2000.dcm").read_bytes())
    start = broken.index(b"\xff\x4f\xff\x51")  # SOC, SIZ: the code stream begins
    broken[start + 4 : start + 60] = bytes(56)
    (tmp_path / "broken.dcm").write_bytes(broken)
    store, mountpoint = tmp_path / "store", tmp_path / "m"
    mountpoint.mkdir()
    assert dicomfs("import", "-q", "--store", store, tmp_path / "broken.dcm").returncode == OK
    with running(
        command_line("mount", "--store", store, mountpoint),
        tmp_path / "log",
        lambda: mounted(mountpoint),
        "the mount answers",
        mountpoint=mountpoint,
    ):
        (picture,) = mountpoint.rglob("*.jpg")
        assert picture.read_bytes().endswith(b"\xff\xd9")
    status = json.loads(dicomfs("status", "--json", "--store", store).stdout)
    assert len(status["not_displayable"]) == 1
    assert status["not_displayable"][0]["reason"]
    assert status["not_displayable"][0]["reason"] in dicomfs("status", "--store", store).stdout


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["samba-config", "/srv/pictures"]])
def test_nobody_reads_on(tmp_path: Path, arguments: list[str]) -> None:
    """`dicomfs status | head -1`, with a reader that is gone before the first line comes."""
    store = tmp_path / "store"
    assert dicomfs("import", "-q", "--store", store, shipped("CT_small.dcm")).returncode == OK
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command_line(*arguments, "--store", store),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (OK, "")


@pytest.mark.parametrize(
    "arguments", [[], ["--macs"], ["--share-only"], ["--name", "Röntgen", "--valid-users", "a b"]]
)
def test_samba_config_is_what_samba_understands(tmp_path: Path, arguments: list[str]) -> None:
    done = dicomfs("samba-config", "/srv/pictures", *arguments)
    assert done.returncode == OK
    (tmp_path / "smb.conf").write_text(done.stdout, encoding="utf-8")
    argv = [require("testparm"), "--suppress-prompt", str(tmp_path / "smb.conf")]
    read = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert read.returncode == 0, read.stderr
    assert "path = /srv/pictures" in read.stdout
    for complaint_of_samba in ("Unknown parameter", "Ignoring", "invalid", "WARNING", "ERROR"):
        assert complaint_of_samba not in read.stderr


# Names


FAMILY, GIVEN, IDENTIFIER = "Geheimniskraemer", "Sieglinde", "PID-4711-X"


def test_no_patient_in_anything_that_is_said(tmp_path: Path) -> None:
    """At -v, with every kind of trouble that is told about: patients' names and ids stay unsaid."""
    require_fuse()
    store, mountpoint, port = tmp_path / "store", tmp_path / "m", free_port()
    mountpoint.mkdir()
    patient = f"{FAMILY}^{GIVEN}"
    study = "1.2.826.0.1.3680043.8.498.43"
    one = named(tmp_path / "1.dcm", patient, patient_id=IDENTIFIER, study=study, seed="one")
    # The same object, of another patient: both are kept, and that is worth a warning.
    other = named(
        tmp_path / "2.dcm", f"{GIVEN}^{FAMILY}", patient_id="other", study=study, seed="one", number=2
    )
    short = tmp_path / "3.dcm"
    short.write_bytes(one.read_bytes()[:-300])
    logs = [tmp_path / "scp.log", tmp_path / "mount.log"]
    said = ""
    with running(
        command_line("scp", "-v", "--open", "--host", LOCALHOST, "--port", str(port), "--store", store),
        logs[0],
        lambda: connects(port),
        "the receiver answers",
    ):
        storescu(port, one, other)
        for path in (one, short, other):
            done = dicomfs("import", "-v", "--store", store, path)
            said += done.stdout + done.stderr
    with running(
        command_line("mount", "-v", "--store", store, mountpoint, "-o", "formats=jpg+dcm"),
        logs[1],
        lambda: mounted(mountpoint),
        "the mount answers",
        mountpoint=mountpoint,
    ):
        files = [path for path in mountpoint.rglob("*") if path.is_file()]
        assert any(f"{FAMILY} {GIVEN}" in path.parts for path in files)  # there is something to be kept quiet
        for path in files:
            path.read_bytes()
        assert not (mountpoint / "jpg" / f"{FAMILY} Nobody").exists()
        named(tmp_path / "4.dcm", patient, patient_id=IDENTIFIER)
        done = dicomfs("import", "-v", "--store", store, tmp_path / "4.dcm")
        wait_until(lambda: len(list(mountpoint.rglob("*.dcm"))) > len(files) // 2, "the new one is shown")
    done = dicomfs("status", "-v", "--store", store)
    said += done.stdout + done.stderr + "".join(log.read_text() for log in logs)
    assert "kept" in said  # the warning was there
    for word in (FAMILY, GIVEN, IDENTIFIER):
        assert word.lower() not in said.lower()
