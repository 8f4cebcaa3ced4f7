"""Render processes whose jobs do what a test tells them to."""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from dicomfs.model import Recipe, Source
from dicomfs.turns import Urgency
from dicomfs.workers import Workers

RECIPE: Final = Recipe("jpg")
MIB: Final = 1 << 20
DEADLINE_S: Final = 60.0
"""Never reached unless something hangs."""

FAKE_WORKER: Final = '''
"""A worker whose tasks do what the file name of the source says: VERB or VERB=DETAIL."""

import ctypes, os, socket, sys, time, warnings
from dicomfs import worker
from dicomfs.errors import NotDisplayable
from dicomfs.model import PoolWindow

out = []

def crash():
    ctypes.string_at(0)

def render(source, recipe, window):
    verb, _, detail = source.path.name.partition("=")
    if verb == "echo":
        return f"{detail} {source.frame} {recipe} {window}".encode()
    if verb == "pid":
        return str(os.getpid()).encode()
    if verb == "gate":  # a FIFO: waits until the test opens its other end
        return source.path.read_bytes() or b"through"
    if verb == "gatecrash":
        source.path.read_bytes()
        crash()
    if verb == "large":
        return bytes(range(256)) * (int(detail) // 256)
    if verb == "crash":
        crash()
    if verb == "crashonce":
        try:
            source.path.rmdir()
        except FileNotFoundError:
            return b"second time lucky"
        crash()
    if verb == "hang":
        while True:
            time.sleep(3600)
    if verb == "spin":
        while True:
            pass
    if verb == "exit":
        os._exit(3)
    if verb == "kill":
        os.kill(os.getpid(), 9)
    if verb == "garbage":
        os.write(PROTOCOL, b"Segmentation fault, says the library")
        time.sleep(3600)
    if verb == "double":
        os.write(PROTOCOL, b"dfw4" + bytes(13))
        return b"x"
    if verb == "print":
        print("noise", flush=True)
        os.write(1, b"noise from C")
        os.write(2, bytes(200_000))
        warnings.warn("noise")
        return b"undisturbed"
    if verb == "memory":
        return bytes(int(detail))
    if verb == "missing":
        return source.path.read_bytes()
    if verb == "bug":
        raise ValueError("Doe^John")
    if verb == "never":
        raise NotDisplayable("no decoder for " + detail)
    if verb == "write":
        with open(detail.replace("+", "/"), "wb") as file:
            file.write(b"x" * 10)
        return b"written"
    if verb == "connect":
        with socket.create_connection(("127.0.0.1", int(detail)), 5):
            return b"connected"
    if verb == "limits":
        import resource, signal
        status = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
        return repr({
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "memory": resource.getrlimit(resource.RLIMIT_AS),
            "no_new_privs": int(status["NoNewPrivs"]),
            "fds": len(os.listdir("/proc/self/fd")),
            "env": sorted(os.environ),
        }).encode()
    raise AssertionError(verb)

def decide_pool(members, policy):
    for member in members:
        if member.path.name == "crash":
            crash()
        if member.path.name == "never":
            raise NotDisplayable("no decoder")
    if members[0].path.name == "nonsense":
        return PoolWindow(2.0, 1.0, "upside down")
    return PoolWindow(-0.1, float(len(members)), "counted" if policy == "auto" else policy)

def probe_digest(recipe):
    return f"digest of {recipe.format}"

def notice(recipe, reason):
    return f"NOTICE {recipe.format}: {reason}".encode()

def length(source, recipe):
    if source.path.name == "crash":
        crash()
    if source.path.name == "never":
        raise NotDisplayable("no decoder")
    return None if source.path.name == "compressed" else 1000 + source.frame

PROTOCOL = 3  # the first free descriptor: the worker keeps its standard output there
worker.run(lambda: worker.Tasks(render, decide_pool, probe_digest, notice, length), *map(int, sys.argv[1:]))
'''


def fake_worker(folder: Path) -> tuple[str, ...]:
    """The command of such a process; its script lies in a folder of the test's."""
    script = folder / "fake_worker.py"
    script.write_text(FAKE_WORKER)
    return (sys.executable, "-P", str(script))


@asynccontextmanager
async def running(
    command: tuple[str, ...],
    count: int = 1,
    *,
    memory_bytes: int = 512 * MIB,
    time_limit_s: float = DEADLINE_S,
    **more: int,
) -> AsyncIterator[Workers]:
    """Workers in a nursery, and proof that all their processes are gone afterwards."""
    workers = Workers(count, memory_bytes, time_limit_s, command=command, **more)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: workers.run(task_status=task_status))
            yield workers
            nursery.cancel_scope.cancel()
    assert workers.statistics().processes == 0
    assert children() == set()


def children() -> set[int]:
    """Process ids of our children, zombies among them; a fork server that other tests keep does not count."""
    found = {
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    }
    return {pid for pid in found if b"multiprocessing" not in Path(f"/proc/{pid}/cmdline").read_bytes()}


async def until(condition: Callable[[], bool]) -> None:
    """Poll; the deadline is that of `running`."""
    while not condition():  # noqa: ASYNC110 - what a process does sets no event of ours
        await trio.sleep(0.005)


def source(name: str, folder: Path = Path("/nowhere"), frame: int = 0) -> Source:
    return Source(folder / name, frame)


async def say(workers: Workers, name: str, *, urgency: Urgency = Urgency.WAITED) -> bytes:
    return (await workers.render(source(name), RECIPE, None, urgency=urgency)).data


class Gate:
    """A FIFO that a job reads: it is at the gate once the FIFO can be opened for writing."""

    def __init__(self, folder: Path, name: str, verb: str = "gate") -> None:
        self.source = source(f"{verb}={name}", folder)
        os.mkfifo(self.source.path)
        self._writer = -1

    def somebody_waits(self) -> bool:
        try:
            self._writer = os.open(self.source.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        return True

    def open(self) -> None:
        os.close(self._writer)
