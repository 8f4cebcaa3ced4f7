"""What tests of scrub and rebuild share: small originals, where they lie, and what can become of them."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from pydicom.uid import ExplicitVRLittleEndian

from dicomfs.archive import digest_and_sequence
from dicomfs.filemeta import DATA_SET_OFFSET, file_meta, parse_file_meta
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates, Receipt
from tests.made import MR_STORAGE, RECEIVED, data_set, encoded

RECEIPT: Final = Receipt(ExplicitVRLittleEndian, RECEIVED, "SCANNER", "DICOMFS")


def image(number: int, **changes: object) -> bytes:
    """An encoded data set; the same number is the same SOP instance, 2.25.500 and that."""
    return encoded(data_set(SOPInstanceUID=f"2.25.{500 + number}", InstanceNumber=number, **changes))


def fill(store: Path, *images: int | bytes, policy: Duplicates = Duplicates.KEEP_FIRST) -> None:
    """Receive images by their numbers, or other contents, one after the other."""
    with Ingest.open(store, policy) as ingest:
        for one in images:
            ingest.receive([image(one) if isinstance(one, int) else one], RECEIPT)


def digest_of(content: bytes) -> str:
    """SHA-256 of transfer syntax UID, NUL, data set."""
    return sha256(ExplicitVRLittleEndian.encode() + b"\0" + content).hexdigest()


def path_of(store: Path, content: bytes, number: int) -> Path:
    """Where the original of a content and a receipt sequence number lies."""
    digest = digest_of(content)
    return store / "archive" / digest[:2] / f"{digest}-{number}.dcm"


def original(store: Path, number: int) -> Path:
    """Where the original of `image(number)` lies, if that was the number of its receipt, too."""
    return path_of(store, image(number), number)


def leave_behind(store: Path, content: bytes, number: int, received: float = RECEIVED) -> Path:
    """A whole file without a row, as if its transaction had been rolled back."""
    path = path_of(store, content, number)
    path.write_bytes(file_meta(replace(RECEIPT, received=received), MR_STORAGE, "2.25.1") + content)
    return path


def overwrite(path: Path, at: int, new: bytes) -> None:
    """Change bytes of an archived file in place, as a failing disk would."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(new)


def lose_index(store: Path) -> None:
    """The archive alone is left of it."""
    for path in store.glob("index.sqlite3*"):
        path.unlink()


def execute(store: Path, *statements: str) -> None:
    """Change the index behind everybody's back."""
    with closing(sqlite3.connect(store / "index.sqlite3", isolation_level=None)) as raw:
        for statement in statements:
            raw.execute(statement)


@dataclass(frozen=True, slots=True)
class ArchivedMeta:
    """What an archived file says of its own receipt."""

    sequence: int
    receipt: Receipt


def read_archived_meta(path: Path) -> ArchivedMeta:
    """What a file says of its receipt, and the number in its name."""
    _, sequence = digest_and_sequence(path.name)
    return ArchivedMeta(sequence, parse_file_meta(path.read_bytes()[:DATA_SET_OFFSET]))
