"""A crawler reads everything, beside somebody who uses some pictures again and again: memory, hits, latency.

The crawler is `find … | xargs cat`, four at once. Its files are small frames of large objects, so that there
can be a hundred thousand within minutes; the cache has room for a fiftieth of them. The person opens a
picture of his every 50 ms and reads it, not from the kernel's memory. The column `peer` is the same person
without a crawler.
"""

import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np

from dicomfs.mountfile import REPORT_S, mounts
from dicomfs.twoqueue import SECOND_USE_S
from tests.bench.table import QUICK, Line, Result, Scale
from tests.made import data_set, save
from tests.support import Running, command_line, mounted, require_fuse, running

_FRAMES: Final = 1000
_SIDE: Final = 48
"""Pixels; a picture takes some 2 kB in the cache."""
_PICTURE_BYTES: Final = 2048
_PART: Final = 50
"""The cache has room for so manieth a part of what is crawled."""
_SMALLEST_CACHE: Final = 1 << 20
_AT_ONCE, _READERS = 100, 4
"""Files of one `cat`, and how many of these run."""
_EVERY_S: Final = 0.05
_ALONE: Final = 5
"""How often the person uses his pictures before the crawler comes."""
_OPTIONS: Final = "warm=off,live=off"


def measure(scale: Scale, scratch: Path) -> Result:
    """Crawl, and look at both."""
    require_fuse()
    store, point = scratch / "store", scratch / "mount"
    point.mkdir()
    used = _make(scratch, store, scale.crawled)
    cache = max(scale.crawled * _PICTURE_BYTES // _PART, _SMALLEST_CACHE)
    options = f"{_OPTIONS},cache={cache}"
    crawl = f"find 'Crawled All' -type f -print0 | xargs -0 -n {_AT_ONCE} -P {_READERS} cat"
    with _mount(store, point, options, scratch) as program:
        person = sorted((point / "Person Busy").rglob("*.jpg"))
        for _ in range(2):
            for path in person:
                _open_and_read(path)
            time.sleep(_pause_s(scale))  # what is used twice within this time is used once (twoqueue.py)
        alone = [_open_and_read(path) for path in person * _ALONE]
        with subprocess.Popen(["sh", "-c", crawl], stdout=subprocess.DEVNULL, cwd=point) as crawler:
            beside, memory = _watch(crawler, program, store, person)
        time.sleep(2 * REPORT_S)
        # Each file was rendered once, the person's before the crawler came; the rest is what was not kept.
        renders = _renders(store) - scale.crawled - used
    pace = scale.crawled / memory[-1][0]
    hits = 100 * (1 - renders / len(beside))
    held = [f"{mount:.0f} + {workers:.0f} after {count:,}" for count, mount, workers in _some(memory)]
    notes = [
        f"{scale.crawled:,} files crawled at {pace:,.0f}/s, the cache has room for {cache / 1e6:.1f} MB",
        f"beside it {len(beside):,} opens of {used} pictures, {hits:.1f} % of them found in memory",
        f"MB of memory, mount + render processes: {', '.join(held)}",
    ]
    case = f"open + read beside a crawler, {used} pictures"
    lines = [
        Line(f"{case}, median", beside, "without", alone),
        Line(f"{case}, p99", [_p99(beside)], "without", [_p99(alone)]),
    ]
    commands = [f"dicomfs mount -o {options}", crawl]
    return Result(lines, commands, notes)


def _make(scratch: Path, store: Path, crawled: int) -> int:
    """What is crawled, and a person's pictures; how many those are."""
    rng = np.random.default_rng(20240229)
    used = max(min(100, crawled // 50), 1)
    parts = [("Crawled^All", min(_FRAMES, crawled - done)) for done in range(0, crawled, _FRAMES)]
    images = scratch / "images"
    images.mkdir()
    for number, (name, frames) in enumerate([*parts, ("Person^Busy", used)]):
        pixels = rng.normal(600, 120, (frames, _SIDE, _SIDE)).clip(0, 4095).astype(np.uint16)
        study = f"2.25.{len(name)}"
        ds = data_set(
            pixels=pixels,
            PatientName=name,
            PatientID=name,
            StudyInstanceUID=study,
            SeriesInstanceUID=f"{study}.1",
            SOPInstanceUID=f"{study}.1.{number}",
            InstanceNumber=number,
        )
        save(images / f"{number}.dcm", ds)
    argv = command_line("import", "--quiet", "--store", store, images)
    subprocess.run(argv, check=True, capture_output=True, timeout=600)
    return used


@contextmanager
def _mount(store: Path, point: Path, options: str, scratch: Path) -> Iterator[Running]:
    argv = command_line("mount", "--quiet", "--store", store, point, "-o", options)
    ready = lambda: mounted(point) and mounts(store)  # noqa: E731  a def would say no more
    with running(argv, scratch / "mount.log", ready, "the mount answers", mountpoint=point) as it:
        yield it


def _pause_s(scale: Scale) -> float:
    return SECOND_USE_S if scale.crawled > QUICK.crawled else 0.0


def _open_and_read(path: Path) -> float:
    """Seconds."""
    start = time.perf_counter()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not file.read():
            raise RuntimeError(f"{path} is empty")
    return time.perf_counter() - start


def _watch(
    crawler: "subprocess.Popen[bytes]", program: Running, store: Path, person: Sequence[Path]
) -> tuple[list[float], list[tuple[float, int, float, float]]]:
    """Seconds of the person's opens, and memory as it went: seconds, renders, MB of the mount, of workers."""
    taken, memory, began, due = [], [], time.monotonic(), 0.0
    for path in itertools.cycle(person):
        now = time.monotonic()
        if now >= due or crawler.poll() is not None:
            memory.append((now - began, _renders(store), *_memory_mb(program.process.pid)))
            due = now + 1
        if crawler.poll() is not None:
            break
        taken.append(_open_and_read(path))
        time.sleep(_EVERY_S)  # the person's pace: nothing is waited for
    if crawler.returncode:
        raise RuntimeError(f"the crawler ended with {crawler.returncode}")
    return taken, memory


def _some(memory: Sequence[tuple[float, int, float, float]]) -> Iterator[tuple[int, float, float]]:
    """A few of them, evenly spread."""
    places = sorted({place * (len(memory) - 1) // 5 for place in range(6)})
    yield from (memory[place][1:] for place in places)


def _memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process, and of its children together."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return _resident_mb(pid), sum(_resident_mb(int(child)) for child in children)


def _resident_mb(pid: int) -> float:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just been replaced
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        if found := re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE):
            return int(found[1]) / 1024
    return 0.0


def _renders(store: Path) -> int:
    (one,) = mounts(store)
    return one.figures.rendered.count + one.figures.ahead.count


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[max(len(seconds) * 99 // 100 - 1, 0)]
