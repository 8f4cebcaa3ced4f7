"""Render workers as real processes: priorities, limits, and every way in which a process can fail."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from dicomfs import notice, render, schedule
from dicomfs.cache import Cache
from dicomfs.errors import NotDisplayable, RenderFailed, WorkerStartFailed
from dicomfs.model import PoolWindow, Source
from dicomfs.turns import Urgency
from dicomfs.workers import READY_AT_ONCE, WORKER_COMMAND, Rendered, Workers
from tests.renderers import DEADLINE_S, MIB, RECIPE, Gate, children, fake_worker, running, say, source, until
from tests.support import lacking, shipped


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    return fake_worker(tmp_path)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main)


# -- what workers do


def test_every_operation_through_a_process(command: tuple[str, ...]) -> None:
    async def main() -> None:
        async with running(command) as workers:
            window = PoolWindow(-1024.5, 3071.0, "why")
            rendered = await workers.render(source("echo=hello", frame=3), RECIPE, window)
            assert rendered == Rendered(f"hello 3 {RECIPE} {window}".encode())
            members = [source("a"), source("b"), source("c")]
            assert await workers.decide_pool(members) == PoolWindow(-0.1, 3.0, "counted")
            assert (await workers.decide_pool(members, "header")).reason == "header"
            asked = [source("a"), source("compressed"), source("never")]
            assert await workers.lengths(asked, RECIPE) == [1000, None, None]
            assert await workers.probe(RECIPE) == "digest of jpg"
            never = await workers.render(source("never=J2K"), RECIPE, None)
            assert never == Rendered(b"NOTICE jpg: no decoder for J2K", "no decoder for J2K")
            with pytest.raises(NotDisplayable, match="no decoder"):
                await workers.decide_pool([source("never")])
            assert workers.statistics().done == 7
            assert workers.statistics().processes == 1

    run(main)


def test_50_mb_arrive_whole(command: tuple[str, ...]) -> None:
    async def main() -> None:
        async with running(command) as workers:
            assert await say(workers, "large=51200000") == bytes(range(256)) * 200_000

    run(main)


def test_what_libraries_print_is_not_an_answer(command: tuple[str, ...]) -> None:
    async def main() -> None:
        async with running(command) as workers:
            assert await say(workers, "print") == b"undisturbed"
            assert workers.statistics().crashed == 0

    run(main)


def test_confinement(command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")

    async def main() -> None:
        async with running(command, memory_bytes=300 * MIB) as workers:
            limits = eval((await say(workers, "limits")).decode())  # noqa: S307 - a literal of our own fake
            assert limits["core"] == (0, 0)
            assert limits["memory"] == (300 * MIB, 300 * MIB)
            assert limits["no_new_privs"] == 1
            assert (
                limits["fds"] <= 6 + 1
            )  # stdin, stdout, stderr, protocol, crash trace, two that the fake opens
            assert "SECRET_TOKEN" not in limits["env"]
            target = tmp_path / "written"
            with pytest.raises(RenderFailed, match="File too large"):
                await say(workers, f"write={target}".replace("/", "+"))
            assert not target.exists() or target.stat().st_size == 0

    run(main)


def test_no_network(command: tuple[str, ...]) -> None:
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--net"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode != 0:
        lacking("this machine allows no network name spaces")

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            async with running(command) as workers:
                with pytest.raises(RenderFailed, match="OSError"):
                    await say(workers, f"connect={server.getsockname()[1]}")

    run(main)


# -- what goes wrong in a process


@pytest.mark.usefixtures("expected_warnings")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("crash", "SIGSEGV"),
        ("exit", "exit code 3"),
        ("garbage", "magic number"),
        ("double", "answer to job 0"),
    ],
)
def test_second_crash_is_for_good(command: tuple[str, ...], name: str, how: str) -> None:
    async def main() -> None:
        async with running(command) as workers:
            rendered = await workers.render(source(name), RECIPE, None)
            assert rendered.failure is not None
            assert "decoder crashed" in rendered.failure
            assert how in rendered.failure
            assert rendered.data == f"NOTICE jpg: {rendered.failure}".encode()
            assert workers.statistics().crashed == 2
            assert await say(workers, "large=256") == bytes(range(256))

    run(main)


@pytest.mark.usefixtures("expected_warnings")
def test_first_crash_is_forgiven(command: tuple[str, ...], tmp_path: Path) -> None:
    async def main() -> None:
        async with running(command) as workers:
            before = await say(workers, "pid")
            (tmp_path / "crashonce").mkdir()
            rendered = await workers.render(source("crashonce", tmp_path), RECIPE, None)
            assert rendered == Rendered(b"second time lucky")
            assert await say(workers, "pid") != before

    run(main)


@pytest.mark.usefixtures("expected_warnings")
def test_pool_with_a_member_that_crashes(command: tuple[str, ...]) -> None:
    async def main() -> None:
        async with running(command) as workers:
            with pytest.raises(NotDisplayable, match="decoder crashed"):
                await workers.decide_pool([source("a"), source("crash")])
            with pytest.raises(RenderFailed):
                await workers.lengths([source("a"), source("crash")], RECIPE)
            with pytest.raises(RenderFailed, match="nonsense"):
                await workers.decide_pool([source("nonsense")])

    run(main)


@pytest.mark.usefixtures("expected_warnings")
@pytest.mark.parametrize("name", ["hang", "spin"])
def test_time_limit(command: tuple[str, ...], name: str) -> None:
    async def main() -> None:
        async with running(command, time_limit_s=0.5) as workers:
            with pytest.raises(RenderFailed, match=r"longer than 0\.5 s"):
                await say(workers, name)
            await until(lambda: workers.statistics().processes == 1)  # replaced without being asked
            assert await say(workers, "large=256") == bytes(range(256))
            assert workers.statistics().timed_out == 1
            assert workers.statistics().crashed == 0

    run(main)


@pytest.mark.usefixtures("expected_warnings")
def test_killed_in_every_job_is_not_for_good(command: tuple[str, ...]) -> None:
    """The kernel kills with SIGKILL when memory is short: not a property of the image."""

    async def main() -> None:
        async with running(command) as workers:
            with pytest.raises(RenderFailed, match="killed"):
                await say(workers, "kill")

    run(main)


def test_memory_limit(command: tuple[str, ...]) -> None:
    async def main() -> None:
        async with running(command, memory_bytes=256 * MIB) as workers:
            # a fresh process fails again: there will never be more
            never = await workers.render(source(f"memory={300 * MIB}"), RECIPE, None)
            assert never.failure is not None
            assert "memory" in never.failure
            assert never.data.startswith(b"NOTICE")
            assert len(await say(workers, f"memory={MIB}")) == MIB
            assert workers.statistics().crashed == 0

    run(main)


@pytest.mark.usefixtures("caplog")  # only a bug is worth a line
@pytest.mark.parametrize(
    ("name", "text"), [("missing", "FileNotFoundError"), ("bug", "ValueError at fake_worker.py")]
)
def test_passing_errors_name_neither_path_nor_patient(command: tuple[str, ...], name: str, text: str) -> None:
    async def main() -> None:
        async with running(command) as workers:
            with pytest.raises(RenderFailed, match=text) as caught:
                await say(workers, name)
            assert "Doe" not in str(caught.value)
            assert "nowhere" not in str(caught.value)

    run(main)


def test_killed_while_idle_costs_no_job(command: tuple[str, ...]) -> None:
    async def main() -> None:
        async with running(command) as workers:
            pid = int(await say(workers, "pid"))
            os.kill(pid, signal.SIGKILL)
            await until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
            assert int(await say(workers, "pid")) != pid
            assert workers.statistics().crashed == 0

    run(main)


def test_process_is_replaced_after_its_jobs(command: tuple[str, ...]) -> None:
    async def main() -> None:
        async with running(command, recycle_after=3) as workers:
            pids = [await say(workers, "pid") for _ in range(6)]
            assert pids[0] == pids[2] != pids[3] == pids[5]

    run(main)


@pytest.mark.parametrize(
    ("script", "why"),
    [("import no_such_module", "No module named 'no_such_module'"), ("print('hello, ' * 9)", "magic number")],
)
def test_worker_that_cannot_start_is_an_error(script: str, why: str) -> None:
    async def main() -> None:
        with pytest.raises(WorkerStartFailed, match=why), trio.fail_after(DEADLINE_S):
            await Workers(2, 512 * MIB, 10, command=(sys.executable, "-c", script)).run()
        assert children() == set()

    run(main)


def test_worker_that_is_never_ready_is_an_error() -> None:
    async def main() -> None:
        hangs = (sys.executable, "-c", "import time; time.sleep(3600)")
        with pytest.raises(WorkerStartFailed, match="not ready"), trio.fail_after(DEADLINE_S):
            await Workers(1, 512 * MIB, 10, command=hangs, start_limit_s=0.3).run()
        assert children() == set()

    run(main)


@pytest.mark.usefixtures("expected_warnings")
def test_replacements_that_cannot_start_end_in_an_error_not_in_a_loop(command: tuple[str, ...]) -> None:
    async def main() -> None:
        workers = Workers(1, 512 * MIB, DEADLINE_S, command=command)
        ended: list[WorkerStartFailed] = []

        def break_script() -> None:
            Path(command[-1]).write_text("import no_such_module")

        async def own(task_status: trio.TaskStatus[None]) -> None:
            with pytest.raises(WorkerStartFailed) as caught:
                await workers.run(task_status=task_status)
            ended.append(caught.value)

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(own)
                break_script()
                while not ended:
                    with pytest.raises(RenderFailed):
                        await say(workers, "exit")
        assert "no_such_module" in str(ended[0])
        assert children() == set()

    run(main)


# -- who goes first


def test_most_urgent_first_and_fifo_within(command: tuple[str, ...], tmp_path: Path) -> None:
    async def main() -> None:
        order: list[str] = []
        gate = Gate(tmp_path, "a")
        async with running(command) as workers, trio.open_nursery() as nursery:

            async def ask(name: str, urgency: Urgency) -> None:
                await say(workers, f"echo={name}", urgency=urgency)
                order.append(name)

            nursery.start_soon(workers.render, gate.source, RECIPE, None)
            await until(gate.somebody_waits)
            urgencies = [Urgency.SPARE, Urgency.NEXT, Urgency.WAITED] * 2
            for number, urgency in enumerate(urgencies):
                nursery.start_soon(ask, f"{urgency.name} {number}", urgency)
                await until(lambda number=number: workers.statistics().waiting == number + 1)  # type: ignore[misc]
            gate.open()
            await until(lambda: len(order) == 6)
        assert order == ["WAITED 2", "WAITED 5", "NEXT 1", "NEXT 4", "SPARE 0", "SPARE 3"]

    run(main)


def test_those_who_ask_take_turns(command: tuple[str, ...], tmp_path: Path) -> None:
    """Three pictures of one folder wait; one of another folder is not the last."""

    async def main() -> None:
        order: list[str] = []
        gate = Gate(tmp_path, "a")
        async with running(command) as workers, trio.open_nursery() as nursery:

            async def ask(name: str, folder: int) -> None:
                await workers.render(source(f"echo={name}"), RECIPE, None, asker=folder)
                order.append(name)

            nursery.start_soon(workers.render, gate.source, RECIPE, None)
            await until(gate.somebody_waits)
            for number, (name, folder) in enumerate([("a1", 1), ("a2", 1), ("a3", 1), ("b1", 2)]):
                nursery.start_soon(ask, name, folder)
                await until(lambda number=number: workers.statistics().waiting == number + 1)  # type: ignore[misc]
            gate.open()
            await until(lambda: len(order) == 4)
        assert order == ["a1", "b1", "a2", "a3"]

    run(main)


@pytest.mark.parametrize("urgency", [Urgency.NEXT, Urgency.SPARE])
def test_hurried_job_goes_before_those_of_its_kind(
    command: tuple[str, ...], tmp_path: Path, urgency: Urgency
) -> None:
    async def main() -> None:
        order: list[str] = []
        gate = Gate(tmp_path, "a")
        async with running(command) as workers, trio.open_nursery() as nursery:

            async def ask(name: str) -> None:
                await say(workers, f"echo={name}", urgency=urgency)
                order.append(name)

            nursery.start_soon(workers.render, gate.source, RECIPE, None)
            await until(gate.somebody_waits)
            for number in range(3):
                nursery.start_soon(ask, str(number))
                await until(lambda number=number: workers.statistics().waiting == number + 1)  # type: ignore[misc]
            workers.hurry(source("echo=2"), RECIPE, None)
            workers.hurry(source("echo=unknown"), RECIPE, None)
            gate.open()
            await until(lambda: len(order) == 3)
        assert order == ["2", "0", "1"]

    run(main)


@pytest.mark.parametrize("urgency", [Urgency.NEXT, Urgency.SPARE])
def test_one_of_two_workers_is_kept_free_of_what_may_be_slow(
    command: tuple[str, ...], tmp_path: Path, urgency: Urgency
) -> None:
    async def main() -> None:
        gates = [Gate(tmp_path, str(number)) for number in range(2)]
        async with running(command, 2) as workers, trio.open_nursery() as nursery:

            async def unwaited(gate: Gate) -> None:
                await workers.render(gate.source, RECIPE, None, urgency=urgency)

            nursery.start_soon(unwaited, gates[0])
            await until(gates[0].somebody_waits)
            nursery.start_soon(unwaited, gates[1])
            await until(lambda: workers.statistics().waiting == 1)
            # The user is served by the other worker while all that nobody waits for is stuck.
            assert await say(workers, "large=256") == bytes(range(256))
            assert (workers.statistics().running, workers.statistics().waiting) == (1, 1)
            gates[0].open()
            await until(gates[1].somebody_waits)
            gates[1].open()

    run(main)


def test_what_is_asked_for_next_has_all_processes_once_it_was_quick(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "QUICK_S", 0.5)

    async def main() -> None:
        gates = [Gate(tmp_path, str(number)) for number in range(2)]
        async with running(command, 2) as workers, trio.open_nursery() as nursery:
            for _ in range(20):
                await say(workers, "large=256", urgency=Urgency.NEXT)
            for gate in gates:
                nursery.start_soon(partial(workers.render, gate.source, RECIPE, None, urgency=Urgency.NEXT))
            for gate in gates:
                await until(gate.somebody_waits)
            assert (workers.statistics().running, workers.statistics().waiting) == (2, 0)
            for gate in gates:
                gate.open()

    run(main)


def test_what_was_slow_when_somebody_waited_for_it_leaves_a_process_free(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "QUICK_S", 0.5)

    async def main() -> None:
        slow, *gates = [Gate(tmp_path, str(number)) for number in range(3)]
        async with running(command, 2) as workers, trio.open_nursery() as nursery:
            for _ in range(20):
                await say(workers, "large=256", urgency=Urgency.NEXT)
            async with trio.open_nursery() as first:
                first.start_soon(workers.render, slow.source, RECIPE, None)
                await until(slow.somebody_waits)
                await trio.sleep(1)
                slow.open()
            nursery.start_soon(partial(workers.render, gates[0].source, RECIPE, None, urgency=Urgency.NEXT))
            await until(gates[0].somebody_waits)
            nursery.start_soon(partial(workers.render, gates[1].source, RECIPE, None, urgency=Urgency.NEXT))
            await until(lambda: workers.statistics().waiting == 1)
            assert workers.statistics().running == 1
            gates[0].open()
            await until(gates[1].somebody_waits)
            gates[1].open()

    run(main)


def test_some_processes_are_ready_and_more_come_on_demand(command: tuple[str, ...], tmp_path: Path) -> None:
    async def main() -> None:
        count = READY_AT_ONCE + 1
        gates = [Gate(tmp_path, str(number)) for number in range(count + 1)]
        async with running(command, count) as workers:
            await until(lambda: workers.statistics().processes == READY_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for gate in gates[:count]:
                    nursery.start_soon(workers.render, gate.source, RECIPE, None)
                for gate in gates[:count]:
                    await until(gate.somebody_waits)
                nursery.start_soon(workers.render, gates[count].source, RECIPE, None)
                await until(lambda: workers.statistics().waiting == 1)
                statistics = workers.statistics()
                assert (statistics.processes, statistics.running, statistics.waiting) == (count, count, 1)
                for gate in gates[:count]:
                    gate.open()
                await until(gates[count].somebody_waits)
                gates[count].open()

    run(main)


@pytest.mark.usefixtures("expected_warnings")
def test_process_that_cannot_be_started_yet_is_started_when_it_is_needed(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    script = Path(command[-1])
    script.write_text(f"import os\nos.mkdir({str(tmp_path / 'started')!r})\n{script.read_text()}")

    async def main() -> None:
        gates = [Gate(tmp_path, str(number)) for number in range(2)]
        async with running(command, 3) as workers, trio.open_nursery() as nursery:
            assert await say(workers, "large=256") == bytes(range(256))
            await until(lambda: workers._start_failures == 1)
            (tmp_path / "started").rmdir()
            for gate in gates:
                nursery.start_soon(workers.render, gate.source, RECIPE, None)
            for gate in gates:
                await until(gate.somebody_waits)
            for gate in gates:
                gate.open()

    run(main)


# -- who goes away


def test_cancelled_caller_leaves_the_queue_or_is_not_heard(command: tuple[str, ...], tmp_path: Path) -> None:
    async def main() -> None:
        gate = Gate(tmp_path, "a")
        async with running(command) as workers:
            pid = await say(workers, "pid")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(workers.render, gate.source, RECIPE, None)
                await until(gate.somebody_waits)
                nursery.start_soon(say, workers, "crash")
                await until(lambda: workers.statistics().waiting == 1)
                nursery.cancel_scope.cancel()
            assert (workers.statistics().running, workers.statistics().waiting) == (1, 0)
            gate.open()
            assert await say(workers, "pid") == pid  # the same process: nothing was killed, nothing crashed

    run(main)


def test_end_answers_everybody_who_waits(command: tuple[str, ...], tmp_path: Path) -> None:
    async def main() -> None:
        gate, failures = Gate(tmp_path, "a"), 0
        workers = Workers(1, 512 * MIB, DEADLINE_S, command=command)

        async def ask(name: str, folder: Path) -> None:
            nonlocal failures
            with pytest.raises(RenderFailed, match="stopped"):
                await workers.render(source(name, folder), RECIPE, None)
            failures += 1

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
                await nursery.start(lambda task_status: workers.run(task_status=task_status))
                callers.start_soon(ask, gate.source.path.name, tmp_path)
                await until(gate.somebody_waits)
                callers.start_soon(ask, "echo=1", tmp_path)
                await until(lambda: workers.statistics().waiting == 1)
                nursery.cancel_scope.cancel()
            await ask("echo=2", tmp_path)
        assert failures == 3
        assert children() == set()

    run(main)


PARENT = """
import sys, trio
from pathlib import Path
from dicomfs.model import Recipe, Source
from dicomfs.workers import Workers
from tests.support import shipped, lacking

