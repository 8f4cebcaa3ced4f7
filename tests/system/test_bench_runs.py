"""The benchmarks still run, with numbers too small to mean anything."""

import re
import subprocess
import sys

import pytest

from tests.support import ROOT, require, require_fuse


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_fuse()
    for tool in ("storescu", "storescp", "smbd", "smbclient"):
        require(tool)


def test_quick_prints_a_ratio_for_every_peer_that_is_here() -> None:
    argv = [sys.executable, "-m", "tests.bench", "--quick", "--without", "orthanc"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("machine ")
    lines = [re.split(r" {2,}", line) for line in done.stdout.splitlines()]
    ratios = {(line[0], line[1]): line[-1] for line in lines if re.fullmatch(r"\d+\.\d\d", line[-1])}
    assert {name for name, _ in ratios} == {"browse", "memory", "receive", "scale"}
    assert all(float(ratio) > 0 for ratio in ratios.values())
    assert re.search(r"walk over 500 files: .* the mount holds \d+ MB", done.stdout)
    # A peer that is missing is named, and nothing is made up for it.
    assert len([line for line in lines if line[-1] == "Orthanc, WebDAV PROPFIND: not here"]) == 4
    missing = [line for line in lines if line[-1] == "Orthanc: not here"]
    assert len(missing) == len([line for line in lines if "storescp" in line[3:4]]) > 0
