"""Whole renders: determinism, pools, and that nothing but NotDisplayable comes out of bad files."""

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from dicomfs import probes
from dicomfs.errors import NotDisplayable
from dicomfs.model import Layout, PoolWindow, Recipe, Source
from dicomfs.render import decide_pool, probe_digest, render
from tests.support import shipped
from tests.unit import reference
from tests.unit.reference import write

PNG = Recipe("png")
EACH_ITS_OWN = PoolWindow(None, None, "header")


def wheel_files() -> list[Path]:
    """Every file of the pydicom wheel, and of pydicom-data where that is installed."""
    folders = [Path(pydicom.data.__file__).parent / "test_files"]
    folders += [Path(folder) / "data_store" / "data" for folder in sys.path]
    found = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in found if path.suffix not in {".py", ".pyc"}]


def picture(path: Path, window: PoolWindow | None = None, frame: int = 0) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(render(Source(path, frame), PNG, window))))


def cine(folder: Path, phases: int = 6, **attributes: object) -> list[Source]:
    """Phases of one slice whose own window is each one's extremes, with a spike that comes and goes."""
    y, x = np.mgrid[0:64, 0:64]
    sources = []
    for phase in range(phases):
        pixels = 20 + 60 * ((x - 32) ** 2 + (y - 32) ** 2 < (15 + phase) ** 2)
        pixels = (pixels + (x * 7 + y * 3) % 11).astype("u2")
        pixels[3, 5] = 200 + 90 * (phase % 3)
        top = int(pixels.max())
        wishes = {
            "Modality": "MR",
            "SOPClassUID": MRImageStorage,
            "WindowCenter": top / 2,
            "WindowWidth": top,
            **attributes,
        }
        sources.append(Source(write(folder / f"{phase}.dcm", pixels, **wishes)))  # type: ignore[arg-type]
    return sources


# ---------------------------------------------------------------- determinism


SCRIPT = """
import hashlib, sys
from fractions import Fraction
from pathlib import Path
from dicomfs.errors import NotDisplayable
from dicomfs.model import Recipe, Source
from dicomfs.notice import notice
from dicomfs.recipes import FORMATS
from dicomfs.render import probe_digest, render
from tests.support import shipped
digest = hashlib.sha256()
for path in sys.argv[1:]:
    for name in FORMATS:
        try:
            digest.update(render(Source(Path(path)), Recipe(name, max_size=200, marks=True), None))
        except NotDisplayable as refusal:
            digest.update(notice(Recipe(name), str(refusal)))
print(digest.hexdigest(), *(probe_digest(Recipe(name)) for name in FORMATS))
"""


def test_two_processes_give_the_same_bytes() -> None:
    names = [
        "CT_small.dcm",
        "MR_small_jp2klossless.dcm",
        "examples_ybr_color.dcm",
        "JPGExtended.dcm",
        "rtdose.dcm",
        "examples_overlay.dcm",
        "examples_palette.dcm",
        "color-pl.dcm",
    ]
    command = [sys.executable, "-c", SCRIPT, *(str(shipped(name)) for name in names)]
    first, second = (
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        )
        for seed in ("1", "2")
    )
    assert first.stdout == second.stdout
    assert len(first.stdout.split()[0]) == 64


def test_probe_digest_follows_the_recipe_and_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {probe_digest(recipe) for recipe in (PNG, Recipe("jpg"), Recipe("jpg", quality=91))}
    assert len(digests) == 3
    before = probe_digest(PNG)
    assert probe_digest(PNG) == before
    changed = [image ^ (image == 77) for image in probes.pictures()]
    monkeypatch.setattr(probes, "pictures", lambda: iter(changed))
    assert probe_digest(PNG) != before


def test_probe_samples_can_be_decoded(tmp_path: Path) -> None:
    for name, file in probes.files():
        (tmp_path / "a.dcm").write_bytes(file)
        assert picture(tmp_path / "a.dcm").std() > 20, name


# ---------------------------------------------------------------- windows


