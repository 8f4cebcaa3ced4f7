"""Cold renders: pictures that nobody has asked for before, from originals that the kernel has in memory.

Both cores, through `Workers` as a mount uses them, against Orthanc's `/rendered`, against DCMTK's dcmj2pnm,
a process for each file, and against the floor: values looked up in a ready table and Pillow's JPEG encoder,
and nothing else, in as many processes. The notes have single images, and where their time goes.
"""

import multiprocessing
import os
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
from typing import Final, Self
from urllib.parse import urlsplit

import numpy as np
import trio
from PIL import Image
from pydicom import dcmread

from dicomfs.config import MountOptions
from dicomfs.encode import encode
from dicomfs.frames import TAGS, grey_frame
from dicomfs.grey import Chain, Rescale, Span, apply, render_grey
from dicomfs.image import open_image
from dicomfs.inode import Inode
from dicomfs.model import Recipe, Source
from dicomfs.pixels import grey
from dicomfs.render import render
from dicomfs.tree import Tree
from dicomfs.view import open_view
from dicomfs.workers import Workers
from tests.bench.images import write_cr, write_ct, write_xa
from tests.bench.orthanc import instances, orthanc
from tests.bench.table import Line, Result, Scale, in_turn
from tests.support import command_line, find_tool, require

PROCESSES: Final = os.cpu_count() or 1
"""Of each contestant; connections to Orthanc."""
_WAITING: Final = 4 * PROCESSES
"""So many pictures are asked for at any moment."""
_WINDOW: Final = 40, 400
"""Centre and width in the headers of `images.write_ct`."""
_RECIPE: Final = Recipe("jpg")
_PEERS: Final = {"Orthanc": ("Orthanc /rendered", 0.5), "dcmj2pnm": ("dcmj2pnm", 0.1), "floor": ("", 1.67)}
_FLOOR: Final = "look-up and encoder alone"
_FRAMES: Final = 96


def measure(scale: Scale, scratch: Path) -> Result:
    """Many images, then single ones of three kinds."""
    paths = write_ct(scratch / "ct", scale.images).paths
    sources = _stored(scratch / "ct", scratch / "store")
    with (
        _ours(sources) as ours,
        _floor(paths) as floor,
        orthanc(scratch / "orthanc", paths, scale.without) as url,
    ):
        contestants: dict[str, Callable[[], object]] = {"dicomfs": ours, "floor": floor}
        if find_tool("dcmj2pnm"):
            contestants["dcmj2pnm"] = lambda: _dcmj2pnm(paths, scratch / "pnm")
        if url:
            names = instances(url)
            contestants["Orthanc"] = lambda: _orthanc(url, names)
        # The first round of each finds the programs and the images in memory for all that follow.
        in_turn(1, contestants, lambda: None)
        taken = in_turn(scale.rounds, contestants, lambda: None)
    case = f"{len(paths)} CT to JPEG, {PROCESSES} processes"
    lines = [
        Line(case, taken["dicomfs"], what or _FLOOR, taken.get(peer, []), at_most=goal)
        for peer, (what, goal) in _PEERS.items()
    ]
    commands = [
        "Workers.render of each, with what a store's index knows",
        f"GET /instances/ID/rendered?quality={_RECIPE.quality}, {PROCESSES} connections that stay open",
        f"xargs -P {PROCESSES} -n 2 dcmj2pnm {' '.join(_PNM_OPTIONS)}",
    ]
    rate = len(paths) / statistics.median(taken["dicomfs"])
    return Result(lines, commands, [f"{rate:.0f} pictures a second", *_single(scale, scratch, sources[0])])


# dicomfs


def _stored(images: Path, store: Path) -> list[Source]:
    """What a mount would have rendered of the images in a folder, taken into a store of their own."""
    argv = command_line("import", "--quiet", "--store", store, images)
    subprocess.run(argv, check=True, capture_output=True, timeout=600)

    async def sources() -> list[Source]:
        async with open_view(store, MountOptions(warm=False, live=False, workers=1)) as presenter:
            return list(_sources(presenter.tree, presenter.tree.root))

    return trio.run(sources)


