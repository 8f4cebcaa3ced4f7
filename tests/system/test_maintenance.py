"""`scrub` and `reindex` as an administrator runs them: what they say, to whom, and with which exit code.

In this process, but where a process of its own matters: a terminal, another user, who has to stop.
"""

import json
import os
import pty
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dicomfs import cli
from tests.support import (
    LOCALHOST,
    command_line,
    connects,
    free_port,
    lacking,
    mounted,
    require,
    require_fuse,
    running,
)
from tests.system.programs import named, original, series, storescu

OK, USAGE, STORE_TROUBLE, ALARM = 0, 2, 5, 7
NAME = "Geheim^Patientin"


@dataclass(frozen=True, slots=True)
class Done:
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def dicomfs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in this process, which must not step back for good."""
    monkeypatch.setattr(os, "setpriority", lambda *_: None)

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return run


def archived(store: Path, sent: Path) -> Path:
    """Where the original of a file is kept."""
    digest = original(sent).digest
    (path,) = (store / "archive" / digest[:2]).glob(f"{digest}-*.dcm")
    return path


def damage(path: Path) -> None:
    """Another last byte, as a failing disk would give."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return series(tmp_path_factory.mktemp("images"), 3, NAME)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, images: list[Path]) -> Path:
    """A store of them, to be copied."""
    store = tmp_path_factory.mktemp("filled") / "store"
    # One after the other, so that they are numbered in that order.
    for image in images:
        assert cli.main(["import", "-q", "--store", str(store), str(image)]) == OK
    return store


@pytest.fixture
def store(tmp_path: Path, filled: Path) -> Path:
    return shutil.copytree(filled, tmp_path / "store")


def test_scrub_of_a_whole_store(store: Path, dicomfs: Command) -> None:
    done = dicomfs("scrub", "--store", store)
    assert (done.returncode, done.stderr) == (OK, "")
    assert done.stdout.split() == ["3", "originals", "checked", "nothing", "is", "wrong"]
    facts = json.loads(dicomfs("scrub", "--quick", "--json", "--store", store).stdout)
    assert (facts["originals"], facts["clean"], facts["findings"]) == (3, True, [])


@pytest.mark.usefixtures("expected_warnings")
def test_scrub_names_what_is_wrong_and_the_remedy(store: Path, images: list[Path], dicomfs: Command) -> None:
    victim = archived(store, images[1])
    damage(victim)
    archived(store, images[2]).unlink()
    done = dicomfs("scrub", "--store", store)
    assert done.returncode == ALARM
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    line = next(line for line in lines if "damaged" in line)
    assert all(word in line for word in (victim.name, original(images[1]).sop_uid, "original 2"))
    assert re.search(r"1 missing: .*send .*again", done.stdout)
    assert re.search(r"1 damaged: .*--repair", done.stdout)
    assert not any(part in done.stdout + done.stderr for part in NAME.split("^"))

    done = dicomfs("scrub", "--json", "--store", store)
    assert done.returncode == ALARM
    facts = json.loads(done.stdout)
    assert (facts["missing"], facts["damaged"], facts["wrong"], facts["clean"]) == (1, 1, 2, False)
    assert {(it["kind"], it["original"], it["sop_instance_uid"]) for it in facts["findings"]} == {
        ("damaged", 2, original(images[1]).sop_uid),
        ("missing", 3, original(images[2]).sop_uid),
    }


@pytest.mark.usefixtures("expected_warnings")
def test_beside_a_receiver(tmp_path: Path, images: list[Path], dicomfs: Command) -> None:
    """Damage is repaired by sending again; a rebuild says whom to stop."""
    require("storescu")
    store, port = tmp_path / "received", free_port()
    argv = command_line("scp", "--open", "--host", LOCALHOST, "--port", str(port), "--store", store)
    with running(argv, tmp_path / "scp.log", lambda: connects(port), "the receiver answers") as receiver:
        storescu(port, *images)
        # Not named by the file that was sent: storescu may encode lengths in another way.
        victim = next(store.glob("archive/*/*.dcm"))
        whole = victim.read_bytes()
        damage(victim)
        assert dicomfs("scrub", "--store", store).returncode == ALARM
        assert dicomfs("scrub", "--repair", "--store", store).returncode == ALARM
        storescu(port, *images)
        assert victim.read_bytes() == whole
        done = dicomfs("scrub", "--store", store)
        assert (done.returncode, done.stderr) == (OK, "")

        done = dicomfs("reindex", "--store", store)
        assert done.returncode == STORE_TROUBLE
        assert f"dicomfs scp (process {receiver.process.pid})" in done.stderr
    assert dicomfs("reindex", "--store", store).returncode == OK


