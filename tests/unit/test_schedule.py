"""Which job runs next, and where: above all what may be put behind another, and what becomes of it."""

import math
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dicomfs.schedule import COPY_S, PIPED_S, Job, Place, Schedule
from dicomfs.turns import Urgency
from dicomfs.workerprocess import WorkerProcess

MOST_JOBS = 100


class Pipe:
    """What a schedule sees of a process."""

    def __init__(self) -> None:
        self.jobs = self.due = 1
        self.got: list[bytes] = []
        self.is_full = False

    def put(self, body: bytes) -> bool:
        if not self.is_full:
            self.got.append(body)
            self.jobs += 1
            self.due += 1
        return not self.is_full


class Stage:
    """A schedule of which it is known that pictures are quick, and the places that it has."""

    def __init__(self) -> None:
        self.schedule = Schedule(MOST_JOBS)
        self.schedule._next_s = 0.0

    def busy(self, job: Job) -> tuple[Place, Pipe]:
        """One more process, which begins with a job now."""
        place, pipe = self.schedule.open(), Pipe()
        place.process = cast("WorkerProcess", pipe)
        place.job = job
        self.schedule.begin(place)
        return place, pipe

    def put(self, job: Job) -> Job:
        self.schedule.put(job)
        return job

    def end(self, place: Place, pipe: Pipe) -> None:
        """The process has answered, and goes on with what lies in its pipe."""
        self.schedule.end(place)
        pipe.due -= 1
        if place.job is not None:
            self.schedule.begin(place)
            self.schedule.dispatch()


def picture(name: bytes, urgency: Urgency = Urgency.WAITED) -> Job:
    return Job(name, urgency, is_picture=True)


def run(main: Callable[[MockClock], Awaitable[None]], *, jumps: bool = False) -> None:
    clock = MockClock(autojump_threshold=0.0 if jumps else math.inf)
    trio.run(main, clock, clock=clock)


@pytest.mark.parametrize("urgency", [Urgency.WAITED, Urgency.NEXT])
def test_two_quick_pictures_share_a_process_and_no_more(urgency: Urgency) -> None:
    async def main(_clock: MockClock) -> None:
        stage = Stage()
        place, pipe = stage.busy(picture(b"a", urgency))
        second, third = stage.put(picture(b"b", urgency)), stage.put(picture(b"c", urgency))
        assert (place.behind, pipe.got) == (second, [b"b"])
        assert stage.schedule.counts() == (2, 1)
        stage.end(place, pipe)
        assert (place.job, place.behind, pipe.got) == (second, third, [b"b", b"c"])
        stage.end(place, pipe)
        stage.end(place, pipe)
        assert (place.job, place.behind, stage.schedule.counts()) == (None, None, (0, 0))

    run(main)


def slow(stage: Stage, _place: Place, _pipe: Pipe) -> None:
    stage.schedule._next_s = PIPED_S * 1.01


def no_picture(_stage: Stage, place: Place, _pipe: Pipe) -> None:
    assert place.job is not None
    place.job.is_picture = False


def background(_stage: Stage, place: Place, _pipe: Pipe) -> None:
    assert place.job is not None
    place.job.urgency = Urgency.SPARE


def not_begun(_stage: Stage, place: Place, _pipe: Pipe) -> None:
    place.began = None


def half_sent(_stage: Stage, _place: Place, pipe: Pipe) -> None:
    pipe.due = 0


def worn_out(_stage: Stage, _place: Place, pipe: Pipe) -> None:
    pipe.jobs = MOST_JOBS


def full(_stage: Stage, _place: Place, pipe: Pipe) -> None:
    pipe.is_full = True


@pytest.mark.parametrize("why", [slow, no_picture, background, not_begun, half_sent, worn_out, full])
def test_nothing_is_put_behind_it(why: Callable[[Stage, Place, Pipe], None]) -> None:
    """And what is more urgent goes first then, as ever."""

    async def main(_clock: MockClock) -> None:
        stage = Stage()
        place, pipe = stage.busy(picture(b"a"))
        why(stage, place, pipe)
        stage.put(picture(b"b", Urgency.NEXT))
        stage.put(picture(b"c"))
        assert (place.behind, pipe.got) == (None, [])
        stage.schedule.end(place)
        await stage.schedule.take(place)
        assert place.job is not None
        assert place.job.body == b"c"

    run(main)


