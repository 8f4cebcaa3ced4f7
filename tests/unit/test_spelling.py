"""Names of a view: one to one with what the index keeps, whatever is in it."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomfs.naming import component, exam_folder, fold
from dicomfs.spelling import DateFormat, Label, PatientName, Spelling, id_label

DAYS = [f"{date(1999, 12, 28) + timedelta(days=n):%Y%m%d}" for n in range(800)]
FORMATS = ["%Y-%m-%d", "%d.%m.%Y", "%Y%m%d", "%d %b %Y", "%B %d (%Y)", "%m-%d-%Y %%", "%Y %Y-%m %d"]


@pytest.mark.parametrize("text", FORMATS)
def test_dates_read_back_and_no_two_are_equal(text: str) -> None:
    dates = DateFormat(text)
    written = {dates.write(day): day for day in ["", *DAYS]}
    assert len(written) == len(DAYS) + 1
    for name, day in written.items():
        assert dates.read(name) == (day, "")
        assert dates.read(f"{name.upper()} (17.45.01)") == (day, " (17.45.01)")
        assert component(name, 255) == name


@pytest.mark.parametrize(
    ("text", "written"),
    [("%d.%m.%Y", "31.01.2024"), ("%d %b %Y", "31 Jan 2024"), ("%B %d, %Y", "January 31, 2024")],
)
def test_dates_as_people_write_them(text: str, written: str) -> None:
    assert DateFormat(text).write("20240131") == written


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("%Y-%m", "the day"),
        ("%m-%d", "the year"),
        ("%Y-%d", "the month"),
        ("%d.%m.%y", "19%y and 20%y"),
        ("", "the year"),
        ("%Y/%m/%d", "Windows"),
        ("%d:%m:%Y", "Windows"),
        ("%Y-%m-%d.", "Windows"),
        ("%Y-%m-%d ", "Windows"),
        ("%Y-%m-%d of our Lord and longer", "at most"),
        ("%Y-%m-%d %H", "not %H"),
        ("%Y-%m-%d%", "not %"),
    ],
)
def test_a_format_that_cannot_be_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        DateFormat(text)


@pytest.mark.parametrize("text", ["2024-02-30", "2024-1-31", "today", "", "2024-01-3", "Jan"])
def test_what_is_no_date_is_not_read(text: str) -> None:
    assert DateFormat().read(text) is None


DOE = PatientName("Doe Jane", "4711", "")


@pytest.mark.parametrize(
    ("label", "name"), [(Label.NAME, "Doe Jane"), (Label.NAME_ID, "Doe Jane (4711)"), (Label.ID, "4711")]
)
def test_labels(label: Label, name: str) -> None:
    assert Spelling(label).patient(DOE) == name


def test_a_missing_id_and_equal_ones() -> None:
    assert id_label("", "") == "No patient ID"
    assert id_label("4711", "KIS") == "4711 [KIS]"
    assert Spelling(Label.NAME_ID).patient(PatientName("Doe", "47(11)", "a1")) == "Doe (47[11] [a1])"


texts = st.text(st.sampled_from("ab1.(-) study0"), max_size=12).map(lambda text: component(text, 60) or "x")
tails = st.sampled_from(["", " (10.15.00)", " (a1b2)", " (a1b2c3d4)"])


@given(st.lists(st.tuples(texts, texts, tails), min_size=2, max_size=2), st.sampled_from(Label))
def test_exams_of_a_day_never_share_a_name(two: list[tuple[str, str, str]], label: Label) -> None:
    spelling = Spelling(label)
    names, keys = [], []
    for folder, identity, tail in two:
        patient = PatientName(folder, identity, "")
        name = spelling.exam_of_day(patient, "20240131", exam_folder("20240131") + tail)
        names.append(fold(name))
        key = fold(folder) if label is Label.NAME else fold(id_label(identity, ""))
        keys.append((key, tail))
        found = spelling.exam_of_day_key("20240131", name.upper())
        assert found is not None
        assert (found[0].key, found[1]) == (key, fold(f"2024-01-31{tail}"))
    assert (names[0] == names[1]) <= (keys[0] == keys[1])
