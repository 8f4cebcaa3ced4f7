"""`dicomfs render`: names, bytes and times of a mount of the same files, without a mount."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from dicomfs import cli, exitcodes
from tests.phantom import cine
from tests.support import command_line, mounted, require_fuse, running, shipped
from tests.videos import COLOURS, H264, ROWS, TOLERANCE, encoded, painted, save

NAMES = ("CT_small.dcm", "examples_ybr_color.dcm", "emri_small.dcm", "rtplan.dcm")
OPTIONS = "formats=jpg+png+dcm,frames=4,quality=70"


def samples(folder: Path) -> list[Path]:
    real = [shipped(name) for name in NAMES]
    folder.mkdir()
    return [*real, *cine(folder, slices=1, phases=4)]


def contents(top: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time in seconds of every file below a folder, by relative path."""
    files = [Path(where, name) for where, _, names in os.walk(top) for name in names]
    return {str(f.relative_to(top)): (f.read_bytes(), int(f.stat().st_mtime)) for f in files}


def test_it_writes_what_a_mount_shows(tmp_path: Path) -> None:
    require_fuse()
    files = [str(path) for path in samples(tmp_path / "cine")]
    store, point, output = (tmp_path / name for name in ("store", "mnt", "out"))
    point.mkdir()
    assert cli.main(["import", "-q", "--store", str(store), *files]) == exitcodes.OK
    argv = command_line("mount", "--store", store, point, "-o", OPTIONS)
    with running(argv, tmp_path / "log", lambda: mounted(point), "the mount", mountpoint=point):
        shown = contents(point)
    assert cli.main(["render", "-q", "--output", str(output), "-o", OPTIONS, *files]) == exitcodes.OK
    written = contents(output)
    # The archived file names its time of receipt, and the two were received apart; the pictures are equal.
    assert {n: c for n, c in written.items() if n[:3] != "dcm"} == {
        n: c for n, c in shown.items() if n[:3] != "dcm"
    }
    assert {n: c[0][1024:] for n, c in written.items() if n[:3] == "dcm"} == {
        n: c[0][1024:] for n, c in shown.items() if n[:3] == "dcm"
    }
    # 1 CT, 4 of 30 colour frames, 4 of 10 enhanced MR frames, 4 phases; the plan has no picture.
    assert len([n for n in written if n.startswith("jpg")]) == 13
    assert len([n for n in written if n.startswith("dcm")]) == 8


def test_what_cannot_be_shown_is_named_and_told_by_the_exit_code(tmp_path: Path) -> None:
    data_set = dcmread(str(shipped("CT_small.dcm")))
    data_set.Rows = 0
    broken = tmp_path / "broken.dcm"
    data_set.save_as(broken)
    done = subprocess.run(
        command_line("render", "--output", tmp_path / "out", broken),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exitcodes.SOME_REFUSED
    assert "cannot be displayed" in done.stderr
    (notice,) = (tmp_path / "out").rglob("*.jpg")
    assert notice.read_bytes()[:2] == b"\xff\xd8"


def test_an_output_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    path = str(shipped("CT_small.dcm"))
    assert cli.main(["render", "-q", "--output", str(tmp_path / "file"), path]) == exitcodes.USAGE
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_frames_of_a_video_are_files_as_those_of_any_run(tmp_path: Path) -> None:
    """Through the render processes with all their limits."""
    save(tmp_path / "v.dcm", encoded("h264", "mp4"), H264, StudyDate="20240102", SeriesDescription="Scope")
    output = tmp_path / "out"
    argv = command_line("render", "--output", output, tmp_path / "v.dcm", "-o", "formats=png+json")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == exitcodes.OK, done.stderr
    written = sorted(output.rglob("*.png"))
    assert [path.stem for path in written] == [f"Scope_0_0_{n}" for n in range(1, len(COLOURS) + 1)]
    assert len(list(output.rglob("*.json"))) == 1
    for number, path in enumerate(written):
        with Image.open(path) as picture:
            found = np.asarray(picture)
        difference = np.abs(found.astype(int) - painted(number))
        assert difference[ROWS // 2 + 8 :, 8:].max() <= TOLERANCE
