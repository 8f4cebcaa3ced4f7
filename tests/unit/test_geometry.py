"""Square pixels, scaling down, and true size, by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomfs.geometry import TAGS, Geometry, fitted, geometry
from tests.unit.reference import write


def read(folder: Path, **attributes: Any) -> Geometry:
    path = write(folder / "a.dcm", np.zeros((4, 6), "u1"), **attributes)
    return geometry(dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS)), 0)


def region(across: float, down: float, kind: int = 1, units: int = 3) -> Dataset:
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = kind, 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = across, down
    return item


def test_spacing_is_rows_first(tmp_path: Path) -> None:
    # PS3.3 10.7.1.3: row spacing (vertical) \ column spacing
    assert read(tmp_path, PixelSpacing=[0.8, 0.4]) == Geometry(2.0, 0.4)
    assert read(tmp_path, ImagerPixelSpacing=[0.2, 0.2]) == Geometry(1.0, 0.2)
    assert read(tmp_path, NominalScannedPixelSpacing=[0.1, 0.2]) == Geometry(0.5, 0.2)
    assert read(tmp_path, PixelSpacing=[1, 1], ImagerPixelSpacing=[2, 4]) == Geometry(1.0, 1.0)


def test_ratio_is_vertical_to_horizontal_and_no_measure(tmp_path: Path) -> None:
    # PS3.3 C.7.6.3.1.7: 0.30 mm high and 0.25 mm wide is 6\5
    assert read(tmp_path, PixelAspectRatio=["6", "5"]) == Geometry(1.2, None)
    assert read(tmp_path, PixelAspectRatio=["6", "5"], PixelSpacing=[1, 1]) == Geometry(1.0, 1.0)


def test_ultrasound_regions_of_one_scale(tmp_path: Path) -> None:
    assert read(tmp_path, SequenceOfUltrasoundRegions=[region(0.25, 0.375)]) == Geometry(1.5, 2.5)
    upwards = [region(0.25, -0.375), region(0.5, 0.1, kind=2), region(1, 1, units=0)]
    assert read(tmp_path, SequenceOfUltrasoundRegions=upwards) == Geometry(1.5, 2.5)
    two = [region(0.25, 0.375), region(0.5, 0.75)]
    assert read(tmp_path, SequenceOfUltrasoundRegions=two) == Geometry()


def test_functional_groups_of_the_frame(tmp_path: Path) -> None:
    def group(*spacing: float) -> Dataset:
        measures, item = Dataset(), Dataset()
        measures.PixelSpacing = list(spacing)
        item.PixelMeasuresSequence = [measures]
        return item

    found = read(
        tmp_path,
        SharedFunctionalGroupsSequence=[group(3, 3)],
        PerFrameFunctionalGroupsSequence=[group(2, 1)],
    )
    assert found == Geometry(2.0, 1.0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("spacing", [[0, 0], [-1, 1], [1, 0], ["1e300", "1"], [1, 500], [0.5]])
def test_broken_spacings_count_as_missing(tmp_path: Path, spacing: list[Any]) -> None:
    assert read(tmp_path, PixelSpacing=spacing) == Geometry()


def test_absurd_sizes_are_no_true_size(tmp_path: Path) -> None:
    assert read(tmp_path, PixelSpacing=[0.00025, 0.00025]).width_mm is None
    assert read(tmp_path, PixelSpacing=[100, 50]) == Geometry(2.0, None)


@pytest.mark.parametrize("colour", [False, True])
def test_the_coarser_side_is_resampled_up(colour: bool) -> None:
    ramp = np.arange(0, 200, 5, dtype=np.uint8)
    picture = np.tile(ramp[:, None], (1, 30)) if not colour else np.tile(ramp[:, None, None], (1, 30, 3))
    tall, metres = fitted(picture, Geometry(2.0, 0.5), square=True, max_size=0)
    assert tall.shape[:2] == (80, 30)
    # a straight line stays one: sample n of the doubled picture lies at (n - 0.5) / 2
    assert np.abs(tall[8:-8, 3].reshape(-1).astype(float)[:: 3 if colour else 1]).size
    middle = tall[:, 3] if not colour else tall[:, 3, 0]
    expected = np.clip((np.arange(80) - 0.5) / 2 * 5, 0, 195)
    assert np.abs(middle - expected)[4:-4].max() <= 1
    assert metres == (2000.0, 2000.0)
    wide, _ = fitted(picture, Geometry(0.5), square=True, max_size=0)
    assert wide.shape[:2] == (40, 60)


def test_left_alone_when_square_or_not_asked() -> None:
    picture = np.zeros((40, 30), np.uint8)
    assert fitted(picture, Geometry(1.005), square=True, max_size=40)[0] is picture
    same, metres = fitted(picture, Geometry(2.0, 0.5), square=False, max_size=0)
    assert same is picture
    assert metres == (2000.0, 1000.0)  # 0.5 mm wide, 1 mm high


@pytest.mark.parametrize(("kind", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_scaled_down_without_aliasing(kind: Any, white: int) -> None:
    # a chequerboard finer than the result can hold is grey, not a moire
    board = ((np.indices((400, 200)).sum(axis=0) % 2) * white).astype(kind)
    small, metres = fitted(board, Geometry(1.0, 0.1), square=True, max_size=100)
    assert small.shape == (100, 50)
    assert small.dtype == kind
    assert np.abs(small.astype(float) - white / 2).max() < white * 0.02
    assert metres == (2500.0, 2500.0)  # the same 20 mm on a quarter of the pixels
    assert fitted(board, Geometry(), square=True, max_size=400)[0] is board


def test_sixteen_bits_keep_their_values() -> None:
    picture = np.full((64, 64), 40001, np.uint16)
    assert (fitted(picture, Geometry(), square=True, max_size=10)[0] == 40001).all()


def test_what_would_be_enormous_keeps_its_pixels() -> None:
    line = np.zeros((6000, 6000), np.uint8)
    assert fitted(line, Geometry(10.0), square=True, max_size=0)[0].shape == (6000, 6000)
