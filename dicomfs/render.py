"""(file, frame, recipe, window) -> the bytes of one picture: the pure function behind every rendition.

The only place where what pydicom, numpy and the decoders raise becomes NotDisplayable (permanent);
OSError and MemoryError pass through (passing). No cache, no state, no clock, no log: equal input gives
equal bytes in every process. Called by the render workers and by `dicomfs render`.
"""

import errno
import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, TypeVar

from dicomfs import probes
from dicomfs.attributes import DAMAGE
from dicomfs.display import TAGS, Display, display
from dicomfs.encode import Picture, encode
from dicomfs.errors import NotDisplayable
from dicomfs.grey import Chain, Modality, Span, Voi, render_grey
from dicomfs.histogram import Member, measure
from dicomfs.model import PoolWindow, Recipe, Source
from dicomfs.notice import notice
from dicomfs.pixels import Grey, Image, colour, grey, open_image
from dicomfs.window import decide, from_header, own

T = TypeVar("T")

MAX_SAMPLED_FRAMES = 32
"""Frames of a multi-frame image that are looked at to decide its window."""


def render(source: Source, recipe: Recipe, window: PoolWindow | None) -> bytes:
    """One frame as a complete file of the recipe's format.

    `window`: the decision of its pool (`decide_pool`); None decides from this file alone. Raises
    NotDisplayable when it can never be shown; OSError and MemoryError when it cannot be shown now.
    """
    with _translated():
        return encode(_picture(source.path, source.frame, window), recipe)


def decide_pool(members: Sequence[Source]) -> PoolWindow:
    """The window for images that share one grey scale.

    The caller samples (at most 32 of them, evenly). Images that cannot be read are left out; when none
    can, the answer is "each its own". Raises OSError and MemoryError.
    """
    wishes = list(_each(members, _display))
    decided = {from_header(one) for one in wishes}
    if len(decided) == 1 and (only := decided.pop()) is not None:
        return only
    with _translated():
        return decide(list(_each(members, _measured)))


def probe_digest(recipe: Recipe) -> str:
    """SHA-256, first 16 hex digits, over the recipe and what it makes of fixed small images.

    Changes when an update of any library changes bytes, and only then.
    """
    digest = hashlib.sha256(repr(recipe).encode())
    with _translated():
        for picture in probes.pictures():
            digest.update(encode(picture, recipe))
        for name, file in probes.files():
            digest.update(name.encode())
            digest.update(_probe(file, recipe))
    digest.update(notice(recipe, "The quick brown fox jumps over the lazy dog."))
    return digest.hexdigest()[:16]


def _probe(file: bytes, recipe: Recipe) -> bytes:
    try:
        return encode(_picture(BytesIO(file), 0, None), recipe)
    except (NotDisplayable, *DAMAGE) as error:  # a decoder that is missing is a difference too
        return type(error).__name__.encode()


@contextmanager
def _translated() -> Iterator[None]:
    """Damage becomes NotDisplayable, in words for a user; libraries' warnings are dropped."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except OSError as error:
        # raised by a library (no errno), or a position before the start of the file was asked for
        # (EINVAL): what the data set says about itself is wrong, reading works
        if error.errno in {None, errno.EINVAL}:
            raise NotDisplayable("Its data are damaged.") from error
        raise
    except DAMAGE as error:
        raise NotDisplayable("Its data are damaged or of an unknown kind.") from error


def _picture(file: Path | BinaryIO, frame: int, window: PoolWindow | None) -> Picture:
    with open_image(file, TAGS) as image:
        if image.is_colour:
            return colour(image, frame)
        stored = grey(image, frame)
        wishes = _display(image, frame)
        units, voi = _chosen(image, stored, wishes, window)
    chain = Chain(units, voi, wishes.inverted, wishes.padding)
    return render_grey(stored.codes, stored.levels, chain)


def _each(members: Sequence[Source], read: Callable[[Image, int], T]) -> Iterator[T]:
    """What `read` makes of each member, those left out that are damaged or have no grey pixels."""
    for path, group in groupby(members, key=lambda member: member.path):
        try:
            with _translated(), open_image(path, TAGS) as image:
                yield from _each_frame(image, [member.frame for member in group], read)
        except NotDisplayable:
            continue


def _each_frame(image: Image, frames: Iterable[int], read: Callable[[Image, int], T]) -> list[T]:
    found = []
    for frame in frames if not image.is_colour else ():
        try:
            with _translated():
                found.append(read(image, frame))
        except NotDisplayable:
            continue
    return found


def _measured(image: Image, frame: int) -> Member:
    stored = grey(image, frame)
    return measure(stored.codes, stored.levels, _display(image, frame))


def _display(image: Image, frame: int) -> Display:
    return display(
        image.ds,
        frame,
        bits=image.stored,
        signed=image.signed,
        is_float=image.is_float,
        allocated=image.allocated,
    )


def _chosen(image: Image, stored: Grey, wishes: Display, window: PoolWindow | None) -> tuple[Modality, Voi]:
    """The modality transformation and window that this frame gets."""

    def member() -> Member:
        return measure(stored.codes, stored.levels, wishes)

    if window is None:
        window = from_header(wishes)
    if window is None and image.frames == 1:
        window = decide([member()])
    if window is None:
        count = min(image.frames, MAX_SAMPLED_FRAMES)
        frames = {frame * image.frames // count for frame in range(count)}
        window = decide(_each_frame(image, sorted(frames), _measured))
    if window.low is not None and window.high is not None:
        return wishes.transformation, Span(window.low, window.high)
    header = own(wishes, member)
    if header is not None:
        return header
    # its pool goes by the header windows, but this frame has none
    alone = decide([member()])
    if alone.low is None or alone.high is None:
        return wishes.transformation, Span(*wishes.stored_range)
    return wishes.transformation, Span(alone.low, alone.high)
