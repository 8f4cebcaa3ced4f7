"""Files of the right format, size and bytes; notices for any text."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dicomfs.encode import FORMATS, encode
from dicomfs.errors import NotDisplayable
from dicomfs.model import Recipe
from dicomfs.notice import SIDE, notice

PILLOW_NAMES = {"jpg": "JPEG", "png": "PNG"}
Y, X = np.mgrid[0:48, 0:80]
GREY = (X * 3 + Y).astype(np.uint8)
RGB = np.stack([X * 3, Y * 5, 255 - X * 2], axis=-1).astype(np.uint8)


def opened(file: bytes) -> Image.Image:
    image = Image.open(BytesIO(file))
    image.load()
    return image


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("picture", "mode"), [(GREY, "L"), (RGB, "RGB")])
def test_format_size_and_mode(
    name: str, picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], mode: str
) -> None:
    image = opened(encode(picture, Recipe(name)))
    assert (image.format, image.size, image.mode) == (PILLOW_NAMES[name], (80, 48), mode)
    assert FORMATS[name].extension == f".{name}"


@pytest.mark.parametrize("picture", [GREY, RGB, RGB[::-1, ::-1]])
def test_png_is_lossless(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    assert np.array_equal(np.asarray(opened(encode(picture, Recipe("png")))), picture)


def test_jpeg_quality_and_full_chroma() -> None:
    file = encode(RGB, Recipe("jpg", quality=90))
    error = np.asarray(opened(file)).astype(float) - RGB
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 40  # dB
    assert len(encode(RGB, Recipe("jpg", quality=30))) < len(file)
    # SOF0: after precision, rows, columns and the number of components, the first has sampling 1x1
    frame_header = file.index(b"\xff\xc0")
    assert file[frame_header + 11] == 0x11


@pytest.mark.parametrize("name", FORMATS)
def test_no_metadata(name: str) -> None:
    image = opened(encode(GREY, Recipe(name)))
    assert not image.getexif()
    assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_jpeg_ends_with_its_trailer() -> None:
    assert encode(GREY, Recipe("jpg"))[-2:] == b"\xff\xd9"


def test_what_a_format_cannot_hold_is_not_displayable() -> None:
    line = np.zeros((1, 65501), np.uint8)
    with pytest.raises(NotDisplayable, match="65501 x 1"):
        encode(line, Recipe("jpg"))
    assert opened(encode(line, Recipe("png"))).size == (65501, 1)


@pytest.mark.parametrize("name", FORMATS)
def test_notice_is_a_picture_with_text(name: str) -> None:
    image = opened(notice(Recipe(name), "There is no frame 7: the image has 3."))
    assert image.size == (SIDE, SIDE)
    pixels = np.asarray(image)
    # the reason has ink of its own, below the title
    assert np.count_nonzero(pixels[180:] > 120) > 100
    assert notice(Recipe(name), "a") != notice(Recipe(name), "b")
    assert notice(Recipe(name), "a") == notice(Recipe(name), "a")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\0\1\n\r\t",
        "\ud800",
        "x" * 5000,
        "word " * 3000,
        "👩‍⚕️ 日本語 עברית العربية",
        "e" + "\u0301" * 400,
    ],
)
def test_notice_takes_any_text(text: str) -> None:
    pixels = np.asarray(opened(notice(Recipe("png"), text)))
    # nothing runs over the margins
    paper = pixels[0, 0]
    assert (pixels[:, :30] == paper).all()
    assert (pixels[:, -30:] == paper).all()
    assert (pixels[-5:] == paper).all()


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_notice_never_fails(text: str) -> None:
    assert opened(notice(Recipe("jpg"), text)).size == (SIDE, SIDE)