def test_nothing_is_put_behind_what_has_begun_long_ago() -> None:
    async def main(clock: MockClock) -> None:
        stage = Stage()
        _, old = stage.busy(picture(b"a"))
        clock.jump(PIPED_S * 1.01)
        stage.put(picture(b"b"))
        assert old.got == []
        _, young = stage.busy(picture(b"c"))
        stage.schedule.dispatch()
        assert (old.got, young.got) == ([], [b"b"])

    run(main)


def test_background_work_is_never_put_behind() -> None:
    async def main(_clock: MockClock) -> None:
        stage = Stage()
        place, pipe = stage.busy(picture(b"a"))
        stage.put(picture(b"b", Urgency.SPARE))
        assert pipe.got == []
        waited = stage.put(picture(b"c"))
        assert (place.behind, pipe.got) == (waited, [b"c"])

    run(main)


def test_idle_process_comes_before_a_pipe() -> None:
    async def main(_clock: MockClock) -> None:
        stage = Stage()
        _, pipe = stage.busy(picture(b"a"))
        idle = stage.schedule.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.schedule.take, idle)
            await wait_all_tasks_blocked()
            first, second = stage.put(picture(b"b")), stage.put(picture(b"c"))
        assert idle.job is first
        assert pipe.got == [second.body]

    run(main)


def test_second_job_is_not_held_up_by_a_slow_first_one() -> None:
    """Whoever has nothing to do takes it over, and the slow process does it for nobody."""

    async def main(clock: MockClock) -> None:
        stage = Stage()
        slow, pipe = stage.busy(picture(b"slow"))
        second = stage.put(picture(b"b"))
        assert slow.behind is second
        idle = stage.schedule.open()
        began = trio.current_time()
        with trio.move_on_after(PIPED_S / 2) as too_soon:
            await stage.schedule.take(idle)
        assert too_soon.cancelled_caught
        assert stage.schedule._idle == []
        await stage.schedule.take(idle)
        assert idle.job is second
        assert PIPED_S < trio.current_time() - began <= 3 * PIPED_S
        assert stage.schedule.counts() == (0, 2)
        stage.put(picture(b"c"))
        stage.end(slow, pipe)
        assert slow.job is not None
        assert (slow.job.body, slow.job.abandoned, second.abandoned) == (b"b", True, False)

    run(main, jumps=True)


def test_second_job_behind_a_slow_one_goes_before_what_waits() -> None:
    async def main(clock: MockClock) -> None:
        stage = Stage()
        stage.busy(picture(b"slow"))
        second = stage.put(picture(b"b"))
        stage.put(picture(b"c"))
        clock.jump(PIPED_S * 1.01)
        quick, pipe = stage.busy(picture(b"quick"))
        stage.schedule.dispatch()
        assert (quick.behind, pipe.got) == (second, [b"b"])
        stage.schedule.remove(second)
        clock.jump(PIPED_S * 1.01)
        await stage.schedule.take(idle := stage.schedule.open())
        assert idle.job is not None
        assert idle.job.body == b"c"  # nobody waits for the second one any more

    run(main)


def test_copy_of_what_another_does_keeps_its_process_for_a_moment_only() -> None:
    async def main(_clock: MockClock) -> None:
        stage = Stage()
        slow, pipe = stage.busy(picture(b"slow"))
        second = stage.put(picture(b"b"))
        other = stage.schedule.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.schedule.keep_time, 60.0)
            await stage.schedule.take(other)
            assert other.job is second
            stage.schedule.begin(other)
            with slow.use() as scope:
                stage.end(slow, pipe)
                began = trio.current_time()
                await trio.sleep_forever()
            assert slow.job is not None
            assert (scope.cancelled_caught, slow.job.is_copy, slow.job.is_out_of_time) == (True, True, True)
            assert trio.current_time() - began <= 2 * COPY_S
            assert not second.is_out_of_time
            nursery.cancel_scope.cancel()

    run(main, jumps=True)


