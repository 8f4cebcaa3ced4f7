"""(file, frame, recipe, window) -> the bytes of one picture: the pure function behind every rendition.

The only place where what pydicom, numpy and the decoders raise becomes NotDisplayable (permanent);
OSError and MemoryError pass through (passing). No clock, no log, and no state that shows (`image` keeps
headers at hand, `grey` tables): equal input gives equal bytes in every process. Called by the render
workers and by `dicomfs render`.
"""

import errno
import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from dicomfs import icc, planes, probes
from dicomfs.attributes import DAMAGE, text
from dicomfs.bounded import open_file
from dicomfs.display import Display
from dicomfs.document import header_json, pdf
from dicomfs.encode import Picture, encode, encode_values
from dicomfs.errors import NotDisplayable
from dicomfs.frames import TAGS, Frame, grey_frame, header_wishes, pixel_size, shutter_of, values_frame
from dicomfs.geometry import Geometry, fitted
from dicomfs.grey import Chain, Modality, Span, Voi, render_grey
from dicomfs.histogram import Member
from dicomfs.image import Image, open_image
from dicomfs.marks import marked
from dicomfs.measurement import values
from dicomfs.model import Layout, PoolWindow, Recipe, Source
from dicomfs.notice import notice
from dicomfs.pixels import colour
from dicomfs.recipes import FORMATS, Kind, from_pool_policy, policy
from dicomfs.window import HEADER, RULES_VERSION, decide, fixed, from_header, full, own

T = TypeVar("T")

MAX_SAMPLED_FRAMES = 32
"""Frames of a multi-frame image that are looked at to decide its window."""


def render(source: Source, recipe: Recipe, window: PoolWindow | None) -> bytes:
    """One frame, or for a document the whole instance, as a complete file of the recipe's format.

    `window`: the decision of its pool (`decide_pool`), of use where `recipes.pool_policy` names one; None
    decides from this file alone. Raises NotDisplayable when it can never be shown; OSError and MemoryError
    when it cannot be shown now.
    """
    with translated():
        return _file(source.path, source.frame, recipe, window, source.layout)


def decide_pool(members: Sequence[Source], pool_policy: str = "auto") -> PoolWindow:
    """The window for images that share one grey scale.

    `pool_policy`: from `recipes.pool_policy`, not empty. The caller samples (at most 32 members, evenly).
    Images that cannot be read are left out; when none can, the answer is "each its own". Raises OSError
    and MemoryError.
    """
    recipe = from_pool_policy(pool_policy)
    adaptive = recipe.window == "header"
    wishes = [one for one, alone in _each(members, partial(_wishes, recipe)) if not alone]
    if adaptive and wishes and all(one.windows for one in wishes):
        return HEADER
    decided = {None if adaptive else from_header(one) for one in wishes}
    if len(decided) == 1 and (only := decided.pop()) is not None:
        return only
    with translated():
        found = list(_each(members, partial(_measured, recipe)))
        return decide([one for one in found if one is not None])


def probe_digest(recipe: Recipe) -> str:
    """SHA-256, first 16 hex digits, over the recipe, our rules and what they make of fixed small images.

    Changes when an update of any library changes bytes, or our rules change windows, and only then.
    """
    digest = hashlib.sha256(f"{RULES_VERSION} {recipe!r}".encode())
    with translated():
        if FORMATS[recipe.format].kind is not Kind.DOCUMENT:
            for picture in probes.pictures():
                digest.update(encode(_fitted(picture, recipe), recipe))
        for name, file in probes.files():
            digest.update(name.encode())
            digest.update(_probe(file, recipe))
    digest.update(notice(recipe, "The quick brown fox jumps over the lazy dog."))
    return digest.hexdigest()[:16]


def _probe(file: bytes, recipe: Recipe) -> bytes:
    try:
        return _file(BytesIO(file), 0, recipe, None)
    except (NotDisplayable, *DAMAGE) as error:  # a decoder that is missing is a difference too
        return type(error).__name__.encode()


@contextmanager
def translated() -> Iterator[None]:
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


def _file(
    file: Path | BinaryIO,
    frame: int,
    recipe: Recipe,
    window: PoolWindow | None,
    layout: Layout | None = None,
) -> bytes:
    if FORMATS[recipe.format].kind is Kind.DOCUMENT:
        with open_file(file) as opened:
            return _DOCUMENTS[recipe.format](opened)
    with open_image(file, TAGS, layout) as image:
        pixel = pixel_size(image, frame)
        if FORMATS[recipe.format].kind is Kind.VALUES:
            return _values(image, frame, recipe)
        picture = _colour(image, frame, recipe) if image.is_colour else _grey(image, frame, recipe, window)
        picture, per_metre = fitted(picture, pixel, square=recipe.square, max_size=recipe.max_size)
        if recipe.marks:
            picture = marked(picture, image.ds)
    return encode(picture, recipe, per_metre)


