"""Two jobs in the pipe of one render process: whose fault is what, and who is answered."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from dicomfs import schedule
from dicomfs.errors import RenderFailed
from dicomfs.model import Source
from dicomfs.workers import Rendered, Workers
from tests.renderers import DEADLINE_S, MIB, RECIPE, Gate, fake_worker, running, say, source, until


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Every picture counts as quick, before it is known and for as long as a test takes."""
    monkeypatch.setattr(schedule, "PIPED_S", 10 * DEADLINE_S)
    return fake_worker(tmp_path)


def is_piped(workers: Workers, name: str) -> Callable[[], bool]:
    """Whether a job is in a pipe, behind another."""
    places = workers._schedule._places
    return lambda: any(one.behind is not None and name.encode() in one.behind.body for one in places)


async def put_behind(nursery: trio.Nursery, workers: Workers, name: str, answers: list[bytes]) -> None:
    """Ask for what goes into a pipe, and wait until it is there."""

    async def ask() -> None:
        answers.append(await say(workers, name))

    nursery.start_soon(ask)
    await until(is_piped(workers, name))


def test_answers_of_both_arrive_whole(command: tuple[str, ...], tmp_path: Path) -> None:
    """The second is under way before the first is read, and more than a pipe holds."""

    async def main() -> None:
        gate, answers = Gate(tmp_path, "a"), list[bytes]()
        async with running(command) as workers, trio.open_nursery() as nursery:
            nursery.start_soon(workers.render, gate.source, RECIPE, None)
            await until(gate.somebody_waits)
            await put_behind(nursery, workers, "large=5120000", answers)
            nursery.start_soon(partial(say, workers, "large=256"))
            await until(lambda: workers.statistics().waiting == 2)
            gate.open()
            await until(lambda: workers.statistics().done == 3)
        assert answers == [bytes(range(256)) * 20_000]

    trio.run(main)


@pytest.mark.usefixtures("expected_warnings")
def test_crash_is_not_held_against_the_second(command: tuple[str, ...], tmp_path: Path) -> None:
    """It crashes once itself, which would be for good if it were its second time."""

    async def main() -> None:
        gate = Gate(tmp_path, "a", "gatecrash")
        (tmp_path / "crashonce").mkdir()
        found: dict[str, Rendered] = {}

        async def ask(workers: Workers, one: Source) -> None:
            found[one.path.name] = await workers.render(one, RECIPE, None)

        async with running(command) as workers, trio.open_nursery() as nursery:
            nursery.start_soon(ask, workers, gate.source)
            await until(gate.somebody_waits)
            nursery.start_soon(ask, workers, source("crashonce", tmp_path))
            await until(is_piped(workers, "crashonce"))
            gate.open()
            await until(lambda: workers.statistics().crashed == 1)
            await until(gate.somebody_waits)  # tried again
            gate.open()
        assert found["crashonce"] == Rendered(b"second time lucky")
        assert "SIGSEGV" in str(found["gatecrash=a"].failure)

    trio.run(main)


@pytest.mark.usefixtures("expected_warnings")
def test_second_is_done_by_the_next_process_when_time_runs_out(command: tuple[str, ...]) -> None:
    async def main() -> None:
        answers = list[bytes]()
        async with running(command, time_limit_s=2) as workers, trio.open_nursery() as nursery:

            async def hang() -> None:
                with pytest.raises(RenderFailed, match="longer than 2 s"):
                    await say(workers, "hang")

            pid = await say(workers, "pid")
            nursery.start_soon(hang)
            await until(lambda: workers.statistics().running == 1)
            await put_behind(nursery, workers, "pid", answers)
            await until(lambda: len(answers) == 1)
            assert answers != [pid]
            assert workers.statistics().timed_out == 1

    trio.run(main)


