"""What a benchmark gives back, how contestants take turns, and the table that is printed."""

import os
import platform
import re
import select
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pyfuse3

from dicomfs import __version__
from tests.support import find_tool

MILLIONS: Final = 5_000_000
"""Instances of an index that is made only if asked for: minutes, and 2 GB."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    images: int = 400
    """CT images over one association, and twice as many over eight."""
    small_images: int = 2000
    """MR images, likewise over one and over eight."""
    frames: int = 2000
    """Of one large object: 1 GB."""
    pictures: int = 2000
    arrivals: int = 500
    rounds: int = 3
    instances: tuple[int, ...] = (50_000, 500_000)
    """Sizes of an index, ascending."""
    shared: Path | None = None
    """Where stores are kept that several benchmarks of one run use; None: each makes its own."""
    populations: Path | None = None
    """Where such indexes are kept from one run to the next; None: they are made and thrown away."""
    listed: int = 1000
    """Images of a series that is listed."""
    repeats: int = 2000
    cold: int = 100
    """Repetitions of what comes upon an index that is not in memory."""
    opened: int = 120
    """Pictures that are opened one by one, never seen before."""
    exams: int = 8
    """Folders that are copied at once, by a client each."""
    forgets_names: bool = True
    """Whether the kernel is made to forget the names of all its file systems, where it may be told to."""
    walked: int = 100_000
    """Files of a mount that are looked at."""
    crawled: int = 100_000
    """Files of a mount that are read, once each."""
    without: frozenset[str] = frozenset()
    """Peers to be left out, in lower case."""


QUICK = Scale(
    images=16,
    small_images=16,
    frames=8,
    pictures=24,
    arrivals=20,
    rounds=1,
    listed=16,
    instances=(300, 2000),
    repeats=20,
    cold=3,
    opened=6,
    exams=2,
    forgets_names=False,
    walked=500,
    crawled=200,
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: our seconds and a peer's, each measurement of the same work."""

    case: str
    ours: Sequence[float]
    peer: str
    theirs: Sequence[float]
    """Empty when the peer is not on this machine."""
    at_most: float | None = None
    """The goal: a ratio of seconds that is not larger. 0.6 times as fast is a ratio of 1.67."""
    stretch: float | None = None
    """A ratio below the goal, that would be better still."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table without a peer."""

    case: str
    values: Sequence[float]
    unit: str = "s"
    at_most: float | None = None
    """The goal, in that unit, for the median."""


@dataclass(frozen=True, slots=True)
class Result:
    """All that one benchmark has to say."""

    lines: Sequence[Line | Figure]
    commands: Sequence[str]
    """The commands that were timed, as one would type them."""
    notes: Sequence[str] = ()
    failed: bool = False


def in_turn(
    rounds: int, contestants: Mapping[str, Callable[[], object]], before: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round: A B C, C B A, ...; `before` comes before each round.

    What a contestant has left for the disk to write is not the next one's burden.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        before()
        for name, work in list(contestants.items())[:: -1 if number % 2 else 1]:
            seconds[name].append(timed(work))
    return seconds


def percentile(seconds: Sequence[float], percent: int) -> float:
    """The least of these that is not less than so many percent of them; the largest of a few for 99."""
    return sorted(seconds)[-(-len(seconds) * percent // 100) - 1]


def timed(work: Callable[[], object]) -> float:
    """Seconds that it took, after everything written before is on disk."""
    os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ended(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    """Its exit code, as soon as there is one: `Popen.wait` with a time limit looks only every 50 ms.

    Raises TimeoutError.
    """
    descriptor = os.pidfd_open(process.pid)
    try:
        if not select.select([descriptor], [], [], seconds)[0]:
            process.kill()
            raise TimeoutError(f"a program has not ended after {seconds:g} s")
    finally:
        os.close(descriptor)
    return process.wait()


# The table


def machine(scratch: Path) -> Iterator[tuple[str, str]]:
    """What it was measured on, when, and with: what, and the answer."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    disk = f"{_file_system(scratch)} with {shutil.disk_usage(scratch).free / 1e9:.0f} GB free"
    yield (
        "machine",
        f"{os.cpu_count()} x {cpu[1] if cpu else platform.machine()}, {memory:.0f} GiB, {disk}",
    )
    versions = [
        f"dicomfs {__version__}",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
    ]
    versions.append(f"pyfuse3 {pyfuse3.__version__}")
    tools = {"Samba": "smbd", "DCMTK": "dcmj2pnm", "Orthanc": "Orthanc", "bindfs": "bindfs"}
    versions += [f"{name} {version(tool) or 'not here'}" for name, tool in tools.items()]
    yield "versions", "; ".join(versions)
    now = datetime.now(UTC)
    yield "begun", f"{now:%Y-%m-%d %H:%M} UTC, load average {os.getloadavg()[0]:.1f}"


def version(tool: str) -> str:
    """Version of a program as it says itself; empty when it is not here."""
    path = find_tool(tool)
    if path is None:
        return ""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else "?"


def _file_system(path: Path) -> str:
    argv = ["stat", "--file-system", "--format=%T", str(path)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


HEADINGS = ("benchmark", "case", "dicomfs", "against", "peer", "ratio", "goal", "goal is")


def rows(name: str, lines: Sequence[Line | Figure]) -> Iterator[tuple[str, ...]]:
    """Lines of one benchmark as text; the ratio is that of the medians, below 1 when we are faster."""
    for line in lines:
        if isinstance(line, Figure):
            goal = "" if line.at_most is None else f"<= {line.at_most:g} {line.unit}"
            verdict = _verdict(statistics.median(line.values), line.at_most)
            yield name, line.case, _spread(line.values, line.unit), "", "", "", goal, verdict
        elif line.theirs:
            ratio = statistics.median(line.ours) / statistics.median(line.theirs)
            both = _spread(line.ours), line.peer, _spread(line.theirs)
            verdict = _verdict(ratio, line.at_most, line.stretch)
            yield name, line.case, *both, f"{ratio:.2f}", _goal(line), verdict
        else:
            yield name, line.case, _spread(line.ours), f"{line.peer}: not here", "", "", _goal(line), ""


def _goal(line: Line) -> str:
    if line.at_most is None:
        return ""
    return f"<= {line.at_most:.2f}" + (f" (stretch {line.stretch:.2f})" if line.stretch is not None else "")


def _verdict(value: float, at_most: float | None, stretch: float | None = None) -> str:
    if at_most is None:
        return ""
    if value > at_most:
        return "missed"
    return "met, stretch too" if stretch is not None and value <= stretch else "met"


def _spread(values: Sequence[float], unit: str = "s") -> str:
    """Median, and the range when there are several."""
    short = _short if unit == "s" else "{:g}".format
    text = f"{short(statistics.median(values))} {unit}"
    return f"{text} ({short(min(values))}-{short(max(values))})" if len(values) > 1 else text


def _short(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.4f}" if seconds >= 0.001 else f"{seconds:.6f}"


def plain(body: Sequence[tuple[str, ...]]) -> str:
    """Columns under their headings, as wide as need be."""
    lines = [HEADINGS, *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(body: Sequence[tuple[str, ...]]) -> str:
    """The same for a Markdown file."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
