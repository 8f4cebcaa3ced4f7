"""What is known of pictures before they are rendered: exact sizes, decided windows, permanent failures.

Everything is found again by rendering: so the file (`renditionsfile.py`) can be deleted at any time. Several
mounts of one store share it; whoever decides first is right, everybody else reads that back. So two mounts
never show one pool with two grey scales. Sizes are written many at a time: a crash loses some of them, and
never more than that. Called by `tree.py` and `aspect.py` (reads), `present.py`, `pools.py`, `follow.py` and
`ahead.py`.
"""

import contextlib
import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from dicomfs import renditionsfile
from dicomfs.database import immediate
from dicomfs.errors import StoreUnavailable
from dicomfs.model import PoolWindow
from dicomfs.renditionsfile import noted, open_as_it_is, open_renditions, translated
from dicomfs.statement import Statement

RENDITIONS_NAME: Final = "renditions.sqlite3"
"""Its name in the store."""
UNRECORDED: Final = 100_000
"""Most sizes, and most windows, kept in memory while the file cannot be written."""
AT_ONCE: Final = 256
"""Sizes that are written in one transaction."""
RETRY_S: Final = 5.0
"""Between two tries to write sizes to a file that could not be written."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """One rendition: these four always give the same bytes."""

    recipe: str
    original: int
    frame: int
    version: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for a pool, and over which of its members."""

    version: int
    through: int
    window: PoolWindow


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction writes."""

    sizes: Mapping[Key, tuple[int, str]]
    """Size and failure."""
    notes: Mapping[str, str]
    """Of `about`."""


class Renditions:
    """Two connections to the renditions file: what writes may wait for the disk, and nobody waits for that.

    `write`, `decide`, `extend` and `note_followed` may be called in another thread; everything else belongs
    to one.
    """

    def __init__(self, path: Path, store_id: str) -> None:
        """Open or make the file; one that is damaged, of another store or version is made anew.

        Raises StoreUnavailable when it cannot be opened.
        """
        self._unrecorded: dict[Key, tuple[int, str]] = {}
        """Size and failure, announced and not yet written."""
        self._notes: dict[str, str] = {}
        """Of `about`: they rest upon sizes, and are written with or after them."""
        self._next_try = -math.inf
        """When writing sizes may be tried again, by the monotonic clock; in the past when all is well."""
        self._first_decisions: dict[tuple[str, str], Decision] = {}
        self._writing = threading.Lock()
        self._reader, writer = open_renditions(path, store_id)
        self._writer: sqlite3.Connection | None = writer

    def close(self) -> None:
        """Write what is not written, and let go of the file."""
        self._next_try = -math.inf
        while self._unrecorded or self._notes:
            if not self.record():
                break
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._reader.close()

    def _first(self, statement: Statement, **values: Any) -> Any:
        """The first row; for what the kernel waits for."""
        with translated():
            return statement.first(self._reader, **values)

    def size(self, key: Key) -> int | None:
        """Bytes of this rendition, or None when it was never rendered."""
        if key in self._unrecorded:
            return self._unrecorded[key][0]
        row = self._first(
            renditionsfile.SIZE,
            recipe=key.recipe,
            original=key.original,
            frame=key.frame,
            version=key.version,
        )
        return int(row.size) if row else None

    def sizes(
        self, recipe: str, originals: Sequence[int], frames: tuple[int, int]
    ) -> dict[tuple[int, int, int], int]:
        """Known sizes in bytes by (original, frame, version), of frames from `frames[0]` to `frames[1]`."""
        if not originals:
            return {}
        first, last = frames
        of = {"recipe": recipe, "first": first, "last": last}
        with translated():
            least, greatest = min(originals), max(originals)
            if 1 < len(originals) == greatest - least + 1 and first == last:
                # What came in one after the other lies side by side, unless there are other frames between.
                rows = renditionsfile.SIZES_BETWEEN.all(self._reader, least=least, greatest=greatest, **of)
            else:
                rows = renditionsfile.SIZES.all(self._reader, originals=json.dumps(list(originals)), **of)
        found = {(original, frame, version): size for original, frame, version, size in rows}
        if self._unrecorded:
            wanted = set(originals)
            for key, (size, _) in self._unrecorded.items():
                if key.recipe == recipe and key.original in wanted and first <= key.frame <= last:
                    found[key.original, key.frame, key.version] = size
        return found

    def announce(self, key: Key, size: int, failure: str) -> None:
        """Record what a render gave, replacing what was announced before.

        Written by `write`, `record` or `record_many`, for which the caller sees to it, and never here: the
        kernel waits for who announces, and an older size may be in the hands of a thread that writes.
        """
        _keep(self._unrecorded, key, (size, failure))

    def record_many(self) -> None:
        """`record` if so many have come together; for whoever has no thread that writes."""
        if len(self._unrecorded) >= AT_ONCE:
            self.record()

    def record(self) -> bool:
        """Write a batch here and now; False when the file cannot be written. See `unwritten`."""
        batch = self.unwritten()
        if batch is None:
            return not (self._unrecorded or self._notes)
        return self.written(batch, is_done=self.write(batch))

    def unwritten(self) -> Batch | None:
        """Some of what was announced, and when that is all, what was noted; None when there is nothing.

        None also for some seconds after the file could not be written (disk full): all is kept in memory
        meanwhile, for a picture must not be lost for want of room to note its length.
        """
        if not (self._unrecorded or self._notes) or time.monotonic() < self._next_try:
            return None
        some = dict(islice(self._unrecorded.items(), AT_ONCE))
        return Batch(some, dict(self._notes) if len(some) == len(self._unrecorded) else {})

    def write(self, batch: Batch) -> bool:
        """Write in one transaction; False when the file cannot be written. May be called in a thread."""
        try:
            with self._transaction() as driver:
                for key, (size, failure) in batch.sizes.items():
                    renditionsfile.ANNOUNCE.run(driver, **asdict(key), size=size, failure=failure)
                for name, text in batch.notes.items():
                    renditionsfile.NOTE.run(driver, key=name, value=text)
        except StoreUnavailable as error:
            if self._next_try == -math.inf:
                log.warning("sizes are kept in memory only: %s", error)
            return False
        return True

    def written(self, batch: Batch, *, is_done: bool) -> bool:
        """Take note of how `write` ended; returns that."""
        self._next_try = -math.inf if is_done else time.monotonic() + RETRY_S
        if is_done:
            _drop(self._unrecorded, batch.sizes)
            _drop(self._notes, batch.notes)
        return is_done

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction of the connection that writes; one at a time. Raises StoreUnavailable."""
        with translated(), self._writing:
            if self._writer is None:
                raise StoreUnavailable("the renditions file is closed")
            with immediate(self._writer):
                yield self._writer

    def failure(self, key: Key) -> str:
        """Why this rendition is a notice; empty for a picture, or when it was never rendered."""
        if key in self._unrecorded:
            return self._unrecorded[key][1]
        row = self._first(renditionsfile.SIZE, **asdict(key))
        return str(row.failure) if row else ""

    def failures(self, most: int) -> list[tuple[int, int, str]]:
        """(original, frame, reason) of frames that cannot be displayed."""
        with translated():
            return _failures(self._reader, most)

    def version(self, pool: str, policy: str) -> int:
        """The latest version decided for a pool; 0 when none is."""
        return int(self._first(renditionsfile.VERSION, pool=pool, policy=policy).latest or 0)

    def versions(self, pools_wanted: Sequence[str], policy: str) -> dict[str, int]:
        """The latest version decided for each of these pools; undecided ones are missing."""
        if not pools_wanted:
            return {}
        if len(pools_wanted) == 1:
            latest = self.version(pools_wanted[0], policy)
            return {pools_wanted[0]: latest} if latest else {}
        with translated():
            rows = renditionsfile.VERSIONS.all(
                self._reader, pools=json.dumps(list(pools_wanted)), policy=policy
            )
        return {row.pool: int(row.latest) for row in rows}

    def data_version(self) -> int:
        """Changes whenever something was written, by this mount or another; costs microseconds."""
        with translated():
            return int(self._reader.execute("PRAGMA data_version").fetchone()[0])

    def decision(self, pool: str, policy: str, version: int) -> Decision | None:
        """What was decided as this version."""
        with translated():
            recorded = _recorded(self._reader, pool, policy, version)
        if recorded is None and version == 1:
            return self._first_decisions.get((pool, policy))
        return recorded

    def decide(self, pool: str, policy: str, decision: Decision) -> Decision:
        """Record a decision unless this version exists; returns the one that is on record.

        When the file cannot be written (disk full), a first decision is kept in memory, for the same
        reason as sizes are. Later ones raise StoreUnavailable: the pool goes on with what it has.
        """
        try:
            with self._transaction() as driver:
                if decision.version == 1:  # what was kept in memory has been shown
                    decision = self._first_decisions.get((pool, policy), decision)
                window, now = json.dumps(asdict(decision.window)), int(time.time())
                row = {"pool": pool, "policy": policy, "version": decision.version, "window": window}
                renditionsfile.DECIDE.run(driver, **row, through=decision.through, decided=now)
                recorded = _recorded(driver, pool, policy, decision.version)
        except StoreUnavailable as error:
            if decision.version != 1:
                raise
            return self._decide_in_memory(pool, policy, decision, error)
        if recorded is None:
            raise StoreUnavailable("a window that was just recorded is gone from the renditions file")
        return recorded

    def _decide_in_memory(
        self, pool: str, policy: str, decision: Decision, why: StoreUnavailable
    ) -> Decision:
        """A first decision that cannot be written, unless there is one; the one that is on record."""
        with self._writing:
            if self._writer is not None:
                with contextlib.suppress(sqlite3.Error):  # it may be readable all the same
                    recorded = _recorded(self._writer, pool, policy, decision.version)
                    if recorded is not None:
                        return recorded
            if not self._first_decisions:
                log.warning("decided windows are kept in memory only: %s", why)
            first = self._first_decisions.get((pool, policy), decision)
            _keep(self._first_decisions, (pool, policy), first)
            return first

    def followed(self, policy: str) -> int | None:
        """Receipt sequence up to which pools were looked at for growth; None: never noted."""
        with translated():
            found = noted(self._reader, f"followed {policy}")
        return None if found is None else int(found)

    def note_followed(self, policy: str, sequence: int) -> None:
        """See `followed`: what came in later, or while no mount ran, is looked at by the next mount."""
        with self._transaction() as driver:
            renditionsfile.NOTE_LATER.run(driver, key=f"followed {policy}", value=str(sequence))

    def unwarmed(self, view: str) -> str | None:
        """What `note_unwarmed` was told of a view; None: nothing."""
        with translated():
            found = noted(self._reader, f"unwarmed {view}")
        return self._notes.get(f"unwarmed {view}", found)

    def note_unwarmed(self, view: str, text: str) -> None:
        """Keep a text about what is still to be rendered ahead; it is not written before the sizes are."""
        self._notes[f"unwarmed {view}"] = text

    def extend(self, pool: str, policy: str, version: int, through: int) -> None:
        """Note that a decision still holds for members up to `through`."""
        with self._transaction() as driver:
            renditionsfile.EXTEND.run(
                driver, of_pool=pool, of_policy=policy, of_version=version, at_least=through
            )


