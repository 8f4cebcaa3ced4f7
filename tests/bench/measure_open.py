"""From the double-click to the picture: one picture opened and read over SMB that was never rendered.

Nothing is rendered ahead (`warm=off`), so that each picture is made when it is asked for. Beside it the same
pictures as files, of another smbd, put out of the kernel's memory.
"""

import random
from functools import partial
from pathlib import Path

from tests.bench.images import write_cr, write_ct, write_xa
from tests.bench.person import open_each
from tests.bench.stage import PATIENT, UNKNOWN, Write, forget, shared, staged
from tests.bench.table import Line, Result, Scale, percentile
from tests.support import require

_FILES = "files on disk"
_FRAMES = 96
_CT, _XA, _CR = "CT 512x512", "XA 1024x1024", "CR 3000x2000"
_EXAMS = {_CT: "2024-02-29", _XA: "2024-04-01", _CR: "2024-04-02"}


def measure(scale: Scale, scratch: Path) -> Result:
    """Each picture once, in no order."""
    require("smbd")
    frames = min(_FRAMES, scale.opened)
    runs = 2 if scale.opened >= _FRAMES else 1
    exams: dict[str, Write] = {
        "ct": partial(write_ct, count=scale.opened),
        "xa": partial(write_xa, count=runs, frames=frames, day="20240401"),
        "cr": partial(write_cr, count=max(scale.opened // 4, 2) + 1, day="20240402"),
    }
    stage = staged(scratch, "open", exams)
    pictures = {what: _in_no_order(stage.real, f"{PATIENT}/{day}") for what, day in _EXAMS.items()}
    # What an smbd and this client do for the first time is no business of the file system's.
    first = pictures[_CR].pop()
    lines = []
    with shared(scratch / "v", stage.point) as virtual, shared(scratch / "r", stage.real) as real:
        with stage.mounted(UNKNOWN, "warm=off") as mount:
            open_each(virtual, [first])
            before = mount.jobs()
            ours = {what: open_each(virtual, paths) for what, paths in pictures.items()}
            if mount.jobs() - before < sum(map(len, pictures.values())):
                raise RuntimeError("some pictures were not rendered when they were asked for")
        open_each(real, [first])
        forget(stage.real)
        theirs = {what: open_each(real, paths) for what, paths in pictures.items()}
    for what, paths in pictures.items():
        size = sum((stage.real / path).stat().st_size for path in paths) / len(paths) / 1000
        case = f"open {what}, {len(paths)} of {size:.0f} kB"
        lines.append(Line(f"{case}: median", ours[what], _FILES, theirs[what]))
        p99 = percentile(ours[what], 99), percentile(theirs[what], 99)
        lines.append(Line(f"{case}: p99", [p99[0]], _FILES, [p99[1]]))
    commands = [
        "CREATE, READ to the end, CLOSE over one SMB session (smbprotocol); dicomfs mount -o warm=off"
    ]
    return Result(lines, commands, [f"XA: {runs} x {frames} frames, each frame a picture"])


def _in_no_order(root: Path, folder: str) -> list[str]:
    paths = [f"{folder}/{path.name}" for path in sorted((root / folder).iterdir())]
    random.Random(4).shuffle(paths)
    return paths
