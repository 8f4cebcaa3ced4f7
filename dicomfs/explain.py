"""`dicomfs status PATH`: what stands behind one file of a mount, and why it looks as it does.

Reads inode numbers, the index and what was decided; renders nothing. Called by `cli.py`.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from dicomfs.archive import Archive
from dicomfs.errors import UsageError
from dicomfs.index import INDEX_NAME, Index
from dicomfs.inode import STORED, Inode, Kind
from dicomfs.model import PoolWindow, Source
from dicomfs.render import decide_pool
from dicomfs.renditions import RENDITIONS_NAME, Renditions
from dicomfs.rows import ImageRow


def explain(store: Path, path: Path) -> list[tuple[str, str]]:
    """Facts about a file of a mount of `store`, as (what, words): originals, window and its reason.

    Raises UsageError when the path is no file of such a mount, StoreError. No patient data is told.
    """
    try:
        number = path.stat().st_ino
    except OSError as error:
        raise UsageError(f"cannot look at {path}: {error.strerror}") from error
    inode = Inode.of(number)
    index = Index(store / INDEX_NAME)
    try:
        row = index.image_shown(inode.id) if inode is not None and inode.kind is Kind.FILE else None
        if inode is None or row is None:
            raise UsageError(f"{path} is not a file in a mount of {store}")
        facts = list(_originals(index, Archive(store), row))
        if inode.format != STORED and row.shows:
            renditions = Renditions(store / RENDITIONS_NAME, index.store_id)
            try:
                facts += _window(inode, row, renditions, Archive(store))
            finally:
                renditions.close()
    finally:
        index.close()
    return facts


def _originals(index: Index, archive: Archive, row: ImageRow) -> Iterator[tuple[str, str]]:
    for original in index.originals_of(row.id):
        if original.shown:
            yield "SOP Instance UID", original.sop_uid
        received = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(original.received))
        sender = f" from {original.source_ae}" if original.source_ae else ""
        what = "original" if original.shown else "kept, not shown"
        yield what, os.fspath(archive.path(original.hash, original.sequence))
        yield "", f"transfer syntax {original.transfer_syntax}, received {received}{sender}"


def _window(
    inode: Inode, row: ImageRow, renditions: Renditions, archive: Archive
) -> Iterator[tuple[str, str]]:
    for policy in ("auto", "header"):
        if not row.pool:
            alone = decide_pool(
                [Source(archive.path(row.hash, row.original), max(inode.frame - 1, 0))], policy
            )
            yield f"window={policy}", f"decides alone: {_words(alone)}"
            continue
        decision = renditions.decision(row.pool, policy, inode.version or 1)
        if decision is not None:
            yield f"window={policy}", f"{_words(decision.window)} (version {decision.version} of its pool)"


def _words(window: PoolWindow) -> str:
    if window.low is None or window.high is None:
        return window.reason
    return f"{window.low:g} to {window.high:g}: {window.reason}"
