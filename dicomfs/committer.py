"""The committer process: commits what several associations have received, in an interpreter of its own.

Beside the threads that receive, a commit waits for the interpreter's lock for longer than it works. This
process is there to be faster, and for nothing else: what it is handed is committed and durable, all of it,
or rolled back, and then its parent does it, which finds out by itself what has become of each. It has the
index open and no file, lock or socket of its parent's, and never logs. Started by `committerprocess.py` as
`python -m dicomfs.committer STORE DESCRIPTOR PARENT_PID`.
"""

import signal
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from dicomfs import __version__
from dicomfs.archive import Archive
from dicomfs.batch import Pending, commit
from dicomfs.errors import BadInstance, DicomfsError, StoreError
from dicomfs.index import INDEX_NAME, Index
from dicomfs.indexfile import LOCKED_TIMEOUT_S
from dicomfs.logtext import where
from dicomfs.model import Header, Outcome, Receipt
from dicomfs.schema import SCHEMA_VERSION
from dicomfs.service import end_with
from dicomfs.storage import storage_errors

READY: Final = (
    *("ready", __version__, SCHEMA_VERSION),
    *(tuple(field.name for field in fields(kind)) for kind in (Header, Receipt, Outcome)),
)
"""The first message of a process that has the store open. The package may have been replaced since its parent
was started: then it is not this one, and what is pickled would be read as something else."""

_Words = tuple[str, bytes, int, tuple[Any, ...], tuple[Any, ...]]
"""Name, digest and size of a spool file; values of its `Header` and its `Receipt`, in the fields' order."""
_values_of_header, _values_of_receipt = (
    attrgetter(*(field.name for field in fields(kind))) for kind in (Header, Receipt)
)

Answer = list[Outcome | BadInstance] | str | None
"""The outcome of each; None: nothing is committed; text: the same, by a bug, and this is where it is."""


class NotHere(Exception):
    """This needs the spool file itself, which only the parent has open."""


@dataclass(slots=True)
class File:
    """A whole spool file that the parent has synced, and holds."""

    path: Path
    digest: bytes
    size: int
    published: Path | None = None

    def seal(self, _meta: bytes) -> None:
        """Never."""
        raise NotHere

    def sync(self) -> None:
        """It is."""


@dataclass(slots=True)
class Sent:
    """One data set of a batch."""

    spool: File
    header: Header
    receipt: Receipt
    is_new: bool = False


def message(batch: Iterable[Pending]) -> list[_Words]:
    """A batch, to be sent. (Pickled: both ends are one version of ours, and nobody else has the pipe.)

    Of values and not of objects: a frozen dataclass with slots is pickled by Python, field by field.
    """
    return [
        (
            *(pending.spool.path.name, pending.spool.digest, pending.spool.size),
            *(_values_of_header(pending.header), _values_of_receipt(pending.receipt)),
        )
        for pending in batch
    ]


def serve(pipe: Connection, archive: Archive, index: Index) -> None:
    """Do batch after batch, until the parent closes its end or is gone."""
    try:
        pipe.send(READY)
        while True:
            batch = [
                Sent(File(archive.incoming / name, digest, size), Header(*header), Receipt(*receipt))
                for name, digest, size, header, receipt in pipe.recv()
            ]
            pipe.send(_done(archive, index, batch))
    except (EOFError, ConnectionError):
        return


def _done(archive: Archive, index: Index, batch: list[Sent]) -> Answer:
    try:
        with storage_errors("the archive"):
            return commit(archive, index, batch)
    except (StoreError, NotHere):
        return None  # the parent meets the same, and says it to whom it concerns
    except Exception as error:  # noqa: BLE001  the door of this process: the parent has the log
        return where(error)


def main(argv: list[str]) -> int:
    """Serve a store until the pipe ends; the exit code."""
    store, descriptor, parent = Path(argv[0]), int(argv[1]), int(argv[2])
    end_with(parent, signal.SIGKILL)
    try:
        # The parent waits as long as it has to; whoever else writes is seldom about it for long.
        index = Index(store / INDEX_NAME, timeout_s=LOCKED_TIMEOUT_S)
    except DicomfsError as error:
        sys.exit(f"the committer process: {error}")
    with Connection(descriptor) as pipe, closing(index):
        serve(pipe, Archive(store), index)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