def test_a_given_range_in_modality_units(tmp_path: Path) -> None:
    pixels = np.arange(0, 400, 4, dtype="u2").reshape(10, 10)
    path = write(tmp_path / "a.dcm", pixels, RescaleSlope=2, RescaleIntercept=-100)
    expected = [max(0, min(255, int(((2 * int(v) - 100) - 0) / 510 * 255 + 0.5))) for v in pixels.ravel()]
    assert picture(path, PoolWindow(0, 510, "test")).ravel().tolist() == expected


def test_the_header_window_by_the_formula() -> None:
    ds = dcmread(shipped("MR_small.dcm"))
    expected = [reference.linear(int(v), ds.WindowCenter, ds.WindowWidth) for v in ds.pixel_array.ravel()]
    assert picture(shipped("MR_small.dcm"), EACH_ITS_OWN).ravel().tolist() == expected
    assert picture(shipped("MR_small.dcm")).ravel().tolist() == expected


def test_functional_groups_per_frame_before_shared(tmp_path: Path) -> None:
    def group(centre: int, width: int, slope: int) -> Dataset:
        voi, units, item = Dataset(), Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = centre, width
        units.RescaleSlope, units.RescaleIntercept, units.RescaleType = slope, 0, "US"
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = [voi], [units]
        return item

    shared = group(1000, 1000, 1)
    bare = Dataset()
    bare.PixelValueTransformationSequence = [group(0, 1, 3).PixelValueTransformationSequence[0]]
    pixels = np.arange(256, dtype="u2").reshape(1, 16, 16).repeat(2, axis=0)
    path = write(
        tmp_path / "a.dcm",
        pixels,
        NumberOfFrames=2,
        Modality="MR",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[group(100, 80, 2), bare],
    )
    values = range(256)
    first = [reference.linear(2 * v, 100, 80) for v in values]
    second = [reference.linear(3 * v, 1000, 1000) for v in values]
    assert picture(path, EACH_ITS_OWN, 0).ravel().tolist() == first
    assert picture(path, EACH_ITS_OWN, 1).ravel().tolist() == second


def lut(first: int, bits: int, entries: list[int], **more: Any) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new(0x00283006, "OW", np.array(entries, "<u2").tobytes())
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def test_lookup_tables_of_the_header(tmp_path: Path) -> None:
    # stored 0..15 -> modality 0, 100 .. 1500 -> VOI, from 300 on: 0, 1023 and between them, 10 bits
    modality = lut(0, 16, [100 * n for n in range(16)], ModalityLUTType="US")
    voi = lut(300, 10, [min(n, 1023) for n in range(1001)])
    pixels = np.arange(16, dtype="u1").reshape(4, 4)
    path = write(tmp_path / "a.dcm", pixels, ModalityLUTSequence=[modality], VOILUTSequence=[voi])
    expected = [reference.half_up(Fraction(255 * min(max(100 * n - 300, 0), 1000), 1023)) for n in range(16)]
    assert picture(path, EACH_ITS_OWN).ravel().tolist() == expected
    # in XA the Modality LUT leads back to X-ray intensity and is left out
    wishes: dict[str, Any] = {"Modality": "XA", "WindowCenter": 8, "WindowWidth": 16}
    xa = write(tmp_path / "b.dcm", pixels, ModalityLUTSequence=[modality], **wishes)
    assert picture(xa, EACH_ITS_OWN).ravel().tolist() == [reference.linear(n, 8, 16) for n in range(16)]


@pytest.mark.parametrize(
    ("function", "formula"),
    [
        ("LINEAR", reference.linear),
        ("LINEAR_EXACT", reference.linear_exact),
        ("SIGMOID", reference.sigmoid),
    ],
)
def test_functions_and_padding_of_the_header(
    tmp_path: Path, function: str, formula: Callable[[int, float, float], int]
) -> None:
    values = list(range(-128, 128))
    path = write(
        tmp_path / "a.dcm",
        np.array(values, "i2").reshape(16, 16),
        WindowCenter=[10, 0],
        WindowWidth=[101, 1],
        VOILUTFunction=function,
        PixelPaddingValue=-128,
        PixelPaddingRangeLimit=-120,
    )
    expected = [0 if v <= -120 else formula(v, 10, 101) for v in values]
    assert picture(path, EACH_ITS_OWN).ravel().tolist() == expected


