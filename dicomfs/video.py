"""Frames of a video transfer syntax (PS3.5 8.2.5 to 8.2.12): MPEG-2, H.264, HEVC, by PyAV.

The stream lies in one fragment, or is cut over several (PS3.5 A.4); it is never read into memory as a
whole. Which container it has is found out from its first bytes and told to the library, which so never
gets to guess (its list of formats has playlists that name other files). A video can only be decoded from
its beginning, so the decoder of the last one is kept: stepping through all frames decodes each once, and
what a frame looks like never depends on which were asked for before. Interlaced frames are shown as they
are, both fields woven. Called by `pixels`.
"""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from dicomfs.errors import NotDisplayable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

_MPEG2, _H264, _HEVC = "mpeg2video", "h264", "hevc"
_CODECS: Final = {
    **dict.fromkeys((100, 101), _MPEG2),
    **dict.fromkeys(range(102, 107), _H264),
    **dict.fromkeys((107, 108), _HEVC),
}
VIDEO_SYNTAXES: Final = {
    UID(f"1.2.840.10008.1.2.4.{number}{ending}"): codec
    for number, codec in _CODECS.items()
    for ending in (("", ".1") if codec != _HEVC else ("",))
}
"""Transfer syntax -> codec; `.1` are the fragmentable ones (PS3.6 table A-1)."""

_ITEM: Final = struct.Struct("<HHL")
_UNDEFINED: Final = 0xFFFFFFFF
_MOST_FRAGMENTS: Final = 1_000_000
_TS_PACKET: Final = 188
_HD_ROWS: Final = 720
_BT601, _BT709 = 5, 1
"""Colour matrices in swscale's numbers."""
_UNSPECIFIED: Final = 2


class _Stream(io.RawIOBase):
    """The fragments of one file as one seekable file, read by a descriptor of its own."""

    def __init__(self, file: BinaryIO, fragments: list[tuple[int, int]]) -> None:
        self._descriptor = os.dup(file.fileno())
        self._fragments = fragments
        self._size = sum(length for _, length in fragments)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._size - self._at if size < 0 else size
        before = 0
        for start, length in self._fragments:
            inside = self._at - before
            if inside < length:
                data = os.pread(self._descriptor, min(wanted, length - inside), start + inside)
                self._at += len(data)
                return data
            before += length
        return b""

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


@dataclass(slots=True)
class _Decoder:
    """A video that has been begun: `next` is the number of the frame that `frames` gives next."""

    key: tuple[int, ...]
    stream: _Stream
    container: "InputContainer"
    frames: "Iterator[VideoFrame]"
    next: int = 0

    def close(self) -> None:
        self.container.close()
        self.stream.close()


_last: list[_Decoder] = []
"""The decoder of the last video in this process, or nothing."""


def video_frame(
    file: BinaryIO, start: int, syntax: UID, frame: int, size: tuple[int, int], *, grey: bool
) -> NDArray[Any]:
    """One frame as RGB, uint8 of shape (rows, columns, 3), or with `grey` its luma, uint8 (rows, columns).

    `start`: first byte of the encapsulated pixel data in `file`, a file on disk; `size`: rows and columns
    that the header announces. Raises NotDisplayable for a stream that is damaged, too short or of another
    size, ValueError and OSError.
    """
    from av.error import FFmpegError  # noqa: PLC0415  most render processes never meet a video

    try:
        found = _advance(_decoder(file, start, syntax, frame, size), frame)
        return _pixels(found, size, grey=grey)
    except FFmpegError as error:
        _forget()
        raise NotDisplayable(f"Its video is damaged ({VIDEO_SYNTAXES[syntax]}).") from error
    except BaseException:
        _forget()
        raise


def _decoder(file: BinaryIO, start: int, syntax: UID, frame: int, size: tuple[int, int]) -> _Decoder:
    """The decoder that stands at `frame` or before it."""
    status = os.fstat(file.fileno())
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, start)
    if _last and _last[0].key == key and _last[0].next <= frame:
        return _last[0]
    _forget()
    stream = _Stream(file, _fragments(file, start))
    try:
        decoder = _opened(stream, key, VIDEO_SYNTAXES[syntax], size)
    except BaseException:
        stream.close()
        raise
    _last.append(decoder)
    return decoder


