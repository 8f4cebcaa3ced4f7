"""Watching folders of this machine with inotifywait(1), as a file browser does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import Running, require, running


@dataclass(frozen=True, slots=True)
class Watched:
    """Folders that are watched."""

    running: Running

    def names(self, event: str, folder: Path) -> list[str]:
        """Names in a folder that this happened to (CREATE, DELETE, ATTRIB), in order."""
        lines = (line.split("\t") for line in self.running.output().splitlines() if "\t" in line)
        # What happens to a folder says so, too: CREATE,ISDIR.
        return [name for where, what, name in lines if where == f"{folder}/" and event in what.split(",")]


@contextmanager
def watching(log: Path, *folders: Path) -> Iterator[Watched]:
    """inotifywait on these folders; what is below them is not watched."""
    argv = [require("inotifywait"), "--monitor", "--format", "%w\t%e\t%f", *map(str, folders)]

    def ready() -> bool:
        return "Watches established" in log.read_text(encoding="utf-8")

    with running(argv, log, ready, "inotifywait watches") as it:
        yield Watched(it)