def test_memory_that_runs_out_is_not_held_against_the_second(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    async def main() -> None:
        gate, failures = Gate(tmp_path, "a"), list[str | None]()

        async def exhaust() -> None:
            failures.append((await workers.render(source(f"memory={300 * MIB}"), RECIPE, None)).failure)

        async with running(command, memory_bytes=256 * MIB) as workers, trio.open_nursery() as nursery:
            nursery.start_soon(workers.render, gate.source, RECIPE, None)
            await until(gate.somebody_waits)
            nursery.start_soon(exhaust)
            await until(is_piped(workers, "memory"))
            for number in range(3):
                nursery.start_soon(partial(say, workers, f"large={256 + 256 * number}"))
                await until(lambda number=number: workers.statistics().waiting == number + 2)  # type: ignore[misc]
            gate.open()
            await until(lambda: workers.statistics().done == 6)
            assert workers.statistics().crashed == 0
        assert len(failures) == 1
        assert "memory" in str(failures[0])

    trio.run(main)


def test_slow_first_one_does_not_hold_up_the_second(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        gates, answers = [Gate(tmp_path, str(number)) for number in range(2)], list[bytes]()
        async with running(command, 2) as workers, trio.open_nursery() as nursery:
            await until(lambda: workers.statistics().processes == 2)
            for gate in gates:
                nursery.start_soon(workers.render, gate.source, RECIPE, None)
                await until(gate.somebody_waits)
            for number in range(2):
                await put_behind(nursery, workers, f"echo={number}", answers)
            monkeypatch.setattr(schedule, "PIPED_S", 0.0)
            gates[0].open()
            await until(lambda: len(answers) == 2)
            assert workers.statistics().running == 1
            gates[1].open()
            await until(lambda: workers.statistics().running == 0)
            # The one that was slow has done its second one for nobody, and is as good as before.
            assert workers.statistics().crashed == 0
            assert await say(workers, "large=256") == bytes(range(256))

    trio.run(main)


def test_second_whose_caller_goes_away_is_not_heard(command: tuple[str, ...], tmp_path: Path) -> None:
    async def main() -> None:
        gate, answers = Gate(tmp_path, "a"), list[bytes]()
        async with running(command) as workers, trio.open_nursery() as nursery:
            pid = await say(workers, "pid")
            nursery.start_soon(workers.render, gate.source, RECIPE, None)
            await until(gate.somebody_waits)
            async with trio.open_nursery() as callers:
                await put_behind(callers, workers, "echo=1", answers)
                callers.cancel_scope.cancel()
            assert (workers.statistics().running, workers.statistics().waiting) == (1, 0)
            gate.open()
            assert await say(workers, "pid") == pid
        assert answers == []

    trio.run(main)


def test_end_answers_the_second_too(command: tuple[str, ...], tmp_path: Path) -> None:
    async def main() -> None:
        gate = Gate(tmp_path, "a")
        failures: list[str] = []

        async def ask(name: str, folder: Path) -> None:
            with pytest.raises(RenderFailed, match="stopped"):
                await workers.render(source(name, folder), RECIPE, None)
            failures.append(name)

        async with trio.open_nursery() as callers, running(command) as workers:
            callers.start_soon(ask, gate.source.path.name, tmp_path)
            await until(gate.somebody_waits)
            callers.start_soon(ask, "echo=1", tmp_path)
            await until(is_piped(workers, "echo=1"))
        assert sorted(failures) == ["echo=1", "gate=a"]

    trio.run(main)


def test_picture_that_hangs_takes_one_process_and_not_two(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lay behind one that was slow, another process has taken it over, and both would be at it."""
    monkeypatch.setattr(schedule, "COPY_S", 0.2)
    pipe_s = schedule.PIPED_S
    monkeypatch.setattr(schedule, "PIPED_S", 0.0)

    async def main() -> None:
        gates = [Gate(tmp_path, str(number)) for number in range(2)]
        async with running(command, 2) as workers, trio.open_nursery() as nursery:
            for gate in gates:
                nursery.start_soon(workers.render, gate.source, RECIPE, None)
                await until(gate.somebody_waits)
            monkeypatch.setattr(schedule, "PIPED_S", pipe_s)
            nursery.start_soon(partial(say, workers, "hang"))
            await until(is_piped(workers, "hang"))
            (slow,) = (place for place in workers._schedule._places if place.behind is not None)
            assert slow.job is not None
            gates.sort(key=lambda gate: str(gate.source.path).encode() in slow.job.body)  # type: ignore[union-attr]
            monkeypatch.setattr(schedule, "PIPED_S", 0.0)
            for gate in gates:
                gate.open()
                await until(lambda: workers.statistics().done > 0)
            await until(lambda: workers.statistics().done == 2)
            assert await say(workers, "large=256") == bytes(range(256))
            statistics = workers.statistics()
            assert (statistics.done, statistics.failed, statistics.timed_out) == (3, 0, 0)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_time_that_ran_out_for_the_job_before_is_not_held_against_this_one(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    """An answer may come in the very moment in which its time has run out."""

    async def main() -> None:
        gate = Gate(tmp_path, "a")
        async with running(command) as workers, trio.open_nursery() as nursery:
            nursery.start_soon(workers.render, gate.source, RECIPE, None)
            await until(gate.somebody_waits)
            (place,) = workers._schedule._places
            assert place.process is not None
            former = Path(f"/proc/{place.process.pid}")
            os.kill(place.process.pid, signal.SIGSTOP)
            gate.open()  # nobody goes through
            place.scope.cancel()
            await until(lambda: not former.exists())
            await until(gate.somebody_waits)  # the next process
            gate.open()
            await until(lambda: workers.statistics().done == 1)
            assert workers.statistics().timed_out == 0

    trio.run(main)
