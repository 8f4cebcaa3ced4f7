"""`dicomfs serve`: receiver, mount and, if asked, a private smbd, each its own process, as one command.

For a laptop, a demonstration, a container; a hospital runs the parts as services of their own. If one
part ends, all are stopped and it says which. Never receives or shows anything itself. Called by `cli.py`.
"""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from dicomfs.errors import PartFailed

log = logging.getLogger(__name__)

STOP_S = 40.0
"""Longer than the receiver's drain: it is killed only after that."""
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """One process: what it is called, how it starts, how to tell that it answers."""

    name: str
    argv: Sequence[str]
    answers: Callable[[], bool]
    environment: Mapping[str, str] | None = None
    start_limit_s: float = 60.0


def run(parts: Sequence[Part], ready: Callable[[], None]) -> None:
    """Start the parts in order, each when the one before answers; stop all in reverse at SIGTERM or SIGINT.

    Raises PartFailed when a part cannot start or ends by itself.
    """
    asked: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    running: list[tuple[Part, subprocess.Popen[bytes]]] = []
    try:
        for part in parts:
            # A process group of its own: Ctrl-C reaches us alone, and we stop the parts in order. A part
            # that watches its standard input ends when the pipe does, should we be killed.
            process = subprocess.Popen(
                part.argv, env=part.environment, stdin=subprocess.PIPE, process_group=0
            )
            running.append((part, process))
            _wait_for(part, running, asked)
            if asked:
                return
            log.info("%s answers", part.name)
        ready()
        while not asked:
            _all_alive(running)
            time.sleep(_POLL_S)
    finally:
        _stop(running)
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for(part: Part, running: Sequence[tuple[Part, subprocess.Popen[bytes]]], asked: list[int]) -> None:
    deadline = time.monotonic() + part.start_limit_s
    while not asked:
        _all_alive(running)
        if part.answers():
            return
        if time.monotonic() > deadline:
            raise PartFailed(f"{part.name} did not answer within {part.start_limit_s:.0f} s")
        time.sleep(_POLL_S)


def _all_alive(running: Sequence[tuple[Part, subprocess.Popen[bytes]]]) -> None:
    for part, process in running:
        code = process.poll()
        if code is not None:
            how = (
                f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            )
            raise PartFailed(f"{part.name} {how}; everything else is being stopped")


def _stop(running: Sequence[tuple[Part, subprocess.Popen[bytes]]]) -> None:
    for part, process in reversed(running):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                log.warning("%s did not stop within %.0f s: killed", part.name, STOP_S)
                process.kill()
                process.wait()