def test_only_a_picture_is_put_behind() -> None:
    async def main(_clock: MockClock) -> None:
        stage = Stage()
        place, pipe = stage.busy(picture(b"a"))
        pool = stage.put(Job(b"pool", Urgency.WAITED))
        stage.put(picture(b"b"))
        assert (place.behind, pipe.got, stage.schedule.counts()) == (None, [], (2, 1))
        stage.schedule.end(place)
        await stage.schedule.take(place)
        assert place.job is pool

    run(main)


def test_what_is_no_picture_does_not_say_that_pictures_are_quick() -> None:
    async def main(clock: MockClock) -> None:
        schedule = Schedule(MOST_JOBS)
        place = schedule.open()

        def do(job: Job, seconds: float) -> None:
            place.job = job
            schedule.begin(place)
            clock.jump(seconds)
            schedule.end(place)

        for _ in range(20):
            do(Job(b"lengths", Urgency.WAITED), 0.0)
        assert schedule._next_s > PIPED_S
        for _ in range(20):
            do(picture(b"a"), 0.0)
        assert schedule._next_s < PIPED_S
        do(Job(b"pool", Urgency.WAITED), 1.0)
        assert schedule._next_s > PIPED_S

    run(main)


def test_what_is_tried_again_is_owed_a_fresh_process() -> None:
    async def main(_clock: MockClock) -> None:
        schedule = Schedule(MOST_JOBS)
        place = schedule.open()
        place.job = job = picture(b"a")
        job.crashes = 1
        schedule.lose(place)  # the fresh one has ended before it began
        assert place.job is job

    run(main)


def test_of_a_process_that_is_lost_only_the_job_it_was_at_is_its_own() -> None:
    async def main(_clock: MockClock) -> None:
        stage = Stage()
        lost, _ = stage.busy(first := picture(b"a"))
        second = stage.put(picture(b"b"))
        stage.put(picture(b"c"))
        lost.process = None
        stage.schedule.lose(lost)
        assert (lost.job, lost.behind) == (first, None)
        await stage.schedule.take(other := stage.schedule.open())
        assert other.job is second
        first.finished.set()
        stage.schedule.begin(lost)
        stage.schedule.lose(lost)
        assert lost.job is None

    run(main)


def test_job_that_was_not_begun_goes_back_to_the_front() -> None:
    async def main(_clock: MockClock) -> None:
        stage = Stage()
        place = stage.schedule.open()
        first = stage.put(picture(b"a"))
        await stage.schedule.take(place)
        stage.put(picture(b"b"))
        stage.schedule.lose(place)
        assert place.job is None
        await stage.schedule.take(place)
        assert place.job is first

    run(main)


def test_time_of_a_second_job_begins_with_the_end_of_the_first() -> None:
    async def main(_clock: MockClock) -> None:
        stage, began = Stage(), trio.current_time()
        place, pipe = stage.busy(picture(b"a"))
        second = stage.put(picture(b"b"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.schedule.keep_time, 1.0)
            with place.use() as scope:
                await trio.sleep(0.75)
                stage.end(place, pipe)
                await trio.sleep(0.75)
                assert not second.is_out_of_time
                await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        assert scope.cancelled_caught
        assert second.is_out_of_time
        assert trio.current_time() - began == pytest.approx(1.75)

    run(main, jumps=True)


def test_processes_being_started_are_enough_for_what_waits() -> None:
    async def main(_clock: MockClock) -> None:
        schedule = Schedule(MOST_JOBS)
        started: list[int] = []

        async def start(number: int) -> None:
            schedule.open()
            await schedule.demand()
            started.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(start, number)
                await wait_all_tasks_blocked()
            schedule.put(picture(b"a"))
            for _ in range(3):
                schedule.dispatch()
            await wait_all_tasks_blocked()
            assert len(started) == 1
            schedule.put(picture(b"b"))
            await wait_all_tasks_blocked()
            assert len(started) == 2

    run(main)


def test_end_names_every_job_that_is_not_over() -> None:
    async def main(_clock: MockClock) -> None:
        stage = Stage()
        stage.busy(picture(b"a"))
        for name in (b"b", b"c"):
            stage.put(picture(name))
        assert {job.body for job in stage.schedule.clear()} == {b"a", b"b", b"c"}

    run(main)
