"""The benchmarks still run, with numbers too small to mean anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, require, require_fuse

NAMES = {path.stem.removeprefix("measure_") for path in (ROOT / "tests/bench").glob("measure_*.py")}

BROWSING = {"copy", "fair", "listing", "open", "read"}


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_fuse()
    for tool in ("storescu", "storescp", "smbd", "smbclient", "dcmj2pnm"):
        require(tool)


def bench(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "tests.bench", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=500, cwd=ROOT)


def cells(document: str) -> list[dict[str, str]]:
    """Rows of the Markdown table, by heading."""
    lines = [line.strip("|").split("|") for line in document.splitlines() if line.startswith("|")]
    headings, _, *rows = ([cell.strip() for cell in line] for line in lines)
    return [dict(zip(headings, row, strict=True)) for row in rows]


def quick(folder: Path, names: set[str]) -> tuple[str, list[dict[str, str]]]:
    """What these benchmarks print, and the table that they keep; some peers are missing."""
    kept = folder / "RESULTS.md"
    without = ["--without", "orthanc", "--without", "bindfs"]
    done = bench("--quick", *without, "--save", kept, *sorted(names))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("machine ")
    document = kept.read_text(encoding="utf-8")
    assert set(re.findall(r"^### (\w+)$", document, re.MULTILINE)) == names
    assert "not measured" not in document
    table = cells(document)
    assert all(row["case"] in done.stdout for row in table)
    return done.stdout, table


def ratios(table: list[dict[str, str]]) -> set[str]:
    """Benchmarks that have one; nothing is made up for a peer that is missing."""
    found = [row for row in table if row["ratio"]]
    assert all(re.fullmatch(r"\d+\.\d\d", row["ratio"]) for row in found)
    assert not [row for row in found if row["against"].endswith("not here")]
    return {row["benchmark"] for row in found}


def test_whoever_browses_is_compared_with_files_on_disk(tmp_path: Path) -> None:
    _, table = quick(tmp_path, BROWSING)
    assert ratios(table) == BROWSING
    absent = [row for row in table if row["against"].endswith("not here")]
    assert {re.split(r"\W", row["against"])[0] for row in absent} == {"Orthanc", "bindfs"}
    assert not any(row["peer"] + row["goal is"] for row in absent)
    # A goal is a number beside its figure, and what became of it.
    goals = [row for row in table if row["goal"] and row not in absent]
    assert {row["benchmark"] for row in goals} >= {"copy", "listing"}
    assert all(row["goal is"] in {"met", "met, stretch too", "missed"} for row in goals)
    # Not a matter of speed: names alone need no picture.
    assert [row["dicomfs"] for row in table if row["case"].endswith(": renders")] == ["0"]


def test_all_others_run(tmp_path: Path) -> None:
    said, table = quick(tmp_path, NAMES - BROWSING)
    assert ratios(table) >= {"receive", "scale"}
    assert re.search(r"walk over 500 files: .* the mount holds \d+ MB", said)


def test_a_peer_that_nobody_knows_is_refused() -> None:
    done = bench("read", "--without", "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
