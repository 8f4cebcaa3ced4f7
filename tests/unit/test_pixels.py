"""From files to stored values and RGB: layouts, signs, dirt, repairs and refusals."""

import resource
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from PIL import Image as PillowImage
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPIPHTJ2KReferenced,
    RLELossless,
)

from dicomfs import codestream
from dicomfs.errors import NotDisplayable
from dicomfs.image import MAX_PIXELS, open_image
from dicomfs.pixels import colour, grey
from tests.support import shipped
from tests.unit.reference import write

NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
RNG = np.random.default_rng(1)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def stored(path: Path, frame: int = 0) -> NDArray[Any]:
    with open_image(path) as image:
        assert not image.is_colour
        found = grey(image, frame)
    return found.codes if found.levels is None else found.levels[found.codes]


def rgb(path: Path, frame: int = 0) -> NDArray[np.uint8]:
    with open_image(path) as image:
        assert image.is_colour
        return colour(image, frame)


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
def test_every_word_of_a_multi_frame_comes_back(tmp_path: Path, syntax: UID, dtype: str) -> None:
    ends = np.iinfo(dtype)
    pixels = RNG.integers(ends.min, ends.max, (3, 5, 7), endpoint=True).astype(dtype)
    path = write(tmp_path / "a.dcm", pixels, syntax, NumberOfFrames=3)
    for frame in range(3):
        assert np.array_equal(stored(path, frame), pixels[frame])


def test_float_pixels(tmp_path: Path) -> None:
    values = RNG.normal(size=(4, 6)).astype("<f4")
    path = write(
        tmp_path / "a.dcm", np.zeros((4, 6), "u1"), FloatPixelData=values.tobytes(), BitsAllocated=32
    )
    ds = dcmread(path)
    del ds.PixelData
    ds.save_as(path)
    assert np.array_equal(stored(path), values)


