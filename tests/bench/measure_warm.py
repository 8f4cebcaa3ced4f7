"""How long a picture takes that was never rendered, while a mount renders ahead and while it is still.

The same pictures of as many exams, opened one after the other in two mounts: one that warms another exam
meanwhile, and one that renders nothing ahead (`warm=off`). With as many render processes as there are
processors, of which one is never given background work, and with one alone.
"""

import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from dicomfs.renditions import RENDITIONS_NAME
from tests.bench.images import write_ct
from tests.bench.table import Line, Result, Scale
from tests.support import command_line, mounted, require_fuse, running

_PATIENT = "Measured Often"
_OPENED = 60
_STILL = "the same mount, warm=off"


def measure(scale: Scale, scratch: Path) -> Result:
    """Opening and reading: while something else is rendered ahead, and while nothing is."""
    require_fuse()
    store, point = scratch / "store", scratch / "mount"
    point.mkdir()
    # Received first, and so warmed last; an exam each, so that none of them announces another.
    for number in range(min(_OPENED, scale.pictures)):
        write_ct(scratch / "images" / "opened" / str(number), 1)
    write_ct(scratch / "images" / "warmed", scale.pictures)
    for exam in ("opened", "warmed"):
        argv = command_line("import", "--quiet", "--store", store, scratch / "images" / exam)
        subprocess.run(argv, check=True, capture_output=True, timeout=600)
    shutil.rmtree(scratch / "images")
    lines, notes = [], []
    for case, options in (("one process each", ""), ("one process", ",workers=1")):
        busy, still = (
            list(_opened(store, point, f"warm={warm}{options}", scratch / f"log {case} {warm}"))
            for warm in ("on", "off")
        )
        lines.append(Line(f"cold picture while warming, {case}", busy, _STILL, still))
        notes.append(
            f"{case}: worst {max(busy) * 1000:.0f} ms while warming, {max(still) * 1000:.0f} ms still"
        )
    median = statistics.median(lines[0].theirs)
    return Result(
        lines, ["open and read of one .jpg after the other"], [*notes, f"still: {1 / median:.0f} a second"]
    )


def _opened(store: Path, point: Path, options: str, log: Path) -> Iterator[float]:
    """Seconds for each picture of a new mount that knows no size."""
    for path in store.glob(f"{RENDITIONS_NAME}*"):
        path.unlink()
    argv = command_line("mount", "--quiet", "--store", store, point, "-o", options)
    ready = lambda: mounted(point)  # noqa: E731  a def would say no more
    with running(argv, log, ready, "the mount answers", mountpoint=point):
        for exam in sorted((point / _PATIENT).iterdir()):
            path, *more = exam.iterdir()
            if more:
                continue
            begun = time.perf_counter()
            path.read_bytes()
            yield time.perf_counter() - begun
