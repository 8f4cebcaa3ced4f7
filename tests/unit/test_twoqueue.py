"""The policy of the cache: limits at every moment, and a working set that no scan can evict."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomfs.twoqueue import FEWEST_GHOSTS, ONCE_SHARE, SECOND_USE_S, TwoQueue

LIMIT, SIZE = 4000, 10


class Clock:
    """Stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock) -> TwoQueue[str, bytes]:
    return TwoQueue(LIMIT, len, clock=clock)


def use(kept: TwoQueue[str, bytes], key: str) -> bool:
    """As a cache does: look, and produce what is not there. Whether it was."""
    if kept.get(key) is not None:
        return True
    kept.put(key, bytes(SIZE))
    return False


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


WORKING_SET = names("often", (LIMIT - LIMIT // ONCE_SHARE) // SIZE)
"""As large as the promise is."""


def work(kept: TwoQueue[str, bytes], clock: Clock, times: int = 1) -> int:
    """Use the working set so many times, with a pause before each; how many were there."""
    hits = 0
    for _ in range(times):
        clock.now += SECOND_USE_S
        hits += sum(use(kept, key) for key in WORKING_SET)
    return hits


@pytest.mark.parametrize("opens", [1, 3])
def test_a_scan_of_100_times_the_cache_evicts_nothing_that_was_used_twice(
    kept: TwoQueue[str, bytes], clock: Clock, opens: int
) -> None:
    work(kept, clock, times=2)
    for number in range(100 * LIMIT // SIZE):
        for _ in range(opens):
            use(kept, f"scanned{number}")
            clock.now += 0.9 * SECOND_USE_S / opens
    assert work(kept, clock) == len(WORKING_SET)


def test_a_working_set_finds_its_place_while_a_scan_is_running(
    kept: TwoQueue[str, bytes], clock: Clock
) -> None:
    """The scan is so quick that nothing is still there when it is used for the second time."""
    scanned = iter(range(1_000_000))
    hits = []
    for _ in range(4):
        clock.now += SECOND_USE_S
        hits.append(0)
        for key in WORKING_SET[:100]:
            hits[-1] += use(kept, key)
            for _ in range(4):
                use(kept, f"scanned{next(scanned)}")
    assert hits == [0, 0, 100, 100]


def test_two_scans_evict_nothing_either(kept: TwoQueue[str, bytes], clock: Clock) -> None:
    """One crawler in the morning and another at noon, over more than keys are remembered for."""
    work(kept, clock, times=2)
    for _ in range(2):
        clock.now += 3600
        for number in range(LIMIT // SIZE + 2 * FEWEST_GHOSTS):
            use(kept, f"scanned{number}")
    assert work(kept, clock) == len(WORKING_SET)


def test_people_change_their_work(kept: TwoQueue[str, bytes], clock: Clock) -> None:
    work(kept, clock, times=2)
    later = names("later", len(WORKING_SET))
    for _ in range(3):
        clock.now += SECOND_USE_S
        hits = sum(use(kept, key) for key in later)
    assert hits == len(later)


def test_everything_is_kept_while_there_is_room(kept: TwoQueue[str, bytes]) -> None:
    everything = names("a", LIMIT // SIZE)
    for key in everything:
        assert not use(kept, key)
    assert all(use(kept, key) for key in everything)
    assert kept.evictions == 0


def test_uses_in_a_row_are_one(clock: Clock) -> None:
    counted: list[str] = []
    kept: TwoQueue[str, bytes] = TwoQueue(LIMIT, len, on_use=counted.append, clock=clock)
    for clock.now in (0, SECOND_USE_S / 2, SECOND_USE_S - 1):
        use(kept, "a")
    assert counted == []
    for clock.now in (SECOND_USE_S, SECOND_USE_S + 1, 2 * SECOND_USE_S):
        use(kept, "a")
    assert counted == ["a", "a"]


def test_what_nobody_has_asked_for_yet_is_not_used_twice_by_the_first_who_does(
    kept: TwoQueue[str, bytes], clock: Clock
) -> None:
    for key in WORKING_SET:
        kept.put(key, bytes(SIZE), is_use=False)
    assert work(kept, clock) == len(WORKING_SET)
    for number in range(LIMIT // SIZE):
        use(kept, f"scanned{number}")
    assert kept.get(WORKING_SET[0]) is None


def test_a_value_of_more_than_its_share_is_not_kept(kept: TwoQueue[str, bytes], clock: Clock) -> None:
    work(kept, clock, times=2)
    items, evictions = len(kept), kept.evictions
    kept.put("large", bytes(LIMIT // ONCE_SHARE + 1))
    assert (kept.get("large"), len(kept), kept.evictions) == (None, items, evictions)
    kept.put("largest", bytes(LIMIT // ONCE_SHARE))
    assert kept.get("largest") is not None
    assert work(kept, clock) == len(WORKING_SET)


def test_a_value_that_is_put_anew_replaces_the_former(kept: TwoQueue[str, bytes], clock: Clock) -> None:
    for clock.now in (0, SECOND_USE_S):
        use(kept, "a")
    kept.put("a", b"new")
    assert (kept.get("a"), len(kept), kept.cost) == (b"new", 1, 3)


@given(
    limit=st.integers(0, 2000),
    steps=st.lists(
        st.tuples(
            st.integers(0, 40),
            st.integers(0, 700),
            st.sampled_from([0.0, 1.0, SECOND_USE_S]),
            st.booleans(),
        ),
        max_size=200,
    ),
)
def test_limits_hold_whatever_happens(limit: int, steps: Sequence[tuple[int, int, float, bool]]) -> None:
    clock = Clock()
    kept: TwoQueue[int, bytes] = TwoQueue(limit, len, clock=clock)
    latest: dict[int, bytes] = {}
    for key, size, pause, is_use in steps:
        clock.now += pause
        found = kept.get(key, is_use=is_use)
        if found is None:
            latest[key] = bytes(size)
            kept.put(key, latest[key], is_use=is_use)
        else:
            assert found is latest[key]
        assert 0 <= kept.cost <= limit
        there = [value for one in latest if (value := kept.get(one, is_use=False)) is not None]
        assert (sum(map(len, there)), len(there)) == (kept.cost, len(kept))
        assert len(kept._ghosts) <= FEWEST_GHOSTS


@given(
    working=st.lists(st.integers(1, 100), min_size=1, max_size=20),
    scanned=st.lists(st.integers(0, 600), max_size=300),
)
def test_no_scan_of_any_sizes_evicts_what_fits(working: Sequence[int], scanned: Sequence[int]) -> None:
    clock, limit = Clock(), 2400
    assert sum(working) <= limit  # as the strategies are, and most often it is within the promise
    kept: TwoQueue[str, bytes] = TwoQueue(limit, len, clock=clock)
    for clock.now in (0, SECOND_USE_S):
        for number, size in enumerate(working):
            if kept.get(f"often{number}") is None:
                kept.put(f"often{number}", bytes(size))
    for number, size in enumerate(scanned):
        kept.put(f"scanned{number}", bytes(size))
    if sum(working) <= limit - limit // ONCE_SHARE:
        assert all(kept.get(f"often{number}") is not None for number in range(len(working)))