def _sources(tree: Tree, folder: Inode) -> Iterator[Source]:
    for listed in tree.listing(folder, 0, 1_000_000):
        if listed.entry.is_folder:
            yield from _sources(tree, listed.entry.inode)
        elif (picture := tree.picture(listed.entry.inode)) is not None:
            yield picture.source


@contextmanager
def _ours(sources: Sequence[Source]) -> Iterator[Callable[[], None]]:
    """Renders each once, when it is called; the processes stay."""
    stop, running = trio.Event(), threading.Event()
    found: list[tuple[trio.lowlevel.TrioToken, Workers]] = []

    async def serve() -> None:
        options = MountOptions()
        workers = Workers(PROCESSES, options.memory, options.time_limit)
        async with trio.open_nursery() as nursery:
            await nursery.start(workers.run)
            found.append((trio.lowlevel.current_trio_token(), workers))
            running.set()
            await stop.wait()
            nursery.cancel_scope.cancel()

    loop = threading.Thread(target=trio.run, args=(serve,))
    loop.start()
    if not running.wait(60):
        raise RuntimeError("render processes do not start")
    token, workers = found[0]
    try:
        yield lambda: trio.from_thread.run(_render_all, workers, sources, trio_token=token)
    finally:
        token.run_sync_soon(stop.set)
        loop.join()


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


def _orthanc(url: str, names: Sequence[str]) -> None:
    shares = [names[number::PROCESSES] for number in range(PROCESSES)]
    threads = [threading.Thread(target=_ask_all, args=(url, share)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _ask_all(url: str, names: Sequence[str]) -> None:
    with _Http(url) as http:
        for name in names:
            if not http.get(f"/instances/{name}/rendered?quality={_RECIPE.quality}").startswith(b"\xff\xd8"):
                raise RuntimeError("Orthanc did not answer with a JPEG file")


class _Http:
    """One connection that stays open, with as little work on this side as can be."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, path: str) -> bytes:
        """The body of the answer, whose length has to be announced. Raises RuntimeError."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: image/jpeg\r\n\r\n".encode())
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


# Single images


def _single(scale: Scale, scratch: Path, ct: Source) -> Iterator[str]:
    """Of each kind: milliseconds in one process, and what they are spent on."""
    yield _shares("CT 512x512", ct, scale)
    frames = min(_FRAMES, scale.opened)
    write_xa(scratch / "xa", 1, frames, "20240401")
    write_cr(scratch / "cr", 1, "20240402")
    run = _stored(scratch / "xa", scratch / "runs")
    yield _shares(f"XA 1024x1024, one of {frames} frames", run[frames // 2], scale)
    yield _shares("CR 3000x2000", _stored(scratch / "cr", scratch / "radiographs")[0], scale)


def _shares(what: str, source: Source, scale: Scale) -> str:
    """The parts are timed by themselves; the rest of the whole is mostly the choice of the window."""
    repeats = max(scale.rounds * 7, 2)
    bare = Source(source.path, source.frame)
    with open_image(source.path, TAGS, source.layout) as image:
        shown = grey_frame(image, source.frame, _RECIPE)
        levels = shown.levels
        if levels is None:
            raise RuntimeError(f"{source.path} has no table")
        chain = Chain(Rescale(), Span(0, 4095))
        picture = render_grey(shown.codes, levels, chain)

        def parse() -> None:
            with open_image(source.path, TAGS, source.layout):
                pass

        parts = {
            "header": parse,
            "pixels": lambda: grey(image, source.frame),
            "table, if made anew,": lambda: apply(levels, chain),
            "look-up": lambda: render_grey(shown.codes, levels, chain),
            "JPEG": lambda: encode(picture, _RECIPE, (2000.0, 2000.0)),
        }
        taken = {part: _milliseconds(work, repeats) for part, work in parts.items()}
    whole = _milliseconds(lambda: render(source, _RECIPE, None), repeats)
    parsed = _milliseconds(lambda: render(bare, _RECIPE, None), repeats)
    shares = ", ".join(f"{part} {milliseconds:.2f}" for part, milliseconds in taken.items())
    return f"{what}: {whole:.2f} ms ({shares}); without what the index knows {parsed:.2f} ms"


def _milliseconds(work: Callable[[], object], repeats: int) -> float:
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)
