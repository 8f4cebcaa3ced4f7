"""Texts of options: sizes, whole numbers, switches."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomfs.values import bounded_size, size, size_text, switch, whole


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1024", 1024),
        ("64M", 64 << 20),
        (" 2g ", 2 << 30),
        ("512KiB", 512 << 10),
        ("3 TB", 3 << 40),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert size(text) == size_bytes


@given(st.integers(0, 1 << 50) | st.integers(0, 1 << 10).map(lambda n: n << 30))
def test_sizes_can_be_written_back(size_bytes: int) -> None:
    assert size(size_text(size_bytes)) == size_bytes


def test_sizes_are_written_as_people_do() -> None:
    assert [size_text(n) for n in (0, 1023, 4096, 3 << 29, 64 << 30)] == ["0", "1023", "4K", "1536M", "64G"]


@pytest.mark.parametrize(
    ("parse", "good", "bad", "needs"),
    [
        (whole(1, 10), ["1", " 10 "], ["0", "11", "-1", "1.5", "ten", "", "1" * 30], "from 1 to 10"),
        (bounded_size(4096, 1 << 20), ["4K", "1M"], ["4095", "1025K", "0", "much", "-1"], "from 4K to 1M$"),
        (bounded_size(4096, 1 << 20, or_zero=True), ["0", "4K"], ["1", "2M"], "from 4K to 1M or 0$"),
        (switch, ["on", "off", "YES", ""], ["maybe", "1"], "on or off"),
        (size, ["1"], ["", "1P", "1.5G", "-4K", "G"], "64M"),
    ],
)
def test_errors_name_what_is_valid(
    parse: Callable[[str], object], good: list[str], bad: list[str], needs: str
) -> None:
    for text in good:
        parse(text)
    for text in bad:
        with pytest.raises(ValueError, match=needs):
            parse(text)
