"""The language between the mount and its render workers: requests as JSON, answers as bounded raw bytes.

    request   >II       job number, length of what follows: two lines of JSON, how and of what
    answer    >4sIBII   magic, job number, status, length of the text, length of the data; text; data

The two directions are not alike. A request comes from the parent and is trusted. An answer comes from a
process that has decoded bytes of strangers and may have been taken over: it is never unpickled, every
length is bounded before a byte of it is kept, and whatever is not exactly one well-formed answer to the
job at hand is `BrokenAnswer`, for which the only remedy is to kill the worker.

Pure: no files, no processes, no trio. The parent (`workers.py`, `workerprocess.py`) and `worker.py` use it.
"""

import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dicomfs.model import Layout, PoolWindow, Recipe, Source

MAGIC = b"dfw4"
"""Changes with the protocol, so that a worker of another version is refused when it says it is ready."""
READY_JOB = 0
"""Job number of the answer `READY`; jobs count from 1."""
MAX_JOB = 0xFFFF_FFFF
MAX_TEXT_BYTES = 65_536
MAX_DATA_BYTES = 256 << 20
"""Largest picture that is accepted: more than 8 000 x 8 000 pixels of uncompressed RGB."""
MAX_SENTENCE_CHARACTERS = 500
_TEXTS_KEPT = 256

_REQUEST_HEAD = struct.Struct(">II")
_ANSWER_HEAD = struct.Struct(">4sIBII")
REQUEST_HEAD_BYTES = _REQUEST_HEAD.size


class BrokenAnswer(Exception):
    """The bytes are no answer to the job at hand: the worker is broken or worse and has to be killed."""


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One frame into a picture; answered by `DONE` with the picture, or by `PERMANENT`."""

    source: Source
    recipe: Recipe
    window: PoolWindow | None


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """One window for all members; answered by `DONE` with the window as text."""

    members: tuple[Source, ...]
    policy: str = "auto"
    """From `recipes.pool_policy`."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Digest of the recipe's encoder; answered by `DONE` with the digest as text."""

    recipe: Recipe


@dataclass(frozen=True, slots=True)
class LengthsRequest:
    """How long the files of these frames will be; answered by `DONE` with the lengths as text."""

    members: tuple[Source, ...]
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class NoticeRequest:
    """A picture that shows a sentence; answered by `DONE` with the picture."""

    recipe: Recipe
    reason: str


Request = RenderRequest | PoolRequest | ProbeRequest | LengthsRequest | NoticeRequest


class Status(IntEnum):
    """What a worker says about a job."""

    READY = 1
    """Once, unasked: limits are set, libraries are loaded."""
    DONE = 2
    PERMANENT = 3
    """This can never be shown. Text: the reason; data: the notice picture (`RenderRequest` only)."""
    PASSING = 4
    """Not now: I/O. Text: what happened."""
    BUG = 5
    """An exception that nobody expected, treated as passing. Text: its class and where, nothing else."""
    EXHAUSTED = 6
    """The job needs more memory than there is. In a fresh process that is the limit, and so for good."""


class Answer(NamedTuple):
    """One message from a worker."""

    job: int
    status: Status
    text: str = ""
    data: bytes = b""


def encode_request(request: Request) -> bytes:
    """Body of a request, without its head: equal requests give equal bytes. Paths become absolute."""
    match request:
        case RenderRequest(source, recipe, window):
            how, sources = f'"render","recipe":{_text(recipe)},"window":{_text(window)}', _source_text(source)
        case PoolRequest(members, policy):
            how, sources = f'"pool","policy":{json.dumps(policy)}', _source_texts(members)
        case ProbeRequest(recipe):
            how, sources = f'"probe","recipe":{_text(recipe)}', ""
        case LengthsRequest(members, recipe):
            how, sources = f'"lengths","recipe":{_text(recipe)}', _source_texts(members)
        case NoticeRequest(recipe, reason):
            how, sources = f'"notice","recipe":{_text(recipe)},"reason":{json.dumps(reason)}', ""
    return f'{{"op":{how}}}\n[{sources}]'.encode("ascii")  # ASCII keeps undecodable path bytes


