"""Files of the right format, size and bytes; notices for any text."""

import json
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dicomfs.encode import WRITERS, encode, encode_values
from dicomfs.errors import NotDisplayable
from dicomfs.measurement import Values
from dicomfs.model import Recipe
from dicomfs.notice import SIDE, notice
from dicomfs.recipes import FORMATS, Kind

PILLOW_NAMES = {
    "jpg": "JPEG",
    "png": "PNG",
    "tiff": "TIFF",
    "bmp": "BMP",
    "gif": "GIF",
    "tiff16": "TIFF",
    "png16": "PNG",
}
PICTURES = [name for name, one in FORMATS.items() if one.kind is Kind.PICTURE]
VALUES = [name for name, one in FORMATS.items() if one.kind is Kind.VALUES]
Y, X = np.mgrid[0:48, 0:80]
GREY = (X * 3 + Y).astype(np.uint8)
RGB = np.stack([X * 3, Y * 5, 255 - X * 2], axis=-1).astype(np.uint8)


def opened(file: bytes) -> Image.Image:
    image = Image.open(BytesIO(file))
    image.load()
    return image


def test_every_format_has_a_writer() -> None:
    assert set(WRITERS) == set(FORMATS) - {"json"}
    assert set(PILLOW_NAMES) == set(PICTURES + VALUES)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(("picture", "mode"), [(GREY, "L"), (RGB, "RGB")])
def test_format_size_and_mode(
    name: str, picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], mode: str
) -> None:
    image = opened(encode(picture, Recipe(name)))
    assert (image.format, image.size) == (PILLOW_NAMES[name], (80, 48))
    assert image.mode == mode or name == "gif"


@pytest.mark.parametrize("name", ["png", "tiff", "bmp"])
@pytest.mark.parametrize("picture", [GREY, RGB, RGB[::-1, ::-1]])
def test_lossless(name: str, picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    assert np.array_equal(np.asarray(opened(encode(picture, Recipe(name)))), picture)


def test_gif_keeps_grey_and_few_colours_and_approaches_many() -> None:
    def read(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Image.Image:
        return opened(encode(picture, Recipe("gif"))).convert("RGB")

    assert np.array_equal(np.asarray(read(GREY))[..., 0], GREY)
    few = RGB // 64 * 64
    assert np.array_equal(np.asarray(read(few)), few)
    assert np.abs(np.asarray(read(RGB)).astype(int) - RGB).mean() < 6


@pytest.mark.parametrize("name", VALUES)
def test_sixteen_bits_and_how_to_read_them(name: str) -> None:
    pixels = (np.arange(48 * 80).reshape(48, 80) * 17).astype(np.uint16)
    image = opened(encode_values(Values(pixels, -1024.0, 0.5, "HU"), Recipe(name), (1000, 2000)))
    assert np.array_equal(np.asarray(image), pixels)
    line = image.tag_v2[270] if name == "tiff16" else image.info["Description"]  # type: ignore[attr-defined]
    assert {"c0=-1024.0", "c1=0.5", "vunit=HU"} <= set(line.split("\n"))
    assert image.info["dpi"] == pytest.approx((25.4, 50.8), rel=1e-4)


@pytest.mark.parametrize("name", PICTURES)
def test_true_size(name: str) -> None:
    # pixels of 0.5 mm are 50.8 to the inch, lines of 1 mm 25.4
    image = opened(encode(GREY, Recipe(name), (2000, 1000)))
    if name == "gif":
        assert "dpi" not in image.info
    else:
        assert image.info["dpi"] == pytest.approx((50.8, 25.4), abs=0.5 if name == "jpg" else 0.02)
    absurd = opened(encode(GREY, Recipe(name), (10.0, 10.0)))
    assert absurd.info.get("dpi", (1, 1)) == (1, 1) or name == "bmp"  # BMP always has one: 96


def test_jpeg_quality_and_full_chroma() -> None:
    file = encode(RGB, Recipe("jpg", quality=90))
    error = np.asarray(opened(file)).astype(float) - RGB
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 40  # dB
    assert len(encode(RGB, Recipe("jpg", quality=30))) < len(file)
    # SOF0: after precision, rows, columns and the number of components, the first has sampling 1x1
    frame_header = file.index(b"\xff\xc0")
    assert file[frame_header + 11] == 0x11


@pytest.mark.parametrize("name", PICTURES)
def test_no_metadata(name: str) -> None:
    image = opened(encode(GREY, Recipe(name)))
    assert not image.info.get("exif")
    technical = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "compression", "dpi", "resolution"}
    assert set(image.info) <= technical | {"version", "background", "extension", "duration"}
    if name == "tiff":
        described = {270, 271, 272, 305, 306, 315, 33432}  # description, make, model, software, date, artist
        assert not described & set(image.tag_v2)  # type: ignore[attr-defined]


def test_jpeg_ends_with_its_trailer() -> None:
    assert encode(GREY, Recipe("jpg"))[-2:] == b"\xff\xd9"


def test_what_a_format_cannot_hold_is_not_displayable() -> None:
    line = np.zeros((1, 65501), np.uint8)
    with pytest.raises(NotDisplayable, match="65501 x 1"):
        encode(line, Recipe("jpg"))
    assert opened(encode(line, Recipe("png"))).size == (65501, 1)


def test_notices_of_documents() -> None:
    assert json.loads(notice(Recipe("json"), 'It holds "no" data.')) == {"error": 'It holds "no" data.'}
    file = notice(Recipe("pdf"), "It is no encapsulated PDF.")
    assert file.startswith(b"%PDF-")
    assert file.rstrip().endswith(b"%%EOF")
    assert b"Date" not in file
    assert file == notice(Recipe("pdf"), "It is no encapsulated PDF.")


@pytest.mark.parametrize("name", PILLOW_NAMES)
def test_notice_is_a_picture_with_text(name: str) -> None:
    image = opened(notice(Recipe(name), "There is no frame 7: the image has 3."))
    assert image.size == (SIDE, SIDE)
    pixels = np.asarray(image.convert("L")) if name not in VALUES else np.asarray(image) // 257
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