def lasting(status: Done) -> dict[str, object]:
    """What a status says of the index."""
    facts = json.loads(status.stdout)
    return {
        name: facts[name]
        for name in ("patients", "exams", "series", "instances", "originals", "last_receipt")
    }


def test_reindex_of_a_lost_index(store: Path, dicomfs: Command) -> None:
    before = lasting(dicomfs("status", "--json", "--store", store))
    for path in store.glob("index.sqlite3*"):
        path.unlink()
    refused = dicomfs("status", "--store", store)
    assert refused.returncode == STORE_TROUBLE
    assert "dicomfs reindex" in refused.stderr
    done = dicomfs("reindex", "--store", store)
    assert (done.returncode, done.stderr) == (OK, "")
    assert done.stdout.split() == [
        *("3", "originals", "in", "the", "rebuilt", "index"),
        *("nothing", "is", "wrong"),
    ]
    assert lasting(dicomfs("status", "--json", "--store", store)) == before
    facts = json.loads(dicomfs("reindex", "--json", "--store", store).stdout)
    assert (facts["originals"], facts["clean"]) == (3, True)
    assert (store / "index.sqlite3.before-reindex").exists()


@pytest.mark.usefixtures("expected_warnings")
def test_reindex_says_what_it_had_to_leave_out(store: Path, images: list[Path], dicomfs: Command) -> None:
    damage(archived(store, images[1]))
    done = dicomfs("reindex", "--store", store)
    assert done.returncode == ALARM
    assert original(images[1]).sop_uid in done.stderr
    assert "2 originals in the rebuilt index" in done.stdout
    assert re.search(r"1 damaged: .*send them again", done.stdout)


def test_reindex_names_the_mount_that_has_to_stop(tmp_path: Path, store: Path, dicomfs: Command) -> None:
    require_fuse()
    point = tmp_path / "mount"
    point.mkdir()
    argv = command_line("mount", "--store", store, point, "-o", "workers=1,warm=off")
    ready = lambda: mounted(point)  # noqa: E731
    with running(argv, tmp_path / "log", ready, "it is mounted", mountpoint=point) as mount:
        done = dicomfs("reindex", "--store", store)
        assert done.returncode == STORE_TROUBLE
        assert f"dicomfs mount (process {mount.process.pid})" in done.stderr
    assert dicomfs("reindex", "--store", store).returncode == OK


def on_terminal(*arguments: str | Path) -> str:
    """What a command says on standard error when that is a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            command_line(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(theirs)
        said = b""
        try:
            while part := screen.read(4096):
                said += part
        except OSError:
            pass  # Linux says EIO when nobody has it open any more
        assert process.wait(60) == OK
    return said.decode(errors="replace")


@pytest.mark.parametrize(("command", "what"), [("scrub", "scrubbing"), ("reindex", "reading the archive")])
def test_progress_is_shown_on_a_terminal(store: Path, command: str, what: str) -> None:
    said = on_terminal(command, "--store", store)
    assert what in said
    assert "3/3" in said


def test_quiet_is_quiet_on_a_terminal(store: Path) -> None:
    assert on_terminal("scrub", "--quiet", "--store", store) == ""


AS_NOBODY = """
import os, sys
from dicomfs.cli import main
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for command in ["reindex"], ["scrub", "--repair"]:
    print(main([*command, "--store", sys.argv[1]]))
"""


def test_what_another_user_would_write_is_not_written() -> None:
    """The receiver could not read it. In a folder that everybody may look into, unlike those of the tests."""
    if os.geteuid() != 0:
        lacking("only root can become somebody else")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = Path(folder, "store")
        image = named(Path(folder, "one.dcm"), NAME)
        assert cli.main(["import", "-q", "--store", str(store), str(image)]) == OK
        store.chmod(0o755)
        done = subprocess.run(
            [command_line()[0], "-c", AS_NOBODY, str(store)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.stdout.split() == [str(USAGE)] * 2, done.stderr
    assert done.stderr.count("run this command as that user") == 2
