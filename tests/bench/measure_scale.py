"""What grows with the archive: an index of 50 thousand and 500 thousand instances, of 5 million if asked for.

Each operation on each index, with everything in memory (warm) and with the file put out of the kernel's and
of SQLite's memory before each time (cold). The column `peer` is the same operation on the smallest index, so
a ratio of 1 means that it does not grow. Then a mount of the largest: when it answers, and what it holds in
memory after a walk over 100 000 files.
"""

import os
import random
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from pydicom.uid import ExplicitVRLittleEndian

from dicomfs.archive import Archive
from dicomfs.index import INDEX_NAME, Index
from dicomfs.inode import Inode, Kind
from dicomfs.model import Header, Receipt, Recipe
from dicomfs.renditions import RENDITIONS_NAME, Renditions
from dicomfs.tree import Tree
from tests.bench.population import LONG_SERIES, make
from tests.bench.table import MILLIONS, Line, Result, Scale
from tests.support import command_line, require_fuse, stop, unmount

_PAGE: Final = 500
"""As `fuse.py` lists."""
_SERIES_OF: Final = 20
"""Images that come in one after the other for each new series."""

Work = Callable[[], object]


def measure(scale: Scale, scratch: Path) -> Result:
    """Every operation on every index, then a mount of the largest."""
    require_fuse()
    folder = scale.populations or scratch
    taken: dict[str, dict[int, list[float]]] = {}
    notes = []
    for count in scale.instances:
        store = folder / f"{count}"
        if not store.exists():
            make(store, count)
        size = (store / INDEX_NAME).stat().st_size
        notes.append(f"{count:>9,} instances: {size / count:.0f} bytes of index for each")
        for name, seconds in _operations(store, scale):
            taken.setdefault(name, {})[count] = seconds
    smallest, largest = scale.instances[0], scale.instances[-1]
    lines = [
        Line(f"{name}, {largest:,}", by_count[largest], f"{smallest:,}", by_count[smallest])
        for name, by_count in taken.items()
    ]
    for name, by_count in taken.items():
        notes.append(f"{name:32} " + "  ".join(_figures(count, by_count[count]) for count in scale.instances))
        p99 = _p99(by_count[largest]) / _p99(by_count[smallest])
        median = statistics.median(by_count[largest]) / statistics.median(by_count[smallest])
        notes[-1] += f"  ratio {median:.2f}, of p99 {p99:.2f}"
    notes += _mounted(folder / f"{largest}", scratch, scale.walked)
    if MILLIONS not in scale.instances:
        notes.append(f"{MILLIONS:,} instances: only if asked for, with --millions (minutes, 2 GB)")
    return Result(lines, ["python -m tests.bench scale"], notes)


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[max(len(seconds) * 99 // 100 - 1, 0)]


def _figures(count: int, seconds: list[float]) -> str:
    median, p99 = statistics.median(seconds) * 1e6, _p99(seconds) * 1e6
    return f"{count:,}: {median:,.0f} µs (p99 {p99:,.0f})"


# Operations


def _operations(store: Path, scale: Scale) -> Iterator[tuple[str, list[float]]]:
    rng = random.Random(4)
    _read_through(store / INDEX_NAME)
    with _opened(store) as (index, tree):
        last = index.last_sequence()
        paths = [_path(index, tree, rng) for _ in range(scale.repeats)]
        folders = _long_folders(index, rng, max(scale.cold, 50))
        yield "lookup, warm", _warm([partial(_lookup, tree, path) for path in paths])
        yield "page of a long folder, warm", _warm([partial(_page, tree, folder) for folder in folders])
        yield "all patients, warm", _warm([partial(_all, tree)] * 5)
    yield "lookup, cold", _cold(store, scale.cold, lambda _, tree: _lookup(tree, rng.choice(paths)))
    yield (
        "page of a long folder, cold",
        _cold(store, scale.cold, lambda _, tree: _page(tree, rng.choice(folders))),
    )
    yield "all patients, cold", _cold(store, 5, lambda _, tree: _all(tree))
    series = _arriving(last)
    _read_through(store / INDEX_NAME)
    with closing(Index(store / INDEX_NAME, create=True)) as index:
        yield "one more instance, warm", _warm([partial(_take_in, index, series)] * scale.repeats)
    yield (
        "one more instance, cold",
        _cold(store, scale.cold, lambda index, _: _take_in(index, series), create=True),
    )


@contextmanager
def _opened(store: Path, *, create: bool = False) -> Iterator[tuple[Index, Tree]]:
    with (
        closing(Index(store / INDEX_NAME, create=create)) as index,
        closing(Renditions(store / RENDITIONS_NAME, index.store_id)) as renditions,
    ):
        recipes = {"jpg": (Recipe("jpg"), "digest")}
        yield index, Tree(index, Archive(store), renditions, recipes, formats=["jpg"], frames=1000)


def _warm(operations: list[Work]) -> list[float]:
    for work in operations[: len(operations) // 4]:
        work()
    return [_timed(work) for work in operations]


def _cold(
    store: Path, times: int, work: Callable[[Index, Tree], object], *, create: bool = False
) -> list[float]:
    """A new connection each time, which knows the schema and nothing else."""
    seconds = []
    for _ in range(times):
        with _opened(store, create=create) as (index, tree):
            index.last_sequence()
            for path in store.glob("*.sqlite3"):
                _forget(path)
            seconds.append(_timed(lambda: work(index, tree)))
    return seconds


def _timed(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _forget(path: Path) -> None:
    """Put a file out of the kernel's memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_through(path: Path) -> None:
    """Put a file into the kernel's memory."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def _path(index: Index, tree: Tree, rng: random.Random) -> tuple[str, ...]:
    """Names that lead to a random file."""
    while True:
        names = tree.names_of(rng.randint(1, index.last_sequence()))
        above = tree.path(names[0][0]) if names else None
        if above is not None:
            return (*above, names[0][1].name)


def _lookup(tree: Tree, path: tuple[str, ...]) -> Inode:
    inode = tree.root
    for name in path:
        entry = tree.lookup(inode, name)
        if entry is None:
            raise RuntimeError(f"{path} is not found")
        inode = entry.inode
    return inode


def _long_folders(index: Index, rng: random.Random, wanted: int) -> list[Inode]:
    """Exams with at least as many files as a long series; fewer and shorter in a tiny index."""
    found: dict[Inode, None] = {}
    last = index.last_sequence()
    for _ in range(20 * wanted):
        row = index.image(rng.randint(1, last))
        if row is not None and (row.number > LONG_SERIES // 2 or last < 10 * LONG_SERIES):
            found[Inode(Kind.EXAM, row.exam, "jpg")] = None
        if len(found) == wanted:
            break
    return list(found)


def _page(tree: Tree, folder: Inode) -> None:
    page = list(tree.listing(folder, 0, _PAGE))
    if not page:
        raise RuntimeError("an empty folder")


def _all(tree: Tree) -> int:
    cookie, found = 0, 0
    while page := list(tree.listing(tree.root, cookie, _PAGE)):
        cookie, found = page[-1].cookie, found + len(page)
    return found


def _arriving(last: int) -> Iterator[Header]:
    """Images of new exams, series after series. `last`: sequence number, for a number of patients like it."""
    rng = random.Random()
    while True:
        study = f"2.25.{rng.getrandbits(64)}{time.time_ns()}"
        first = Header(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            sop_instance_uid=f"{study}.1.1",
            study_uid=study,
            series_uid=f"{study}.1",
            derived_uids=(),
            patient_id=f"{4_700_000 + rng.randrange(max(last // 500, 1))}",
            issuer="",
            patient_name="Doe^Jane",
            patient_names=("Doe^Jane",),
            sex="F",
            birth_date="19700102",
            study_date="20240229",
            study_time="101500",
            modality="CT",
            series_name="Abdomen",
            series_number=1,
            instance_number=1,
            frames=1,
            rows=512,
            columns=512,
            has_pixels=True,
            pool="",
            acquired=None,
            pixel_offset=1800,
            pixel_length=524_288,
        )
        for number in range(1, _SERIES_OF + 1):
            yield replace(first, sop_instance_uid=f"{study}.1.{number}", instance_number=number)


def _take_in(index: Index, arriving: Iterator[Header]) -> None:
    header = next(arriving)
    with index.write() as writer:
        sequence = writer.next_sequence()
        receipt = Receipt(ExplicitVRLittleEndian, time.time(), "CT1")
        digest = random.randbytes(32)
        writer.known(digest)
        writer.add(header, receipt, sequence, digest, 525_000)


# A mount


def _mounted(store: Path, scratch: Path, files: int) -> Iterator[str]:
    point = scratch / "mount"
    point.mkdir()
    Archive(store).create()
    ready = scratch / "ready"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(ready))
        told.settimeout(60)
        argv = command_line("mount", "--quiet", "--store", store, point, "-o", "warm=off")
        start = time.perf_counter()
        process = subprocess.Popen(argv, env={**os.environ, "NOTIFY_SOCKET": str(ready)})
        try:
            told.recv(100)
            answered = time.perf_counter() - start
            before = _resident(process.pid)
            names = (name for _, _, names in os.walk(point) for name in names)
            start = time.perf_counter()
            walked = sum(1 for _ in islice(names, files))
            took = time.perf_counter() - start
            yield f"mount answers after {answered:.2f} s"
            yield (
                f"walk over {walked:,} files: {took:.1f} s; the mount holds {_resident(process.pid)} MB, "
                f"{before} MB before it"
            )
        finally:
            stop(process)
            unmount(point)


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(match[1]) // 1024 if match else 0