@lru_cache(maxsize=_TEXTS_KEPT)
def _text(value: Recipe | PoolWindow | None) -> str:
    """As JSON; a mount asks with the same few recipes and windows again and again."""
    return json.dumps(None if value is None else asdict(value), separators=(",", ":"))


def decode_request(body: bytes) -> Request:
    """The inverse of `encode_request`; trusted, so a malformed body is an ordinary exception (a bug)."""
    first_line, _, second_line = body.partition(b"\n")
    how = _how(first_line)
    sources = tuple(_source(*fields) for fields in json.loads(second_line))
    match how.operation:
        case "render":
            return RenderRequest(sources[0], how.recipe, how.window)
        case "pool":
            return PoolRequest(sources, how.text)
        case "probe":
            return ProbeRequest(how.recipe)
        case "lengths":
            return LengthsRequest(sources, how.recipe)
        case "notice":
            return NoticeRequest(how.recipe, how.text)
    raise ValueError(f"unknown operation {how.operation!r}")


class _How(NamedTuple):
    operation: str
    recipe: Recipe
    """Of no meaning for a pool."""
    window: PoolWindow | None
    text: str


@lru_cache(maxsize=_TEXTS_KEPT)
def _how(line: bytes) -> _How:
    """The first line of a request, of which there are few different ones."""
    fields: dict[str, Any] = json.loads(line)
    recipe, window = fields.get("recipe", {"format": ""}), fields.get("window")
    return _How(
        fields["op"],
        Recipe(**recipe),
        None if window is None else PoolWindow(**window),
        fields.get("policy") or fields.get("reason", ""),
    )


def _source_texts(sources: Iterable[Source]) -> str:
    return ",".join(map(_source_text, sources))


def _source_text(source: Source) -> str:
    """A source as a list."""
    path, layout = source.path, source.layout
    absolute = path if path.is_absolute() else path.absolute()
    known = "null"
    if layout is not None:
        known = f'[{layout.size},{layout.pixel_offset},"{layout.outline.hex()}"]'
    return f"[{json.dumps(str(absolute))},{source.frame},{known}]"


def _source(path: str, frame: int, layout: list[Any] | None) -> Source:
    known = None if layout is None else Layout(layout[0], layout[1], bytes.fromhex(layout[2]))
    return Source(Path(path), frame, known)


def frame_request(job: int, body: bytes) -> bytes:
    """What is written to a worker for one job."""
    return _REQUEST_HEAD.pack(job, len(body)) + body


