"""What is taken of what a sender proposes: which SOP classes, and of their transfer syntaxes which first.

Pure tables over UIDs. Used by `scp.py`, which has the network.
"""

from collections.abc import Collection, Iterable
from typing import Final

from pydicom.uid import UID


def _uids(*endings: str) -> tuple[UID, ...]:
    return tuple(UID(f"1.2.840.10008.1.2{ending}") for ending in endings)


# Transfer syntaxes of PS3.6 table A-1 in our order. Uncompressed, because any reader can show it: explicit
# and implicit little endian, big endian; deflated, encapsulated uncompressed.
_UNCOMPRESSED: Final = _uids(".1", "", ".2", ".1.99", ".1.98")
# Without loss: RLE, deflated frames, JPEG (first-order, process 14, 15, 28, 29), JPEG-LS, JPEG 2000 (part 1
# and 2), HTJ2K (two), JPEG XL (two; the second keeps all that a JPEG had).
_LOSSLESS: Final = _uids(
    *(".5", ".8.1", ".4.70", ".4.57", ".4.58", ".4.65", ".4.66", ".4.80", ".4.90", ".4.92"),
    *(".4.201", ".4.202", ".4.110", ".4.111"),
)
# Here comes what is unknown or private: it may lose nothing. Then what may lose something, but often does
# not: JPEG 2000 (part 1 and 2), HTJ2K, JPEG XL, JPEG-LS near-lossless.
_PERHAPS_LOSSY: Final = _uids(".4.91", ".4.93", ".4.203", ".4.112", ".4.81")
# JPEG extended, baseline, the retired processes; video.
_LOSSY: Final = _uids(".4.51", ".4.50", *(f".4.{n}" for n in (*range(52, 57), *range(59, 65))))
_VIDEO: Final = _uids(*(f".4.{n}{part}" for n in range(100, 109) for part in ("", ".1")))
# The pixels are not in the object at all (JPIP), or it is not a DICOM data set (MIME, XML).
_ELSEWHERE: Final = _uids(".4.94", ".4.95", ".4.204", ".4.205", ".6.1", ".6.2")

_BEFORE_UNKNOWN: Final = (*_UNCOMPRESSED, *_LOSSLESS)
_AFTER_UNKNOWN: Final = (*_PERHAPS_LOSSY, *_LOSSY, *_VIDEO, *_ELSEWHERE)
_UNKNOWN_RANK: Final = len(_BEFORE_UNKNOWN)
# Of these the sender's own first counts (`preferred`): without loss, and shown by our decoders.
_SENDERS_CHOICE: Final = frozenset(
    _uids(".1.99", ".1.98", ".5", ".8.1", ".4.57", ".4.70", ".4.80", ".4.90", ".4.201", ".4.202")
)
_PLAIN: Final = frozenset(_uids(".1", "", ".2"))
_RANK: Final = {uid: rank for rank, uid in enumerate(_BEFORE_UNKNOWN)} | {
    uid: _UNKNOWN_RANK + 1 + rank for rank, uid in enumerate(_AFTER_UNKNOWN)
}

_NOT_OBJECTS: Final = frozenset(
    {
        "1.2.840.10008.1.3.10",  # Media Storage Directory Storage: a DICOMDIR, for media only
        "1.2.840.10008.1.20.1",  # Storage Commitment Push Model
        "1.2.840.10008.1.20.2",  # Storage Commitment Pull Model (retired)
    }
)


def preferred(proposed: Iterable[UID], alone: Collection[UID] = ()) -> list[UID]:
    """The transfer syntaxes proposed for one presentation context, each once, the one to be taken first.

    That is what a sender names first of all that keeps every bit, if it is compressed: senders name first the
    form that the object has (fo-dicom, `dcmsend`), and one that has to fall back on an uncompressed form may
    be unable to convert, or lose the pixels. Not, if it is one of those that have a context to themselves
    (`alone`): then objects of both forms can come. Otherwise our own order: plain explicit little
    endian before implicit, which drops the types of private elements; and lossless before lossy wherever
    that stands, because a sender that compresses for us would lose for ever what we could have had.
    """
    once = list(dict.fromkeys(proposed))
    first = next((uid for uid in once if uid in _SENDERS_CHOICE or uid in _PLAIN), None)
    by_rank = first is None or first in _PLAIN or first in alone
    return sorted(
        once,
        key=lambda uid: (by_rank or uid != first, _RANK.get(uid, _UNKNOWN_RANK)),
    )


def is_storage(abstract_syntax: UID) -> bool:
    """Whether objects of this SOP class are taken: all storage classes, and all we have never heard of.

    Decided by the name in PS3.6 table A-1, because pynetdicom's unrestricted storage mode is wrong both
    ways: it takes Modality Worklist for storage and refuses Hanging Protocol Storage.
    """
    if abstract_syntax in _NOT_OBJECTS:
        return False
    if not abstract_syntax.type:
        return True  # private, or newer than the dictionary
    # Two long retired storage classes have lost their names there.
    return abstract_syntax.type == "SOP Class" and (
        "Storage" in abstract_syntax.name or not abstract_syntax.name
    )
