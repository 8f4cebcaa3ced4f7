"""What the table of the benchmarks says of figures and goals."""

import pytest

from tests.bench.table import HEADINGS, Figure, Line, in_turn, markdown, percentile, plain, rows


def row(line: Line | Figure) -> dict[str, str]:
    (only,) = rows("name", [line])
    return dict(zip(HEADINGS, only, strict=True))


@pytest.mark.parametrize(
    ("ours", "at_most", "stretch", "verdict"),
    [
        ([1.0, 9.0, 2.0], 1.0, None, "met"),
        ([2.02], 1.0, None, "missed"),
        ([2.0], 1.5, 1.0, "met, stretch too"),
        ([2.4], 1.5, 1.0, "met"),
        ([3.2], 1.5, 1.0, "missed"),
        ([3.2], None, None, ""),
    ],
)
def test_a_goal_is_for_the_ratio_of_medians(
    ours: list[float], at_most: float | None, stretch: float | None, verdict: str
) -> None:
    assert row(Line("case", ours, "peer", [1.0, 2.0, 5.0], at_most, stretch))["goal is"] == verdict


@pytest.mark.parametrize(
    ("values", "at_most", "verdict"),
    [([0.4, 0.5, 7.0], 0.5, "met"), ([0.51], 0.5, "missed"), ([0], 0, "met"), ([0.1], None, "")],
)
def test_a_figure_has_its_own_goal(values: list[float], at_most: float | None, verdict: str) -> None:
    said = row(Figure("case", values, at_most=at_most))
    assert (said["goal is"], said["ratio"], said["peer"]) == (verdict, "", "")


def test_a_peer_that_is_missing_is_named_and_nothing_is_met() -> None:
    said = row(Line("case", [1.0], "Orthanc", [], 2.0))
    assert said["against"] == "Orthanc: not here"
    assert (said["ratio"], said["goal"], said["goal is"]) == ("", "<= 2.00", "")


def test_a_percentile_is_one_of_the_measurements() -> None:
    hundred = [float(n) for n in range(100, 0, -1)]
    assert (percentile(hundred, 50), percentile(hundred, 99), percentile(hundred, 100)) == (50, 99, 100)
    assert percentile([3.0], 99) == 3.0
    assert percentile([3.0, 4.0], 99) == 4.0


def test_contestants_take_turns_at_being_first() -> None:
    order = ""

    def note(name: str) -> None:
        nonlocal order
        order += name

    taken = in_turn(3, {"A": lambda: note("A"), "B": lambda: note("B")}, lambda: note("|"))
    assert order == "|AB|BA|AB"
    assert [len(seconds) for seconds in taken.values()] == [3, 3]


def test_a_table_for_a_file_has_the_cells_of_the_one_for_a_terminal() -> None:
    body = list(rows("name", [Line("a | b", [1.0], "peer", [2.0]), Figure("c", [12], "renders")]))
    lines = markdown(body).splitlines()
    assert lines[1].count("---") == len(HEADINGS)
    assert r"a \| b" in lines[2]
    assert all(line.replace(r"\|", "").count("|") == len(HEADINGS) + 1 for line in lines)
    assert "12 renders" in lines[3]
    assert "12 renders" in plain(body)
