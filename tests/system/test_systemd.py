"""The unit files, as systemd reads them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import lacking, require

UNITS = Path(__file__).parents[2] / "systemd"


@pytest.mark.parametrize("name", ["dicomfs-scp.service", "dicomfs-mount@.service", "dicomfs-metrics.service"])
def test_systemd_understands_the_unit(name: str, tmp_path: Path) -> None:
    verify = require("systemd-analyze")
    text = (UNITS / name).read_text(encoding="utf-8")
    # It also checks that programs and manuals are there, which are not on the machine of a developer.
    text, programs = re.subn(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE)
    assert programs == 1
    unit = tmp_path / name.replace("@", "@srv-dicom")
    unit.write_text(text, encoding="utf-8")
    said = subprocess.run(
        [verify, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    if "Failed to connect" in said.stderr or "Failed to initialize manager" in said.stderr:
        lacking(f"systemd-analyze does not work here: {said.stderr.strip()}")
    mine = [line for line in said.stderr.splitlines() if "dicomfs" in line]
    assert mine == []
    assert said.returncode == 0, said.stderr


def test_mount_unit_does_nothing_that_hides_the_mount() -> None:
    text = (UNITS / "dicomfs-mount@.service").read_text(encoding="utf-8")
    set_here = {
        line.partition("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("#")
    }
    own_view = {
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "ReadWritePaths",
        "ReadOnlyPaths",
    }
    no_setuid = {
        "NoNewPrivileges",
        "SystemCallFilter",
        "RestrictNamespaces",
        "LockPersonality",
        "RestrictRealtime",
    }
    assert set_here & (own_view | no_setuid) == set()
