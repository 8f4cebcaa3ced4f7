"""Spans of ids against plain sets of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomfs.spans import Spans

PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=30)


def plain(pairs: list[tuple[int, int]]) -> set[int]:
    return {number for first, length in pairs for number in range(first, first + length)}


def spans(pairs: list[tuple[int, int]], most: int = 100) -> Spans:
    return Spans(((first, first + length - 1) for first, length in pairs), most=most)


def members(of: Spans) -> set[int]:
    return {number for first, last in of for number in range(first, last + 1)}


@given(PAIRS)
def test_holds_what_was_put_in(pairs: list[tuple[int, int]]) -> None:
    found, expected = spans(pairs), plain(pairs)
    assert members(found) == expected
    assert {number for number in range(100) if number in found} == expected
    assert bool(found) == bool(expected)
    ends = [end for pair in found for end in pair]
    assert ends == sorted(ends)
    # As few as can be: between two of them there is something that is in neither.
    assert all(after > before + 1 for before, after in zip(ends[1::2], ends[2::2], strict=False))


@given(PAIRS, st.integers(1, 5))
def test_bounded_and_loses_nothing(pairs: list[tuple[int, int]], most: int) -> None:
    found = spans(pairs, most)
    assert len(list(found)) <= most
    assert members(found) >= plain(pairs)


@given(PAIRS, st.integers(0, 75))
def test_cut_from_above(pairs: list[tuple[int, int]], number: int) -> None:
    found = spans(pairs)
    found.cut(number)
    assert members(found) == {member for member in plain(pairs) if member < number}


@given(PAIRS)
def test_text_and_back(pairs: list[tuple[int, int]]) -> None:
    found = spans(pairs)
    again = Spans.of(str(found))
    assert again is not None
    assert list(again) == list(found)


@pytest.mark.parametrize("text", ["1", "1-2,3-4", "-1-2", "a-b", "1-2 ", "1-2  3-4", "１-2"])
def test_other_text_is_none(text: str) -> None:
    assert Spans.of(text) is None


def test_highest_is_the_newest() -> None:
    found = Spans([(1, 5), (10, 12)])
    assert found.highest() == (10, 12)
    assert Spans().highest() is None
    other = found.copy()
    other.cut(0)
    assert found.highest() == (10, 12)
