"""From the double-click to the picture: one picture opened and read over SMB that was never rendered.

Nothing is rendered ahead (`warm=off`), so that each picture is made when it is asked for. Beside it the same
pictures as files, of another smbd, put out of the kernel's memory.
"""

import random
from functools import partial
from pathlib import Path

from tests.bench.images import write_cr, write_ct, write_xa
from tests.bench.person import open_each
from tests.bench.stage import PATIENT, UNKNOWN, Stage, Write, forget, shared, staged
from tests.bench.table import Line, Result, Scale, percentile
from tests.support import require

_FILES = "files on disk"
_FRAMES = 96
_EXAMS = {
    "CT 512x512": "2024-02-29",
    f"XA 1024x1024, of {_FRAMES} frames": "2024-04-01",
    "CR 3000x2000": "2024-04-02",
}


def measure(scale: Scale, scratch: Path) -> Result:
    """Each picture once, in no order."""
    require("smbd")
    frames = min(_FRAMES, scale.opened)
    exams: dict[str, Write] = {
        "ct": partial(write_ct, count=scale.opened),
        "xa": partial(write_xa, count=2 if scale.opened >= _FRAMES else 1, frames=frames, day="20240401"),
        "cr": partial(write_cr, count=max(scale.opened // 4, 2), day="20240402"),
    }
    stage = staged(scratch, "open", exams)
    lines = []
    with shared(scratch / "v", stage.point) as virtual, shared(scratch / "r", stage.real) as real:
        for what, day in _EXAMS.items():
            ours, theirs = _opened(stage, day, (virtual, real), scale)
            size = sum(p.stat().st_size for p in (stage.real / PATIENT / day).iterdir()) / 1e3 / len(ours)
            case = f"open {what}, {len(ours)} of {size:.0f} kB"
            lines.append(Line(f"{case}: median", ours, _FILES, theirs))
            lines.append(Line(f"{case}: p99", [percentile(ours, 99)], _FILES, [percentile(theirs, 99)]))
    commands = [
        "CREATE, READ to the end, CLOSE over one SMB session (smbprotocol); dicomfs mount -o warm=off"
    ]
    return Result(lines, commands)


def _opened(stage: Stage, day: str, ports: tuple[int, int], scale: Scale) -> tuple[list[float], list[float]]:
    folder = f"{PATIENT}/{day}"
    paths = [f"{folder}/{path.name}" for path in sorted((stage.real / folder).iterdir())]
    random.Random(4).shuffle(paths)
    virtual, real = ports
    with stage.mounted(UNKNOWN, "warm=off") as mount:
        # What an smbd and this client do for the first time is no business of the file system's.
        other = next(day_ for day_ in _EXAMS.values() if day_ != day)
        first = next(iter((stage.real / PATIENT / other).iterdir())).name
        for port in ports:
            open_each(port, [f"{PATIENT}/{other}/{first}"])
        before = mount.jobs()
        ours = open_each(virtual, paths)
        if mount.jobs() - before < len(paths):
            raise RuntimeError("some pictures were not rendered when they were asked for")
    forget(stage.real)
    return ours, open_each(real, paths)
