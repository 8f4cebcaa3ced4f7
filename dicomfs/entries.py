"""What a tree says of its files and folders: what `stat` says, what comes and goes, what to render; pure."""

from dataclasses import dataclass
from typing import NamedTuple

from dicomfs.gate import Mark
from dicomfs.inode import Inode, Kind
from dicomfs.model import Recipe, Source
from dicomfs.naming import FileName
from dicomfs.renditions import Key


class Entry(NamedTuple):
    """A name in a folder, with what `stat` says of it."""

    name: str
    inode: Inode
    is_folder: bool
    size: int | None
    """Bytes, exactly; None when the file must be rendered first to know."""
    modified: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Appearance:
    """A name that an original brought into a view: hidden until the gate's `rank` has come to `mark`."""

    folder: Inode
    name: str
    is_folder: bool
    rank: tuple[str, Kind]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Disappearance:
    """A name that went from a view."""

    top: Inode
    """The folder in which the way to it begins."""
    way: tuple[Entry, ...]
    """The folders that led to it, and itself at the end, as they were."""
    rank: tuple[str, Kind]
    mark: Mark
    """If the gate has not come so far, it was never shown."""

    def ghosts(self) -> dict[tuple[int, str], Entry]:
        """Every entry of the way, by the number of the folder it was in and its name."""
        folders = [self.top, *(entry.inode for entry in self.way)]
        return {(folder.number, entry.name): entry for folder, entry in zip(folders, self.way, strict=False)}


@dataclass(frozen=True, slots=True)
class Picture:
    """What is needed to render one file of the tree."""

    key: Key
    source: Source
    recipe: Recipe
    pool: str
    """Whose decision it needs; empty: nobody's."""
    policy: str
    """Which kind of decision (`recipes.pool_policy`)."""
    folder: Inode
    """Those who wait for pictures of different folders take turns."""
    cookie: int
    """Where it is listed there (`Tree.listing`)."""
    name: FileName


class Listed(NamedTuple):
    """One step of a listing: continue after `cookie`."""

    cookie: int
    entry: Entry
