"""Whose turn it is: fair by seconds of work, first come first served otherwise, bounded."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomfs.turns import ACCOUNTS_KEPT, CREDIT_S, ESTIMATE_S, Turns


def taken(turns: Turns[str], most: int = 1000) -> list[str]:
    found: list[str] = []
    while turns and len(found) < most:
        found.append(turns.take())
    return found


def serve(turns: Turns[str], asker: str, seconds: float) -> None:
    """One job of an asker who is alone, from asking to its end."""
    turns.put(asker, "work")
    assert turns.take() == "work"
    turns.charge(asker, seconds)


def test_one_asker_is_served_in_order() -> None:
    turns: Turns[str] = Turns()
    for job in "abc":
        turns.put("one", job)
    assert len(turns) == 3
    assert taken(turns) == ["a", "b", "c"]
    assert not turns


def test_who_is_looked_at_is_the_next_and_goes_on_waiting() -> None:
    turns: Turns[str] = Turns()
    for asker, job in (("one", "a"), ("other", "b"), ("one", "c")):
        turns.put(asker, job)
    found = []
    while turns:
        looked_at, waiting = turns.peek(), len(turns)
        assert (turns.peek(), waiting) == (looked_at, len(turns))
        found.append(turns.take())
        assert found[-1] == looked_at
    assert found == ["a", "b", "c"]


def test_two_askers_take_turns_however_much_one_asks_for() -> None:
    turns: Turns[str] = Turns()
    for number in range(4):
        turns.put("much", f"much {number}")
    for number in range(2):
        turns.put("little", f"little {number}")
    assert taken(turns) == ["much 0", "little 0", "much 1", "little 1", "much 2", "much 3"]


def test_who_comes_new_goes_before_those_who_are_served_all_the_time() -> None:
    turns: Turns[str] = Turns()
    for asker in ("a", "b", "c"):
        turns.put(asker, asker)
    for _ in range(100):
        asker = turns.take()
        turns.charge(asker, 0.01)
        turns.put(asker, asker)
    turns.put("new", "new")
    assert turns.take() == "new"


def test_nobody_saves_up_by_being_still() -> None:
    turns: Turns[str] = Turns()
    serve(turns, "quiet", 0.01)
    for _ in range(1000):
        serve(turns, "busy", 1.0)
    cost = 10 * ESTIMATE_S
    for _ in range(1000):
        turns.put("busy", "busy")
        turns.put("quiet", "quiet")
    served = []
    for _ in range(100):
        asker = turns.take()
        turns.charge(asker, cost)
        served.append(asker)
    # What the busy one still owes for its last job counts, too: that was one second.
    ahead = served.index("busy")
    assert ahead <= (CREDIT_S + 1.0) / cost + 1
    assert abs(Counter(served[ahead:])["busy"] - Counter(served[ahead:])["quiet"]) <= 1


def test_long_jobs_count_for_more_than_short_ones() -> None:
    turns: Turns[str] = Turns()
    for _ in range(100):
        turns.put("long", "long")
        turns.put("short", "short")
    served: Counter[str] = Counter()
    for _ in range(55):
        asker = turns.take()
        served[asker] += 1
        turns.charge(asker, 1.0 if asker == "long" else 0.1)
    assert served == {"long": 5, "short": 50}


@given(st.lists(st.integers(1, 50), min_size=50, max_size=200), st.integers(2, 5))
def test_those_who_wait_all_the_time_get_the_same(costs_ms: list[int], askers: int) -> None:
    turns: Turns[int] = Turns()
    had_ms = dict.fromkeys(range(askers), 0)
    for asker in had_ms:
        turns.put(asker, asker)
    for cost_ms in costs_ms:
        asker = turns.take()
        had_ms[asker] += cost_ms
        turns.charge(asker, cost_ms / 1000)
        turns.put(asker, asker)
    assert max(had_ms.values()) - min(had_ms.values()) <= max(costs_ms)


def test_nobody_starves_while_others_come_again_and_again() -> None:
    """Somebody who has had one picture wants another; three folders always wait that are new."""
    turns: Turns[str] = Turns()
    serve(turns, "person", 0.03)
    for number in range(3):
        turns.put(f"folder {number}", "picture")
    turns.put("person", "person's")
    for number in range(3, 1000):
        if turns.take() == "person's":
            break
        turns.charge(f"folder {number - 3}", 0.03)
        turns.put(f"folder {number}", "picture")
    assert number < 20


@given(
    st.integers(1, 6),
    st.lists(st.integers(0, 50), min_size=5, max_size=20),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 1 << 32),
)
def test_who_waits_is_overtaken_by_a_bounded_amount_of_work(
    others: int, costs_ms: list[int], new: float, seed: int
) -> None:
    """Whoever else comes: whether those who have been there, or somebody new for each who is served."""
    turns: Turns[int] = Turns()
    random = Random(seed)
    done_s = 0.0
    since_s: dict[int, float] = {}

    def ask(asker: int) -> None:
        since_s[asker] = done_s
        turns.put(asker, asker)

    for asker in range(others + 1):
        ask(asker)
    most_s = (others + 2) * (2 * CREDIT_S + 8 * max(costs_ms) / 1000)
    for number in range(others + 1, 400):
        asker = turns.take()
        assert done_s - since_s.pop(asker) <= most_s
        cost_s = random.choice(costs_ms) / 1000
        turns.charge(asker, cost_s)
        done_s += cost_s
        # The first one always comes back.
        ask(number if asker and random.random() < new else asker)
    assert all(done_s - since <= most_s for since in since_s.values())


def test_a_job_that_is_not_wanted_any_more_leaves() -> None:
    turns: Turns[str] = Turns()
    for asker, job in (("a", "first"), ("a", "second"), ("b", "third")):
        turns.put(asker, job)
    assert turns.remove("a", "first")
    assert not turns.remove("a", "first")
    assert not turns.remove("nobody", "first")
    assert turns.remove("b", "third")
    assert [*turns] == [("a", "second")]
    assert taken(turns) == ["second"]


def test_a_job_that_comes_back_is_the_next_and_has_cost_nothing() -> None:
    turns: Turns[str] = Turns()
    for job in ("one", "two"):
        turns.put("a", job)
    turns.put("b", "other")
    assert turns.take() == "one"
    turns.put_back("a", "one")
    assert taken(turns) == ["one", "other", "two"]


@pytest.mark.parametrize("seconds", [0.001, 1.0])
def test_accounts_are_bounded(seconds: float) -> None:
    turns: Turns[str] = Turns()
    for number in range(5 * ACCOUNTS_KEPT):
        serve(turns, f"asker {number}", seconds)
    assert len(turns._had_s) <= ACCOUNTS_KEPT + 1


def test_everything_is_forgotten_at_once() -> None:
    turns: Turns[str] = Turns()
    turns.put("a", "job")
    turns.clear()
    assert not turns
    assert list(turns) == []
