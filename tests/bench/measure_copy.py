"""A folder of CT images copied by smbclient: from a mount, and from the same pictures as files on ext4.

Two private smbds of the same configuration; only the path differs. Before the cold runs the files are put
out of the kernel's memory, and the mount is a new one, whose memory is empty.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from tests.bench.orthanc import CONNECTIONS, instances, orthanc, write_rendered
from tests.bench.stage import FOLDER, KNOWN, UNKNOWN, Stage, copy, ct_folder, forget, run, shared
from tests.bench.table import Line, Result, Scale, in_turn, timed
from tests.support import find_tool, require

_FILES = "files on disk"
_DCMTK = f"dcmj2pnm, {CONNECTIONS} at a time, then copied"
_ORTHANC = f"Orthanc /rendered, {CONNECTIONS} connections, then copied"


def measure(scale: Scale, scratch: Path) -> Result:
    """Never seen before, never seen with sizes known, and again; beside making all pictures first."""
    require("smbd")
    require("smbclient")
    stage = ct_folder(scale, scratch)
    with shared(scratch / "v", stage.point) as virtual, shared(scratch / "r", stage.real) as real:
        ours = partial(copy, virtual, scratch / "ours", scale.pictures)
        theirs = partial(copy, real, scratch / "theirs", scale.pictures)
        theirs()
        work = {"ours": ours, "theirs": theirs}
        unknown, _ = _copied(stage, UNKNOWN, scale.rounds, work, again=0)
        known, warm = _copied(stage, KNOWN, scale.rounds, work, again=2)
    copied = statistics.median(unknown["theirs"])
    made = {peer: [seconds + copied] for peer, seconds in _made(stage, scale, scratch)}
    many = f"{scale.pictures} pictures"
    case = f"copy, sizes not known, {many}"
    lines = [
        Line(f"copy again, {many}", warm["ours"], _FILES, warm["theirs"], 1.5, 1.2),
        Line(f"copy, sizes known, {many}", known["ours"], _FILES, known["theirs"], 2.0),
        Line(case, unknown["ours"], _FILES, unknown["theirs"]),
        Line(case, unknown["ours"], _DCMTK, made.get(_DCMTK, [])),
        Line(case, unknown["ours"], _ORTHANC, made.get(_ORTHANC, [])),
    ]
    commands = [
        f"smbclient --max-protocol=SMB3 -c 'prompt OFF; cd \"{FOLDER}\"; mget *'",
        f"ls *.dcm | xargs -P {CONNECTIONS} -I IMAGE dcmj2pnm +oj +Jq 90 +Wi 1 IMAGE IMAGE.jpg",
        f"GET /instances/IMAGE/rendered?quality=90 of Orthanc, {CONNECTIONS} connections that stay open",
    ]
    notes = ["sizes known or not: a new mount with nothing in memory; nor are the files on disk in it"]
    return Result(lines, commands, notes)


Seconds = dict[str, list[float]]


def _copied(
    stage: Stage, state: str, rounds: int, work: Mapping[str, Callable[[], None]], *, again: int
) -> tuple[Seconds, Seconds]:
    """Cold, a new mount each time, and of each mount so many times again."""
    cold: Seconds = {name: [] for name in work}
    warm: Seconds = {name: [] for name in work}

    def from_disk() -> None:
        # While no mount is there: it would render ahead meanwhile.
        forget(stage.real)
        cold["theirs"].append(timed(work["theirs"]))

    for number in range(rounds):
        if number % 2:
            from_disk()
        with stage.mounted(state):
            cold["ours"].append(timed(work["ours"]))
            for name, seconds in in_turn(again, work, lambda: None).items():
                warm[name] += seconds
        if not number % 2:
            from_disk()
    return cold, warm


def _made(stage: Stage, scale: Scale, scratch: Path) -> Iterator[tuple[str, float]]:
    """Seconds that other programs need to make all the pictures as files, once."""
    images = sorted((stage.images / "long").glob("*.dcm"))
    if find_tool("dcmj2pnm") and "dcmtk" not in scale.without:
        (scratch / "dcmtk").mkdir()
        yield _DCMTK, timed(partial(_dcmj2pnm, images, scratch / "dcmtk"))
    with orthanc(scratch / "orthanc", images, scale.without) as url:
        if url:
            yield _ORTHANC, timed(partial(write_rendered, url, instances(url), scratch / "rendered"))


def _dcmj2pnm(images: list[Path], target: Path) -> None:
    """As one would in a shell; the names are handed over by a file."""
    names = target / "names"
    names.write_text("".join(f"{path}\n" for path in images), encoding="utf-8")
    one = ["sh", "-c", 'exec dcmj2pnm +oj +Jq 90 +Wi 1 "$1" "$(basename "$1").jpg"', "sh", "IMAGE"]
    run(["xargs", "-a", str(names), "-P", str(CONNECTIONS), "-I", "IMAGE", *one], cwd=target)
