"""Frames of every video transfer syntax, of streams encoded here from colours that are known.

The expected colours are those that were painted, converted by hand where a matrix is in question; what is
compared is within the loss of the codecs.
"""

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID

from dicomfs.errors import NotDisplayable
from dicomfs.image import open_image
from dicomfs.pixels import colour, grey
from dicomfs.video import VIDEO_SYNTAXES
from tests.videos import COLOURS, COLUMNS, H264, HEVC, MPEG2, ROWS, TOLERANCE, encoded, painted, save


def shown(path: Path, frame: int) -> NDArray[np.uint8]:
    with open_image(path) as image:
        return colour(image, frame)


def assert_shows(path: Path, frame: int, number: int) -> None:
    difference = np.abs(shown(path, frame).astype(int) - painted(number))
    # Not at the edge of the black quarter, where the codec blurs.
    for part in (difference[4 : ROWS // 2 - 8, 4 : COLUMNS // 2 - 8], difference[ROWS // 2 + 8 :, 8:]):
        assert part.max() <= TOLERANCE


@pytest.mark.parametrize("fragments", [1, 7])
@pytest.mark.parametrize(
    ("codec", "container"),
    [
        *(("mpeg2video", c) for c in ("mpegts", "mpeg", "mpeg2video")),
        *(("h264", c) for c in ("mp4", "mpegts", "h264")),
        *(("hevc", c) for c in ("mp4", "mpegts", "hevc")),
    ],
)
def test_every_frame_of_every_container(tmp_path: Path, codec: str, container: str, fragments: int) -> None:
    syntax = {"mpeg2video": MPEG2, "h264": H264, "hevc": HEVC}[codec]
    path = save(tmp_path / "v.dcm", encoded(codec, container), syntax, fragments=fragments)
    for number in range(len(COLOURS)):
        assert_shows(path, number, number)


STREAMS: dict[str, bytes] = {}


@pytest.mark.parametrize("syntax", VIDEO_SYNTAXES)
def test_every_transfer_syntax(tmp_path: Path, syntax: UID) -> None:
    codec = VIDEO_SYNTAXES[syntax]
    stream = STREAMS.setdefault(codec, encoded(codec, "mpegts"))
    assert_shows(save(tmp_path / "v.dcm", stream, syntax), 2, 2)


def test_list_of_transfer_syntaxes() -> None:
    """PS3.6 table A-1: all whose names are those of video compressions."""
    standard = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "Transfer Syntax" and ("MPEG" in name or "HEVC" in name) and "SMPTE" not in name
    }
    assert set(VIDEO_SYNTAXES) == standard


def test_a_frame_does_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    path = save(tmp_path / "v.dcm", encoded("h264", "mp4"), H264)
    other = save(tmp_path / "w.dcm", encoded("mpeg2video", "mpegts"), MPEG2)
    in_order = [shown(path, number) for number in range(len(COLOURS))]
    for number in (5, 0, 3, 3, 1, 4, 2, 5):
        assert np.array_equal(shown(path, number), in_order[number])
        shown(other, number % 3)


def test_a_file_that_was_replaced_is_decoded_anew(tmp_path: Path) -> None:
    path = save(tmp_path / "v.dcm", encoded("h264", "mp4"), H264)
    assert_shows(path, 0, 0)
    (tmp_path / "other").mkdir()
    save(tmp_path / "other" / "v.dcm", encoded("mpeg2video", "mpegts"), MPEG2).rename(path)
    assert_shows(path, 1, 1)


@pytest.mark.parametrize(("rows", "matrix"), [(576, "BT.601"), (720, "BT.709")])
def test_matrix_where_the_stream_names_none(tmp_path: Path, rows: int, matrix: str) -> None:
    """YCbCr of limited range to RGB by the formulas of ITU-R BT.601 and BT.709."""
    y, cb, cr = 120, 100, 170
    kr, kb = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722)}[matrix]
    luma, blue, red = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    expected_red = luma + 2 * (1 - kr) * red
    expected_blue = luma + 2 * (1 - kb) * blue
    expected_green = (luma - kr * expected_red - kb * expected_blue) / (1 - kr - kb)
    columns = 256
    out = io.BytesIO()
    with av.open(out, "w", format="h264") as muxer:
        stream: Any = muxer.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = rows, columns, "yuv420p"
        planes = np.concatenate(
            [np.full(rows * columns, y), np.full(rows * columns // 4, cb), np.full(rows * columns // 4, cr)]
        ).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(planes.reshape(rows * 3 // 2, columns), format="yuv420p")
        muxer.mux(stream.encode(frame))
        muxer.mux(stream.encode(None))
    path = save(tmp_path / "v.dcm", out.getvalue(), H264, Rows=rows, Columns=columns, NumberOfFrames=1)
    found = shown(path, 0)[rows // 2, columns // 2]
    expected = [round(255 * value) for value in (expected_red, expected_green, expected_blue)]
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_monochrome_video_is_its_luma(tmp_path: Path) -> None:
    path = save(
        tmp_path / "v.dcm",
        encoded("h264", "mp4"),
        H264,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
    )
    with open_image(path) as image:
        found = grey(image, 3)
    assert found.codes.shape == (ROWS, COLUMNS)
    assert abs(int(found.codes[-10, -10]) - 128) <= TOLERANCE


# What cannot be shown says why


@pytest.mark.parametrize(
    ("stream", "changes", "reason"),
    [
        (encoded("h264", "mp4"), {"Rows": 100}, "128 x 96 pixels, but it announces 128 x 100"),
        (encoded("h264", "mp4", frames=3), {}, "ends before frame 6"),
        (encoded("mpeg2video", "mpegts"), {}, "is mpeg2video, but it announces h264"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n" * 20, {}, "container of its video is not known"),
        (b"\0\0\1" + bytes(5000), {}, "damaged|no pictures|ends before"),
        (encoded("h264", "mp4")[:700], {}, "damaged"),
        (b"", {}, "no pixel data"),
    ],
    ids=["other size", "too short", "other codec", "playlist", "zeros", "cut", "empty"],
)
def test_damage_is_named(tmp_path: Path, stream: bytes, changes: dict[str, Any], reason: str) -> None:
    path = save(tmp_path / "v.dcm", stream, H264, **changes) if stream else tmp_path / "v.dcm"
    if not stream:
        save(path, b"\0\0", H264)
        whole = path.read_bytes()
        path.write_bytes(
            whole[: whole.index(b"\xfe\xff\x00\xe0", -40)] + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
        )
    with pytest.raises(NotDisplayable, match=reason):
        shown(path, 5)


def test_bytes_that_are_changed_anywhere_never_crash(tmp_path: Path) -> None:
    whole = encoded("h264", "mpegts")
    rng = np.random.default_rng(7)
    for _ in range(40):
        harmed = bytearray(whole)
        for at in rng.integers(0, len(harmed), 20):
            harmed[at] = rng.integers(0, 256)
        path = save(tmp_path / "v.dcm", bytes(harmed), H264)
        for frame in (0, 5):
            with contextlib.suppress(NotDisplayable):
                assert shown(path, frame).shape == (ROWS, COLUMNS, 3)
