"""Reading a folder on this machine again and again: our mount, bindfs over the same files, the files.

Everything is warm: each contestant was read once before. bindfs is a FUSE file system in C that passes on
what is below it; with its caching options the kernel hardly asks it any more.
"""

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.bench.stage import FOLDER, KNOWN, ct_folder, forget
from tests.bench.table import Line, Result, Scale, ended, in_turn
from tests.support import find_tool, mounted, running

_BINDFS = "bindfs"
_CACHING = "kernel_cache,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600"
_CACHED = "bindfs, kernel_cache and timeouts of an hour"
_FILES = "files on disk"


def measure(scale: Scale, scratch: Path) -> Result:
    """All pictures, opened, read to the end and closed."""
    stage = ct_folder(scale, scratch)
    names = sorted(path.name for path in (stage.real / FOLDER).iterdir())
    with ExitStack() as stack:
        stack.enter_context(stage.mounted(KNOWN))
        folders = {"dicomfs": stage.point, _FILES: stage.real}
        if find_tool("bindfs") and "bindfs" not in scale.without:
            for peer, options in ((_BINDFS, ""), (_CACHED, _CACHING)):
                folders[peer] = stack.enter_context(
                    _bindfs(stage.real, scratch / f"b{len(folders)}", options)
                )
        work = {name: partial(_read, folder / FOLDER, names) for name, folder in folders.items()}
        in_turn(1, work, lambda: None)
        warm = in_turn(3 * scale.rounds, work, lambda: None)
        mounts = [folder for name, folder in folders.items() if name != _FILES]
        served = in_turn(2 * scale.rounds, work, lambda: _forget(mounts))
    case = f"read, {len(names)} pictures, warm"
    lines = [
        Line(case, warm["dicomfs"], _BINDFS, warm.get(_BINDFS, []), 1.0),
        Line(case, warm["dicomfs"], _CACHED, warm.get(_CACHED, []), 1 / 0.6, 1 / 0.9),
        Line(case, warm["dicomfs"], _FILES, warm[_FILES]),
        Line("the same, pages forgotten", served["dicomfs"], _BINDFS, served.get(_BINDFS, [])),
        Line("the same, pages forgotten", served["dicomfs"], _CACHED, served.get(_CACHED, [])),
    ]
    size = sum(path.stat().st_size for path in (stage.real / FOLDER).iterdir()) / len(names) / 1000
    commands = [f"cd '{FOLDER}' && cat *.jpg > /dev/null", f"bindfs -o {_CACHING} FILES FOLDER"]
    notes = [
        f"pictures of {size:.0f} kB on average; `dicomfs mount` with defaults",
        "pages forgotten: the kernel asks each mount for the bytes again; the files on disk stay in memory",
    ]
    return Result(lines, commands, notes)


def _forget(folders: Iterable[Path]) -> None:
    for folder in folders:
        forget(folder / FOLDER)


def _read(folder: Path, names: list[str]) -> None:
    # A program in C: what is measured is the file system and not the reader.
    with subprocess.Popen(["cat", *names], cwd=folder, stdout=subprocess.DEVNULL) as reader:
        if ended(reader, 300):
            raise RuntimeError(f"cat could not read all of {folder}")


@contextmanager
def _bindfs(source: Path, point: Path, options: str) -> Iterator[Path]:
    point.mkdir()
    argv = ["bindfs", "-f", *(["-o", options] if options else []), str(source), str(point)]
    ready = lambda: mounted(point)  # noqa: E731  a def would say no more
    with running(argv, point.with_suffix(".log"), ready, "bindfs", mountpoint=point):
        yield point
