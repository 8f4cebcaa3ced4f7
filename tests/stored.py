"""What a store holds, found out without the code that wrote it: for tests that break one in the middle."""

import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.system.programs import Original, original


@dataclass(frozen=True, slots=True)
class Contents:
    """Originals by their digests, in hexadecimal."""

    rows: dict[str, int]
    """Of each original in the index: its number."""
    shown: frozenset[str]
    """Those that a mount shows."""
    archived: frozenset[str]
    """All files of the archive."""
    orphans: frozenset[str]
    """Of them, those that have no row of their number."""
    spool: int
    """Files in incoming/."""

    @property
    def missing(self) -> frozenset[str]:
        """Rows without a file."""
        return frozenset(self.rows) - self.archived


def contents(store: Path, *, is_cleaned: bool = True) -> Contents:
    """All that is there; fails when a file is not what its name says, or a row not what its file says.

    Until the next start (`is_cleaned` is false) a file without a row may hold anything.
    """
    archived: dict[tuple[str, int], Original] = {}
    unread: set[str] = set()
    found = _rows(store)
    known = {(digest, row) for row, digest, *_ in found}
    for path in sorted((store / "archive").rglob("*")):
        if path.is_dir():
            assert path.parent == store / "archive"
            continue
        digest, _, number = path.stem.partition("-")
        if not is_cleaned and (digest, int(number)) not in known:
            unread.add(digest)
            continue
        it = original(path)
        assert (path.parent.name, digest, path.suffix) == (it.digest[:2], it.digest, ".dcm")
        archived[digest, int(number)] = it
    rows: dict[str, int] = {}
    shown: set[str] = set()
    for row, digest, size, uid, is_shown in found:
        rows[digest] = row
        if is_shown:
            shown.add(digest)
        if (digest, row) in archived:
            it = archived[digest, row]
            assert (len(it.data_set), it.sop_uid) == (size, uid)
    spool = len(list((store / "incoming").iterdir())) if (store / "incoming").exists() else 0
    orphans = unread | {digest for digest, number in archived if rows.get(digest) != number}
    files = unread | {digest for digest, _ in archived}
    return Contents(rows, frozenset(shown), frozenset(files), frozenset(orphans), spool)


def _copied(store: Path, folder: str) -> Path:
    for name in ("index.sqlite3", "index.sqlite3-wal"):
        if (store / name).exists():
            shutil.copyfile(store / name, Path(folder, name))
    return Path(folder, "index.sqlite3")


def _rows(store: Path) -> list[tuple[int, str, int, str, bool]]:
    if not (store / "index.sqlite3").exists():
        return []
    # A copy: who opens the index alone writes what is in its log into it, and syncs it.
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(_copied(store, folder))) as index:
        assert index.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert index.execute("PRAGMA foreign_key_check").fetchall() == []
        if not index.execute("SELECT 1 FROM sqlite_master WHERE name = 'originals'").fetchall():
            return []
        return index.execute(
            "SELECT o.id, lower(hex(o.hash)), o.size, i.sop_uid, i.shown = o.id"
            " FROM originals o JOIN instances i ON i.id = o.instance ORDER BY o.id"
        ).fetchall()