def test_dirty_upper_bits_are_masked_and_signs_extended(tmp_path: Path) -> None:
    words = np.array([[0x0FFF, 0xF000, 0xA801, 0x07FF]], "u2")
    unsigned = write(tmp_path / "u.dcm", words, BitsStored=12, HighBit=11)
    assert stored(unsigned).tolist() == [[4095, 0, 0x801, 0x7FF]]
    signed = write(tmp_path / "s.dcm", words, BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert stored(signed).tolist() == [[-1, 0, -2047, 2047]]


def test_values_in_the_upper_bits(tmp_path: Path) -> None:
    words = np.array([[0xABC7, 0xFFF0, 0x0010]], "u2")
    path = write(tmp_path / "a.dcm", words, BitsStored=12, HighBit=15)
    assert stored(path).tolist() == [[0xABC, 0xFFF, 1]]


def test_single_bits(tmp_path: Path) -> None:
    bits = RNG.integers(0, 2, (3, 5, 7)).astype("u1")  # 35 bits a frame: no byte boundary between frames
    packed = np.packbits(bits.ravel(), bitorder="little")
    path = write(
        tmp_path / "a.dcm",
        bits,
        NumberOfFrames=3,
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        PixelData=packed.tobytes() + b"\0" * (packed.size % 2),
    )
    for frame in range(3):
        assert np.array_equal(stored(path, frame), bits[frame])


def test_jpeg_2000_beyond_bits_stored_is_clipped_not_wrapped(tmp_path: Path) -> None:
    words = np.array([[0, 4095, 4096, 4170, 65535, 17, 18, 19] * 8] * 64, "u2")
    code = encapsulate([bytes(encode_array(words, photometric_interpretation=2))])
    path = write(tmp_path / "a.dcm", words, JPEG2000Lossless, PixelData=code, BitsStored=12, HighBit=11)
    assert np.array_equal(stored(path), np.minimum(words, 4095))


def test_only_the_frame_that_is_asked_for_is_decoded(tmp_path: Path) -> None:
    picture = RNG.integers(0, 255, (64, 64)).astype("u1")
    good = bytes(encode_array(picture, photometric_interpretation=2))
    code = encapsulate([good, b"\xff\xd8 no codestream at all", good])
    path = write(tmp_path / "a.dcm", picture, JPEG2000Lossless, PixelData=code, NumberOfFrames=3)
    assert np.array_equal(stored(path, 0), picture)
    assert np.array_equal(stored(path, 2), picture)
    with pytest.raises(NotDisplayable, match="damaged"):
        stored(path, 1)


def test_compressed_copies_equal_the_uncompressed_original() -> None:
    original = dcmread(shipped("MR_small.dcm")).pixel_array
    for name in ("RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "expb", "implicit", "padded"):
        assert np.array_equal(stored(shipped(f"MR_small_{name}.dcm")), original), name


# ---------------------------------------------------------------- colour


def test_planar_and_interleaved_rgb(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (5, 6, 3)).astype("u1")
    assert np.array_equal(rgb(write(tmp_path / "a.dcm", pixels)), pixels)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()
    path = write(tmp_path / "b.dcm", pixels, PixelData=planes, PlanarConfiguration=1)
    assert np.array_equal(rgb(path), pixels)


@pytest.mark.parametrize("bits", [4, 10, 12, 16])
def test_deep_and_shallow_colour_is_scaled_by_bits_stored(tmp_path: Path, bits: int) -> None:
    top = (1 << bits) - 1
    pixels = np.array([[[0, top // 2 + 1, top]]], "u2")
    path = write(tmp_path / "a.dcm", pixels, BitsStored=bits, HighBit=bits - 1)
    assert rgb(path).tolist() == [[[0, 136 if bits == 4 else 128, 255]]]  # 8 * 17 = 136


def test_ybr_full_by_hand(tmp_path: Path) -> None:
    # ISO/IEC 10918-5: R = Y + 1.402 (Cr - 128), B = Y + 1.772 (Cb - 128)
    pixels = np.array([[[76, 85, 255], [29, 255, 107], [200, 128, 128]]], "u1")
    path = write(tmp_path / "a.dcm", pixels, PhotometricInterpretation="YBR_FULL")
    assert np.abs(rgb(path).astype(int) - [[[254, 0, 0], [0, 0, 254], [200, 200, 200]]]).max() <= 1


def test_ybr_422_thinned_out_and_not(tmp_path: Path) -> None:
    full = np.array([[[50, 90, 160], [70, 90, 160], [90, 200, 30], [110, 200, 30]]], "u1")
    expected = rgb(write(tmp_path / "a.dcm", full, PhotometricInterpretation="YBR_FULL"))
    thin = bytes([50, 70, 90, 160, 90, 110, 200, 30])
    name: dict[str, Any] = {"PhotometricInterpretation": "YBR_FULL_422"}
    assert np.array_equal(rgb(write(tmp_path / "b.dcm", full, PixelData=thin, **name)), expected)
    # the name is wrong as often as not
    assert np.array_equal(rgb(write(tmp_path / "c.dcm", full, **name)), expected)


def palette(*channels: NDArray[Any], bits: int) -> dict[str, Any]:
    wishes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), channels, strict=True):
        wishes[f"{name}PaletteColorLookupTableDescriptor"] = [table.size, 10, bits]
        wishes[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    return wishes


@pytest.mark.parametrize("scale", [1, 257])
def test_palette_of_16_bits_also_if_only_the_lower_8_are_used(tmp_path: Path, scale: int) -> None:
    red, green, blue = (np.array(v, "<u2") * scale for v in ([1, 20, 255, 9], [0, 7, 8, 9], [4, 3, 2, 1]))
    codes = np.array([[0, 10, 11, 12, 13, 200]], "u1")
    path = write(tmp_path / "a.dcm", codes, **palette(red, green, blue, bits=16))
    first, last = [1, 0, 4], [9, 9, 1]
    assert rgb(path).tolist() == [[first, first, [20, 7, 3], [255, 8, 2], last, last]]


def test_segmented_palette(tmp_path: Path) -> None:
    # PS3.3 C.7.9.2: discrete, 2 values; linear, 6 steps to 5000H; each step is 0A00H then
    segments = np.array([0, 2, 0x0A00, 0x1400, 1, 6, 0x5000], "<u2").tobytes()
    wishes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        wishes[f"{name}PaletteColorLookupTableDescriptor"] = [8, 0, 16]
        wishes[f"Segmented{name}PaletteColorLookupTableData"] = segments
    found = rgb(write(tmp_path / "a.dcm", np.arange(8, dtype="u1").reshape(1, 8), **wishes))
    assert found[0, :, 0].tolist() == [10, 20, 30, 40, 50, 60, 70, 80]
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize(("photometric", "reversible"), [("YBR_RCT", True), ("YBR_ICT", False)])
def test_colour_transformed_by_jpeg_2000(tmp_path: Path, photometric: str, reversible: bool) -> None:
    y, x = np.mgrid[0:64, 0:64]
    pixels = np.stack([x * 4, y * 4, 255 - 2 * (x + y)], -1).astype("u1")
    file = BytesIO()
    PillowImage.fromarray(pixels).save(file, "JPEG2000", irreversible=not reversible, mct=1, no_jp2=True)
    path = write(
        tmp_path / "a.dcm",
        pixels,
        JPEG2000Lossless if reversible else JPEG2000,
        PixelData=encapsulate([file.getvalue()]),
        PhotometricInterpretation=photometric,
    )
    difference = np.abs(rgb(path).astype(int) - pixels)
    assert difference.max() <= (0 if reversible else 4)


def test_baseline_jpeg_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    y, x = np.mgrid[0:32, 0:32]
    pixels = np.stack([x * 8, y * 8, x * 4 + y * 4], -1).astype("u1")
    file = BytesIO()
    PillowImage.fromarray(pixels).save(file, "JPEG", quality=95, subsampling="4:4:4")
    code = encapsulate([file.getvalue()])
    path = write(
        tmp_path / "a.dcm", pixels, JPEGBaseline8Bit, PixelData=code, PhotometricInterpretation="YBR_FULL"
    )
    expected = np.asarray(PillowImage.open(file)).astype(int)
    assert np.abs(rgb(path) - expected).max() <= 3


# ---------------------------------------------------------------- repairs and refusals


def test_the_last_coefficient_of_a_sequential_scan_is_repaired(tmp_path: Path) -> None:
    ds = dcmread(shipped("JPGExtended.dcm"))
    sound = get_frame(ds.PixelData, 0, number_of_frames=1)
    scan = sound.index(b"\xff\xda")
    last = scan + 2 + 2 + 1 + 2 * sound[scan + 4] + 1
    assert sound[last] == 63
    broken = sound[:last] + b"\0" + sound[last + 1 :]
    assert codestream.repair_jpeg(broken) == sound
    assert codestream.repair_jpeg(sound) is sound
    ds.PixelData = encapsulate([broken])
    ds.save_as(tmp_path / "a.dcm")
    assert np.array_equal(stored(tmp_path / "a.dcm"), stored(shipped("JPGExtended.dcm")))


def test_a_progressive_jpeg_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    y, x = np.mgrid[0:32, 0:32]
    pixels = (x * 4 + y * 3).astype("u1")
    file = BytesIO()
    PillowImage.fromarray(pixels).save(file, "JPEG", quality=95, progressive=True)
    for process in (53, 55):
        syntax = UID(f"1.2.840.10008.1.2.4.{process}")
        path = write(tmp_path / "a.dcm", pixels, syntax, PixelData=encapsulate([file.getvalue()]))
        assert np.abs(stored(path) - np.asarray(PillowImage.open(file)).astype(int)).max() <= 1


def test_progressive_and_lossless_scans_are_left_alone() -> None:
    file = BytesIO()
    PillowImage.new("L", (8, 8)).save(file, "JPEG", progressive=True)
    assert codestream.repair_jpeg(file.getvalue()) == file.getvalue()
    lossless = get_frame(dcmread(shipped("JPEG-LL.dcm")).PixelData, 0, number_of_frames=1)
    assert codestream.repair_jpeg(lossless) == lossless


@pytest.mark.parametrize("name", ["JPEG", "JPEG2000"])
def test_declared_size(name: str) -> None:
    file = BytesIO()
    PillowImage.new("RGB", (70, 40)).save(file, name)
    assert codestream.declared_size(file.getvalue()) == (40, 70)
    for end in range(0, 60, 3):
        with suppress(ValueError):
            codestream.declared_size(file.getvalue()[:end])
        codestream.repair_jpeg(file.getvalue()[:end])
    assert codestream.declared_size(b"neither") is None


def test_a_jp2_box_without_length_is_damage() -> None:
    file = BytesIO()
    PillowImage.new("L", (70, 40)).save(file, "JPEG2000")
    raw = file.getvalue()
    assert raw[4:8] == b"jP  "
    with pytest.raises(ValueError, match="box"):
        codestream.declared_size(raw[:12] + bytes(4) + raw[16:])


def test_a_decoder_that_panics_is_followed_by_the_next(tmp_path: Path) -> None:
    # two runs of bytes for 4 x 4 words, the second of 40 bytes instead of 16: the Rust decoder panics
    header = b"".join(n.to_bytes(4, "little") for n in (2, 64, 66)) + bytes(52)
    runs = bytes([257 - 16, 7, 257 - 40, 9])
    pixels = np.zeros((4, 4), "u2")
    path = write(tmp_path / "a.dcm", pixels, RLELossless, PixelData=encapsulate([header + runs]))
    assert (stored(path) == 0x0709).all()


def test_a_length_field_beyond_the_file_asks_for_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((4, 4), "u2"), SmallestImagePixelValue=1)
    raw = path.read_bytes()
    at = raw.index(b"\x28\0\x10\0US")
    path.write_bytes(raw[: at + 4] + b"UN\0\0" + (0xFFFFFFF0).to_bytes(4, "little") + raw[at + 8 :])
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limit[1]))
    try:
        assert refused(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_frames_deflated_one_by_one(tmp_path: Path) -> None:
    frames = RNG.integers(0, 2**16, (3, 9, 7)).astype("u2")

    def deflated(raw: bytes) -> bytes:
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        code = squeezer.compress(raw) + squeezer.flush()
        return code + bytes(len(code) % 2)

    codes = [deflated(frame.tobytes()) for frame in frames]
    # the second breaks off, the third would go on for ever
    codes[1], codes[2] = codes[1][:20], deflated(frames[2].tobytes() + bytes(1 << 24))
    path = write(tmp_path / "a.dcm", frames, JPEG2000Lossless, NumberOfFrames=3, PixelData=encapsulate(codes))
    syntax = b"1.2.840.10008.1.2.8.1\0"
    path.write_bytes(path.read_bytes().replace(str(JPEG2000Lossless).encode(), syntax))
    assert np.array_equal(stored(path, 0), frames[0])
    assert "cut short" in refused(path, 1)
    assert np.array_equal(stored(path, 2), frames[2])


def test_one_broken_frame_does_not_hide_the_others(tmp_path: Path) -> None:
    frames = RNG.integers(0, 255, (3, 32, 32)).astype("u1")
    codes = [bytes(encode_array(frame, photometric_interpretation=2)) for frame in frames]
    path = write(
        tmp_path / "a.dcm",
        frames,
        JPEG2000Lossless,
        NumberOfFrames=3,
        PixelData=encapsulate([codes[0], b"\xff\x4f" + bytes(100), codes[2]]),
    )
    assert np.array_equal(stored(path, 0), frames[0])
    assert refused(path, 1)
    assert np.array_equal(stored(path, 2), frames[2])


def refused(path: Path, frame: int = 0) -> str:
    with pytest.raises(NotDisplayable) as caught:
        stored(path, frame)
    return str(caught.value)


def test_refusals_say_why(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), "u2")
    code = encapsulate([bytes(encode_array(pixels, photometric_interpretation=2))])
    path = tmp_path / "a.dcm"
    assert "no frame 2" in refused(write(path, pixels), 1)
    assert "no frame 0" in refused(path, -1)
    assert "cut short: 126 of 8192 bytes" in refused(write(path, pixels, PixelData=bytes(126)))
    assert "too large" in refused(write(path, pixels, Rows=65535, Columns=MAX_PIXELS // 65535 + 1))
    assert "how many rows" in refused(write(path, pixels, Rows=0))
    assert "samples" in refused(write(path, pixels, SamplesPerPixel=4))
    undefined = write(path, pixels, JPEG2000Lossless, PixelData=code)
    native = undefined.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.1\0\0\0")
    undefined.write_bytes(native)
    assert "are compressed" in refused(path)
    assert "announces 100 x 64" in refused(write(path, pixels, JPEG2000Lossless, PixelData=code, Columns=100))
    assert "no decoder" in refused(write(path, pixels, JPIPHTJ2KReferenced, PixelData=code))
    assert "damaged" in refused(write(path, pixels, RLELossless, PixelData=encapsulate([bytes(80)])))
    assert "damaged" in refused(
        write(path, pixels, JPEGExtended12Bit, PixelData=encapsulate([b"\xff\xd8abcd"]))
    )
    ds = dcmread(write(path, pixels))
    del ds.PixelData
    ds.save_as(path)
    assert "no pixel data" in refused(path)


def test_surplus_data_and_short_last_frame_do_not_matter(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 255, (2, 4, 4)).astype("u1")
    surplus = write(tmp_path / "a.dcm", pixels[0], PixelData=pixels.tobytes() * 20)
    assert np.array_equal(stored(surplus), pixels[0])
    short = write(tmp_path / "b.dcm", pixels, NumberOfFrames=2, PixelData=pixels.tobytes()[:-4])
    assert np.array_equal(stored(short), pixels[0])
    assert "cut short" in refused(short, 1)


def test_a_file_without_file_meta_information(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 4000, (4, 4)).astype("u2")
    whole = write(tmp_path / "a.dcm", pixels, ImplicitVRLittleEndian).read_bytes()
    ds = dcmread(BytesIO(whole))
    del ds.file_meta
    ds.save_as(tmp_path / "b.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert np.array_equal(stored(tmp_path / "b.dcm"), pixels)
