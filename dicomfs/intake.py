"""One sender's spool files: the next is made, and the last is put away, while the sender is busy itself.

Between its answer and its next object a sender reads a file or makes an image. What can be done then need
not be waited for: to open a spool file and to remove one takes as long as to read a header. A sender that
pauses has no file open: its file system may have to be unmounted. Used by `association.py` (one for each
association) and `ingest.py`.
"""

import contextlib
from typing import Self

from dicomfs.archive import Archive
from dicomfs.spool import Spool


class Intake:
    """For one thread. Close it, or use it as a context manager."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._last: Spool | None = None
        self._next: Spool | None = None

    def spool(self, transfer_syntax: str) -> Spool:
        """A new spool file, perhaps made before. Whoever gets it closes it, or hands it to `leave`.

        Raises OSError.
        """
        spool, self._next = self._next, None
        if spool is not None:
            if spool.transfer_syntax == transfer_syntax:
                return spool
            spool.close()
        return self._archive.spool(transfer_syntax)

    def leave(self, spool: Spool) -> None:
        """It is done with, whatever has become of it: closed when there is time."""
        self._put_away()
        self._last = spool

    def rest(self) -> None:
        """The sender has its answer, and is busy. Never raises."""
        last = self._last
        self._put_away()
        if last is not None and self._next is None:
            # Met again, and told, when there is something to be stored.
            with contextlib.suppress(OSError):
                # Most senders go on with the same.
                self._next = self._archive.spool(last.transfer_syntax)

    def pause(self) -> None:
        """The sender is not busy with the next object: no file is kept open for it. Never raises."""
        self._put_away()
        if self._next is not None:
            self._next.close()
            self._next = None

    close = pause

    def _put_away(self) -> None:
        if self._last is not None:
            self._last.close()
            self._last = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
