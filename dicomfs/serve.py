"""`dicomfs serve`: receiver, mount and, if asked, a private smbd, each its own process, as one command.

For a laptop, a demonstration, a container; a hospital runs the parts as services of their own. A part that
knows how to be revived is started again when it crashes, some times; if any other ends, all are stopped and
it says which. Never receives or shows anything itself. Called by `cli.py`.
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


MOST_REVIVALS = 3
"""A part that crashes more often than that is broken."""


@dataclass(frozen=True, slots=True)
class Revival:
    """What belongs to starting a part again after a crash."""

    before: Callable[[], None]
    """Clears away what the dead process has left."""
    after: Callable[[], None]
    """Is called when the part answers again."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process: what it is called, how it starts, how to tell that it answers."""

    name: str
    argv: Sequence[str]
    answers: Callable[[], bool]
    environment: Mapping[str, str] | None = None
    start_limit_s: float = 60.0
    revival: Revival | None = None
    """None: everything ends with it."""


def run(parts: Sequence[Part], ready: Callable[[], None]) -> None:
    """Start the parts in order, each when the one before answers; stop all in reverse at SIGTERM or SIGINT.

    Raises PartFailed when a part cannot start, or ends by itself and is not to be revived.
    """
    asked: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    running: list[tuple[Part, subprocess.Popen[bytes]]] = []
    try:
        for part in parts:
            running.append((part, _start(part)))
            _wait_for(part, running, asked)
            if asked:
                return
            log.info("%s answers", part.name)
        ready()
        revivals = 0
        while not asked:
            crashed = next((place for place, it in enumerate(running) if _has_crashed(*it)), None)
            if crashed is not None and revivals < MOST_REVIVALS:
                revivals += 1
                _revive(crashed, running, asked)
            _all_alive(running)
            time.sleep(_POLL_S)
    finally:
        _stop(running)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(part: Part) -> subprocess.Popen[bytes]:
    # A process group of its own: Ctrl-C reaches us alone, and we stop the parts in order. A part that
    # watches its standard input ends when the pipe does, should we be killed.
    return subprocess.Popen(part.argv, env=part.environment, stdin=subprocess.PIPE, process_group=0)


def _has_crashed(part: Part, process: subprocess.Popen[bytes]) -> bool:
    """Killed by a signal, and worth another try; an exit code would be the same again."""
    code = process.poll()
    return part.revival is not None and code is not None and code < 0


def _revive(place: int, running: list[tuple[Part, subprocess.Popen[bytes]]], asked: list[int]) -> None:
    part, process = running[place]
    log.warning("%s was killed by %s: starting it again", part.name, signal.Signals(-process.returncode).name)
    if process.stdin is not None:
        process.stdin.close()
    if part.revival is not None:
        part.revival.before()
    running[place] = (part, _start(part))
    _wait_for(part, running, asked)
    if part.revival is not None and not asked:
        part.revival.after()
        log.info("%s answers again", part.name)


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
