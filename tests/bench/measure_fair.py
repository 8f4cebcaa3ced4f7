"""Eight clients copy folders that nobody has seen, and one more goes on browsing.

Each copies a folder of its own with smbclient, and every picture has to be rendered. Who browses opens one
picture after the other of a ninth folder, never rendered either, and lists an exam that is known; on the
machine itself names are looked up and listed. The same browsing alone is the other half of the pair.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.bench.images import write_ct
from tests.bench.person import LIST, LIST_HERE, LOOK_UP, OPEN, Habits, Person, browsing
from tests.bench.stage import PATIENT, UNKNOWN, Stage, Write, copy, shared, staged
from tests.bench.table import Figure, Line, Result, Scale, percentile
from tests.support import require

_ALONE = "nobody else there"
_STATE = "small-known"
_SMALL_IMAGES = 20
_PAUSE_S = 0.05
_LONGEST_STALL_S = 0.05
_STEPS = (OPEN, LIST, LOOK_UP, LIST_HERE)


def measure(scale: Scale, scratch: Path) -> Result:
    """What who browses notices of the others, and what the mount's event loop does."""
    require("smbd")
    require("smbclient")
    each = max(scale.pictures // scale.exams, 2)
    days = [f"2024050{number}" for number in range(1, scale.exams + 1)]
    # The one that is browsed is the oldest: what a mount renders ahead by itself comes to it last.
    exams: dict[str, Write] = {"browsed": partial(write_ct, count=scale.opened, day="20240510")}
    exams |= {day: partial(write_ct, count=each, day=day) for day in days}
    exams["small"] = partial(write_ct, count=min(_SMALL_IMAGES, scale.opened), day="20240511")
    stage = staged(scratch, "fair", exams)
    copied = [f"{PATIENT}/2024-05-{day[-2:]}" for day in days]
    _know_small(stage)
    alone: dict[str, list[float]] = {step: [] for step in _STEPS}
    beside: dict[str, list[float]] = {step: [] for step in _STEPS}
    stalls, took = [], []
    with shared(scratch / "v", stage.point) as port:
        for _ in range(scale.rounds):
            with stage.mounted(_STATE), browsing(_habits(stage, port)) as person:
                time.sleep(min(_PAUSE_S * scale.opened, 5))
            _add(alone, person)
            with stage.mounted(_STATE) as mount:
                start = time.perf_counter()
                with browsing(_habits(stage, port)) as person, _copying(port, copied, each, scratch):
                    pass
                took.append(time.perf_counter() - start)
                told = mount.longest_stall()
                stalls += [] if told is None else [told]
            _add(beside, person)
    lines: list[Line | Figure] = []
    for step in _STEPS:
        case = f"{step} beside {scale.exams} who copy {each} pictures each"
        lines.append(Line(f"{case}: median", beside[step], _ALONE, alone[step]))
        p99 = [percentile(beside[step], 99)], _ALONE, [percentile(alone[step], 99)]
        lines.append(Line(f"{case}: p99", *p99))
    lines.append(Figure(f"all {scale.exams} have copied", took))
    notes = []
    if stalls:
        lines.append(
            Figure("longest stall of the event loop, all rounds", [max(stalls)], at_most=_LONGEST_STALL_S)
        )
    else:
        notes.append("longest stall of the event loop: this mount does not tell")
    commands = [
        f"{scale.exams} x smbclient -c 'prompt OFF; cd FOLDER; mget *'",
        f"open: CREATE, READ, CLOSE of the next picture, {_PAUSE_S * 1000:.0f} ms between two (smbprotocol)",
        "list: over SMB; look up: stat of a name that is not there; list here: names only",
    ]
    return Result(lines, commands, notes)


def _habits(stage: Stage, port: int) -> Habits:
    folder = f"{PATIENT}/2024-05-10"
    names = [f"{folder}/{path.name}" for path in (stage.real / folder).iterdir()]
    # In the order in which a viewer steps through a series.
    names.sort(key=lambda name: int(name.rpartition("_")[2].partition(".")[0]))
    return Habits(names, _PAUSE_S, port, listed=f"{PATIENT}/2024-05-11", point=str(stage.point))


def _know_small(stage: Stage) -> None:
    """The state in which one small exam was looked at, so that its listing needs no render."""
    with stage.mounted(UNKNOWN, "warm=off"):
        for path in (stage.point / PATIENT / "2024-05-11").iterdir():
            path.stat()
    stage.keep(_STATE)


def _add(seconds: dict[str, list[float]], person: Person) -> None:
    for step in _STEPS:
        seconds[step] += person.of(step)


@contextmanager
def _copying(port: int, folders: list[str], each: int, scratch: Path) -> Iterator[None]:
    """A client for each folder; the block ends when they have copied all."""
    with ThreadPoolExecutor(len(folders)) as clients:
        under_way = [
            clients.submit(copy, port, scratch / f"copied-{number}", each, folder)
            for number, folder in enumerate(folders)
        ]
        yield
        for one in under_way:
            one.result()
