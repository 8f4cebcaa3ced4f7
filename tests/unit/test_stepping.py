"""What is wished for ahead of somebody who steps through a series."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomfs.stepping import LONGEST, MOST, SERIES_KEPT, Stepping


def follow(opens: Iterable[int], series: str = "a") -> Stepping[str]:
    stepping: Stepping[str] = Stepping()
    for number in opens:
        stepping.opened(series, number)
    return stepping


def wishes(stepping: Stepping[str]) -> list[tuple[str, int]]:
    found = []
    while (wish := stepping.take()) is not None:
        found.append(wish)
    return found


def numbers(*opens: int) -> list[int]:
    return [number for _, number in wishes(follow(opens))]


def test_one_picture_says_nothing() -> None:
    assert numbers(5) == []
    assert numbers(5, 5, 5) == []


@pytest.mark.parametrize(
    ("opens", "expected"),
    [
        ((5, 6), [7, 8]),
        ((5, 6, 7), [8, 9, 10, 11]),
        ((5, 6, 6, 7), [8, 9, 10, 11]),
        ((9, 8), [7, 6]),
        ((9, 8, 7), [6, 5, 4, 3]),
        ((2, 4), []),
        ((2, 4, 6), [8, 10, 12, 14]),
        ((20, 15, 10), [5, 0]),
        ((1, 1 + 2 * LONGEST, 1 + 4 * LONGEST), []),
        ((5, 6, 7, 6), [5, 4]),
        ((5, 6, 7, 20), []),
    ],
)
def test_steps_go_on_as_they_were(opens: tuple[int, ...], expected: list[int]) -> None:
    assert numbers(*opens) == expected


def test_nothing_is_wished_for_twice_on_the_same_way() -> None:
    stepping: Stepping[str] = Stepping()
    found = []
    for number in range(1, 60):
        stepping.opened("a", number)
        found += [wish for _, wish in wishes(stepping)]
    assert found == list(range(3, 60 + MOST))


def test_what_was_overtaken_is_not_wished_for_any_more() -> None:
    stepping = follow([1, 2, 3])
    stepping.opened("a", 4)
    stepping.opened("a", 5)
    assert stepping.take() == ("a", 6)


def test_the_latest_viewer_comes_first_and_none_is_lost() -> None:
    stepping: Stepping[str] = Stepping()
    for series in ("a", "b"):
        stepping.opened(series, 1)
        stepping.opened(series, 2)
    assert wishes(stepping) == [("b", 3), ("b", 4), ("a", 3), ("a", 4)]
    assert stepping.take() is None


def test_where_a_series_ends_no_more_is_wished_for() -> None:
    stepping = follow([1, 2, 3])
    assert stepping.take() == ("a", 4)
    stepping.gave_up("a")
    stepping.gave_up("unknown")
    assert stepping.take() is None


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 2**31)), max_size=600))
def test_wishes_are_bounded_and_never_negative(opens: list[tuple[int, int]]) -> None:
    stepping: Stepping[int] = Stepping()
    for series, number in opens:
        stepping.opened(series, number)
    found = []
    while (wish := stepping.take()) is not None:
        found.append(wish)
    assert len(found) <= SERIES_KEPT * MOST
    assert all(number >= 0 for _, number in found)
    assert len(stepping._ways) <= SERIES_KEPT
