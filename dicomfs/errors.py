"""Every error that dicomfs raises on purpose.

    DicomfsError
    ├── UsageError                the user's command, option or configuration is wrong
    │   └── MountRefused          this mount point, machine or permission does not allow the mount
    ├── StoreError                the store as a whole
    │   ├── StoreMismatch         made by another version, or not a store
    │   ├── StoreFull             no space, no inodes or quota exceeded: nothing was stored
    │   └── StoreUnavailable      archive read-only or gone, I/O error: may work later
    │       └── StoreLocked       another process keeps the index to itself
    ├── BadInstance               one SOP instance cannot be taken in
    │   ├── UnreadableDataSet     not a DICOM data set, or cut short
    │   │   └── NotDicom          a file that never was one: nothing is lost by leaving it out
    │   ├── DuplicateRefused      other bytes under known UIDs, and the policy says no
    │   │   └── StrangerRefused   and they bear another patient's identity
    │   └── IdentityMismatch      the command's UIDs are not the data set's
    ├── AssociationEnded          a sender went away or broke the protocol
    │   └── PeerSilent            it said nothing, or too little, for too long
    ├── RequestRefused            a request of a peer that the standard has a failure status for
    ├── ReportFailed              a peer could not be told the result of its request
    ├── PartFailed                a part of `serve` did not start, or ended by itself
    ├── WorkerStartFailed         no render process can be started: the installation is broken
    ├── NotDisplayable            permanent: no decoder, damaged pixels, no such frame
    └── RenderFailed              passing: time-out, memory, I/O; asking again may help

An error's text names the thing (by UID, never by patient) and the remedy. Each door (DIMSE status,
errno, exit code) has one table that translates these classes; whatever is not in it is a bug.
"""


class DicomfsError(Exception):
    """Base of all errors raised on purpose; its text is fit to be shown to a user."""


class UsageError(DicomfsError):
    """A command, option or configuration value is wrong; the text says which are right."""


class MountRefused(UsageError):
    """The mount cannot be made here; the text says what to do about it."""


class StoreError(DicomfsError):
    """Something is wrong with the store as a whole."""


class StoreMismatch(StoreError):
    """The store was made by another version, or is no store at all."""


class StoreFull(StoreError):
    """No space left: nothing was stored and nothing was acknowledged."""


class StoreUnavailable(StoreError):
    """The store cannot be written or read now; trying later may work."""


class StoreLocked(StoreUnavailable):
    """Another process keeps the index to itself for longer than we wait."""


class BadInstance(DicomfsError):
    """One SOP instance cannot be taken in."""


class UnreadableDataSet(BadInstance):
    """The bytes are not a DICOM data set, are cut short, or lack a SOP Instance UID."""


class NotDicom(UnreadableDataSet):
    """A file of another kind, or a DICOMDIR: no SOP instance that could be lost."""


class DuplicateRefused(BadInstance):
    """Another object of the same UIDs is stored, and `duplicates=reject` is in force."""


class StrangerRefused(DuplicateRefused):
    """The same, and it bears another patient's identity: somebody has to find out who is right."""


class IdentityMismatch(BadInstance):
    """SOP Class or Instance UID of the command differ from those of the data set."""


class NotDisplayable(DicomfsError):
    """This frame can never be shown by this version: the text says why, for the eyes of a user."""


class RenderFailed(DicomfsError):
    """This frame could not be rendered now; nothing is recorded and the next request tries again."""


class AssociationEnded(DicomfsError):
    """The association is over, by the peer's doing; `abort` is what the peer must be told.

    A provider reason of A-ABORT (PS3.8 table 9-26), or None when nobody is there to be told.
    """

    def __init__(self, text: str, abort: int | None = None) -> None:
        super().__init__(text)
        self.abort = abort


class PeerSilent(AssociationEnded):
    """The peer kept us waiting for too long."""


class RequestRefused(DicomfsError):
    """A peer's request cannot be taken; `status` is the failure that it is answered (PS3.7 annex C)."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class ReportFailed(DicomfsError):
    """A peer could not be told the result of its request; the text says where it was looked for and why.

    `is_final`: it was told, and wants to hear nothing of it.
    """

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


class PartFailed(DicomfsError):
    """A part of `serve` could not start, or ended while it should have run."""


class WorkerStartFailed(DicomfsError):
    """No render process can be started; the text has what the last one said."""