@pytest.mark.parametrize(
    ("photometric", "shape", "first"),
    [
        ("MONOCHROME2", None, 0),
        ("MONOCHROME1", None, 255),
        ("MONOCHROME1", "INVERSE", 255),
        ("MONOCHROME2", "INVERSE", 255),
        ("MONOCHROME2", "IDENTITY", 0),
    ],
)
def test_inverted_once(tmp_path: Path, photometric: str, shape: str | None, first: int) -> None:
    wishes = {"PhotometricInterpretation": photometric} | ({"PresentationLUTShape": shape} if shape else {})
    pixels = np.arange(256, dtype="u1").reshape(16, 16)
    path = write(tmp_path / "a.dcm", pixels, **wishes)  # type: ignore[arg-type]
    assert picture(path).ravel().tolist() == [abs(first - v) for v in range(256)]


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("centre", [b"0", b"", b"1/0", b"abc ", b"nan ", b"1e999 ", b"\\7", b"\xff\xfe"])
@pytest.mark.parametrize("width", [b"0", b"", b"abc ", b"-inf"])
def test_broken_windows_count_as_missing(tmp_path: Path, centre: bytes, width: bytes) -> None:
    pixels = np.arange(4096, dtype="u2").reshape(64, 64)
    path = write(tmp_path / "a.dcm", pixels, Modality="MR", BitsStored=12, HighBit=11)
    expected = picture(path)
    assert expected.std() > 50
    elements = b"".join(
        b"\x28\x00"
        + tag
        + b"DS"
        + len(value + b" " * (len(value) % 2)).to_bytes(2, "little")
        + value
        + b" " * (len(value) % 2)
        for tag, value in ((b"\x50\x10", centre), (b"\x51\x10", width))
    )
    raw = path.read_bytes()
    at = raw.rindex(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(raw[:at] + elements + raw[at:])
    assert np.array_equal(picture(path), expected)
    assert np.array_equal(picture(path, EACH_ITS_OWN), expected)


@pytest.mark.parametrize(
    ("centre", "width"),
    [("[00300, 00300]", "x"), ("600\\200", "1600\\90"), ("600", "-1600"), (" 6e2 ", "1600.0")],
)
def test_odd_spellings_of_a_window(tmp_path: Path, centre: str, width: str) -> None:
    path = tmp_path / "a.dcm"
    ds = dcmread(shipped("MR_small.dcm"))
    raw = shipped("MR_small.dcm").read_bytes()
    for tag, old, new in ((b"\x50\x10", ds.WindowCenter, centre), (b"\x51\x10", ds.WindowWidth, width)):
        at = raw.index(b"\x28\x00" + tag)
        length = int.from_bytes(raw[at + 6 : at + 8], "little")
        value = new.encode() + b" " * (len(new) % 2)
        assert float(raw[at + 8 : at + 8 + length]) == old
        raw = raw[: at + 6] + len(value).to_bytes(2, "little") + value + raw[at + 8 + length :]
    path.write_bytes(raw)
    same = np.array_equal(picture(path, EACH_ITS_OWN), picture(shipped("MR_small.dcm"), EACH_ITS_OWN))
    assert same == (width != "x")


# ---------------------------------------------------------------- pools


def test_a_cine_whose_headers_pump_gets_one_range(tmp_path: Path) -> None:
    phases = cine(tmp_path)
    window = decide_pool(phases)
    assert window.low is not None
    assert window.high is not None
    pictures = [picture(phase.path, window) for phase in phases]
    backgrounds = {int(p[60, 2]) for p in pictures}
    assert len(backgrounds) == 1
    assert len({int(picture(phase.path, EACH_ITS_OWN)[60, 2]) for phase in phases}) > 1
    # 10 phases or 6: the same anatomy, nearly the same window; and the spike does not set it
    assert window.high < 120


def test_unreadable_members_are_left_out(tmp_path: Path) -> None:
    phases = cine(tmp_path)
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(phases[0].path.read_bytes()[:-5000])
    assert decide_pool([*phases, Source(broken), Source(shipped("rtplan.dcm"))]) == decide_pool(phases)
    nobody = decide_pool([Source(broken)])
    assert (nobody.low, nobody.high) == (None, None)
    assert nobody.reason


def test_all_frames_of_one_file_share_a_window(tmp_path: Path) -> None:
    frames = np.stack([np.full((16, 16), 100 * n, "u2") for n in range(1, 81)])
    path = write(tmp_path / "a.dcm", frames, NumberOfFrames=80, Modality="MR")
    greys = [int(picture(path, frame=n)[0, 0]) for n in range(80)]
    assert greys == sorted(greys)
    assert greys[0] == 0
    assert greys[-1] >= 250
    assert len(set(greys)) > 70
    middle = decide_pool([Source(path, n) for n in range(0, 80, 5)])
    assert middle.low == 100
    assert middle.high == 7600


# ---------------------------------------------------------------- bad files


def outcome(path: Path, recipe: Recipe, layout: Layout | None = None, frame: int = 0) -> tuple[bytes, str]:
    """The file and no reason, or no file and the reason."""
    try:
        return render(Source(path, frame, layout), recipe, None), ""
    except NotDisplayable as refusal:
        return b"", str(refusal)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the test's own reading
@pytest.mark.parametrize("path", wheel_files(), ids=lambda path: path.name)
def test_every_file_of_the_wheels_renders_or_says_why(path: Path) -> None:
    for recipe in (Recipe("png", square=False), Recipe("jpg", square=False)):
        file, refusal = outcome(path, recipe)
        if refusal:
            assert refusal.endswith(".")
            assert str(path.parent) not in refusal
            continue
        image = Image.open(BytesIO(file))
        image.load()
        ds = dcmread(path, force=True, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        assert image.size == (ds.Columns, ds.Rows)


def test_the_wheels_hardest_files_do_render() -> None:
    for name in (
        "JPEG-lossy.dcm",
        "JPEG2000.dcm",
        "liver.dcm",
        "SC_rgb_rle_32bit.dcm",
        "image_dfl.dcm",
        "gdcm-US-ALOKA-16.dcm",
        "OT-PAL-8-face.dcm",
        "693_J2KI.dcm",
        "rtdose_rle.dcm",
    ):
        assert picture(shipped(name)).std() > 5, name


def test_passing_failures_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        render(Source(tmp_path / "gone.dcm"), PNG, None)
    with pytest.raises(FileNotFoundError):
        decide_pool([Source(tmp_path / "gone.dcm")])


DAMAGED = [
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "JPGExtended.dcm",
    "CT_small.dcm",
    "examples_palette.dcm",
    "rtdose.dcm",
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(DAMAGED),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=8),
    st.floats(0.05, 1),
)
def test_damage_anywhere_is_not_displayable_or_a_picture(
    tmp_path_factory: pytest.TempPathFactory, name: str, hits: list[tuple[float, bytes]], kept: float
) -> None:
    raw = bytearray(shipped(name).read_bytes())
    for place, junk in hits:
        # headers hurt more than pixels
        at = 128 + int(place**3 * (len(raw) - 132))
        raw[at : at + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged.dcm"
    path.write_bytes(raw[: int(len(raw) * kept)])
    file, refusal = outcome(path, PNG)
    assert refusal or file[:4] == b"\x89PNG"


def test_a_file_of_noise_is_not_displayable(tmp_path: Path) -> None:
    for content in (b"", b"x", b"DICM" * 100, bytes(4000), b"\xff" * 4000):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(NotDisplayable):
            render(Source(tmp_path / "a"), PNG, None)


def test_absurd_sizes_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), "u2")
    path = write(
        tmp_path / "a.dcm",
        pixels,
        ExplicitVRLittleEndian,
        Rows=65535,
        Columns=65535,
        NumberOfFrames=2**31 - 1,
    )
    with pytest.raises(NotDisplayable, match="too large"):
        render(Source(path), PNG, None)
    path = write(path, pixels, ExplicitVRLittleEndian, Rows=10000, Columns=10000)
    with pytest.raises(NotDisplayable, match="cut short"):
        render(Source(path), PNG, None)


