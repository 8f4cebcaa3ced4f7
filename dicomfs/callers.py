"""Who waits for an answer, and who has been killed meanwhile.

The kernel lets a killed process go only when its request is answered, and tells us by an INTERRUPT of which
pyfuse3 knows nothing (libfuse keeps it for a question that pyfuse3 never asks). So we look: a task that is to
die has SIGKILL pending, whatever signal killed it, for as long as it waits for us. Then nobody wants its
answer: the wait is cancelled, and with it what nobody else waits for. Called by `fuse.py`, on trio's thread.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL
from typing import Final

import trio

LOOK_S: Final = 0.25
"""How often those who wait are looked at; each look costs some microseconds."""
_AT_ONCE: Final = 16
"""Looks after which others may go on."""


def is_dying(task: int) -> bool:
    """Whether a task (a thread's id) was killed and only waits to be let go; False if that is unknown."""
    try:
        status = Path(f"/proc/{task}/status").read_bytes()
    except OSError:
        return False  # of another namespace, or its wait has ended
    for line in status.splitlines():
        if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) >> SIGKILL - 1 & 1:
            return True
    return False


class Callers:
    """Those who wait. Run `watch` in the background."""

    def __init__(self, is_dying: Callable[[int], bool] = is_dying) -> None:
        self._is_dying = is_dying
        self._waiting: dict[trio.CancelScope, int] = {}
        self._somebody = trio.lowlevel.ParkingLot()

    @contextmanager
    def waiting(self, task: int) -> Iterator[trio.CancelScope]:
        """A scope that is cancelled when this task (a thread's id) has been killed."""
        with trio.CancelScope() as scope:
            self._waiting[scope] = task
            self._somebody.unpark_all()
            try:
                yield scope
            finally:
                del self._waiting[scope]

    async def watch(self) -> None:
        """Look at those who wait until cancelled.

        *Cancellation*: at any time.
        """
        while True:
            if not self._waiting:
                await self._somebody.park()
            await trio.sleep(LOOK_S)
            for number, (scope, task) in enumerate(list(self._waiting.items()), start=1):
                if self._is_dying(task):
                    scope.cancel()
                if not number % _AT_ONCE:
                    await trio.lowlevel.checkpoint()
