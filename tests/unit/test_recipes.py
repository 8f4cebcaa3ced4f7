"""What options may say, and which recipes share pool decisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomfs.model import Recipe
from dicomfs.recipes import FORMATS, Kind, Policy, from_pool_policy, policy, pool_policy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", Policy("auto")),
        (" Header ", Policy("header")),
        ("full", Policy("full")),
        ("40/400", Policy("fixed", 40, 400)),
        ("-600/1500", Policy("fixed", -600, 1500)),
        ("0.5/0.25", Policy("fixed", 0.5, 0.25)),
        ("1e3/2e3", Policy("fixed", 1000, 2000)),
    ],
)
def test_policies(text: str, expected: Policy) -> None:
    assert policy(text) == expected
    assert policy(expected.text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "auto, header"),
        ("lung", "auto, header"),
        ("40", "auto, header"),
        ("1/2/3", "auto, header"),
        ("40/0", "greater than 0"),
        ("40/-5", "greater than 0"),
        ("a/400", "'a' is not a number"),
        ("nan/400", "not a number"),
        ("40/inf", "not a number"),
        ("40/1e300", "not a number"),
        ("4_0/400", "not a number"),
    ],
)
def test_what_is_no_policy_is_told_in_words(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        policy(text)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_a_policy_has_one_spelling(centre: float, width: float) -> None:
    asked = policy(f"{centre!r}/{width!r}")
    assert policy(asked.text) == asked
    assert (asked.centre, asked.width) == (centre, width)


def test_who_shares_pool_decisions() -> None:
    assert pool_policy(Recipe("jpg")) == pool_policy(Recipe("png", quality=5, max_size=9, overlays=False))
    assert not pool_policy(Recipe("jpg", window="full"))
    assert not pool_policy(Recipe("jpg", window="40/400"))
    for name, form in FORMATS.items():
        assert bool(pool_policy(Recipe(name))) == (form.kind is Kind.PICTURE)
    names = {
        pool_policy(Recipe("jpg", window=window, subtraction=subtraction, shutters=shutters))
        for window in ("auto", "header")
        for subtraction in (True, False)
        for shutters in (True, False)
    }
    assert len(names) == 8
    assert {pool_policy(from_pool_policy(name)) for name in names} == names


def test_documents_are_one_file_for_an_instance() -> None:
    assert [name for name, one in FORMATS.items() if not one.per_frame] == ["pdf", "json"]
    assert all(one.extension.startswith(".") for one in FORMATS.values())
