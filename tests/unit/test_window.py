"""The grey chain by hand-worked formulas, and each row of the decision table."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicomfs.display import Display
from dicomfs.grey import Chain, Lut, Modality, Rescale, Span, Voi, Window, render_grey, shown
from dicomfs.histogram import GLIMPSE_STEP, Member, glimpse, measure
from dicomfs.model import PoolWindow
from dicomfs.window import decide, from_header, own
from tests.unit import reference

T = TypeVar("T")

PLAIN = Display(
    modality="OT",
    secondary_capture=False,
    image_type=(),
    for_processing=False,
    body_part="",
    bits=16,
    is_float=False,
    signed=False,
    transformation=Rescale(),
    windows=(),
    inverted=False,
    padding=None,
    suv_scale=None,
    full_scale=None,
)
EACH_ITS_OWN = (None, None)


def chain_of(values: list[int], voi: Voi, **chain: Any) -> list[int]:
    units = chain.pop("modality", Rescale())
    stored = np.array([values], np.int32)
    return [int(value) for value in render_grey(stored, None, Chain(units, voi, **chain))[0]]


def always(value: T) -> Callable[[], T]:
    return lambda: value


def member(pixels: NDArray[Any] | list[int] | list[float], **wishes: Any) -> Member:
    array = np.atleast_2d(np.asarray(pixels))
    return measure(array.astype(np.float64), None, replace(PLAIN, **wishes))


def window_of(measured: Member) -> tuple[Modality, Voi] | None:
    return own(measured.display, lambda: measured)


def limits(*members: Member) -> tuple[float | None, float | None]:
    decided = decide(members)
    assert decided.reason
    return decided.low, decided.high


def assert_close(found: tuple[float | None, float | None], low: float, high: float) -> None:
    assert found[0] == pytest.approx(low)
    assert found[1] == pytest.approx(high)


# ---------------------------------------------------------------- formulas


def test_linear_example_of_the_standard() -> None:
    # PS3.3 C.11.2.1.2.1: c=2048, w=4096 is (x / 4095) * 255; c=0, w=100 ends at -50 and 49
    assert chain_of([0, 2047, 2048, 4095], Window(2048, 4096)) == [0, 127, 128, 255]
    assert chain_of([-51, -50, 0, 49, 50], Window(0, 100)) == [0, 0, 129, 255, 255]


def test_width_of_one_is_a_threshold() -> None:
    # PS3.3 C.11.2.1.2.1, c=2048, w=1: x <= 2047.5 is black, above is white
    assert chain_of([2047, 2048], Window(2048, 1)) == [0, 255]


@given(
    st.integers(-70000, 70000),
    st.integers(-40000, 40000).map(lambda n: n / 8),
    st.integers(8, 600000).map(lambda n: n / 8),
)
def test_windows_equal_the_exact_formulas(x: int, centre: float, width: float) -> None:
    values = np.array([x], np.float64)
    assert abs(int(shown(values, Window(centre, width))[0]) - reference.linear(x, centre, width)) <= on_half(
        x, centre - 0.5, width - 1
    )
    exact = int(shown(values, Window(centre, width, "LINEAR_EXACT"))[0])
    assert abs(exact - reference.linear_exact(x, centre, width)) <= on_half(x, centre, width)


def on_half(x: float, centre: float, width: float) -> int:
    """1 where the exact result lies on a rounding boundary, which doubles cannot be asked to hit."""
    scaled = ((x - centre) / width + 0.5) * 255 + 0.5 if width else 0.25
    return int(abs(scaled - round(scaled)) < 1e-9)


def test_sigmoid() -> None:
    values = list(range(-100, 200, 7))
    expected = [reference.sigmoid(x, 40, 80) for x in values]
    assert chain_of(values, Window(40, 80, "SIGMOID")) == expected
    assert chain_of([-(10**9), 10**9], Window(0, 1e-3, "SIGMOID")) == [0, 255]


def test_span_and_half_up() -> None:
    # 1/510 of the way is 0.5 grey values: up
    assert chain_of([0, 1, 2, 510, 511, -1], Span(0, 510)) == [0, 1, 1, 255, 255, 0]
    assert chain_of([7, 7, 8], Span(7, 7)) == [0, 0, 255]


def test_rescale_comes_before_the_window() -> None:
    # stored 1024 * 2 - 2048 = 0 HU
    units = Rescale(2.0, -2048.0)
    assert chain_of([1024, 999], Window(0, 100), modality=units) == [129, reference.linear(-50, 0, 100)]


def test_modality_lut_holds_its_ends() -> None:
    lut = Lut(10, np.array([100.0, 50.0, 0.0]), 255)
    assert chain_of([0, 10, 11, 12, 99], Span(0, 255), modality=lut) == [100, 100, 50, 0, 0]


def test_voi_lut_of_twelve_bits() -> None:
    # 4095 is white; 2048 / 4095 * 255 = 127.53
    lut = Lut(-1, np.array([0.0, 2048.0, 4095.0]), 4095)
    assert chain_of([-5, -1, 0, 1, 7], lut) == [0, 0, 128, 255, 255]


def test_inversion_and_padding() -> None:
    assert chain_of([0, 64, 255], Span(0, 255), inverted=True) == [255, 191, 0]
    # padding is background: black even where small values are white
    assert chain_of([0, 64, 255], Span(0, 255), inverted=True, padding=(0, 10)) == [0, 191, 0]


def test_what_is_no_number_is_black() -> None:
    values = np.array([np.nan, -np.inf, np.inf, 0.5])
    assert shown(values, Span(0, 1)).tolist() == [0, 0, 255, 128]


def test_table_and_direct_arithmetic_agree() -> None:
    levels = np.arange(-32768, 32768, dtype=np.int32)
    codes = np.arange(0, 65536, 4, dtype=np.uint16).reshape(512, 32)
    chain = Chain(Rescale(0.37, -11), Window(40, 400), inverted=True, padding=(-2000, -1000))
    assert np.array_equal(render_grey(codes, levels, chain), render_grey(levels[codes], None, chain))


# ---------------------------------------------------------------- rule A


def test_rule_a_takes_percentiles_and_headroom() -> None:
    # 0..9999 once each: P0.1 = 9 (ten of ten thousand are <= 9), P99.9 = 9989;
    # 9 + 1.1 * 9980 is beyond the maximum
    ramp = np.arange(10000)
    assert limits(member(ramp, modality="MR")) == (9, 9999)
    bright = np.concatenate([ramp, [15000]])
    low, high = limits(member(bright, modality="MR"))
    assert low == 10
    assert high == pytest.approx(10 + 1.1 * (9990 - 10))
    spike = np.concatenate([ramp, [30000]])  # more than twice as bright as all others
    assert limits(member(spike, modality="MR")) == (9, 9999)


def test_pool_shares_one_window() -> None:
    dark, bright = np.arange(1000), np.arange(1000) + 3000
    pooled = limits(member(dark, modality="MR"), member(bright, modality="MR"))
    joined = limits(member(np.concatenate([dark, bright]), modality="MR"))
    assert pooled == joined


def test_pool_is_made_in_modality_units() -> None:
    ramp = np.arange(2000)
    halved = member(ramp * 2, modality="MR", transformation=Rescale(0.5))
    assert limits(member(ramp, modality="MR"), halved) == limits(member(ramp, modality="MR"))


def test_hot_pixels_and_padding_do_not_count() -> None:
    body = np.tile(np.arange(500), 20)
    clean = limits(member(body, modality="MR"))
    hot = np.concatenate([body, [32767] * 6])
    low, high = limits(member(hot, modality="MR"))
    assert low == clean[0]
    assert high is not None
    assert high < 1.2 * 499
    padded = np.concatenate([body, [-2000] * 5000])
    assert limits(member(padded, modality="MR", padding=(-2000, -2000))) == clean


def test_hot_pixels_of_a_small_image_do_not_count() -> None:
    # of 64 x 64 pixels 0.1 % are four
    body = np.arange(64 * 64) % 1000
    hot = body.copy()
    hot[[700, 1100, 1900, 2500, 3300, 4000]] = 32767
    _, clean = limits(member(body, modality="MR"))
    assert limits(member(hot, modality="MR"))[1] == pytest.approx(clean, rel=0.02)
    many = np.concatenate([body, [32767] * 9])  # nine are a structure
    assert limits(member(many, modality="MR"))[1] == 32767
    three = [member(np.roll(hot, step), modality="MR") for step in (0, 7, 90)]
    assert limits(*three)[1] == pytest.approx(clean, rel=0.02)


def test_trusted_window_that_makes_all_white_is_not_used() -> None:
    # values of 991..1489 under 30/100: one white square
    bone = np.arange(991, 1490)
    white = member(bone, **HU | {"transformation": Rescale()}, windows=(Window(30, 100),))
    assert window_of(white) is None
    assert limits(white) == (991, 1489)
    hounsfield = member(bone + 1024, **HU, windows=(Window(30, 100),))  # and 40/400 would be white too
    assert limits(hounsfield) == (991, 1489)
    for window in (Window(900, 100, "SIGMOID"), Window(900, 100)):
        chest = member(bone + 200, modality="DX", windows=(window,))
        assert window_of(chest) is None
    one = member([1000] * 9, modality="CT", windows=(Window(30, 100),))
    assert window_of(one) == (Rescale(), Window(30, 100))


def test_black_is_right_for_air_but_not_for_a_radiograph() -> None:
    dark, windows = np.arange(100), (Window(2000, 400),)
    for modality, usable in (("CT", True), ("XA", True), ("RF", True), ("DX", False), ("CR", False)):
        frame = member(dark, modality=modality, windows=windows)
        assert (window_of(frame) is not None) is usable, modality


def test_constant_and_nearly_empty_images() -> None:
    assert limits(member([5] * 100, modality="MR")) == (5, 5)
    sparse = np.repeat([0, 70], [100_000, 1])
    assert limits(member(sparse, modality="MR")) == (0, 70)
    assert limits(member([np.nan] * 4, modality="OT"))[0] == 0.0
    assert decide([]).low is None


# ---------------------------------------------------------------- header windows


RAMP = np.arange(0, 3000)


def test_header_that_is_the_images_own_extremes_says_nothing_in_mr() -> None:
    own_extremes = (Window(1500, 3000),)
    assert limits(member(RAMP, modality="MR", windows=own_extremes)) != EACH_ITS_OWN
    assert limits(member(RAMP, modality="CT", windows=own_extremes)) == EACH_ITS_OWN
    assert limits(member(RAMP, modality="MR", windows=(Window(700, 900),))) == EACH_ITS_OWN


def test_pumping_header_is_replaced_and_a_steady_one_kept() -> None:
    def phase(width: float) -> Member:
        return member(RAMP, modality="MR", windows=(Window(900, width),))

    assert limits(phase(1000), phase(1000)) == EACH_ITS_OWN
    # nearly equal ones: the median, (900 - 0.5) -+ (1125 - 1) / 2
    assert limits(phase(1000), phase(1250)) == (337.5, 1461.5)
    assert limits(phase(1000), phase(1260)) != EACH_ITS_OWN
    assert limits(phase(1000), member(RAMP, modality="MR")) != EACH_ITS_OWN


def test_window_of_the_whole_bit_range_says_nothing() -> None:
    whole = (Window(32768, 65536),)
    assert limits(member(RAMP, modality="MR", windows=whole)) != EACH_ITS_OWN
    filled = np.arange(0, 65536, 7) // 1
    assert limits(member(filled[100:-900], modality="MR", windows=whole)) == EACH_ITS_OWN


def test_window_beside_the_image_is_tried_on_stored_values() -> None:
    beside = (Window(1500, 1000),)
    far = member(RAMP, modality="MR", windows=beside, transformation=Rescale(1.0, -100_000.0))
    assert limits(far) == EACH_ITS_OWN
    assert own(far.display, lambda: far) == (Rescale(), beside[0])
    nowhere = (Window(900_000, 10),)
    assert limits(member(RAMP, modality="MR", windows=nowhere)) != EACH_ITS_OWN


def test_radiographs_prefer_the_voi_lut_others_the_window() -> None:
    both = (Window(100, 50), Lut(0, np.array([0.0, 1.0]), 1.0))
    dx, mr = member(RAMP, modality="DX", windows=both), member(RAMP, modality="MR", windows=both)
    assert own(dx.display, lambda: dx) == (Rescale(), both[1])
    assert own(mr.display, lambda: mr) == (Rescale(), both[0])


# ---------------------------------------------------------------- rows of the decision table

HU = {"modality": "CT", "transformation": Rescale(1.0, -1024.0)}
SLICE = np.concatenate([np.full(4000, 24), np.arange(900, 1200).repeat(20), np.full(300, 2000)])


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        (HU, (-160, 240)),  # 40/400
        ({**HU, "body_part": "HEAD"}, (-20, 90)),  # 35/110
        ({**HU, "windows": (Window(300, 1500),)}, EACH_ITS_OWN),
        ({"modality": "US", "bits": 8}, (0, 255)),
        ({"modality": "US", "bits": 8, "windows": (Window(127, 254),)}, (0, 255)),
        ({"modality": "OT", "bits": 8, "windows": (Window(128, 256),)}, (0, 255)),
        ({"modality": "US", "bits": 8, "windows": (Window(60, 80),)}, EACH_ITS_OWN),
        ({"modality": "XA", "bits": 8}, (0, 255)),
        ({"modality": "OT", "bits": 8, "signed": True}, (-128, 127)),
        ({"modality": "OT", "bits": 1}, (0, 1)),
        ({"modality": "RTDOSE", "bits": 32}, (0, 2000)),
        ({"modality": "SEG", "bits": 8, "full_scale": 250.0}, (0, 250)),
        ({"modality": "SEG", "bits": 16}, (0, 2000)),
        ({"modality": "PT", "suv_scale": 0.001}, (0, 5000)),
        ({"modality": "PT"}, (0, 2000)),
        ({"modality": "DX", "windows": (Window(900, 400, "SIGMOID"),)}, EACH_ITS_OWN),
    ],
)
def test_row(wishes: dict[str, Any], expected: tuple[float | None, float | None]) -> None:
    measured = member(SLICE, **wishes)
    assert limits(measured) == expected
    unmeasured = from_header(measured.display)
    assert unmeasured is None or (unmeasured.low, unmeasured.high) == expected


def test_ct_that_is_not_hounsfield_and_ct_localizer() -> None:
    counts = np.arange(3000)
    assert limits(member(counts, modality="CT")) == (2, 2999)
    scout = np.concatenate([np.full(9000, -1000), np.arange(100, 600).repeat(10)])
    low, high = limits(member(scout, modality="CT", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")))
    # P1 and P99 of 100..599, ten of each: the air is left out
    assert (low, high) == (104, 594)


def test_ct_padding_below_air_does_not_count() -> None:
    scout = np.concatenate([np.full(9000, -3024), np.arange(100, 600).repeat(10)])
    low, _ = limits(member(scout, modality="CT", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")))
    assert low is not None
    assert low >= 100


def test_nuclear_medicine_starts_at_zero() -> None:
    ramp = np.arange(100, 10100)
    measured = member(ramp, modality="NM", windows=(Window(5000, 10000),))
    assert_close(limits(measured), 0, 1.1 * 10089)
    assert limits(member([0] * 9999 + [7], modality="NM")) == (0, 7)


def test_phase_maps_are_symmetric() -> None:
    phase = {"modality": "MR", "bits": 12, "transformation": Rescale(2.0, -4096.0)}
    image_type = ("ORIGINAL", "PRIMARY", "P", "ND")
    assert limits(member(RAMP, **phase, image_type=image_type)) == (-4096, 4096)
    assert limits(member(RAMP, **phase)) != (-4096, 4096)


def test_collimator_border_is_left_out() -> None:
    shot = np.full((60, 60), 65000.0)
    shot[20:40, 20:40] = np.arange(400).reshape(20, 20)
    assert limits(member(shot, modality="DX")) == (1, 397)  # P0.5 and P99.5 of 0..399
    assert limits(member(shot, modality="XA")) == (0, 399)
    low, high = limits(member(shot, modality="DX", for_processing=True))
    assert (low, high) == (0, 399)


def test_parametric_map() -> None:
    values = np.linspace(-1, 1, 1001)
    wishes = {"modality": "MAP", "bits": 32, "is_float": True}
    assert_close(limits(member(values, **wishes)), -0.998, 0.998)
    assert decide([member(values, **wishes, windows=(Window(0.5, 1.0, "LINEAR_EXACT"),))]) == PoolWindow(
        None, None, "header"
    )


# ---------------------------------------------------------------- a first impression


@given(
    st.lists(st.integers(-1200, 1200), min_size=1, max_size=60),
    st.sampled_from([Rescale(), Rescale(2.5, -1024), Rescale(-1, 10)]),
    st.sampled_from([None, (-1200, -700), (-1200, 1200)]),
    st.sampled_from(["CT", "MR"]),
    st.integers(0, 59),
)
def test_a_glimpse_sees_nothing_that_is_not_counted(
    values: list[int], units: Modality, padding: tuple[int, int] | None, modality: str, hidden: int
) -> None:
    pixels = np.repeat(np.array([values], np.float64), GLIMPSE_STEP, axis=1)
    covered = np.zeros(pixels.shape, bool)
    covered[:, : hidden * GLIMPSE_STEP] = True
    display = replace(PLAIN, modality=modality, transformation=units, padding=padding)
    for cover in (None, covered) if not covered.all() else (None,):
        whole = measure(pixels, None, display, cover)
        seen = glimpse(pixels, None, display, cover)
        # where nothing at all is an image, `measure` counts everything
        assert set(seen) <= set(whole.values)
        window = Window(40, 400)
        wanted = replace(display, windows=(window,))
        assert own(wanted, always(whole)) == own(wanted, always(whole), always(seen))


def test_a_glimpse_of_what_is_no_number_is_none() -> None:
    pixels = np.full((20, 20), np.nan)
    assert glimpse(pixels, None, PLAIN) == []
    assert glimpse(pixels, None, PLAIN, np.ones(pixels.shape, bool)) == []


def test_large_pictures_are_looked_up_whole() -> None:
    codes = np.arange(600 * 700, dtype=np.uint32).reshape(600, 700).astype(np.uint16)
    levels = np.arange(65536, dtype=np.int32) - 3000
    chain = Chain(Rescale(0.5, 7), Window(1000, 9000))
    assert np.array_equal(render_grey(codes, levels, chain), render_grey(levels[codes], None, chain))
    assert np.array_equal(
        render_grey(codes[::2, ::3], levels, chain), render_grey(codes, levels, chain)[::2, ::3]
    )


def test_a_table_is_kept_only_for_levels_that_cannot_change() -> None:
    codes, chain = np.array([[0, 1, 255]], np.uint8), Chain(Rescale(), Span(0, 255))
    levels = np.arange(256, dtype=np.int32)
    assert render_grey(codes, levels, chain).tolist() == [[0, 1, 255]]
    levels[1] = 200
    assert render_grey(codes, levels, chain).tolist() == [[0, 200, 255]]
    levels.flags.writeable = False
    assert [render_grey(codes, levels, chain).tolist() for _ in range(2)] == [[[0, 200, 255]]] * 2
