"""The quality figures still come out, on the synthetic cine alone: structure, and the gates it must hold."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import phantom
from tests.quality.flicker import measure
from tests.quality.pictures import clipped, entropy, mean_absolute_difference, ssim, used_range
from tests.quality.separation import inside
from tests.support import ROOT, require

HOLD = (
    "fidelity: within 1 level of DCMTK +Wi 1",
    "used range, MR, no telling header: median",
    "clipped high in body, adaptive: greatest, %",
    "clipped low in body, adaptive: greatest, %",
    "flicker: greatest, grey levels",
    "LV separation: median over slices",
    "LV blood clipped: greatest of slices, %",
    "hot pixels: least used range kept",
    "flat pictures of images that are not",
)


def test_cine(tmp_path: Path) -> None:
    require("dcmj2pnm")
    sheet = tmp_path / "sheet.png"
    argv = [sys.executable, "-m", "tests.quality", "--packaged", "cine", "--without", "orthanc", "--gates"]
    done = subprocess.run(
        [*argv, "--sheet", str(sheet)], capture_output=True, text=True, check=False, timeout=200, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("packaged images: 36 files; measured 36 grey frames in 3 pools")
    lines = [re.split(r" {2,}", line) for line in done.stdout.splitlines()]
    assert [
        "metric",
        "n",
        "dicomfs",
        "header",
        "min-max",
        "DCMTK +Wi 1",
        "DCMTK +Wm",
        "DCMTK",
        "gate",
    ] in lines
    verdicts = {line[0]: line[-1] for line in lines if line[-1] in {"holds", "FAILS", "not measured"}}
    assert {name: verdicts.get(name) for name in HOLD} == dict.fromkeys(HOLD, "holds")
    assert sheet.stat().st_size > 10_000
    with Image.open(sheet) as picture:
        assert picture.width > 3 * 250


def test_a_window_that_pumps_flickers_and_a_steady_one_does_not() -> None:
    raw = np.random.default_rng(1).uniform(100, 900, (8, 5000)) + 20 * np.sin(np.arange(8))[:, None]
    steady = measure(np.rint(raw / 1000 * 255), raw)
    gains = 1 + 0.1 * (np.arange(8) % 2)[:, None]
    pumping = measure(np.rint(raw * gains / 1200 * 255), raw)
    assert steady == pytest.approx((0, 0), abs=0.02)
    # 10 % of a mean of 500 / 1200 * 255, between two values: half of it is the deviation
    assert pumping is not None
    assert pumping[1] == pytest.approx(0.5 * 0.1 * 500 / 1200 * 255, rel=0.05)


def test_measures_by_hand() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    everywhere = np.ones((16, 16), bool)
    assert used_range(ramp, everywhere) == pytest.approx(0.9 * 255)
    assert entropy(ramp, everywhere) == pytest.approx(8)
    assert clipped(ramp, everywhere) == (1 / 256, 1 / 256)
    assert clipped(ramp, ramp > 127) == (1 / 128, 0)
    assert mean_absolute_difference(ramp, 255 - ramp) == pytest.approx(128)
    assert ssim(ramp, ramp) == pytest.approx(1)
    # two constant pictures: structure 1, luminance (2ab + c1) / (a^2 + b^2 + c1)
    low, high = np.full((9, 9), 100, np.uint8), np.full((9, 9), 200, np.uint8)
    assert ssim(low, high) == pytest.approx((40000 + 6.5025) / (50000 + 6.5025))


def test_inside_of_a_contour() -> None:
    square = np.array([[2.5, 1.5], [6.5, 1.5], [6.5, 4.5], [2.5, 4.5]])
    expected = np.zeros((8, 9), bool)
    expected[2:5, 3:7] = True
    assert (inside(square, (8, 9)) == expected).all()
    inner, outer = phantom.ventricle(0, 0)
    areas = [int(inside(line, (phantom.SIZE, phantom.SIZE)).sum()) for line in (inner, outer)]
    # pi * a * b of the phantom at the base, filled
    assert areas == pytest.approx([np.pi * 18.5**2 * 0.96, np.pi * 27**2 * 0.97], rel=0.02)
