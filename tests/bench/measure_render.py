"""Cold renders: pictures that nobody has asked for before, from originals that the kernel has in memory.

Both cores, through `Workers` as a mount uses them, against Orthanc's `/rendered`, against DCMTK's dcmj2pnm,
a process for each file, and against the floor: values looked up in a ready table and Pillow's JPEG encoder,
and nothing else, in as many processes. The notes have single images, and where their time goes.
"""

import json
import multiprocessing
import os
import random
import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from dicomfs import frames as frames_of
from dicomfs import render as rendering
from dicomfs.config import MountOptions
from dicomfs.encode import encode
from dicomfs.grey import Chain, render_grey
from dicomfs.model import PoolWindow, Recipe, Source
from dicomfs.pixels import open_image
from dicomfs.tree import Inode, Tree
from dicomfs.view import open_view
from dicomfs.workers import Workers
from tests.bench.images import write_ct
from tests.bench.table import Line, Result, Scale, in_turn
from tests.support import LOCALHOST, command_line, connects, find_tool, free_port, require, running

PROCESSES: Final = os.cpu_count() or 1
"""Of each contestant."""
_WAITING: Final = 4 * PROCESSES
"""So many pictures are asked for at any moment."""
_WINDOW: Final = 40, 400
"""Centre and width in the headers of `images.write_ct`."""
_RECIPE: Final = Recipe("jpg")
_RUN_FRAME: Final = 37


def measure(scale: Scale, scratch: Path) -> Result:
    """Many images, then single ones of three kinds."""
    paths = write_ct(scratch / "ct", scale.images).paths
    contestants: dict[str, Callable[[], object]] = {}
    with _ours(scratch / "ct", scratch / "store") as ours, _floor(paths) as floor:
        contestants = {"dicomfs": ours, "floor": floor}
        if find_tool("dcmj2pnm"):
            contestants["dcmj2pnm"] = lambda: _dcmj2pnm(paths, scratch / "pnm")
        if "orthanc" not in scale.without and find_tool("Orthanc"):
            with _orthanc(paths, scratch / "orthanc") as orthanc:
                contestants["Orthanc"] = orthanc
                taken = _rounds(scale.rounds, contestants)
        else:
            taken = _rounds(scale.rounds, contestants)
    case = f"{len(paths)} CT to JPEG, {PROCESSES} processes"
    peers = {"Orthanc": "Orthanc /rendered", "dcmj2pnm": "dcmj2pnm", "floor": "take + encode alone"}
    lines = [Line(case, taken["dicomfs"], what, taken.get(peer, [])) for peer, what in peers.items()]
    commands = [
        "Workers.render through a store's index",
        f"curl -H 'Accept: image/jpeg' …/instances/ID/rendered, {PROCESSES} connections kept open",
        f"xargs -P {PROCESSES} -n 2 dcmj2pnm {' '.join(_PNM_OPTIONS)}",
    ]
    rate = len(paths) / statistics.median(taken["dicomfs"])
    notes = [f"{rate:.0f} pictures a second", *_single(scale, scratch)]
    return Result(lines, commands, notes)


