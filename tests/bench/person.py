"""Somebody at another screen: a process of its own that goes on browsing, and tells how long each step took.

A process and not a thread, so that whatever else Python does meanwhile is not measured with it. It learns
what to do from one line of JSON, says `ready` after its first round, and ends, with its figures, when its
standard input does.
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

from tests.smb import client
from tests.support import ROOT

OPEN, LIST, LOOK_UP, LIST_HERE = "open", "list", "look up", "list here"


@dataclass(frozen=True, slots=True)
class Habits:
    """What is done in each round, as far as it is said."""

    pictures: Sequence[str]
    """Opened through the share, one in each round, read, closed."""
    pause_s: float
    port: int
    again: bool = False
    """From the first picture on again after the last."""
    listed: str = ""
    """A folder that is listed through the share, with sizes."""
    point: str = ""
    """A mount on this machine: one name that is not there is looked up in its folder `listed`, and all
    that are there are listed, names only."""


@dataclass(slots=True)
class Person:
    """`seconds` of each kind of step, in order, are there when the block has ended."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def of(self, step: str) -> list[float]:
        """Seconds of every such step. Raises RuntimeError when it was never done."""
        if not self.seconds.get(step):
            raise RuntimeError(f"nobody has done this: {step}")
        return self.seconds[step]


@contextmanager
def browsing(habits: Habits) -> Iterator[Person]:
    """Somebody browses until the end of the block, or until all pictures were opened."""
    person = Person()
    argv = [sys.executable, "-m", "tests.bench.person", json.dumps(asdict(habits))]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("nobody is browsing")  # noqa: TRY301  it has to be ended like any other
            yield person
            said, _ = process.communicate(timeout=120)
        except BaseException:
            process.kill()
            raise
    person.seconds.update(json.loads(said))


def open_each(port: int, paths: Sequence[str]) -> list[float]:
    """Seconds from the double-click until all bytes of the picture are here, for each, over one session."""
    with client(port, "dicomfs") as smb:
        return [_timed(partial(smb.whole, path)) for path in paths]


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Browse."""
    habits = Habits(**json.loads(sys.argv[1]))
    seconds: dict[str, list[float]] = {}
    with client(habits.port, "dicomfs") as smb:
        steps: dict[str, Callable[[int], object]] = {}
        if habits.listed:
            steps[LIST] = lambda _: list(smb.pages(habits.listed))
        if habits.point:
            folder = Path(habits.point, habits.listed)
            steps[LOOK_UP] = lambda number: _missing(folder / f"{number}")
            steps[LIST_HERE] = lambda _: list(folder.iterdir())
        steps[OPEN] = lambda number: smb.whole(habits.pictures[number % len(habits.pictures)])
        for number in count():
            if number >= len(habits.pictures) and not habits.again:
                break
            for name, step in steps.items():
                seconds.setdefault(name, []).append(_timed(partial(step, number)))
            if not number:
                print("ready", flush=True)
            # Whoever looks at pictures looks at each for a while; the end of the input is the end.
            if select.select([sys.stdin], [], [], habits.pause_s)[0]:
                break
    print(json.dumps(seconds), flush=True)


def _missing(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.stat()


if __name__ == "__main__":
    main()