_DOCUMENTS: dict[str, Callable[[BinaryIO], bytes]] = {"pdf": pdf, "json": header_json}


def _values(image: Image, frame: int, recipe: Recipe) -> bytes:
    if image.is_colour:
        raise NotDisplayable("It is a colour image: it has no grey values to measure.")
    stored, wishes = values_frame(image, frame)
    unit = text(image.ds, 0x00281054) or text(image.ds, 0x00541001)
    found = values(stored.codes, stored.levels, wishes, unit.upper())
    pixels, per_metre = fitted(found.pixels, pixel_size(image, frame), square=False, max_size=recipe.max_size)
    return encode_values(replace(found, pixels=pixels), recipe, per_metre)


def _colour(image: Image, frame: int, recipe: Recipe) -> Picture:
    picture = np.require(colour(image, frame), requirements="W")
    if profile := icc.profile(image.ds):
        picture = icc.to_srgb(picture, profile)
    overlay = planes.overlays(image.ds, frame, picture[..., 0], 0) if recipe.overlays else None
    return _covered(picture, shutter_of(image, frame, recipe), overlay)


def _grey(image: Image, frame: int, recipe: Recipe, window: PoolWindow | None) -> Picture:
    shown = grey_frame(image, frame, recipe)
    units, voi = _chosen(image, shown, recipe, window)
    padding = None if policy(recipe.window).name == "full" else shown.display.padding
    chain = Chain(units, voi, shown.display.inverted, padding)
    return _covered(render_grey(shown.codes, shown.levels, chain), shown.shutter, shown.overlay)


def _covered(picture: Picture, shutter: planes.Shutter | None, overlay: planes.Mask | None) -> Picture:
    """Shutter first: what is written beside the field stays readable."""
    if shutter is not None:
        planes.cover(picture, shutter)
    if overlay is not None:
        planes.burn(picture, overlay)
    return picture


def _fitted(picture: Picture, recipe: Recipe) -> Picture:
    return fitted(picture, Geometry(aspect=1.5), square=recipe.square, max_size=recipe.max_size)[0]


def _each(members: Sequence[Source], read: Callable[[Image, int], T]) -> Iterator[T]:
    """What `read` makes of each member, those left out that are damaged or have no grey pixels."""
    for (path, layout), group in groupby(members, key=lambda member: (member.path, member.layout)):
        try:
            with translated(), open_image(path, TAGS, layout) as image:
                yield from _each_frame(image, [member.frame for member in group], read)
        except NotDisplayable:
            continue


def _each_frame(image: Image, frames: Iterable[int], read: Callable[[Image, int], T]) -> list[T]:
    found = []
    for frame in frames if not image.is_colour else ():
        try:
            with translated():
                found.append(read(image, frame))
        except NotDisplayable:
            continue
    return found


def _wishes(recipe: Recipe, image: Image, frame: int) -> tuple[Display, bool]:
    return header_wishes(image, frame, recipe)


def _measured(recipe: Recipe, image: Image, frame: int) -> Member | None:
    """One member of a pool; under the policy `header` without its window, for those that have none."""
    found = grey_frame(image, frame, replace(recipe, overlays=False))
    if found.stands_alone:
        return None
    return _windowless(found.member()) if recipe.window == "header" else found.member()


def _windowless(member: Member) -> Member:
    return replace(member, display=replace(member.display, windows=()))


def _chosen(image: Image, shown: Frame, recipe: Recipe, window: PoolWindow | None) -> tuple[Modality, Voi]:
    """The modality transformation and window that this frame gets."""
    wanted = policy(recipe.window)
    units = shown.display.transformation
    if wanted.name == "fixed":
        return units, fixed(wanted, is_float=shown.display.is_float)
    if wanted.name == "full":
        return units, full(shown.member(everything=True))
    if wanted.name == "header" and (header := own(shown.display, shown.member, shown.glimpse)) is not None:
        return header
    window = None if shown.stands_alone else window
    if window is None:
        window = _decided(image, shown, recipe)
    if window.low is None and (header := own(shown.display, shown.member, shown.glimpse)) is not None:
        return header
    if window.low is None:  # its pool goes by the header windows, but this frame has none
        window = decide([_windowless(shown.member())])
    if window.low is None or window.high is None:
        return units, Span(*shown.display.stored_range)
    return units, Span(window.low, window.high)


def _decided(image: Image, shown: Frame, recipe: Recipe) -> PoolWindow:
    """The window of a file that no pool was asked about: over its own frames."""
    if recipe.window != "header" and (known := from_header(shown.display)) is not None:
        return known
    if image.frames == 1 or shown.stands_alone:
        member = shown.member()
        return decide([member if recipe.window != "header" else _windowless(member)])
    count = min(image.frames, MAX_SAMPLED_FRAMES)
    frames = {frame * image.frames // count for frame in range(count)}
    found = _each_frame(image, sorted(frames), partial(_measured, recipe))
    return decide([one for one in found if one is not None])
