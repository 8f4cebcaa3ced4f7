"""Who waits for an answer and has been killed: seen by what the kernel says of him, and let go."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from dicomfs.callers import Callers, is_dying
from tests.support import wait_until


def test_nobody_here_is_dying() -> None:
    assert not is_dying(os.getpid())
    assert not is_dying(threading.get_native_id())
    assert not is_dying(0)
    assert not is_dying(2**22 + 1)  # more than there can be (proc(5), pid_max)


def test_a_signal_that_does_not_kill_is_none() -> None:
    """A blocked signal stays pending, as SIGKILL does of a task that cannot be let go yet."""
    with subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: b"stopped" in _status(process.pid), "it has stopped")
        process.send_signal(signal.SIGUSR1)  # waits until the process goes on
        assert not is_dying(process.pid)
        process.kill()


def _status(task: int) -> bytes:
    return Path(f"/proc/{task}/status").read_bytes()


def test_who_has_been_killed_waits_no_longer_and_others_do() -> None:
    dying: set[int] = set()
    ended: list[tuple[int, bool]] = []

    async def wait(callers: Callers, task: int, done: trio.Event) -> None:
        with callers.waiting(task) as scope:
            await done.wait()
        ended.append((task, scope.cancelled_caught))

    async def main() -> None:
        callers, done = Callers(dying.__contains__), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(callers.watch)
            await trio.sleep(10)  # it sleeps as long as nobody waits
            async with trio.open_nursery() as waiting:
                for task in range(40):
                    waiting.start_soon(wait, callers, task, done)
                await trio.sleep(10)
                assert ended == []
                dying.update((7, 33))
                await trio.sleep(10)
                assert sorted(ended) == [(7, True), (33, True)]
                done.set()
            assert sorted(ended) == [(task, task in dying) for task in range(40)]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_wait_that_ends_in_an_error_is_forgotten() -> None:
    async def main() -> None:
        looked: list[int] = []

        def look(task: int) -> bool:
            looked.append(task)
            return False

        callers = Callers(look)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(callers.watch)
            with pytest.raises(OSError, match="as a render may"), callers.waiting(5):
                raise OSError("as a render may")
            await trio.sleep(10)
            assert looked == []
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
