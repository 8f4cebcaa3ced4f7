"""Which rows of the index a mount shows already: those through a receipt sequence number.

A folder that is open on somebody's screen is told of a new name by the kernel, and the kernel tells only
of what was made by a system call. So what has just been committed stays hidden from lookups and listings
until `publish.py` has made that call. Names are published in the order of receipt; so, for each kind of
name (a rank: a view and what it is a name of), one mark says what is shown and what is not yet, however
many there are. Pure; asked by `tree.py`, moved by `publish.py`.
"""

from collections.abc import Hashable
from typing import Final, NamedTuple

EVERYTHING: Final = 2**63 - 1
"""A sequence number (and a frame) beyond all that SQLite can count."""


class Mark(NamedTuple):
    """How far names are shown: through this receipt sequence number and, of its image, this frame."""

    sequence: int
    frame: int = EVERYTHING


class Gate:
    """What is shown by one mount. With the default everything is, as soon as it is committed."""

    def __init__(self, through: int = EVERYTHING) -> None:
        self._through = Mark(through)
        self.moves = 0
        """How often it was moved: while this stays, the same is shown."""
        self._ahead: dict[Hashable, Mark] = {}
        """Ranks that are further than the rest: one sequence number is being published, name after name."""

    @property
    def through(self) -> int:
        """The receipt sequence number through which names of every rank are shown."""
        return self._through.sequence

    def mark(self, rank: Hashable) -> Mark:
        """How far names of this rank are shown."""
        return self._ahead.get(rank, self._through)

    def release(self, rank: Hashable, mark: Mark) -> None:
        """Show names of this rank through a mark. What is shown stays shown."""
        if mark > self.mark(rank):
            self._ahead[rank] = mark
            self.moves += 1

    def settle(self, sequence: int) -> None:
        """Show names of every rank through a sequence number. What is shown stays shown."""
        self.moves += 1
        self._through = max(self._through, Mark(sequence))
        self._ahead = {rank: mark for rank, mark in self._ahead.items() if mark > self._through}
