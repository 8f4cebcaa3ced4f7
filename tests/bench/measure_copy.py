"""A folder of CT images copied by smbclient: from a mount, and from the same pictures as files on ext4.

Two private smbds of the same configuration; only the path differs. Before the cold runs the files are put
out of the kernel's memory, and the mount is a new one, whose memory is empty.
"""

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
        cold = {state: _cold(stage, state, scale.rounds, (ours, theirs)) for state in (KNOWN, UNKNOWN)}
        with stage.mounted(KNOWN):
            ours()
            warm = in_turn(scale.rounds, {"ours": ours, "theirs": theirs}, lambda: None)
    copied = sum(cold[UNKNOWN][1]) / len(cold[UNKNOWN][1])
    made = {peer: [seconds + copied for seconds in taken] for peer, taken in _made(stage, scale, scratch)}
    many = f"{scale.pictures} pictures"
    unknown = f"copy, sizes not known, {many}"
    lines = [
        Line(f"copy again, {many}", warm["ours"], _FILES, warm["theirs"], 1.5, 1.2),
        Line(f"copy, sizes known, {many}", cold[KNOWN][0], _FILES, cold[KNOWN][1], 2.0),
        Line(unknown, cold[UNKNOWN][0], _FILES, cold[UNKNOWN][1]),
        Line(unknown, cold[UNKNOWN][0], _DCMTK, made.get(_DCMTK, [])),
        Line(unknown, cold[UNKNOWN][0], _ORTHANC, made.get(_ORTHANC, [])),
    ]
    commands = [
        f"smbclient --max-protocol=SMB3 -c 'prompt OFF; cd \"{FOLDER}\"; mget *'",
        f"ls *.dcm | xargs -P {CONNECTIONS} -I IMAGE dcmj2pnm +oj +Jq 90 +Wi 1 IMAGE IMAGE.jpg",
        f"GET /instances/IMAGE/rendered?quality=90 of Orthanc, {CONNECTIONS} connections that stay open",
    ]
    return Result(
        lines, commands, ["sizes (not) known: a new mount, nothing in memory, files on disk neither"]
    )


Copies = tuple[partial[None], partial[None]]


def _cold(stage: Stage, state: str, rounds: int, work: Copies) -> tuple[list[float], list[float]]:
    """Seconds of ours and of theirs, a new mount each time; who is first takes turns."""
    ours, theirs = work
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        with stage.mounted(state):
            for which in (0, 1) if number % 2 else (1, 0):
                forget(stage.real)
                taken[which].append(timed((ours, theirs)[which]))
    return taken


def _made(stage: Stage, scale: Scale, scratch: Path) -> list[tuple[str, list[float]]]:
    """Seconds that other programs need to make all the pictures as files, once."""
    images = sorted((stage.images / "long").glob("*.dcm"))
    made = []
    if find_tool("dcmj2pnm") and "dcmtk" not in scale.without:
        (scratch / "dcmtk").mkdir()
        taken = timed(partial(_dcmj2pnm, images, scratch / "dcmtk"))
        made.append((_DCMTK, [taken]))
    with orthanc(scratch / "orthanc", images, scale.without) as url:
        if url:
            work = partial(write_rendered, url, instances(url), scratch / "rendered")
            made.append((_ORTHANC, [timed(work)]))
    return made


def _dcmj2pnm(images: list[Path], target: Path) -> None:
    """As one would in a shell; the names are handed over by a file."""
    names = target / "names"
    names.write_text("".join(f"{path}\n" for path in images), encoding="utf-8")
    one = ["sh", "-c", 'exec dcmj2pnm +oj +Jq 90 +Wi 1 "$1" "$(basename "$1").jpg"', "sh", "IMAGE"]
    run(["xargs", "-a", str(names), "-P", str(CONNECTIONS), "-I", "IMAGE", *one], cwd=target)
