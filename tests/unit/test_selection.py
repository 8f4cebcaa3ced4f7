"""How far back a view goes, and which modalities it takes."""

from datetime import UTC, date, datetime

import pytest

from dicomfs.schema import PDF, PICTURES
from dicomfs.selection import Selection, Since, day_of_exam, modalities


@pytest.mark.parametrize(
    ("text", "today", "first"),
    [
        ("30d", date(2024, 3, 1), "20240131"),
        ("4w", date(2024, 3, 1), "20240202"),
        ("1m", date(2024, 3, 31), "20240229"),
        ("13m", date(2024, 1, 15), "20221215"),
        ("1y", date(2024, 2, 29), "20230228"),
        ("2023-05-06", date(2024, 2, 29), "20230506"),
        ("", date(2024, 2, 29), ""),
        ("9999y", date(2024, 2, 29), ""),
        ("1990y", date(2024, 2, 29), "00340228"),
    ],
)
def test_first_day(text: str, today: date, first: str) -> None:
    assert Since(text).first_day(today) == first


@pytest.mark.parametrize("text", ["30", "d", "0d", "-3d", "yesterday", "2024-02-30", "1.5m", "30 d"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="30d"):
        Since(text)


def test_only_spans_move() -> None:
    assert Since("30d").is_moving
    assert not Since("2024-01-31").is_moving
    assert not Since("").is_moving


RECEIVED = datetime(2024, 1, 31, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("study_date", "day"),
    [("20231224", "20231224"), ("", "20240131"), ("20240201", "20240201"), ("20990101", "20240131")],
)
def test_an_exam_cannot_be_later_than_its_receipt(study_date: str, day: str) -> None:
    assert day_of_exam(study_date, RECEIVED) == day


def test_modalities_are_compared_as_dicom_spells_them() -> None:
    assert modalities("mr+XA+MR") == ("MR", "XA")
    selection = Selection(PICTURES, ("MR",))
    assert selection.takes(" mr", PICTURES)
    assert not selection.takes("CT", PICTURES)
    assert not selection.takes("MR", PDF)
    for text in ("", "MR+", "M/R", "+"):
        with pytest.raises(ValueError, match="MR"):
            modalities(text)
