"""The event loop's stalls: counted by length, whoever causes them."""

from collections.abc import Iterator
from itertools import accumulate

import pytest
import trio

from dicomfs.stalls import BOUNDS_S, StallMeter, Stalls


def measured(*turns_s: float) -> Stalls:
    """What a meter says of turns of these lengths."""
    ends: Iterator[float] = accumulate(x for turn in turns_s for x in (1.0, turn))
    meter = StallMeter(lambda: next(ends))
    for _ in turns_s:
        meter.after_io_wait(0)
        meter.before_io_wait(0)
    return meter.statistics()


def test_nothing_is_known_before_the_first_turn() -> None:
    assert measured() == Stalls(0, 0.0, 0.0, 0, (0,) * (len(BOUNDS_S) + 1))


def test_turns_are_counted_by_length() -> None:
    found = measured(0.0001, 0.002, 0.06, 0.002, 3.0)
    assert found.counts == (1, 2, 0, 0, 0, 1, 0, 0, 1)
    assert found.turns == sum(found.counts)
    assert found.above_50_ms == 2
    assert found.longest_s == pytest.approx(3.0)
    assert found.total_s == pytest.approx(3.0641)


def test_a_meter_that_is_put_in_place_in_the_middle_of_a_turn_does_not_count_it() -> None:
    meter = StallMeter(lambda: 1.0)
    meter.before_io_wait(0)
    assert meter.statistics().turns == 0


def test_a_task_that_blocks_the_loop_is_seen_and_one_that_waits_is_not() -> None:
    ticks = iter(range(10_000))
    busy = [0.0]
    meter = StallMeter(lambda: next(ticks) * 1e-6 + busy[0])

    async def main() -> None:
        trio.lowlevel.add_instrument(meter)
        await trio.lowlevel.checkpoint()
        busy[0] += 0.2  # what a task does without giving way
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()

    trio.run(main)
    found = meter.statistics()
    assert found.above_50_ms == 1
    assert found.longest_s == pytest.approx(0.2, abs=0.01)


def test_it_says_what_matters_in_one_line() -> None:
    assert str(measured(0.0004, 0.0712)) == "longest 71.2 ms of 2 turns, 1 above 50 ms"