# ---------------------------------------------------------------- policies


def by(path: Path, policy: str, frame: int = 0, window: PoolWindow | None = None) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(render(Source(path, frame), Recipe("png", window=policy), window))))


def test_each_image_by_its_own_header(tmp_path: Path) -> None:
    phases = cine(tmp_path)
    assert decide_pool(phases, "header") == EACH_ITS_OWN
    for phase in phases:
        ds = dcmread(phase.path)
        expected = [reference.linear(int(v), ds.WindowCenter, ds.WindowWidth) for v in ds.pixel_array.ravel()]
        assert by(phase.path, "header").ravel().tolist() == expected
        # whatever its pool says
        assert np.array_equal(by(phase.path, "header", window=PoolWindow(0, 9, "")), by(phase.path, "header"))


def test_header_falls_back_to_the_range_of_the_pool(tmp_path: Path) -> None:
    phases = cine(tmp_path)
    ds = dcmread(phases[2].path)
    del ds.WindowCenter, ds.WindowWidth
    ds.save_as(phases[2].path)
    window = decide_pool(phases, "header")
    for phase in phases:
        ds = dcmread(phase.path)
        ds.WindowWidth = None
        ds.save_as(phase.path)
    assert window == decide_pool(phases)
    assert window.low is not None
    assert np.array_equal(by(phases[2].path, "header", window=window), picture(phases[2].path, window))


