"""Video objects of colours that are known, for the tests of videos: encoded by PyAV, wrapped by hand."""

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

ENDOSCOPY = "1.2.840.10008.5.1.4.1.1.77.1.1.1"
MPEG2, H264, HEVC = (f"1.2.840.10008.1.2.4.{number}" for number in (100, 102, 107))
ROWS, COLUMNS = 96, 128
COLOURS = [(200, 30, 40), (30, 180, 60), (40, 50, 210), (128, 128, 128), (240, 220, 20), (16, 16, 16)]
"""One for each frame."""
TOLERANCE = 8
"""Grey levels: what 4:2:0 and a coarse quantiser may change in a flat patch."""
ENCODERS = {"mpeg2video": "mpeg2video", "h264": "libx264", "hevc": "libx265"}


def painted(number: int, rows: int = ROWS, columns: int = COLUMNS) -> NDArray[np.uint8]:
    """A frame of one colour, its left upper quarter black, so that it has an orientation."""
    picture = np.full((rows, columns, 3), COLOURS[number % len(COLOURS)], np.uint8)
    picture[: rows // 2, : columns // 2] = 0
    return picture


def encoded(codec: str, container: str, frames: int = len(COLOURS), **size: int) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as muxer:
        stream: Any = muxer.add_stream(ENCODERS[codec], rate=25)
        stream.height, stream.width = size.get("rows", ROWS), size.get("columns", COLUMNS)
        stream.pix_fmt, stream.bit_rate, stream.gop_size = "yuv420p", 8_000_000, 4
        if codec == "hevc":
            stream.options = {"x265-params": "log-level=none"}
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(painted(number, stream.height, stream.width), format="rgb24")
            muxer.mux(stream.encode(frame))
        muxer.mux(stream.encode(None))
    return out.getvalue()


def save(path: Path, stream: bytes, syntax: str, *, fragments: int = 1, **changes: Any) -> Path:
    """A video object; its encapsulated pixel data are put together by hand (PS3.5 A.4)."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = ENDOSCOPY, "2.25.4711", "ES"
    ds.Rows, ds.Columns, ds.NumberOfFrames = ROWS, COLUMNS, len(COLOURS)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "YBR_PARTIAL_420", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    whole = io.BytesIO()
    ds.save_as(whole, enforce_file_format=True, implicit_vr=False, little_endian=True)
    step = -(-len(stream) // fragments // 2) * 2
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    items = [struct.pack("<HHL", 0xFFFE, 0xE000, 0)]
    for piece in pieces:
        even = piece + b"\0" * (len(piece) % 2)
        items.append(struct.pack("<HHL", 0xFFFE, 0xE000, len(even)) + even)
    head = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(whole.getvalue() + head + b"".join(items) + end)
    return path
