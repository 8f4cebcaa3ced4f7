"""The headers of JPEG, JPEG-LS and JPEG 2000 codestreams: size, and one writer's fault repaired.

Read before a decoder is let loose, so that a codestream cannot ask for more memory than its data set
announces. Never decodes. Called by `pixels`.
"""

_FILL = 0xFF
_SOS = 0xDA
_SEQUENTIAL_DCT = (0xC0, 0xC1)
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
"""SOF0 to SOF15 without DHT, JPG and DAC (ISO/IEC 10918-1 table B.1); SOF55 of JPEG-LS."""
_LAST_COEFFICIENT = 63
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"\0\0\0\x0cjP  "


def declared_size(code: bytes) -> tuple[int, int] | None:
    """Rows and columns that a codestream announces; None when it is not understood (RLE has none).

    Raises ValueError for a JP2 file whose boxes lead nowhere.
    """
    if code[:2] == b"\xff\xd8":
        frame_header = next((at for marker, at in _segments(code) if marker in _FRAME_HEADERS), None)
        if frame_header is None:
            return None
        rows = int.from_bytes(code[frame_header + 3 : frame_header + 5], "big")
        # zero rows: announced later, by a DNL segment
        return (rows, int.from_bytes(code[frame_header + 5 : frame_header + 7], "big")) if rows else None
    start = _boxed_codestream(code) if code.startswith(_JP2_SIGNATURE) else 0
    if code[start : start + 4] != _J2K_START:
        return None
    width, height, left, top = (
        int.from_bytes(code[i : i + 4], "big") for i in range(start + 8, start + 24, 4)
    )
    return height - top, width - left


def _boxed_codestream(code: bytes) -> int:
    """Start of the codestream in a JP2 file (ISO/IEC 15444-1 annex I).

    Raises ValueError for a box that is shorter than its own header: pydicom 3.0 would loop on it for ever.
    """
    at = len(_JP2_SIGNATURE) + 4
    while at < len(code):
        length = int.from_bytes(code[at : at + 4], "big")
        if code[at + 4 : at + 8] == b"jp2c":
            return at + 8
        if length < 8:
            raise ValueError("JP2 box without length")
        at += length
    return at


def repair_jpeg(code: bytes) -> bytes:
    """Set a sequential scan's last coefficient to 63 where the writer left 0.

    ISO/IEC 10918-1 B.2.3 demands Se = 63 for sequential DCT. Some 12-bit encoders write 0, and every
    decoder but DCMTK's refuses the image.
    """
    sequential = False
    for marker, at in _segments(code):
        sequential = sequential or marker in _SEQUENTIAL_DCT
        if marker == _SOS:
            last = at + 2 + 1 + 2 * code[at + 2] + 1 if at + 2 < len(code) else len(code)
            if sequential and last < len(code) and code[last] == 0:
                return code[:last] + bytes([_LAST_COEFFICIENT]) + code[last + 1 :]
            break
    return code


def _segments(code: bytes) -> list[tuple[int, int]]:
    """Marker and position of the length field of each marker segment, up to the first scan."""
    found = []
    at = 2
    while at + 4 <= len(code) and code[at] == 0xFF:
        marker = code[at + 1]
        if marker == _FILL:
            at += 1
            continue
        found.append((marker, at + 2))
        if marker == _SOS:
            break
        at += 2 + int.from_bytes(code[at + 2 : at + 4], "big")
    return found
