"""Listing a folder of pictures that nobody has ever looked at: on this machine, and over SMB.

On the side of the files on disk as on ours the kernel has forgotten names and sizes before the first listing
(as root), and the mount is a new one. While sizes are not known, somebody else browses another folder.
"""

import re
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.bench.person import LIST, LIST_HERE, LOOK_UP, OPEN, Habits, browsing
from tests.bench.stage import BESIDE, FOLDER, KNOWN, UNKNOWN, Stage, ct_folder, forget, shared
from tests.bench.table import Figure, Line, Result, Scale, in_turn, percentile, timed
from tests.smb import client
from tests.support import require, smbclient

_FILES = "files on disk"
_SEEN = "beside-known"
"""The state in which the folder beside was looked at and the long one was not."""
_FIRST_REPLY_S = 0.5
_OTHERS_P99_S = 0.1


def measure(scale: Scale, scratch: Path) -> Result:
    """Names; names and sizes that are known; sizes that are not."""
    require("smbd")
    require("smbclient")
    stage = ct_folder(scale, scratch)
    many = f"{scale.pictures} pictures"
    lines: list[Line | Figure] = []
    with shared(scratch / "v", stage.point) as virtual, shared(scratch / "r", stage.real) as real:
        names = partial(_ls, stage, scale.pictures, "-f")
        long = partial(_ls, stage, scale.pictures, "-l")
        smb = {
            "ours": partial(_smbclient_ls, virtual, scale.pictures),
            "theirs": partial(_smbclient_ls, real, scale.pictures),
        }
        with stage.mounted(UNKNOWN, "warm=off") as mount:
            before = mount.jobs()
            for _ in range(scale.rounds):
                names(stage.point)
            lines.append(Figure(f"ls, sizes not known, {many}: renders", [mount.jobs() - before], "", 0))
            for path in (stage.point / BESIDE).iterdir():
                path.stat()
        stage.keep(_SEEN)
        local = {
            "ours": lambda: long(stage.point),
            "theirs": lambda: long(stage.real),
        }
        bare = {"ours": lambda: names(stage.point), "theirs": lambda: names(stage.real)}
        for case, work, goal in (
            (f"ls, sizes known, {many}", bare, None),
            (f"ls -l, sizes known, {many}", local, 2.0),
            (f"smbclient ls, sizes known, {many}", smb, 1.3),
        ):
            first, again = _listed(stage, scale, work)
            lines.append(Line(f"{case}, first", first["ours"], _FILES, first["theirs"], goal))
            lines.append(Line(f"{case}, again", again["ours"], _FILES, again["theirs"], goal))
        lines += _unknown(stage, virtual, scale)
    commands = [
        f"ls -f '{FOLDER}'  and  ls -l '{FOLDER}'",
        f"smbclient --max-protocol=SMB3 -c 'cd \"{FOLDER}\"; ls'",
        "QUERY_DIRECTORY of FileIdBothDirectoryInformation, 64 KiB a reply (smbprotocol)",
    ]
    notes = [
        "first: a new mount, and the kernel has forgotten names (drop_caches; not as an ordinary user)",
        "sizes not known: somebody else lists another folder and opens its pictures, 20 ms between two",
    ]
    return Result(lines, commands, notes)


Work = Mapping[str, Callable[[], None]]
Seconds = dict[str, list[float]]


def _listed(stage: Stage, scale: Scale, work: Work) -> tuple[Seconds, Seconds]:
    """A new mount for each round of first ones; of it, the last one is listed again and again."""
    first: Seconds = {name: [] for name in work}
    again: Seconds = {name: [] for name in work}
    for number in range(scale.rounds):
        with stage.mounted(KNOWN):
            for name in list(work)[:: -1 if number % 2 else 1]:
                forget(stage.real, names=scale.forgets_names)
                first[name].append(timed(work[name]))
            for name, seconds in in_turn(2, work, lambda: None).items():
                again[name] += seconds
    return first, again


def _ls(stage: Stage, wanted: int, option: str, root: Path) -> None:
    argv = ["ls", option, str(root / FOLDER)]
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600, env=environment)
    _check(len(re.findall(r"\.jpg$", said.stdout, re.MULTILINE)), wanted)


def _smbclient_ls(port: int, wanted: int) -> None:
    _check(smbclient(port, f'cd "{FOLDER}"; ls', seconds=600).stdout.count(".jpg "), wanted)


def _check(found: int, wanted: int) -> None:
    if found != wanted:
        raise RuntimeError(f"{found} of {wanted} were listed")


_STEPS = (OPEN, LIST, LOOK_UP, LIST_HERE)


def _unknown(stage: Stage, port: int, scale: Scale) -> list[Figure]:
    """Over SMB while every size has to be found out, and what somebody else notices of it."""
    beside = [f"{BESIDE}/{path.name}" for path in sorted((stage.real / BESIDE).iterdir())]
    habits = Habits(beside, 0.02, port, again=True, listed=BESIDE, point=str(stage.point))
    seconds: dict[str, list[float]] = {step: [] for step in _STEPS}
    reply, whole = [], []
    for _ in range(scale.rounds):
        with stage.mounted(_SEEN):
            for name in beside:  # what somebody looks at is in memory
                (stage.point / name).read_bytes()
            with browsing(habits) as person:
                first, all_of_it = _paged(port, scale.pictures)
        reply.append(first)
        whole.append(all_of_it)
        for step in _STEPS:
            seconds[step] += person.of(step)
    case = "SMB listing, sizes not known"
    return [
        Figure(f"{case}: first reply", reply, at_most=_FIRST_REPLY_S),
        Figure(f"{case}: all {scale.pictures} pictures", whole),
        *(
            Figure(
                f"{step} in another folder meanwhile: p99",
                [percentile(seconds[step], 99)],
                at_most=_OTHERS_P99_S,
            )
            for step in _STEPS
        ),
    ]


def _paged(port: int, wanted: int) -> tuple[float, float]:
    """Seconds to the first reply and to the last of a listing."""
    with client(port, "dicomfs") as smb:
        start = time.perf_counter()
        found, first = 0, 0.0
        for page in smb.pages(FOLDER):
            first = first or time.perf_counter() - start
            found += sum(name.endswith(".jpg") for name in page)
        whole = time.perf_counter() - start
    _check(found, wanted)
    return first, whole
