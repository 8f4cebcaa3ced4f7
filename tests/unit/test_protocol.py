"""The worker protocol: round trips, and every way in which an answer can be wrong."""

import io
import json
import os
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomfs.model import PoolWindow, Recipe, Source
from dicomfs.protocol import (
    MAX_TEXT_BYTES,
    Answer,
    AnswerReader,
    BrokenAnswer,
    LengthsRequest,
    NoticeRequest,
    PoolRequest,
    ProbeRequest,
    RenderRequest,
    Request,
    Status,
    answer_parts,
    decode_lengths,
    decode_request,
    decode_window,
    encode_lengths,
    encode_request,
    encode_window,
    frame_request,
    read_request,
    sentence,
)

RECIPE = Recipe("jpg", quality=85)
SOURCE = Source(Path("/archive/ab/abcd.dcm"), 3)
NOT_UTF8 = Source(Path(os.fsdecode(b"/archive/\xff\xe4.dcm")))
REQUESTS: list[Request] = [
    RenderRequest(SOURCE, RECIPE, None),
    RenderRequest(NOT_UTF8, RECIPE, PoolWindow(-0.1, 1e300, "P0.1-P99.9 + 10 %")),
    PoolRequest((SOURCE, NOT_UTF8)),
    PoolRequest((SOURCE,), "header,shutters=off"),
    ProbeRequest(RECIPE),
    LengthsRequest((SOURCE, NOT_UTF8), RECIPE),
    NoticeRequest(RECIPE, "No decoder for 1.2.840.10008.1.2.4.100 – sorry"),
]


def head(magic: bytes = b"dfw4", job: int = 7, status: int = 2, text: int = 0, data: int = 0) -> bytes:
    """An answer's head written out by hand, after the layout in the module's docstring."""
    return magic + struct.pack(">IBII", job, status, text, data)


@pytest.mark.parametrize("request_", REQUESTS)
def test_request_arrives_as_it_was_sent(request_: Request) -> None:
    stream = io.BytesIO(frame_request(7, encode_request(request_)) + frame_request(8, b"{}"))
    message = read_request(stream)
    assert message is not None
    assert message[0] == 7
    assert decode_request(message[1]) == request_
    assert read_request(stream) == (8, b"{}")
    assert read_request(stream) is None


def test_relative_path_becomes_absolute() -> None:
    decoded = decode_request(encode_request(PoolRequest((Source(Path("a.dcm")),))))
    assert decoded == PoolRequest((Source(Path.cwd() / "a.dcm"),))


@pytest.mark.parametrize("kept_bytes", [0, 3, 8, 20])
def test_torn_request_is_the_end(kept_bytes: int) -> None:
    whole = frame_request(1, encode_request(ProbeRequest(RECIPE)))
    assert read_request(io.BytesIO(whole[:kept_bytes])) is None


def test_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        decode_request(b'{"op": "format"}\n[]')


def test_answer_layout() -> None:
    parts = answer_parts(Answer(7, Status.PERMANENT, "é", b"xyz"))
    assert b"".join(parts) == head(status=3, text=2, data=3) + "é".encode() + b"xyz"


@given(
    text=st.text(max_size=200), data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 800), max_size=6)
)
def test_answer_arrives_whole_however_it_is_cut(text: str, data: bytes, cuts: list[int]) -> None:
    answer = Answer(7, Status.DONE, text, data)
    stream = b"".join(answer_parts(answer))
    reader = AnswerReader(7)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    got = [reader.feed(stream[a:b]) for a, b in pairwise(edges) if a < b]
    assert got[-1] == answer
    assert not any(got[:-1])


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"Segmentation fault, sorry", "magic"),
        (head(magic=b"dfw1"), "magic"),
        (head(job=6), "answer to job 6"),
        (head(status=0), "status 0"),
        (head(status=7), "status 7"),
        (head(status=1), "status 1"),  # ready, in the middle of a job
        (head(text=MAX_TEXT_BYTES + 1), "announces"),
        (head(data=1001), "announces"),
        (head(data=0xFFFF_FFFF), "announces"),
        (head(data=2) + b"abc", "1 bytes beyond"),
        (head(text=1) + b"\xff", "UTF-8"),
    ],
)
def test_broken_answer_is_recognised(stream: bytes, why: str) -> None:
    with pytest.raises(BrokenAnswer, match=why):
        AnswerReader(7, max_data_bytes=1000).feed(stream)


def test_only_ready_answers_job_0() -> None:
    assert AnswerReader(0).feed(head(job=0, status=1)) == Answer(0, Status.READY)
    with pytest.raises(BrokenAnswer, match="status 2"):
        AnswerReader(0).feed(head(job=0, status=2))


def test_announced_length_takes_no_memory() -> None:
    """256 MiB announced, nothing sent: the reader waits and has kept nothing."""
    reader = AnswerReader(7)
    assert reader.feed(head(data=256 << 20)) is None
    assert reader._pieces == []


def test_reader_says_how_much_belongs_to_its_answer() -> None:
    """What lies behind it in a pipe is another's."""
    stream = b"".join(answer_parts(Answer(7, Status.DONE, "é", b"xyz"))) + head(job=8)
    reader, at = AnswerReader(7), 0
    answer = None
    while answer is None:
        at, piece = at + reader.missing, stream[at : at + reader.missing]
        answer = reader.feed(piece)
    assert answer == Answer(7, Status.DONE, "é", b"xyz")
    assert stream[at:] == head(job=8)


def test_too_long_answer_is_not_sent() -> None:
    with pytest.raises(ValueError, match="longer"):
        answer_parts(Answer(7, Status.DONE, "x" * (MAX_TEXT_BYTES + 1)))


@pytest.mark.parametrize(
    "window",
    [PoolWindow(None, None, "header"), PoolWindow(-1024, 3071.5, "full"), PoolWindow(0.1, 0.1, "flat")],
)
def test_window_round_trip(window: PoolWindow) -> None:
    assert decode_window(encode_window(window)) == window


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[" * 100_000,
        '{"low": 0, "high": 1}',
        '{"low": 0, "high": 1, "reason": "a", "more": 1}',
        '{"low": 0, "high": 1, "reason": 1}',
        '{"low": 0, "high": null, "reason": ""}',
        '{"low": null, "high": 1, "reason": ""}',
        '{"low": 2, "high": 1, "reason": ""}',
        '{"low": NaN, "high": 1, "reason": ""}',
        '{"low": 0, "high": Infinity, "reason": ""}',
        '{"low": true, "high": 2, "reason": ""}',
        '{"low": "0", "high": 1, "reason": ""}',
        json.dumps({"low": 0, "high": 10**400, "reason": ""}),
        '{"low": 0, "high": 1' + "0" * 5000 + ', "reason": ""}',
    ],
)
def test_hostile_window_is_broken(text: str) -> None:
    with pytest.raises(BrokenAnswer):
        decode_window(text)


def test_sentence_is_one_bounded_printable_line() -> None:
    assert sentence("two\nlines\x1b[31m  and\ta tab ") == "two lines?[31m and a tab"
    assert len(sentence("x" * 100_000)) == 500


def test_lengths_arrive_as_they_were_sent() -> None:
    lengths = [1, None, 786_486]
    assert decode_lengths(encode_lengths(lengths), 3) == lengths


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", "[1, 2, 3]", "[1, 0]", "[1, -5]", "[1, 1.5]", "[1, true]", "[1, 1e400]", "[" * 9999],
)
def test_lengths_that_cannot_be(text: str) -> None:
    with pytest.raises(BrokenAnswer):
        decode_lengths(text, 2)
