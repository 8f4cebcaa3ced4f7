"""Mask subtraction by hand: which frames, which sign, and the window that follows."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicomfs.model import PoolWindow, Recipe, Source
from dicomfs.render import decide_pool, render
from dicomfs.subtraction import MAX_FRAMES, Subtraction, subtracted, subtraction
from tests.unit.reference import linear_exact, write

BACKGROUND = 600 + np.arange(64 * 64).reshape(64, 64) % 300


def run_of(*vessel_depths: int) -> NDArray[np.uint16]:
    """Frames of one uneven background with a vessel, a column, that darkens it."""
    frames = np.stack([BACKGROUND] * len(vessel_depths)).astype("u2")
    for frame, depth in enumerate(vessel_depths):
        frames[frame, :, 30:33] -= depth
    return frames


def item(operation: str = "AVG_SUB", **attributes: Any) -> Dataset:
    found = Dataset()
    found.MaskOperation = operation
    for keyword, value in attributes.items():
        setattr(found, keyword, value)
    return found


def angiogram(folder: Path, frames: NDArray[np.uint16], *items: Dataset, **attributes: Any) -> Path:
    wishes: dict[str, Any] = {
        "Modality": "XA",
        "NumberOfFrames": len(frames),
        "BitsStored": 10,
        "HighBit": 9,
        "RecommendedViewingMode": "SUB",
        "MaskSubtractionSequence": list(items),
        "PixelIntensityRelationship": "LOG",
        "WindowCenter": 512,
        "WindowWidth": 1024,
    }
    return write(folder / "a.dcm", frames, **(wishes | attributes))


def picture(path: Path, frame: int = 0, pool: PoolWindow | None = None, **recipe: Any) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(render(Source(path, frame), Recipe("png", **recipe), pool))))


def test_contrast_minus_the_mean_of_the_masks(tmp_path: Path) -> None:
    frames = run_of(0, 0, 40, 100)
    frames[1] += 2
    path = angiogram(tmp_path, frames, item(MaskFrameNumbers=[1, 2]))
    found = picture(path, 3, window="0/256")
    # beside the vessel 0 - 1, in it -100 - 1
    assert set(found[:, :30].ravel().tolist()) == {linear_exact(-1, 0, 256)}
    assert set(found[:, 30:33].ravel().tolist()) == {linear_exact(-101, 0, 256)}


def test_the_background_vanishes_by_itself(tmp_path: Path) -> None:
    path = angiogram(tmp_path, run_of(0, 20, 60, 100), item(MaskFrameNumbers=[1]))
    found = picture(path, 3)
    assert np.ptp(found[:, :30]) == 0
    assert int(found[0, 0]) - int(found[0, 31]) > 200
    native = picture(path, 3, subtraction=False)
    assert np.ptp(native[:, :30]) > 60


def test_only_where_the_header_recommends_it(tmp_path: Path) -> None:
    frames = run_of(0, 100)
    native = angiogram(tmp_path, frames, item(MaskFrameNumbers=[1]), RecommendedViewingMode="NAT")
    assert np.ptp(picture(native, 1)[:, :30]) > 60
    # SUB with the operation NONE means nothing: all frames share the window that they always had
    nothing = angiogram(tmp_path, frames, item("NONE", MaskFrameNumbers=[0]))
    for frame in (0, 1):
        assert np.array_equal(picture(nothing, frame), picture(nothing, frame, subtraction=False))
    assert decide_pool([Source(nothing, 0), Source(nothing, 1)]).reason == "header"


def test_intensities_are_subtracted_as_logarithms(tmp_path: Path) -> None:
    # halved intensity is -ln 2 whatever the background
    frames = run_of(0, 0)
    frames[1, :, 30:33] = frames[0, :, 30:33] // 2
    path = angiogram(tmp_path, frames, item(MaskFrameNumbers=[1]), PixelIntensityRelationship="LIN")
    found = picture(path, 1, window="0/2")
    assert set(found[:, :30].ravel().tolist()) == {128}
    assert np.abs(found[:, 30:33].astype(int) - linear_exact(-np.log(2), 0, 2)).max() <= 1


def test_masks_of_time_intervals() -> None:
    ds = Dataset()
    ds.RecommendedViewingMode = "SUB"

    def masks(operation: Dataset, frame: int) -> tuple[int, ...] | None:
        ds.MaskSubtractionSequence = [operation]
        file = BytesIO()
        ds.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
        from pydicom import dcmread  # noqa: PLC0415

        file.seek(0)
        found = subtraction(dcmread(file, force=True), frame, 20)
        return None if found is None else found.mask

    assert masks(item("TID", TIDOffset=3), 10) == (7,)
    assert masks(item("TID", TIDOffset=None), 10) == (9,)
    assert masks(item("TID", TIDOffset=-2), 10) == (12,)
    assert masks(item("TID", TIDOffset=3), 1) == (0,)
    # frames 10 to 15, offset 2: 8, 7, 6 and so on (counted from 1)
    reverse = item("REV_TID", TIDOffset=2, ApplicableFrameRange=[10, 15])
    assert [masks(reverse, frame) for frame in (9, 10, 11)] == [(7,), (6,), (5,)]
    assert masks(reverse, 3) is None
    assert masks(item("NONE"), 3) is None
    assert masks(item(MaskFrameNumbers=[99]), 3) is None
    many = masks(item(MaskFrameNumbers=list(range(1, 21)) * 3), 3)
    assert many is not None
    assert len(many) == MAX_FRAMES


def test_frames_outside_the_range_are_shown_as_they_are(tmp_path: Path) -> None:
    frames = run_of(0, 0, 50, 100)
    wanted = item(MaskFrameNumbers=[2], ApplicableFrameRange=[3, 4])
    path = angiogram(tmp_path, frames, wanted)
    pool = decide_pool([Source(path, frame) for frame in range(4)])
    assert pool.low is not None
    assert pool.high is not None
    assert -110 < pool.low < pool.high < 20
    assert np.ptp(picture(path, 0, pool)[:, :30]) > 60
    assert np.ptp(picture(path, 3, pool)[:, :30]) == 0


def test_a_shifted_mask() -> None:
    mask = np.zeros((8, 8), np.float32)
    mask[3, 3] = 8
    wanted = Subtraction((0,), (1,), shift=(1.0, 0.5))
    found = subtracted(wanted, lambda frame: mask if frame == 0 else np.zeros((8, 8), np.float32))
    # down by one, to the right by a half
    assert found[4, 3] == found[4, 4] == pytest.approx(-4)
    assert found.sum() == pytest.approx(-8)
