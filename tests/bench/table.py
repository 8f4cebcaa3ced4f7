"""What a benchmark gives back, how contestants take turns, and the table that is printed."""

import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicomfs import __version__
from tests.support import find_tool


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
    instances: tuple[int, ...] = (50_000, 500_000, 5_000_000)
    """Sizes of an index, ascending."""
    populations: Path | None = None
    """Where such indexes are kept from one run to the next; None: they are made and thrown away."""
    listed: int = 1000
    """Images of a series that is listed."""
    repeats: int = 2000
    cold: int = 100
    """Repetitions of what comes upon an index that is not in memory."""
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


@dataclass(frozen=True, slots=True)
class Result:
    """All that one benchmark has to say."""

    lines: Sequence[Line]
    commands: Sequence[str]
    """The commands that were timed, as one would type them."""
    notes: Sequence[str] = ()


def in_turn(
    rounds: int, contestants: Mapping[str, Callable[[], object]], before: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round: A B C, A B C, ...; `before` comes before each round.

    What a contestant has left for the disk to write is not the next one's burden.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        before()
        for name, work in contestants.items():
            seconds[name].append(timed(work))
    return seconds


def timed(work: Callable[[], object]) -> float:
    """Seconds that it took, after everything written before is on disk."""
    os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# The table


def machine(scratch: Path) -> Iterator[str]:
    """What it was measured on, and with."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield (
        f"machine   {os.cpu_count()} x {cpu[1] if cpu else platform.machine()}, {memory:.0f} GiB; "
        f"Linux {platform.release()}; {_file_system(scratch)}, "
        f"{shutil.disk_usage(scratch).free / 1e9:.0f} GB free"
    )
    versions = [f"dicomfs {__version__}", f"Python {platform.python_version()}"]
    for name, tool in (("DCMTK", "storescu"), ("Orthanc", "Orthanc"), ("Samba", "smbd")):
        versions.append(f"{name} {version(tool) or 'not here'}")
    yield f"versions  {'; '.join(versions)}"


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


_HEADINGS = ("benchmark", "case", "dicomfs s", "against", "peer s", "ratio")


def rows(name: str, lines: Sequence[Line]) -> Iterator[tuple[str, ...]]:
    """Lines of one benchmark as text; the ratio is that of the medians, below 1 when we are faster."""
    for line in lines:
        ours = statistics.median(line.ours)
        if line.theirs:
            theirs = statistics.median(line.theirs)
            yield name, line.case, _spread(line.ours), line.peer, _spread(line.theirs), f"{ours / theirs:.2f}"
        else:
            yield name, line.case, _spread(line.ours), f"{line.peer}: not here", "", ""


def _spread(seconds: Sequence[float]) -> str:
    """Median, and the range when there are several."""
    text = _short(statistics.median(seconds))
    return f"{text} ({_short(min(seconds))}-{_short(max(seconds))})" if len(seconds) > 1 else text


def _short(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 0.01 else f"{seconds:.6f}"


def table(body: Sequence[tuple[str, ...]]) -> str:
    """Columns under their headings, as wide as need be."""
    lines = [_HEADINGS, *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
