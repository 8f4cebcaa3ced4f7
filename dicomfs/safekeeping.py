"""Whether an object that a modality wants to delete is in safe keeping here (PS3.4 J.1).

A request names SOP class and SOP instance only, and several originals may be kept under one SOP Instance
UID: which of them the modality means nobody can tell, so each has to be whole. Files are read again from
their first byte to their last. Changes nothing. Called by `commitmentservice.py`, in a thread that has
time.
"""

import logging
from pathlib import Path
from typing import Final, Self

from pydicom.uid import UID

from dicomfs.archive import Archive
from dicomfs.commitment import Reason, Reference
from dicomfs.errors import UnreadableDataSet
from dicomfs.filemeta import DATA_SET_OFFSET
from dicomfs.header import read_file_meta
from dicomfs.index import INDEX_NAME, Index
from dicomfs.negotiation import is_storage
from dicomfs.rows import KeptOriginal

LOGGER: Final = logging.getLogger("dicomfs.commitment")


class SafeKeeping:
    """The archive and the index of a store, for one thread. Close it, or use it as a context manager."""

    def __init__(self, store: Path) -> None:
        """Raises StoreMismatch or StoreUnavailable."""
        self._archive = Archive(store)
        self._index = Index(store / INDEX_NAME)

    def close(self) -> None:
        """Let go of the index."""
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def flaw(self, reference: Reference) -> Reason | None:
        """Why this object cannot be committed; None: it can. Raises StoreUnavailable when nobody can tell."""
        kept = self._index.kept_under(reference.sop_instance_uid)
        if not kept:
            is_known = is_storage(UID(reference.sop_class_uid))
            return Reason.NO_SUCH_OBJECT if is_known else Reason.CLASS_NOT_SUPPORTED
        for original in kept:
            if (reason := self._flaw_of(original, reference)) is not None:
                return reason
        return None

    def _flaw_of(self, original: KeptOriginal, reference: Reference) -> Reason | None:
        try:
            sop_class_uid = self._read_back(original, reference.sop_instance_uid)
        except FileNotFoundError:
            reason, what = Reason.NO_SUCH_OBJECT, "its file is missing from the archive"
        except UnreadableDataSet as error:
            reason, what = Reason.PROCESSING_FAILURE, str(error)
        except OSError as error:
            reason, what = Reason.PROCESSING_FAILURE, f"its file cannot be read: {error.strerror}"
        else:
            # Of the file, not of the index, whose class is that of the original that is shown.
            return None if sop_class_uid == reference.sop_class_uid else Reason.CLASS_CONFLICT
        LOGGER.error(
            "%s (original %s) cannot be committed: %s; when it is sent again, it is repaired",
            reference.sop_instance_uid,
            original.hash.hex(),
            what,
        )
        return reason

    def _read_back(self, original: KeptOriginal, sop_instance_uid: str) -> str | None:
        """SOP Class UID of a whole original. Raises UnreadableDataSet or OSError."""
        path = self._archive.read_back(
            original.hash, original.sequence, original.size, original.transfer_syntax
        )
        with path.open("rb") as file:
            meta = read_file_meta(file)
        said = (meta.sop_instance_uid, meta.transfer_syntax, meta.data_set_offset)
        if said != (sop_instance_uid, original.transfer_syntax, DATA_SET_OFFSET):
            raise UnreadableDataSet(f"{path.name} has damaged file meta information")
        return meta.sop_class_uid