async def main():
    workers = Workers(2, 512 << 20, 3600, command=sys.argv[1:])
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: workers.run(task_status=task_status))
        nursery.start_soon(workers.render, Source(Path("/hang")), Recipe("jpg"), None)
        print((await workers.render(Source(Path("/pid")), Recipe("jpg"), None)).data.decode(), flush=True)

trio.run(main)
"""


def test_killed_parent_takes_its_workers_along(command: tuple[str, ...]) -> None:
    """One is busy for ever and one idle; neither is told anything."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *command], stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None
        idle = int(parent.stdout.readline())
        pids = {
            int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        }
        parent.kill()
    assert idle in pids
    assert len(pids) == 2

    def gone(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            await until(lambda: all(gone(pid) for pid in pids))

    run(main)


# -- together


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "SC_rgb_jpeg_dcmtk.dcm", "reportsi.dcm"])
def test_real_worker_renders_as_in_process(name: str) -> None:
    """The same bytes, or the same reason and notice, whether or not a process lies between."""
    original = Source(shipped(name))
    try:
        expected = Rendered(render.render(original, RECIPE, None))
    except NotDisplayable as error:
        expected = Rendered(notice.notice(RECIPE, str(error)), str(error))

    async def main() -> None:
        async with running(WORKER_COMMAND, memory_bytes=1024 * MIB) as workers:
            assert await workers.render(original, RECIPE, None) == expected
            assert await workers.decide_pool([original]) == render.decide_pool([original])
            assert await workers.probe(RECIPE) == render.probe_digest(RECIPE)

    assert expected.data.startswith(b"\xff\xd8")
    assert (expected.failure is not None) == (name == "reportsi.dcm")
    run(main)


def test_200_callers_of_one_key_are_one_render(command: tuple[str, ...]) -> None:
    async def main() -> None:
        cache: Cache[str, Rendered] = Cache(MIB, lambda rendered: len(rendered.data))
        got: list[bytes] = []
        async with running(command, 2) as workers:

            async def ask() -> None:
                rendered = await cache.get("key", lambda: workers.render(source("large=65536"), RECIPE, None))
                got.append(rendered.data)

            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(ask)
            assert workers.statistics().done == 1
        assert got == [bytes(range(256)) * 256] * 200

    run(main)


@pytest.mark.usefixtures("expected_warnings")
def test_hanging_file_costs_its_time_limit_once(command: tuple[str, ...]) -> None:
    async def main() -> None:
        cache: Cache[str, Rendered] = Cache(MIB, lambda rendered: len(rendered.data), clock=lambda: 0.0)
        async with running(command, time_limit_s=0.3) as workers:
            for _ in range(5):
                with pytest.raises(RenderFailed, match="longer than"):
                    await cache.get("key", lambda: workers.render(source("hang"), RECIPE, None))
            assert workers.statistics().timed_out == 1

    run(main)