def _rounds(rounds: int, contestants: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    # The first round of each finds the programs and the images in memory for all that follow.
    in_turn(1, contestants, lambda: None)
    return in_turn(rounds, contestants, lambda: None)


# dicomfs


@contextmanager
def _ours(images: Path, store: Path) -> Iterator[Callable[[], None]]:
    """Renders every image of a folder once, when it is called."""
    argv = command_line("import", "--quiet", "--store", store, images)
    subprocess.run(argv, check=True, capture_output=True, timeout=600)
    started, stop = threading.Event(), trio.Event()
    tools: list[tuple[trio.lowlevel.TrioToken, Workers, list[Source]]] = []

    async def serve() -> None:
        options = MountOptions(warm=False, live=False, workers=1)
        workers = Workers(PROCESSES, options.memory, options.time_limit)
        async with open_view(store, options) as presenter, trio.open_nursery() as nursery:
            await nursery.start(workers.run)
            sources = list(_sources(presenter.tree, presenter.tree.root))
            tools.append((trio.lowlevel.current_trio_token(), workers, sources))
            started.set()
            await stop.wait()
            nursery.cancel_scope.cancel()

    loop = threading.Thread(target=trio.run, args=(serve,))
    loop.start()
    if not started.wait(60):
        raise RuntimeError("render processes do not start")
    token, workers, sources = tools[0]
    try:
        yield lambda: trio.from_thread.run(_render_all, workers, sources, trio_token=token)
    finally:
        token.run_sync_soon(stop.set)
        loop.join()


def _sources(tree: Tree, folder: Inode) -> Iterator[Source]:
    for listed in tree.listing(folder, 0, 1_000_000):
        if listed.entry.is_folder:
            yield from _sources(tree, listed.entry.inode)
        elif (picture := tree.picture(listed.entry.inode)) is not None:
            yield picture.source


async def _render_all(workers: Workers, sources: Sequence[Source]) -> None:
    left = iter(sources)

    async def render_some() -> None:
        for source in left:
            rendered = await workers.render(source, _RECIPE, None)
            if rendered.failure:
                raise RuntimeError(rendered.failure)

    async with trio.open_nursery() as nursery:
        for _ in range(_WAITING):
            nursery.start_soon(render_some)


# The floor


@contextmanager
def _floor(paths: Sequence[Path]) -> Iterator[Callable[[], None]]:
    """Looks up and encodes the same pixels, which lie in memory, when it is called."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(PROCESSES):
        here, there = context.Pipe()
        process = context.Process(target=_look_up, args=(there, paths[number::PROCESSES]), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)

    def work() -> None:
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()

    for pipe in pipes:
        pipe.recv()
    try:
        yield work
    finally:
        for process in processes:
            process.kill()
            process.join()


def _look_up(pipe: Connection, paths: Sequence[Path]) -> None:
    images = [dcmread(path).pixel_array for path in paths]
    low = _WINDOW[0] + 1024 - _WINDOW[1] / 2
    table = np.clip((np.arange(65536) - low) * 255 / _WINDOW[1], 0, 255).astype(np.uint8)
    pipe.send(True)
    while pipe.recv():
        for pixels in images:
            file = BytesIO()
            Image.fromarray(np.take(table, pixels)).save(file, "JPEG", quality=_RECIPE.quality)
        pipe.send(True)


# Peers

_PNM_OPTIONS: Final = ("+oj", "+Jq", str(_RECIPE.quality), "+Wi", "1")


def _dcmj2pnm(paths: Sequence[Path], output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    pairs = "\n".join(f"{path}\n{output / path.stem}.jpg" for path in paths)
    argv = ["xargs", "-P", str(PROCESSES), "-n", "2", require("dcmj2pnm"), *_PNM_OPTIONS]
    subprocess.run(argv, input=pairs, text=True, check=True, capture_output=True, timeout=600)
    if (found := len(list(output.iterdir()))) != len(paths):
        raise RuntimeError(f"dcmj2pnm wrote {found} pictures of {len(paths)}")


@contextmanager
def _orthanc(paths: Sequence[Path], folder: Path) -> Iterator[Callable[[], None]]:
    """Asks for every image once, when it is called; a connection for each core."""
    http, folder_text = free_port(), str(folder / "storage")
    configuration = {
        "Name": "bench",
        "StorageDirectory": folder_text,
        "IndexDirectory": folder_text,
        "StorageCompression": False,
        "Plugins": [],
        "DicomServerEnabled": False,
        "HttpPort": http,
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
        "KeepAlive": True,
    }
    folder.mkdir()
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration), encoding="utf-8")
    ready = lambda: connects(http)  # noqa: E731  a def would say no more
    argv = [require("Orthanc"), str(path)]
    # Its sockets wait for acknowledgements otherwise.
    environment = {**os.environ, "TCP_NODELAY": "1"}
    with running(argv, folder / "log", ready, "Orthanc answers", env=environment, seconds=60):
        with _Http(http) as upload:
            ids = [json.loads(upload.ask("POST", "/instances", path.read_bytes()))["ID"] for path in paths]

        def work() -> None:
            shares = [ids[number::PROCESSES] for number in range(PROCESSES)]
            threads = [threading.Thread(target=_ask_all, args=(http, share)) for share in shares]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        yield work


def _ask_all(port: int, ids: Sequence[str]) -> None:
    with _Http(port) as http:
        for one in ids:
            if not http.ask("GET", f"/instances/{one}/rendered").startswith(b"\xff\xd8"):
                raise RuntimeError("Orthanc did not answer with a JPEG file")


class _Http:
    """One connection, kept open; as little work on our side as can be."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((LOCALHOST, port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "_Http":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of the answer; its length has to be announced. Raises RuntimeError."""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAccept: image/jpeg\r\nContent-Length: {len(body)}"
        self._socket.sendall(f"{head}\r\n\r\n".encode() + body)
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._received()
        fields = data[:end].decode("latin-1").lower().split("\r\n")
        length = next((int(field[15:]) for field in fields if field.startswith("content-length:")), None)
        if " 200 " not in fields[0] + " " or length is None:
            raise RuntimeError(f"Orthanc answered {path} with {fields}")
        while len(data) < end + 4 + length:
            data += self._received()
        return bytes(data[end + 4 :])

    def _received(self) -> bytes:
        piece = self._socket.recv(1 << 18)
        if not piece:
            raise RuntimeError("Orthanc closed the connection")
        return piece


def _single(scale, scratch):
    return []