def test_the_rough_window_takes_everything(tmp_path: Path) -> None:
    pixels = np.array([[-2000, -1000, 0, 3000]], "i2")
    wishes: dict[str, Any] = {
        "Modality": "CT",
        "WindowCenter": 40,
        "WindowWidth": 400,
        "PixelPaddingValue": -2000,
    }
    path = write(tmp_path / "a.dcm", pixels, RescaleSlope=2, RescaleIntercept=0, **wishes)
    expected = [int((v + 2000) / 5000 * 255 + 0.5) for v in (-2000, -1000, 0, 3000)]
    assert by(path, "full").ravel().tolist() == expected
    assert not by(write(path, np.full((4, 4), 7, "u2")), "full").any()


def test_a_fixed_window_in_modality_units(tmp_path: Path) -> None:
    values = list(range(-1024, 3072, 16))
    pixels = (np.array(values).reshape(16, 16) + 1024).astype("u2")
    path = write(
        tmp_path / "a.dcm",
        pixels,
        Modality="CT",
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=40,
        WindowWidth=80,
        PhotometricInterpretation="MONOCHROME1",
    )
    for policy, centre, width in (("-600/1500", -600, 1500), ("40.5/400", 40.5, 400), ("100/1", 100, 1)):
        expected = [255 - reference.linear(v, Fraction(centre), width) for v in values]
        assert by(path, policy).ravel().tolist() == expected
    expected = [255 - reference.linear_exact(v, 16, Fraction(1, 2)) for v in values]
    assert by(path, "16/0.5").ravel().tolist() == expected


def test_rules_are_part_of_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = probe_digest(PNG)
    monkeypatch.setattr("dicomfs.render.RULES_VERSION", 10**6)
    assert probe_digest(PNG) != before


def test_marks_tell_side_and_loss(tmp_path: Path) -> None:
    pixels = np.full((200, 200), 100, "u1")
    plain = write(tmp_path / "a.dcm", pixels)
    assert (
        np.asarray(Image.open(BytesIO(render(Source(plain), Recipe("png", marks=True), None)))) == 100
    ).all()
    written = set()
    lossy = {"LossyImageCompression": "01"}
    examples: list[dict[str, Any]] = [{"ImageLaterality": "R"}, {"Laterality": "L"}, lossy]
    for wishes in (*examples, lossy | {"LossyImageCompressionRatio": "12.3"}):
        path = write(tmp_path / "b.dcm", pixels, **wishes)
        file = render(Source(path), Recipe("png", marks=True), None)
        assert (np.asarray(Image.open(BytesIO(file)))[:40] == 255).any()
        assert render(Source(path), PNG, None) == render(Source(plain), PNG, None)
        written.add(file)
    assert len(written) == 4
