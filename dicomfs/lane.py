"""One sender's lane into the spool: the next file is made, the last is put away, while the sender is busy.

Between its answer and its next object a sender reads a file or makes an image. What can be done then need
not be waited for. While a sender is silent, or the store in trouble, no file is kept open: its file system
may have to be unmounted. Used by `association.py` (one for each association) and `ingest.py`.
"""

import contextlib
from typing import Self

from dicomfs.archive import Archive
from dicomfs.spool import Spool


class Lane:
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
        if spool is None:
            return self._archive.spool(transfer_syntax)
        spool.expect(transfer_syntax)
        return spool

    def leave(self, spool: Spool) -> None:
        """What was in it is stored: it is closed when there is time."""
        self._put_away()
        self._last = spool

    def rest(self) -> None:
        """The sender has its answer, and is busy. Never raises."""
        last = self._last
        self._put_away()
        if last is not None and self._next is None:
            # Met again, and told, when there is something to be stored.
            with contextlib.suppress(OSError):
                self._next = self._archive.spool(last.transfer_syntax)

    def close(self) -> None:
        """Keep no file open; until the next object is stored no other is made. Never raises."""
        self._put_away()
        if self._next is not None:
            self._next.close()
            self._next = None

    def _put_away(self) -> None:
        if self._last is not None:
            self._last.close()
            self._last = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
