"""Taking originals out of the store on purpose: out of the index for good, and aside on the disk.

    STORE/forgotten/TIME-TOKEN/<sha256>-<sequence>.dcm   what was forgotten; `dicomfs import` takes it in
    STORE/forgotten/TIME-TOKEN/pending.json              the list of them, while some are still in the archive
    STORE/forgotten/TIME-TOKEN/contents.json             the same, when all are here

Order: list -> rows removed, in one transaction -> files moved -> list renamed. What a crash has left half
done is completed, or undone if no row was removed, by `finish`, which everything that opens the store for
writing calls. A file has its number in its name, so what comes in again meanwhile is another file. Never
deletes an original, never gives an id again. Called by `ingest.py` and the command line.
"""

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Final

from dicomfs.archive import Archive, digest_and_sequence
from dicomfs.errors import UsageError
from dicomfs.index import Index
from dicomfs.lock import mending
from dicomfs.removal import Chosen, Plan, Remover
from dicomfs.storage import storage_errors, sync_directory

PENDING: Final = "pending.json"
CONTENTS: Final = "contents.json"
_FOLDER_MODE: Final = 0o750

log = logging.getLogger(__name__)


def count(archive: Archive) -> int:
    """How many forgotten originals are kept; 0 where this user may not look."""
    try:
        return sum(1 for _ in archive.forgotten.glob("*/*.dcm"))
    except OSError:  # Python before 3.12 says so when this user may not look there
        return 0


def plan(index: Index, chosen: Chosen) -> Plan:
    """All that would go; nothing is changed. Raises StoreUnavailable."""
    with index.transaction() as connection:
        return Remover(connection).plan(chosen)


def carry_out(archive: Archive, index: Index, chosen: Chosen, token: str) -> tuple[Plan, Path]:
    """Forget what was planned, durably; returns the plan and the folder that has the originals now.

    Raises UsageError when what would go is no longer what the token stands for (nothing is changed),
    StoreFull or StoreUnavailable (it is completed or undone by the next `finish`; also while originals are
    being repaired: what is half forgotten would be taken in again).
    """
    with mending(archive.root):
        return _carry_out(archive, index, chosen, token)


def _carry_out(archive: Archive, index: Index, chosen: Chosen, token: str) -> tuple[Plan, Path]:
    with storage_errors("the store"), index.transaction() as connection:
        remover = Remover(connection)
        planned = remover.plan(chosen)
        if planned.token != token or not planned.originals:
            raise UsageError(
                f"'{token}' does not stand for what would be forgotten now: look at the list again"
            )
        now = time.time()
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{token}"
        target = archive.forgotten / name
        target.mkdir(mode=_FOLDER_MODE, parents=True)
        names = [archive.path(digest, number).name for number, digest in planned.originals.items()]
        _write_durably(target / PENDING, json.dumps({"originals": names}))
        for parent in (target, archive.forgotten, archive.forgotten.parent):
            sync_directory(parent)
        remover.forget(planned, name, now)
    log.info("%d originals forgotten, as %s", len(planned.originals), name)
    finish(archive, index)
    return planned, target


def finish(archive: Archive, index: Index) -> None:
    """Complete what was interrupted, or undo it where the index has not forgotten.

    Raises StoreUnavailable.
    """
    with storage_errors("the store"):
        for pending in sorted(archive.forgotten.glob(f"*/{PENDING}")):
            _finish(pending, archive, index)


def _finish(pending: Path, archive: Archive, index: Index) -> None:
    target = pending.parent
    with index.transaction() as connection:
        # Within: whoever is about to forget holds the lock until it is certain.
        if not pending.exists():
            return
        if not Remover(connection).was_carried_out(target.name):
            pending.unlink()
            target.rmdir()
            sync_directory(target.parent)
            log.info("forgetting %s was interrupted before anything was removed: undone", target.name)
            return
    touched = {target}
    for name in json.loads(pending.read_text("ascii"))["originals"]:
        path = archive.path(*digest_and_sequence(name))
        with contextlib.suppress(FileNotFoundError):  # moved already, or lost long ago
            path.rename(target / name)
            touched.add(path.parent)
    for parent in touched:
        sync_directory(parent)
    with contextlib.suppress(FileNotFoundError):  # another process was as fast
        pending.rename(target / CONTENTS)
    sync_directory(target)


def _write_durably(path: Path, text: str) -> None:
    with path.open("x", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
