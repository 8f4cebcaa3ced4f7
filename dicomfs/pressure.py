"""Under pressure: a disk that fills, and what goes wrong again and again; told once and not as a flood.

Times are those of the monotonic clock, so that a clock that is set changes nothing. Used by `ingest.py`
(space) and by `association.py` and `scp.py` (trouble); both states are there for whoever shows them.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from dicomfs.errors import StoreFull

REMIND_S: Final = 3600.0
"""A disk that is filling is worth a line in the log so often."""
REPEAT_S: Final = 60.0
"""The same trouble is worth a line in the log so often; what comes between is counted."""
_EARLY: Final = 2
"""So many times what has to stay free is the point from which on somebody is warned."""

log = logging.getLogger(__name__)


# --- Space ------------------------------------------------------------------------------------------


class Level(Enum):
    """How much space there is."""

    ENOUGH = "enough"
    LOW = "low"
    """Objects are taken in, but not for long."""
    SHORT = "short"
    """Nothing is taken in."""


@dataclass(frozen=True, slots=True)
class SpaceState:
    """What was found when space was looked at last."""

    level: Level
    free_bytes: int
    wanted_bytes: int
    """That have to stay free (`min_free`)."""


class Space:
    """Watches the disk of a folder. Thread-safe."""

    def __init__(
        self, folder: Path, keep_free: Callable[[int], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`keep_free`: of the size of a disk in bytes, how many have to stay free."""
        self._folder = folder
        self._keep_free = keep_free
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[Level, float] = {}
        self._owed = False
        """It was said that nothing is taken in, and not yet that this is over."""
        self.state = SpaceState(Level.ENOUGH, 0, 0)

    def check(self) -> None:
        """Raises StoreFull below the watermark, OSError when the folder cannot be asked.

        Asked for every object, and now and then while one arrives: so it recovers by itself, and an object
        that is larger than what is left is refused before the disk is full. (No C-STORE tells its size.)
        """
        disk = os.statvfs(self._folder)
        wanted = self._keep_free(disk.f_blocks * disk.f_frsize)
        free = disk.f_bavail * disk.f_frsize
        level = Level.SHORT if free < wanted else Level.LOW if free < _EARLY * wanted else Level.ENOUGH
        if level is not Level.ENOUGH or self.state.level is not Level.ENOUGH:
            self._tell(level, free, wanted)
        self.state = SpaceState(level, free, wanted)
        if level is Level.SHORT:
            raise StoreFull(f"{free} bytes are free on the disk of the archive, {wanted} have to stay free")

    def _tell(self, level: Level, free: int, wanted: int) -> None:
        with self._lock:
            if level is not Level.SHORT and self._owed:
                self._owed = False
                log.warning("there is space again, %.2f GB: objects are taken in", free / 1e9)
            if level is Level.ENOUGH or self._clock() - self._told.get(level, -REMIND_S) < REMIND_S:
                return
            self._told[level] = self._clock()
            self._owed = self._owed or level is Level.SHORT
        is_short = level is Level.SHORT
        log.log(
            logging.ERROR if is_short else logging.WARNING,
            "only %.2f GB free: nothing %s taken in below %.2f GB (min_free); free some space",
            free / 1e9,
            "is" if is_short else "will be",
            wanted / 1e9,
        )


# --- Trouble ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TroubleState:
    """What goes wrong now."""

    kind: str
    """Of the latest; empty: nothing."""
    count: int
    """How often since it last went well."""
    total: int
    """How often since the start."""


class Trouble:
    """Counts what goes wrong again and again, and says when it is worth a line in the log. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}
        self._silent = 0
        self._owed = False
        self._kind, self._count, self._total = "", 0, 0

    @property
    def state(self) -> TroubleState:
        """What goes wrong now."""
        with self._lock:
            return TroubleState(self._kind, self._count, self._total)

    def note(self, kind: str) -> int | None:
        """One more of a kind (few words of our own, since they are kept).

        None: it is not worth a line. Else how many others went by in silence since the last line.
        """
        with self._lock:
            self._kind, self._count, self._total = kind, self._count + 1, self._total + 1
            if self._clock() - self._told.get(kind, -REPEAT_S) < REPEAT_S:
                self._silent += 1
                return None
            self._told[kind] = self._clock()
            self._owed = True
            silent, self._silent = self._silent, 0
            return silent

    def over(self) -> int:
        """It went well: how often it had not, if that is worth a line; else 0."""
        if not self._count:
            return 0
        with self._lock:
            count, self._count, self._kind, self._silent = self._count, 0, "", 0
            owed, self._owed = self._owed, False
            return count if owed else 0