def _opened(stream: _Stream, key: tuple[int, ...], codec: str, size: tuple[int, int]) -> _Decoder:
    import av  # noqa: PLC0415  as above

    av.logging.set_level(None)  # its messages may quote the data set
    container = av.open(stream, mode="r", format=_container(stream, codec))
    try:
        return _Decoder(key, stream, container, iter(_pictures(container, codec, size)))
    except BaseException:
        container.close()
        raise


def _pictures(container: "InputContainer", codec: str, size: tuple[int, int]) -> "Iterator[VideoFrame]":
    """The frames of the only or first video stream, once it is known to be what was announced."""
    if not container.streams.video:
        raise NotDisplayable("Its video holds no pictures.")
    video = container.streams.video[0]
    context = video.codec_context
    if context.name != codec:
        raise NotDisplayable(f"Its video is {context.name}, but it announces {codec}.")
    if context.width and context.height:
        _check_size((context.height, context.width), size)
    # One thread: frames come in their order, and memory stays within the process's bounds.
    context.thread_type, context.thread_count = "NONE", 1
    return container.decode(video)


def _advance(decoder: _Decoder, frame: int) -> "VideoFrame":
    for found in decoder.frames:
        decoder.next += 1
        if decoder.next > frame:
            return found
    raise NotDisplayable(f"Its video ends before frame {frame + 1}.")


def _forget() -> None:
    while _last:
        _last.pop().close()


def _fragments(file: BinaryIO, start: int) -> list[tuple[int, int]]:
    """First byte and length of each fragment; the offset table is left out, what is cut short is cut."""
    end = file.seek(0, os.SEEK_END)
    fragments: list[tuple[int, int]] = []
    at = start
    while at + _ITEM.size <= end and len(fragments) < _MOST_FRAGMENTS:
        file.seek(at)
        group, element, length = _ITEM.unpack(file.read(_ITEM.size))
        if (group, element) != (0xFFFE, 0xE000) or length == _UNDEFINED:
            break
        at += _ITEM.size
        fragments.append((at, min(length, end - at)))
        at += length
    if not any(length for _, length in fragments[1:]):
        raise NotDisplayable("It holds no pixel data.")
    return fragments[1:]


def _container(stream: _Stream, codec: str) -> str:
    """Name of the demuxer for what the stream begins with."""
    head = b""
    while len(head) <= _TS_PACKET and (more := stream.read(_TS_PACKET + 1 - len(head))):
        head += more
    stream.seek(0)
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:1] == head[_TS_PACKET : _TS_PACKET + 1] == b"\x47":
        return "mpegts"
    if head.startswith(b"\0\0\1\xba"):
        return "mpeg"  # a program stream
    if head.startswith((b"\0\0\1", b"\0\0\0\1")):
        return "mpegvideo" if codec == _MPEG2 else codec  # an elementary stream
    raise NotDisplayable("The container of its video is not known.")


def _check_size(found: tuple[int, int], announced: tuple[int, int]) -> None:
    if found != announced:
        raise NotDisplayable(
            f"Its video is {found[1]} x {found[0]} pixels, but it announces {announced[1]} x {announced[0]}."
        )


def _pixels(frame: "VideoFrame", size: tuple[int, int], *, grey: bool) -> NDArray[np.uint8]:
    _check_size((frame.height, frame.width), size)
    if grey:
        return frame.to_ndarray(format="gray").astype(np.uint8, copy=False)
    matrix = int(frame.colorspace)
    if matrix == _UNSPECIFIED:
        # Standard definition was BT.601, high definition is BT.709 (PS3.5 8.2.5, 8.2.6).
        matrix = _BT709 if frame.height >= _HD_ROWS else _BT601
    return frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray().astype(np.uint8, copy=False)
