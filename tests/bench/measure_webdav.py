"""One series of a thousand images, listed with names, sizes, times: our mount, our share, Orthanc's WebDAV.

The stored files (`formats=dcm`) on our side, as Orthanc lists the stored files, too.
"""

import os
import re
import subprocess
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

from dicomfs import samba
from tests.bench.images import write_mr
from tests.bench.orthanc import orthanc
from tests.bench.table import Line, Result, Scale, in_turn
from tests.support import (
    command_line,
    connects,
    free_port,
    mounted,
    require,
    require_fuse,
    running,
    smbclient,
)

_EXAM = "Measured Often/2024-02-29"
_HREF = re.compile(r"<(?:\w+:)?href>([^<]+)</", re.IGNORECASE)
_PEER = "Orthanc, WebDAV PROPFIND"


def measure(scale: Scale, scratch: Path) -> Result:
    """The first listing after a start, and the ones after it."""
    require_fuse()
    require("smbd")
    images = write_mr(scratch / "images", scale.listed)
    store, point = scratch / "store", scratch / "mount"
    point.mkdir()
    argv = command_line("import", "--quiet", "--store", store, scratch / "images")
    subprocess.run(argv, capture_output=True, check=True, timeout=600)
    mount = command_line("mount", "--quiet", "--store", store, point, "-o", "formats=dcm")
    smbd = samba.prepare(scratch / "smbd", point, free_port())
    with (
        orthanc(scratch / "orthanc", images.paths, without=scale.without) as url,
        running(mount, scratch / "log", lambda: mounted(point), "the mount", mountpoint=point),
        running(smbd.argv, scratch / "said", lambda: connects(smbd.port), "smbd answers", env=smbd.env),
    ):
        work = {
            "FUSE": lambda: _check(_scan(point / _EXAM), scale.listed),
            "SMB": lambda: _check(
                smbclient(smbd.port, f'cd "{_EXAM}"; ls').stdout.count(".dcm "), scale.listed
            ),
        }
        if url:
            series = _series_url(f"{url}/webdav/by-uids/")
            work["WebDAV"] = lambda: _check(_propfind(series).count(".dcm"), scale.listed)
        first = in_turn(1, work, lambda: None)
        taken = in_turn(2 * scale.rounds, work, lambda: None)
    lines = [
        Line(f"{door}, {case}, {scale.listed} images", seconds[door], _PEER, seconds.get("WebDAV", []))
        for case, seconds in (("first", first), ("again", taken))
        for door in ("FUSE", "SMB")
    ]
    commands = ["os.scandir and os.stat of each", f"smbclient -c 'cd \"{_EXAM}\"; ls'", "PROPFIND, Depth: 1"]
    return Result(lines, commands)


def _check(found: int, wanted: int) -> None:
    if found < wanted:
        raise RuntimeError(f"{found} of {wanted} were listed")


def _scan(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size > 0 for entry in entries)


def _propfind(url: str) -> str:
    request = urllib.request.Request(url, method="PROPFIND", headers={"Depth": "1"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return str(answer.read().decode())


def _series_url(url: str) -> str:
    """The folder that holds the files, down the first way of each."""
    for _ in range(8):
        said = _propfind(url)
        if ".dcm" in said:
            return url
        below = [urljoin(url, href) for href in _HREF.findall(said)]
        deeper = [one for one in below if len(one.rstrip("/")) > len(url.rstrip("/")) and ".json" not in one]
        if not deeper:
            break
        url = deeper[0].rstrip("/") + "/"
    raise RuntimeError(f"no series below {url}")