def failures_noted(path: Path, store_id: str, most: int) -> list[tuple[int, int, str]]:
    """`Renditions.failures` of a file that is only looked at: it is not made, and not made anew.

    None are noted when there is no file yet, or another store's. Raises StoreUnavailable.
    """
    if not path.exists():
        return []
    with open_as_it_is(path) as driver:
        return _failures(driver, most) if noted(driver, "store_id") == store_id else []


def _failures(driver: sqlite3.Connection, most: int) -> list[tuple[int, int, str]]:
    rows = renditionsfile.FAILURES.all(driver, most=most)
    return [(row.original, row.frame, row.failure) for row in rows]


def _recorded(driver: sqlite3.Connection, pool: str, policy: str, version: int) -> Decision | None:
    row = renditionsfile.DECISION.first(driver, pool=pool, policy=policy, version=version)
    return row and Decision(row.version, row.through, PoolWindow(**json.loads(row.window)))


K = TypeVar("K")
V = TypeVar("V")


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    """Put into a dictionary of at most `UNRECORDED` items; the oldest goes."""
    if key not in kept and len(kept) >= UNRECORDED:
        del kept[next(iter(kept))]
    kept[key] = value


def _drop(kept: dict[K, V], written: Mapping[K, V]) -> None:
    """Take out what was written, but for what has changed meanwhile."""
    for key, value in written.items():
        if kept.get(key) == value:
            del kept[key]