def read_request(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Job number and body of the next request from a blocking stream; None at its end, even a torn one."""
    head = stream.read(_REQUEST_HEAD.size)
    if len(head) < _REQUEST_HEAD.size:
        return None
    job, length = _REQUEST_HEAD.unpack(head)
    body = stream.read(length)
    return (job, body) if len(body) == length else None


def answer_parts(answer: Answer) -> tuple[bytes, bytes]:
    """Head with text, and data, to be written one after the other (the data is not copied).

    Raises ValueError when the parent would refuse the lengths.
    """
    text = answer.text.encode("utf-8", "backslashreplace")
    if len(text) > MAX_TEXT_BYTES or len(answer.data) > MAX_DATA_BYTES:
        raise ValueError(
            f"answer of {len(text)} + {len(answer.data)} bytes is longer than the protocol allows"
        )
    head = _ANSWER_HEAD.pack(MAGIC, answer.job, answer.status, len(text), len(answer.data))
    return head + text, answer.data


class AnswerReader:
    """Puts together the one answer that is due for one job, from whatever pieces arrive.

    `max_data_bytes` bounds the picture. Memory grows with what has arrived, never with what was announced.
    """

    __slots__ = ("_head", "_job", "_max_data_bytes", "_pieces", "missing")

    def __init__(self, job: int, max_data_bytes: int = MAX_DATA_BYTES) -> None:
        self._job = job
        self._max_data_bytes = max_data_bytes
        self._pieces: list[bytes] = []
        """What has arrived of the head, then of what follows it."""
        self._head: tuple[Status, int] | None = None
        self.missing = _ANSWER_HEAD.size
        """Bytes that are known to be still to come: of the head, then of all. What follows is another's."""

    def feed(self, piece: bytes) -> Answer | None:
        """Take one piece; the answer once it is complete. Raises BrokenAnswer, once and for all."""
        self._pieces.append(piece)
        self.missing -= len(piece)
        if self._head is None and self.missing <= 0:
            self._check_head()
        if self._head is None or self.missing > 0:
            return None
        if self.missing < 0:
            raise BrokenAnswer(f"{-self.missing} bytes beyond the answer")
        status, text_bytes = self._head
        # Most pictures come in one piece and without text: they are not copied.
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if not text_bytes:
            return Answer(self._job, status, "", body)
        try:
            text = str(body[:text_bytes], "utf-8")
        except UnicodeDecodeError as error:
            raise BrokenAnswer("text is not UTF-8") from error
        return Answer(self._job, status, text, body[text_bytes:])

    def _check_head(self) -> None:
        whole = b"".join(self._pieces)
        magic, job, status, text_bytes, data_bytes = _ANSWER_HEAD.unpack_from(whole)
        if magic != MAGIC:
            raise BrokenAnswer("magic number is wrong")
        if job != self._job:
            raise BrokenAnswer(f"answer to job {job} instead of {self._job}")
        if status not in _STATUSES or (status == Status.READY) != (job == READY_JOB):
            raise BrokenAnswer(f"status {status} is not expected")
        if text_bytes > MAX_TEXT_BYTES or data_bytes > self._max_data_bytes:
            raise BrokenAnswer(f"announces {text_bytes} bytes of text and {data_bytes} of data")
        self._head = _STATUSES[status], text_bytes
        self.missing += text_bytes + data_bytes
        rest = whole[_ANSWER_HEAD.size :]
        self._pieces = [rest] if rest else []


_STATUSES = {int(status): status for status in Status}


def sentence(text: str) -> str:
    """Text from a worker made fit for a log or a reader: printable, on one line, bounded."""
    line = " ".join(text[: 4 * MAX_SENTENCE_CHARACTERS].split())
    return "".join(c if c.isprintable() else "?" for c in line)[:MAX_SENTENCE_CHARACTERS]


def encode_window(window: PoolWindow) -> str:
    """A pool's window as the text of an answer."""
    return json.dumps(asdict(window))


def decode_window(text: str) -> PoolWindow:
    """A pool's window from the text of an answer, every field checked. Raises BrokenAnswer."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenAnswer("window is not JSON") from error
    if not isinstance(fields, dict) or fields.keys() != {"low", "high", "reason"}:
        raise BrokenAnswer("window has other fields")
    low, high, reason = fields["low"], fields["high"], fields["reason"]
    if not isinstance(reason, str):
        raise BrokenAnswer("the window's reason is no text")
    if low is None and high is None:
        return PoolWindow(None, None, sentence(reason))
    if not (_is_finite(low) and _is_finite(high) and low <= high):
        raise BrokenAnswer("limits of the window are no pair of finite numbers")
    return PoolWindow(float(low), float(high), sentence(reason))


def encode_lengths(lengths: Sequence[int | None]) -> str:
    """Bytes of files, None where that is not known, as the text of an answer."""
    return json.dumps(lengths)


def decode_lengths(text: str, count: int) -> list[int | None]:
    """So many lengths from the text of an answer, every one checked. Raises BrokenAnswer."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenAnswer("lengths are not JSON") from error
    if not isinstance(found, list) or len(found) != count:
        raise BrokenAnswer(f"no list of {count} lengths")
    if not all(one is None or (type(one) is int and 0 < one <= MAX_DATA_BYTES) for one in found):
        raise BrokenAnswer("a length that no picture has")
    return found


def _is_finite(value: object) -> bool:
    """True for a JSON number that is a finite float; an integer too large for a float is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
