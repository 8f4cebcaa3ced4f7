"""Who is compared: each turns one frame of a file into an 8-bit picture, or says that it cannot (None)."""

import http.client
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pil
from PIL import UnidentifiedImageError

from dicomfs.errors import NotDisplayable
from dicomfs.model import PoolWindow, Recipe, Source
from dicomfs.render import MAX_SAMPLED_FRAMES, decide_pool, render
from tests.quality.images import UNREADABLE, Image, Picture, Pool, evenly, minmax, number
from tests.support import LOCALHOST, connects, find_tool, free_port, require, running

OURS, HEADER, ROUGH = "dicomfs", "header", "min-max"
DCMTK = {"DCMTK +Wi 1": ("+Wi", "1"), "DCMTK +Wm": ("+Wm",), "DCMTK": ()}
"""dcmj2pnm: first header window; minimum to maximum; nothing said."""
FIDELITY = "DCMTK +Wi 1"
ORTHANC = "Orthanc"
NAMES = (OURS, HEADER, ROUGH, *DCMTK, ORTHANC)

LIMIT_S = 20.0
"""Longest that one picture of another program may take."""

_ADDITIONS = ("square", "overlays", "shutters", "subtraction")
_OFF: dict[str, Any] = {one.name: False for one in fields(Recipe) if one.name in _ADDITIONS}
PNG = replace(Recipe("png"), **_OFF)
"""Lossless, every stored pixel, and nothing but these: what can be compared."""
EACH_ITS_OWN = PoolWindow(None, None, "header")

Pictures = Mapping[str, Picture | None]


class Orthanc:
    """A private server: loopback, REST only, nothing of it outside a scratch folder."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._turn = threading.Lock()  # two files may bear one UID: stored and shown in one go

    def picture(self, path: Path, frame: int) -> Picture | None:
        """/instances/…/frames/…/rendered; None when it refuses."""
        with self._turn:
            status, said = self._ask("POST", "/instances", path.read_bytes())
            if status != 200:
                return None
            identifier = json.loads(said)["ID"]
            status, said = self._ask("GET", f"/instances/{identifier}/frames/{frame}/rendered")
        return _grey(said) if status == 200 else None

    def _ask(self, method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(LOCALHOST, self._port, timeout=LIMIT_S)
        try:
            connection.request(method, url, body, {"Accept": "image/png, application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """Run Orthanc until the end of the block."""
    port = free_port()
    folder.mkdir()
    configuration = {
        "Name": "quality",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "DicomServerEnabled": False,
        "HttpPort": port,
        "HttpServerEnabled": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "OverwriteInstances": True,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration), encoding="utf-8")
    argv = [require("Orthanc"), str(path)]
    with running(argv, folder / "log", lambda: connects(port), "Orthanc answers", seconds=60):
        yield Orthanc(port)


class Contestants:
    """All of them, on one pool at a time; other programs run beside each other."""

    def __init__(
        self, scratch: Path, server: Orthanc | None, *, dcmtk: bool = True, threads: int = 2
    ) -> None:
        self._scratch = scratch
        self._orthanc = server
        self._dcmtk = dcmtk and find_tool("dcmj2pnm") is not None
        self._threads = ThreadPoolExecutor(threads)

    def close(self) -> None:
        """Wait for what runs."""
        self._threads.shutdown()

    def window(self, pool: Pool) -> PoolWindow:
        """What dicomfs decides for these images, with the sampling of a mount."""
        paths = {image.path: image for image in pool.images}
        if len(paths) > 1 or number(pool.images[0].ds, "NumberOfFrames") in {None, 1.0}:
            sources = [Source(image.path, image.frame) for image in pool.images]
        else:
            count = int(number(pool.images[0].ds, "NumberOfFrames") or 1)
            sources = [Source(pool.images[0].path, frame) for frame in range(min(count, 10_000))]
        return decide_pool(evenly(sources, MAX_SAMPLED_FRAMES))

    def show(self, pool: Pool, window: PoolWindow) -> list[Pictures]:
        """The pictures of every image of the pool."""
        others = [self._threads.submit(self._theirs, image.path, image.frame) for image in pool.images]
        own = [self._own(image, window) for image in pool.images]
        return [{**mine, **other.result()} for mine, other in zip(own, others, strict=True)]

    def _own(self, image: Image, window: PoolWindow) -> Pictures:
        """Ours, and the two that are computed here: PS3.3's formula, and minimum to maximum.

        Without a header window `header` is minimum to maximum, as in most viewers.
        """
        pictures: dict[str, Picture | None] = {OURS: ours(image.path, image.frame, window)}
        try:
            rough = image.shown(minmax(image.values))
            pictures[ROUGH] = rough
            pictures[HEADER] = image.shown(image.window.apply(image.values)) if image.window else rough
        except UNREADABLE:
            pictures[ROUGH] = pictures[HEADER] = None
        return pictures

    def _theirs(self, path: Path, frame: int) -> Pictures:
        pictures: dict[str, Picture | None] = {}
        for name, options in DCMTK.items():
            pictures[name] = self.dcmtk(path, frame, options)
        pictures[ORTHANC] = self._orthanc.picture(path, frame) if self._orthanc else None
        return pictures

    def dcmtk(self, path: Path, frame: int, options: Sequence[str]) -> Picture | None:
        """dcmj2pnm without overlays; None when it fails."""
        if not self._dcmtk:
            return None
        argv = ["dcmj2pnm", "-O", "+op", "+F", str(frame + 1), *options, str(path)]
        try:
            done = subprocess.run(argv, capture_output=True, check=False, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            return None
        return _grey(done.stdout) if done.returncode == 0 else None


def ours(path: Path, frame: int, window: PoolWindow | None) -> Picture | None:
    """dicomfs, lossless; None when it cannot."""
    try:
        return _grey(render(Source(path, frame), PNG, window))
    except NotDisplayable:
        return None


def _grey(file: bytes) -> Picture | None:
    try:
        with Pil.open(BytesIO(file)) as picture:
            return np.asarray(picture.convert("L"))
    except (UnidentifiedImageError, OSError, ValueError):
        return None
