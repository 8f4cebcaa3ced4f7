"""A file read up to its pixel data: once for all frames of a run, and never another's header."""

from dataclasses import replace
from functools import partial
from io import BufferedReader
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless

from dicomfs.image import open_image
from dicomfs.pixels import grey
from tests.unit.reference import write


def run(path: Path, syntax: UID, frames: int = 40) -> list[NDArray[np.uint16]]:
    """A run of frames, each different; what is in them."""
    values = [np.full((30, 20), 100 + frame, "u2") for frame in range(frames)]
    if syntax.is_encapsulated:
        codes = [rle_encode(one) for one in values]
        write(path, values[0], syntax, NumberOfFrames=frames, PixelData=encapsulate(codes, has_bot=False))
    else:
        write(path, np.stack(values), syntax, NumberOfFrames=frames)
    return values


def rle_encode(values: NDArray[np.uint16]) -> bytes:
    """One frame of 16 bits by the RLE of PS3.5 G: runs of one value only."""
    octets = (values >> 8, values & 0xFF)
    segments = [bytes([*(bytes((257 - 100, int(o.flat[0]))) * (o.size // 100))]) for o in octets]
    head = np.array([2, 64, 64 + len(segments[0]), *[0] * 13], "<u4").tobytes()
    return head + b"".join(segments)


class Watched(BufferedReader):
    """A file that counts what it is asked for."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.taken += len(found)
        return found


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_of_a_run_one_frame_is_read_and_the_header_is_parsed_once(
    tmp_path: Path, syntax: UID, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.dcm"
    values = run(path, syntax)
    with open_image(path) as image:
        assert (grey(image, 3).codes == values[3]).all()

    def never(*_: object, **__: object) -> object:
        raise AssertionError("the file was parsed again")

    monkeypatch.setattr("dicomfs.image.dcmread", never)
    frame_bytes = values[0].nbytes if syntax == ExplicitVRLittleEndian else len(rle_encode(values[0]))
    for number in (39, 0, 17):
        with path.open("rb", buffering=0) as raw, Watched(raw) as file, open_image(file) as image:
            assert (grey(image, number).codes == values[number]).all()
            # the header, the heads of all fragments, and one frame
            assert file.taken <= image.start + len(values) * 8 + frame_bytes + 100


def test_another_run_in_the_place_of_one_is_another(tmp_path: Path) -> None:
    path = tmp_path / "run.dcm"
    run(path, ExplicitVRLittleEndian)
    with open_image(path) as image:
        before = image.stored, path.stat().st_ino, path.stat().st_size
    raw = path.read_bytes()
    stored = b"\x28\0\1\1US\2\0\x10\0"  # Bits Stored
    assert raw.count(stored) == 1
    with path.open("r+b") as file:
        file.write(raw.replace(stored, stored[:-2] + b"\x0c\0"))
    with open_image(path) as image:
        assert (image.stored, path.stat().st_ino, path.stat().st_size) == (12, *before[1:])


def test_what_is_known_of_a_run_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((2, 4, 4), "u2"), ExplicitVRLittleEndian, NumberOfFrames=2)
    with open_image(path) as image:
        shared = replace(image, by_frame=True)
        for frame in range(3000):
            assert shared.find("number", frame, partial(int, frame)) == frame
        assert shared.find("number", 2999, partial(int, 0)) == 2999
        assert len(shared.known) < 1000
