"""The receiving door over real TCP: DCMTK's tools as senders, and a sender of our own for known bytes.

`Wire` speaks the upper layer protocol (PS3.8) and C-STORE (PS3.7) by hand, so that neither side of what is
compared comes from the library under test, and so that it can break off anywhere.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pydicom
import pytest
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from dicomfs.access import Access
from dicomfs.archive import Archive
from dicomfs.association import Limits, Receiver
from dicomfs.errors import (
    BadInstance,
    IdentityMismatch,
    RenderFailed,
    StoreFull,
    StoreUnavailable,
    UnreadableDataSet,
    UsageError,
)
from dicomfs.filemeta import DATA_SET_OFFSET
from dicomfs.ingest import Ingest
from dicomfs.lane import Lane
from dicomfs.model import Outcome, Receipt, Stored
from dicomfs.negotiation import is_storage, preferred
from dicomfs.scp import StorageSCP
from tests.support import (
    Running,
    command_line,
    connects,
    free_port,
    lacking,
    opened_below,
    require,
    running,
    shipped,
    wait_until,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
PRIVATE_CLASS = "1.3.12.2.1107.5.9.1"  # Siemens CSA Non-Image Storage
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR = "1.2.840.10008.1.2.4.81"
J2K_LOSSLESS = "1.2.840.10008.1.2.4.90"
J2K = "1.2.840.10008.1.2.4.91"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
HTJ2K = "1.2.840.10008.1.2.4.203"
JPEG_XL_LOSSLESS = "1.2.840.10008.1.2.4.110"
MPEG4 = "1.2.840.10008.1.2.4.102"
JPIP = "1.2.840.10008.1.2.4.94"
RLE = "1.2.840.10008.1.2.5"
GE_PRIVATE = "1.2.840.113619.5.2"

ACCEPTED, ABSTRACT_SYNTAX_NOT_SUPPORTED = 0, 3
DATA, COMMAND, LAST = 0, 1, 2
A_ASSOCIATE_AC, A_ASSOCIATE_RJ, P_DATA_TF, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = 2, 3, 4, 5, 6, 7
PATIENCE_S = 20.0


# --- A sender by hand -------------------------------------------------------------------------------


def _pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def _element(tag: int, value: bytes) -> bytes:
    """One element of a command set: implicit VR little endian, group 0000."""
    return struct.pack("<HHL", 0, tag, len(value)) + value


def _uid_value(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def _command(elements: bytes) -> bytes:
    return _element(0, struct.pack("<L", len(elements))) + elements


class HungUpError(Exception):
    """The peer closed the connection."""


class RejectedError(Exception):
    """A-ASSOCIATE-RJ: (result, source, diagnostic)."""


class AbortedError(Exception):
    """A-ABORT."""


@dataclass
class Wire:
    """An association, made by `with`; released at its end unless something went wrong or it was closed."""

    port: int
    contexts: Sequence[tuple[str, Sequence[str]]]
    calling: str = "SENDER"
    called: str = "DICOMFS"
    max_pdu: int = 16_384
    results: list[tuple[int, str]] = field(default_factory=list)
    """For each context: result and the transfer syntax of the answer."""

    def __enter__(self) -> Self:
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._associate()
        except BaseException:
            self.socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.socket:
            if kind is None and self.socket.fileno() >= 0:
                self.socket.sendall(_pdu(A_RELEASE_RQ, bytes(4)))
                assert self._read()[0] == A_RELEASE_RP

    def _associate(self) -> None:
        contexts = b"".join(
            _item(
                0x20,
                bytes([2 * i + 1, 0, 0, 0])
                + _item(0x30, abstract.encode())
                + b"".join(_item(0x40, ts.encode()) for ts in syntaxes),
            )
            for i, (abstract, syntaxes) in enumerate(self.contexts)
        )
        user = _item(0x51, struct.pack(">L", self.max_pdu)) + _item(0x52, b"1.2.3.4")
        self.socket.sendall(
            _pdu(
                1,
                struct.pack(">HH", 1, 0)
                + self.called.encode().ljust(16)
                + self.calling.encode().ljust(16)
                + bytes(32)
                + _item(0x10, b"1.2.840.10008.3.1.1.1")
                + contexts
                + _item(0x50, user),
            )
        )
        kind, body = self._read()
        if kind == A_ASSOCIATE_RJ:
            raise RejectedError(*body[1:4])
        assert kind == A_ASSOCIATE_AC
        self._read_results(body[68:])

    def _read_results(self, items: bytes) -> None:
        answers = {}
        while items:
            kind, _, length = struct.unpack(">BBH", items[:4])
            body, items = items[4 : 4 + length], items[4 + length :]
            if kind == 0x21:
                answers[body[0]] = (body[2], body[8:].rstrip(b"\0").decode())
        self.results = [answers[2 * i + 1] for i in range(len(self.contexts))]

    def _take(self, n: int) -> bytes:
        out = b""
        while len(out) < n:
            part = self.socket.recv(n - len(out))
            if not part:
                raise HungUpError
            out += part
        return out

    def _read(self) -> tuple[int, bytes]:
        kind, _, length = struct.unpack(">BBL", self._take(6))
        body = self._take(length)
        if kind == A_ABORT:
            raise AbortedError
        return kind, body

    def is_cut_off(self) -> bool:
        """Read on until the peer aborts or hangs up, and hang up too."""
        with self.socket:
            try:
                while True:
                    self._read()
            except TimeoutError:
                return False
            except (AbortedError, HungUpError, OSError):
                return True

    def send_pdv(self, context: int, flags: int, data: bytes) -> None:
        """One P-DATA-TF PDU with one PDV; `context` counts from 0."""
        self.socket.sendall(
            _pdu(P_DATA_TF, struct.pack(">LBB", len(data) + 2, 2 * context + 1, flags) + data)
        )

    def send_command(
        self, context: int, sop_class: str, sop_uid: str | None, *, data_set: bool = True
    ) -> None:
        """`sop_uid`: None leaves the element out."""
        self.send_pdv(
            context,
            COMMAND | LAST,
            _command(
                _element(0x0002, _uid_value(sop_class))
                + _element(0x0100, struct.pack("<H", 0x0001))
                + _element(0x0110, struct.pack("<H", 7))
                + _element(0x0700, struct.pack("<H", 0))
                + _element(0x0800, struct.pack("<H", 0x0000 if data_set else 0x0101))
                + (b"" if sop_uid is None else _element(0x1000, _uid_value(sop_uid)))
            ),
        )

    def read_response(self) -> dict[int, bytes]:
        """The command set of the next message, by element number."""
        kind, body = self._read()
        assert kind == P_DATA_TF
        command, elements = body[6:], {}
        while command:
            _, tag, length = struct.unpack("<HHL", command[:8])
            elements[tag] = command[8 : 8 + length]
            command = command[8 + length :]
        return elements

    def store(
        self, data_set: bytes, sop_class: str, sop_uid: str | None, context: int = 0
    ) -> tuple[int, str]:
        """Send one object; (status, Error Comment)."""
        self.send_command(context, sop_class, sop_uid)
        for start in range(0, len(data_set), 16_000):
            last = LAST if start + 16_000 >= len(data_set) else 0
            self.send_pdv(context, DATA | last, data_set[start : start + 16_000])
        response = self.read_response()
        assert response[0x0100] == struct.pack("<H", 0x8001)
        assert response[0x0120] == struct.pack("<H", 7)
        return struct.unpack("<H", response[0x0900])[0], response.get(0x0902, b"").decode().strip(" ")


# --- Files ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part10:
    """A DICOM file taken apart by hand (PS3.10 7.1)."""

    path: Path
    data_set: bytes
    transfer_syntax: str
    sop_class: str
    sop_uid: str


def take_apart(path: Path) -> Part10:
    raw = path.read_bytes()
    assert raw[128:132] == b"DICM"
    assert raw[132:140] == b"\x02\0\0\0UL\x04\0"
    start = 144 + struct.unpack("<L", raw[140:144])[0]
    meta = pydicom.filereader.read_file_meta_info(path)
    return Part10(
        path,
        raw[start:],
        str(meta.TransferSyntaxUID),
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
    )


def parts_of(name: str) -> Part10:
    """A file of the pydicom wheel."""
    return take_apart(shipped(name))


def synthetic(uid: str, folder: Path | None = None, **changes: object) -> Part10:
    """A small MR object in explicit VR little endian; `changes` by keyword, None removes."""
    ds = Dataset()
    ds.SOPClassUID = MR
    ds.SOPInstanceUID = uid
    ds.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2"
    ds.StudyDate, ds.Modality, ds.InstanceNumber, ds.SeriesNumber = "20240229", "MR", 1, 1
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = (
        "P1",
        "Quixotl^Zebediah",
        "19500101",
        "O",
    )
    ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "", "", "", ""
    ds.Rows = ds.Columns = 16
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = hashlib.shake_128(uid.encode()).digest(512)
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", MR)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", uid)
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    if folder is None:
        raw = buffer.getvalue()
        start = 144 + struct.unpack("<L", raw[140:144])[0]
        return Part10(Path("/nonexistent"), raw[start:], EXPLICIT, MR, uid)
    path = folder / f"{uid}.dcm"
    path.write_bytes(buffer.getvalue())
    return take_apart(path)


def with_uid(one: Part10, uid: str) -> bytes:
    """A synthetic object's data set with another SOP Instance UID, whatever that is."""
    head = b"\x08\0\x18\0UI"
    former = head + struct.pack("<H", len(_uid_value(one.sop_uid))) + _uid_value(one.sop_uid)
    assert one.data_set.count(former) == 1
    return one.data_set.replace(former, head + struct.pack("<H", len(_uid_value(uid))) + _uid_value(uid))


# --- The door ---------------------------------------------------------------------------------------


@dataclass
class Door:
    """A running SCP on a store of its own."""

    scp: StorageSCP
    store: Path

    @property
    def port(self) -> int:
        return self.scp.port

    def originals(self) -> list[Part10]:
        return [take_apart(path) for path in sorted(self.store.glob("archive/*/*.dcm"))]

    def files(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.store.glob("archive/*/*.dcm"))]

    def incoming(self) -> list[Path]:
        return list((self.store / "incoming").iterdir())

    def is_tidy(self) -> bool:
        """Nothing is left in the spool but an empty file for the next object of each association."""
        sizes = []
        for path in self.incoming():
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return not any(sizes) and len(sizes) <= self.scp.associations

    def kept_aside(self) -> list[Path]:
        return [p for p in (self.store / "quarantine").iterdir() if p.suffix != ".txt"]

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(self.store / "index.sqlite3")) as connection:
            return connection.execute(sql).fetchall()


@contextlib.contextmanager
def opened(store: Path, **options: object) -> Iterator[Door]:
    with Ingest.open(store) as ingest:
        scp = StorageSCP.start("127.0.0.1", 0, "DICOMFS", ingest, **options)  # type: ignore[arg-type]
        try:
            yield Door(scp, store)
        finally:
            scp.stop(drain_seconds=5)


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of every thread")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with opened(tmp_path / "store") as running:
        yield running
        wait_until(running.is_tidy, "a tidy spool")


@dataclass
class Scripted:
    """A receiver that does what a test wants."""

    action: Callable[[Receipt], None] = lambda _: None
    received: list[tuple[bytes, Receipt]] = field(default_factory=list)

    def lane(self) -> Lane:
        """One that is never asked for a spool file."""
        return Lane(Archive(Path("/nowhere")))

    def receive(self, parts: Sequence[bytes | memoryview], receipt: Receipt, _lane: Lane) -> Outcome:
        self.action(receipt)
        self.received.append((b"".join(parts), receipt))
        return Outcome(Stored.NEW, receipt.sop_instance_uid or "")


@contextlib.contextmanager
def scripted(
    receiver: Scripted, limits: Limits | None = None, access: Access | None = None
) -> Iterator[StorageSCP]:
    door: Receiver = receiver  # type: ignore[assignment]  # takes any sequence of parts
    scp = StorageSCP.start("127.0.0.1", 0, "DICOMFS", door, limits=limits, access=access)
    try:
        yield scp
    finally:
        scp.stop(drain_seconds=5)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where an SCP listens, for tests that store nothing."""
    with scripted(Scripted()) as scp:
        yield scp.port


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """A DCMTK tool; without TCP_NODELAY its acknowledgements crawl."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"TCP_NODELAY": "1"},
    )


def storescu(port: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("storescu", "-v", "-aet", "STORESCU", "-aec", "DICOMFS", "127.0.0.1", port, *arguments)


# --- What is accepted -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proposed", "first"),
    [
        ([JPEG_BASELINE, EXPLICIT], EXPLICIT),
        ([IMPLICIT, EXPLICIT], EXPLICIT),
        # The sender's first of what keeps every bit: its object may be stored like that already.
        ([DEFLATED, BIG_ENDIAN, IMPLICIT], DEFLATED),
        ([BIG_ENDIAN, DEFLATED, IMPLICIT], IMPLICIT),
        ([RLE, EXPLICIT, IMPLICIT], RLE),
        ([J2K_LOSSLESS, EXPLICIT], J2K_LOSSLESS),
        ([EXPLICIT, J2K_LOSSLESS], EXPLICIT),
        ([JPEG_BASELINE, J2K_LOSSLESS, EXPLICIT], J2K_LOSSLESS),
        ([J2K, EXPLICIT], EXPLICIT),
        ([JPEG_XL_LOSSLESS, EXPLICIT], EXPLICIT),  # no decoder here
        ([JPEG_EXTENDED, J2K, J2K_LOSSLESS], J2K_LOSSLESS),
        ([JPEG_LS_NEAR, JPEG_LS_LOSSLESS], JPEG_LS_LOSSLESS),
        ([HTJ2K, HTJ2K_LOSSLESS], HTJ2K_LOSSLESS),
        ([J2K_LOSSLESS, JPEG_LOSSLESS_SV1, RLE], J2K_LOSSLESS),
        ([JPEG_BASELINE, GE_PRIVATE], GE_PRIVATE),
        ([GE_PRIVATE, JPEG_LS_LOSSLESS], JPEG_LS_LOSSLESS),
        ([MPEG4, JPEG_BASELINE], JPEG_BASELINE),
        ([JPIP, MPEG4], MPEG4),
        ([JPIP], JPIP),
    ],
)
def test_one_context_gets_the_syntax_that_keeps_most(port: int, proposed: list[str], first: str) -> None:
    assert preferred([UID(uid) for uid in proposed])[0] == first
    contexts = [(CT, proposed), (PRIVATE_CLASS, proposed), ("1.2.826.0.1.3680043.999.7", proposed)]
    with Wire(port, contexts) as wire:
        assert wire.results == [(ACCEPTED, first)] * 3


def test_every_known_transfer_syntax_has_its_place() -> None:
    """Nothing in the dictionary may be ranked "unknown" by oversight, except what no C-STORE can carry."""
    other = UID("1.2.826.0.1.3680043.999.8")
    unranked = [
        entry[0]
        for uid, entry in UID_dictionary.items()
        if entry[1] == "Transfer Syntax"
        and preferred([UID(uid), other])[0] == uid
        and preferred([other, UID(uid)])[0] == other
    ]
    assert all(name.startswith(("SMPTE", "Papyrus")) for name in unranked), unranked


def test_own_contexts_of_one_class_are_answered_one_by_one(port: int) -> None:
    """Senders like storescu propose a class several times, with one transfer syntax each."""
    with Wire(port, [(MR, [JPEG_BASELINE]), (MR, [IMPLICIT, EXPLICIT]), (MR, [J2K])]) as wire:
        assert wire.results == [(ACCEPTED, JPEG_BASELINE), (ACCEPTED, EXPLICIT), (ACCEPTED, J2K)]


@pytest.mark.parametrize("uncompressed", [[EXPLICIT], [EXPLICIT, IMPLICIT]])
def test_of_several_contexts_of_one_class_both_forms_are_taken(port: int, uncompressed: list[str]) -> None:
    """Whichever form an object has, it can come as it is, if there is any way to have both."""
    both = [J2K_LOSSLESS, RLE, EXPLICIT, IMPLICIT]
    with Wire(port, [(MR, both), (MR, uncompressed)]) as wire:
        assert wire.results == [(ACCEPTED, J2K_LOSSLESS), (ACCEPTED, EXPLICIT)]
    with Wire(port, [(MR, [J2K_LOSSLESS]), (MR, both), (CT, both)]) as wire:
        assert wire.results == [(ACCEPTED, J2K_LOSSLESS), (ACCEPTED, EXPLICIT), (ACCEPTED, J2K_LOSSLESS)]


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.5.1.4.31",  # Modality Worklist - FIND
        "1.2.840.10008.5.1.4.1.2.2.1",  # Study Root Q/R - FIND
        "1.2.840.10008.5.1.4.1.2.1.3",  # Patient Root Q/R - GET
        "1.2.840.10008.3.1.2.3.3",  # Modality Performed Procedure Step
        "1.2.840.10008.1.20.1",  # Storage Commitment Push
        "1.2.840.10008.1.20.2",  # Storage Commitment Pull
        "1.2.840.10008.5.1.1.9",  # Basic Grayscale Print Management Meta
        "1.2.840.10008.5.1.4.39.2",  # Color Palette - FIND
        "1.2.840.10008.5.1.4.34.6.1",  # Unified Procedure Step Push
        "1.2.840.10008.10.1",  # Video Endoscopic Real-Time Communication
        "1.2.840.10008.1.3.10",  # Media Storage Directory
        "1.2.840.10008.4.2",  # the Storage service class itself
        "1.2.840.10008.1.2.1",  # a transfer syntax
    ],
)
def test_other_services_are_refused(port: int, uid: str) -> None:
    with Wire(port, [(uid, [IMPLICIT]), (CT, [IMPLICIT])]) as wire:
        assert wire.results[0][0] == ABSTRACT_SYNTAX_NOT_SUPPORTED
        assert wire.results[1] == (ACCEPTED, IMPLICIT)


def test_every_storage_class_of_the_standard_is_taken(port: int) -> None:
    """By another list than ours: the storage classes that pynetdicom knows, patients' or not."""
    from pynetdicom import sop_class  # noqa: PLC0415  only as a reference

    known = [*sop_class._STORAGE_CLASSES.values(), *sop_class._NON_PATIENT_OBJECT_CLASSES.values()]
    assert len(known) > 150
    for start in range(0, len(known), 100):
        contexts = [(str(uid), [IMPLICIT]) for uid in known[start : start + 100]]
        with Wire(port, contexts) as wire:
            assert {result for result, _ in wire.results} == {ACCEPTED}


def test_nothing_that_another_service_owns_counts_as_storage() -> None:
    from pynetdicom import sop_class  # noqa: PLC0415  only as a reference

    mine = {*sop_class._STORAGE_CLASSES.values(), *sop_class._NON_PATIENT_OBJECT_CLASSES.values()}
    groups = [getattr(sop_class, n) for n in dir(sop_class) if n.startswith("_") and n.endswith("_CLASSES")]
    others = {uid for group in groups if isinstance(group, dict) for uid in group.values()} - mine
    others = {uid for uid in others if isinstance(uid, str)}
    assert len(others) > 50
    assert not [uid for uid in others if is_storage(UID(uid))]


def test_echo(port: int) -> None:
    require("echoscu")
    done = run("echoscu", "-aec", "DICOMFS", "127.0.0.1", port)
    assert done.returncode == 0, done.stderr


# --- Bytes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "transfer_syntax"),
    [
        ("CT_small.dcm", EXPLICIT),
        ("rtplan.dcm", IMPLICIT),
        ("MR_small_bigendian.dcm", BIG_ENDIAN),
        ("image_dfl.dcm", DEFLATED),
        ("MR_small_RLE.dcm", RLE),
        ("SC_rgb_small_odd_jpeg.dcm", JPEG_BASELINE),
        ("MR_small_jp2klossless.dcm", J2K_LOSSLESS),
        ("MR_small_jpeg_ls_lossless.dcm", JPEG_LS_LOSSLESS),
    ],
)
def test_data_set_is_kept_byte_for_byte(door: Door, name: str, transfer_syntax: str) -> None:
    sent = parts_of(name)
    uid = str(pydicom.dcmread(sent.path).SOPInstanceUID)  # not always that of the file meta
    assert sent.transfer_syntax == transfer_syntax
    with Wire(door.port, [(sent.sop_class, [transfer_syntax])]) as wire:
        assert wire.store(sent.data_set, sent.sop_class, uid) == (0, "")
    (kept,) = door.originals()
    assert kept.data_set == sent.data_set
    assert (kept.transfer_syntax, kept.sop_class, kept.sop_uid) == (transfer_syntax, sent.sop_class, uid)


def test_private_class_and_trailing_odd_byte_are_kept(door: Door) -> None:
    """What a strict reader would dislike is not ours to mend."""
    sent = synthetic("1.2.826.0.1.3680043.8.498.77", SOPClassUID=PRIVATE_CLASS)
    odd = sent.data_set + struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, 3) + b"odd"
    assert len(odd) % 2
    with Wire(door.port, [(PRIVATE_CLASS, [EXPLICIT])]) as wire:
        assert wire.store(odd, PRIVATE_CLASS, sent.sop_uid) == (0, "")
    assert [kept.data_set for kept in door.originals()] == [odd]


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm", "waveform_ecg.dcm"])
def test_storescu_stores_what_storescp_would(door: Door, tmp_path: Path, name: str) -> None:
    """DCMTK's own SCP, told to keep what it receives bit by bit, is the reference."""
    require("storescu")
    require("storescp")
    path = parts_of(name).path
    folder = tmp_path / "reference"
    folder.mkdir()
    port = free_port()
    storescp = ["storescp", "-B", "+xa", "-od", str(folder), str(port)]
    with running(storescp, tmp_path / "storescp.log", lambda: connects(port), "storescp listens"):
        assert run("storescu", "-R", "127.0.0.1", port, path).returncode == 0
    done = storescu(door.port, "-R", path)
    assert done.returncode == 0, done.stderr
    (expected,) = [take_apart(p) for p in folder.iterdir()]
    (kept,) = door.originals()
    assert (kept.data_set, kept.transfer_syntax) == (expected.data_set, expected.transfer_syntax)


def test_file_meta_as_dcmtk_and_pydicom_read_it(door: Door) -> None:
    require("storescu")
    require("dcmdump")
    require("dcmftest")
    sent = parts_of("CT_small.dcm")
    assert storescu(door.port, sent.path).returncode == 0
    (kept,) = door.originals()
    assert run("dcmftest", kept.path).stdout.startswith("yes:")
    dump = run("dcmdump", "--no-uid-names", "+P", "0002,0002", "+P", "0002,0003", "+P", "0002,0010",
               "+P", "0002,0016", "+P", "0002,0017", "+P", "0002,0018", kept.path)  # fmt: skip
    assert dump.returncode == 0
    assert not dump.stderr
    values = [line.split("[")[1].split("]")[0] for line in dump.stdout.splitlines()]
    assert values == [sent.sop_class, sent.sop_uid, EXPLICIT, "STORESCU", "STORESCU", "DICOMFS"]
    ds = pydicom.dcmread(kept.path)
    assert ds.file_meta.FileMetaInformationVersion == b"\0\1"
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID == sent.sop_uid
    assert ds.PixelData == pydicom.dcmread(sent.path).PixelData


def test_equal_resend_changes_nothing(door: Door) -> None:
    require("storescu")
    path = parts_of("MR_small.dcm").path
    assert storescu(door.port, path).returncode == 0
    before = [(p.path, p.path.stat().st_mtime_ns, p.path.stat().st_ino) for p in door.originals()]
    rows = door.rows("SELECT * FROM originals")
    assert len(before) == len(rows) == 1
    assert storescu(door.port, path).returncode == 0
    assert [(p.path, p.path.stat().st_mtime_ns, p.path.stat().st_ino) for p in door.originals()] == before
    assert door.rows("SELECT * FROM originals") == rows


def test_same_identity_other_bytes_are_both_kept(
    expected_warnings: list[logging.LogRecord], door: Door
) -> None:
    one = synthetic("1.2.826.0.1.3680043.8.498.5")
    two = synthetic("1.2.826.0.1.3680043.8.498.5", SeriesDescription="corrected")
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        assert wire.store(one.data_set, MR, one.sop_uid) == (0, "")
        assert wire.store(two.data_set, MR, two.sop_uid) == (0, "")
    assert {kept.data_set for kept in door.originals()} == {one.data_set, two.data_set}
    ((first, shown),) = door.rows("SELECT id, shown FROM instances")
    assert first == shown


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_missing_study_or_series_uid_is_no_reason_to_lose_an_image(
    expected_warnings: list[logging.LogRecord], door: Door, missing: str
) -> None:
    sent = synthetic("1.2.826.0.1.3680043.8.498.6", **{missing: None})
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        assert wire.store(sent.data_set, MR, sent.sop_uid) == (0, "")
    assert [kept.data_set for kept in door.originals()] == [sent.data_set]


def test_eight_senders_at_once_lose_nothing(door: Door, tmp_path: Path) -> None:
    require("dcmsend")
    sent: dict[str, str] = {}
    senders = []
    for sender in range(8):
        folder = tmp_path / f"sender{sender}"
        folder.mkdir()
        for number in range(20):
            one = synthetic(
                f"1.2.826.0.1.3680043.8.498.{sender + 1}.{number + 1}", folder, InstanceNumber=number
            )
            sent[one.sop_uid] = hashlib.sha256(pydicom.dcmread(one.path).PixelData).hexdigest()
        command = ["dcmsend", "-aec", "DICOMFS", "+sd", "127.0.0.1", str(door.port), str(folder)]
        senders.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for process in senders:
        _, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, complaint
    kept = {
        one.sop_uid: hashlib.sha256(pydicom.dcmread(one.path).PixelData).hexdigest()
        for one in door.originals()
    }
    assert kept == sent
    assert len(door.originals()) == len(door.rows("SELECT id FROM originals")) == 160


# --- Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sop_class", "sop_uid"),
    [(MR, "1.2.3.4"), (CT, "1.2.826.0.1.3680043.8.498.8")],
    ids=["other instance", "other class"],
)
def test_command_of_another_object_is_a900(
    expected_warnings: list[logging.LogRecord], door: Door, sop_class: str, sop_uid: str
) -> None:
    sent = synthetic("1.2.826.0.1.3680043.8.498.8")
    with Wire(door.port, [(sop_class, [EXPLICIT])]) as wire:
        status, comment = wire.store(sent.data_set, sop_class, sop_uid)
        assert (status, comment) == (0xA900, "SOP UIDs of command and data set differ")
        good = synthetic("1.2.826.0.1.3680043.8.498.9", SOPClassUID=sop_class)
        assert wire.store(good.data_set, sop_class, good.sop_uid)[0] == 0
    assert [kept.data_set for kept in door.originals()] == [good.data_set]
    (aside,) = door.kept_aside()
    assert aside.read_bytes().endswith(sent.data_set)


@pytest.mark.parametrize(
    "data_set",
    [
        b"this is no data set at all, not even an unhealthy one",
        b"\x08\x00\x18\x00UI\x10\x00",
        bytes(1000),
        synthetic("1.2.3", SOPInstanceUID=None).data_set,
    ],
    ids=["text", "cut short", "zeros", "no SOP Instance UID"],
)
def test_what_cannot_be_read_is_c000_and_kept_aside(
    expected_warnings: list[logging.LogRecord], door: Door, data_set: bytes
) -> None:
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        status, comment = wire.store(data_set, MR, "1.2.3")
    assert status == 0xC000
    assert 0 < len(comment) <= 64
    assert not door.originals()
    (aside,) = door.kept_aside()
    assert aside.read_bytes().endswith(data_set)


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.826.0.1.3680043.2.1143.7567016219912961108887122553257011601.11",
        "1.2.840.113619.2.5.  176.1",
        "1.2.826.0.1.3680043.8.498.007",
        "1.2.826.0.1.3680043.8.498.a7",
    ],
    ids=["68 characters", "blanks", "leading zeros", "letters"],
)
def test_uid_that_breaks_the_rules_is_stored_as_it_is(door: Door, uid: str) -> None:
    good = synthetic("1.2.826.0.1.3680043.8.498.13")
    one = with_uid(good, uid)
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        assert wire.store(one, MR, uid) == (0, "")
        assert wire.store(good.data_set, MR, good.sop_uid) == (0, "")
    assert {raw[DATA_SET_OFFSET:] for raw in door.files()} == {one, good.data_set}
    assert door.rows("SELECT sop_uid FROM instances ORDER BY id") == [(uid,), (good.sop_uid,)]


def test_absurdly_long_a_uid_costs_its_object_not_the_association(
    expected_warnings: list[logging.LogRecord], door: Door
) -> None:
    good = synthetic("1.2.826.0.1.3680043.8.498.13")
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        assert wire.store(with_uid(good, "1." * 90 + "1"), MR, "1." * 90 + "1")[0] == 0xC000
        assert wire.store(good.data_set, MR, good.sop_uid) == (0, "")
    assert len(door.kept_aside()) == 1


@pytest.mark.parametrize("announced", ["", None], ids=["empty", "missing"])
def test_command_that_names_no_object_is_answered_and_the_object_kept(
    expected_warnings: list[logging.LogRecord], door: Door, announced: str | None
) -> None:
    sent = synthetic("1.2.826.0.1.3680043.8.498.14")
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        assert wire.store(sent.data_set, MR, announced) == (0, "")
        assert wire.store(b"no data set", MR, announced)[0] == 0xC000
        second = synthetic("1.2.826.0.1.3680043.8.498.15")
        assert wire.store(second.data_set, MR, second.sop_uid) == (0, "")
    assert {kept.data_set for kept in door.originals()} == {sent.data_set, second.data_set}


def test_what_is_kept_aside_is_a_dicom_file_that_says_why(
    expected_warnings: list[logging.LogRecord], door: Door, tmp_path: Path
) -> None:
    require("dcmdump")
    sent = synthetic("1.2.826.0.1.3680043.8.498.16")
    with Wire(door.port, [(MR, [EXPLICIT])], calling="MRI3") as wire:
        assert wire.store(sent.data_set, MR, "1.2.3.4")[0] == 0xA900
    (aside,) = door.kept_aside()
    dump = run("dcmdump", "+P", "0002,0003", "+P", "0002,0016", "+P", "0008,0018", aside)
    assert (dump.returncode, dump.stderr) == (0, "")
    assert [line.split("[")[1].split("]")[0] for line in dump.stdout.splitlines()] == [
        "1.2.3.4",
        "MRI3",
        sent.sop_uid,
    ]
    assert b"announced as 1.2.3.4" in pydicom.dcmread(aside).file_meta.PrivateInformation
    done = run(*command_line("import", "--store", tmp_path / "other", aside))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("other/archive/*/*.dcm")
    assert take_apart(path).data_set == sent.data_set


def test_no_data_set_is_c001(expected_warnings: list[logging.LogRecord], door: Door) -> None:
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        wire.send_command(0, MR, "1.2.3", data_set=False)
        assert wire.read_response()[0x0900] == struct.pack("<H", 0xC001)
        wire.send_command(0, MR, "1.2.3")
        wire.send_pdv(0, DATA | LAST, b"")
        assert wire.read_response()[0x0900] == struct.pack("<H", 0xC001)
    assert not door.originals()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreFull("full"), 0xA700),
        (StoreUnavailable("locked"), 0xA700),
        (IdentityMismatch("other"), 0xA900),
        (UnreadableDataSet("cut"), 0xC000),
        (BadInstance("bad"), 0xC000),
        (RenderFailed("not a matter of receiving"), 0x0110),
        (ValueError("Quixotl^Zebediah"), 0x0110),
        (OSError(errno.EIO, "raw"), 0x0110),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else f"{value:04X}",
)
def test_each_error_reaches_the_sender(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Receipt) -> None:
        raise error

    caplog.set_level(logging.DEBUG)
    receiver = Scripted(fail)
    with scripted(receiver) as scp, Wire(scp.port, [(MR, [EXPLICIT])]) as wire:
        answer, comment = wire.store(b"bytes", MR, "1.2.3.4.99")
        assert answer == status
        assert 0 < len(comment) <= 64
        receiver.action = lambda _: None
        assert wire.store(b"bytes", MR, "1.2.3.4.99") == (0, "")
    (record,) = [r for r in caplog.records if r.name == "dicomfs.scp" and "not stored" in r.getMessage()]
    assert record.levelno >= logging.WARNING
    assert "1.2.3.4.99" in record.getMessage()
    assert "Quixotl" not in caplog.text
    if status == 0x0110:
        assert "in receive" in record.getMessage(), "where it happened"


def test_receipt_says_who_sent_what(tmp_path: Path) -> None:
    receiver = Scripted()
    began = time.time()
    contexts = [(MR, [IMPLICIT]), (PRIVATE_CLASS, [JPEG_LS_LOSSLESS])]
    with scripted(receiver) as scp, Wire(scp.port, contexts, calling=" MRI 3 ", called="WHATEVER") as wire:
        wire.store(b"some bytes", PRIVATE_CLASS, "1.2.3", context=1)
    ((data_set, receipt),) = receiver.received
    assert data_set == b"some bytes"
    assert began <= receipt.received <= time.time()
    assert (receipt.transfer_syntax, receipt.source_ae, receipt.receiving_ae) == (
        JPEG_LS_LOSSLESS,
        "MRI 3",
        "DICOMFS",
    )
    assert (receipt.sop_class_uid, receipt.sop_instance_uid) == (PRIVATE_CLASS, "1.2.3")


# --- A full disk ------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    require("mount")
    if os.geteuid() != 0:
        lacking("only root can mount a tmpfs")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path, leave: int) -> None:
    """Take all space of a file system but `leave` bytes."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with path.open("rb+") as file:
        file.truncate(max(0, path.stat().st_size - leave))


@pytest.mark.parametrize("leave", [0, 4096, 8192, 12_288, 20_480, 49_152])
def test_full_disk_is_a700_until_there_is_space_again(
    expected_warnings: list[logging.LogRecord], tmp_path: Path, leave: int
) -> None:
    objects = [synthetic(f"1.2.826.0.1.3680043.8.498.{n}") for n in range(100, 130)]
    with small_disk(tmp_path / "disk", "2m") as disk, opened(disk / "store") as door:
        with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
            assert wire.store(objects[0].data_set, MR, objects[0].sop_uid) == (0, "")
            fill(disk / "filler", leave)
            answers = [wire.store(one.data_set, MR, one.sop_uid) for one in objects[1:]]
            assert {status for status, _ in answers} <= {0, 0xA700}
            assert answers[-1][0] == 0xA700
            acknowledged = [objects[0]] + [
                o for o, (s, _) in zip(objects[1:], answers, strict=True) if s == 0
            ]
            wait_until(door.is_tidy, "a tidy spool")
            assert {kept.data_set for kept in door.originals()} == {o.data_set for o in acknowledged}
            (disk / "filler").unlink()
            for one in objects:
                assert wire.store(one.data_set, MR, one.sop_uid) == (0, "")
        assert {kept.data_set for kept in door.originals()} == {one.data_set for one in objects}
        assert door.rows("SELECT count(*) FROM originals") == [(len(objects),)]
        assert door.rows("PRAGMA integrity_check") == [("ok",)]


def test_a_sender_that_pauses_has_no_file_open(door: Door) -> None:
    """The file system below may have to be unmounted."""
    first, second = (synthetic(f"1.2.826.0.1.3680043.8.498.{n}") for n in (130, 131))
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        assert wire.store(first.data_set, MR, first.sop_uid) == (0, "")
        wait_until(
            lambda: not (door.incoming() or opened_below(door.store / "incoming")), "no file in the spool"
        )
        assert wire.store(second.data_set, MR, second.sop_uid) == (0, "")
    assert len(door.originals()) == 2


# --- Broken peers -----------------------------------------------------------------------------------


def _half_object(wire: Wire) -> None:
    wire.send_command(0, MR, "1.2.3")
    wire.send_pdv(0, DATA, bytes(10_000))


def _abort(wire: Wire) -> None:
    wire.socket.sendall(_pdu(A_ABORT, bytes(4)))


def _hang_up(wire: Wire) -> None:
    wire.socket.close()


def _half_pdu(wire: Wire) -> None:
    wire.socket.sendall(struct.pack(">BBL", P_DATA_TF, 0, 1000) + b"half")
    wire.socket.close()


def _garbage(wire: Wire) -> None:
    wire.socket.sendall(b"GET / HTTP/1.1\r\nHost: archive\r\n\r\n")


def _garbage_command(wire: Wire) -> None:
    wire.send_pdv(0, COMMAND | LAST, b"\xff" * 64)


def _unknown_context(wire: Wire) -> None:
    wire.send_command(9, MR, "1.2.3")
    wire.send_pdv(9, DATA | LAST, b"data")


@pytest.mark.parametrize(
    "harm",
    [_abort, _hang_up, _half_pdu, _garbage, _garbage_command, _unknown_context],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("before", [lambda _: None, _half_object], ids=["at once", "mid object"])
def test_broken_peer_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture, door: Door, harm: Callable[[Wire], None], before: Callable[[Wire], None]
) -> None:
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        before(wire)
        harm(wire)
        assert wire.is_cut_off()
    wait_until(lambda: not door.scp.connections, "the end of the association")
    assert not door.originals()
    wait_until(door.is_tidy, "a tidy spool")
    sent = synthetic("1.2.826.0.1.3680043.8.498.10")
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        assert wire.store(sent.data_set, MR, sent.sop_uid) == (0, "")


@pytest.mark.parametrize(
    "first_bytes", [b"", b"\x01", b"\x01\0\0\0\x10\0half", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"]
)
def test_half_open_connection_is_closed_in_time(
    expected_warnings: list[logging.LogRecord], first_bytes: bytes
) -> None:
    limits = Limits(handshake_s=0.3, stall_s=0.3)
    with (
        scripted(Scripted(), limits) as scp,
        socket.create_connection(("127.0.0.1", scp.port), timeout=PATIENCE_S) as connection,
    ):
        connection.sendall(first_bytes)
        said = connection.recv(1000)  # an A-ABORT may come first
        # The end, and not the time-out of this socket, which is far longer than the limits.
        assert said == b"" or connection.recv(1000) == b""


def test_stalled_object_is_given_up(expected_warnings: list[logging.LogRecord]) -> None:
    """Half a PDU, then nothing: neither the thread nor its place may be held for ever."""
    receiver = Scripted()
    with scripted(receiver, Limits(associations=1, stall_s=0.3)) as scp:
        with Wire(scp.port, [(MR, [EXPLICIT])]) as wire:
            _half_object(wire)
            wire.socket.sendall(struct.pack(">BBL", P_DATA_TF, 0, 1000) + b"half")
            assert wire.is_cut_off()
        wait_until(lambda: not scp.connections, "the stalled association's end")
        with Wire(scp.port, [(MR, [EXPLICIT])]) as wire:
            assert wire.store(b"bytes", MR, "1.2.3") == (0, "")
    assert len(receiver.received) == 1


def test_too_large_an_object_costs_itself_only(
    expected_warnings: list[logging.LogRecord], tmp_path: Path
) -> None:
    good = synthetic("1.2.826.0.1.3680043.8.498.40")
    large = synthetic("1.2.826.0.1.3680043.8.498.41", ImageComments="x" * 9000)
    limits = Limits(object_bytes=len(good.data_set))
    with opened(tmp_path / "store", limits=limits) as door, Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        assert wire.store(large.data_set, MR, large.sop_uid)[0] == 0xC002
        assert wire.store(good.data_set, MR, good.sop_uid) == (0, "")
        assert [kept.data_set for kept in door.originals()] == [good.data_set]
        wait_until(door.is_tidy, "a tidy spool")


def test_idle_association_is_aborted_and_told_so() -> None:
    limits = Limits(idle_s=0.3)
    with scripted(Scripted(), limits) as scp, pytest.raises(AbortedError):  # noqa: SIM117
        with Wire(scp.port, [(MR, [EXPLICIT])]) as wire:
            wire._read()


def test_context_without_transfer_syntax_is_rejected(
    expected_warnings: list[logging.LogRecord], port: int
) -> None:
    with pytest.raises(RejectedError) as caught, Wire(port, [(CT, [])]):
        pass
    assert caught.value.args == (1, 2, 1)


def test_one_association_too_many_is_told_to_wait(expected_warnings: list[logging.LogRecord]) -> None:
    with scripted(Scripted(), Limits(associations=1)) as scp:
        with (
            Wire(scp.port, [(MR, [EXPLICIT])]),
            pytest.raises(RejectedError) as caught,
            Wire(scp.port, [(MR, [EXPLICIT])]),
        ):
            pass
        assert caught.value.args == (2, 3, 2)  # transient, presentation related, local limit exceeded
        wait_until(lambda: not scp.connections, "the first association's end")
        with Wire(scp.port, [(MR, [EXPLICIT])]) as wire:
            assert wire.results == [(ACCEPTED, EXPLICIT)]


def test_called_title_counts_only_when_asked_for(expected_warnings: list[logging.LogRecord]) -> None:
    with scripted(Scripted(), access=Access("DICOMFS", is_open=True)) as scp:
        with pytest.raises(RejectedError) as caught, Wire(scp.port, [(MR, [EXPLICIT])], called="OTHER"):
            pass
        assert caught.value.args == (1, 1, 7)
        with Wire(scp.port, [(MR, [EXPLICIT])], called="DICOMFS") as wire:
            assert wire.results == [(ACCEPTED, EXPLICIT)]


def test_accepted_connections_do_not_wait_for_full_packets() -> None:
    with scripted(Scripted()) as scp, Wire(scp.port, [(MR, [EXPLICIT])]):
        (guest,) = scp._guests
        assert guest.connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- Start and stop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["", "   ", "SEVENTEEN_LETTERS", "back\\slash", "Ümlaut", "new\nline"])
def test_bad_title_is_the_users_error(title: str) -> None:
    with pytest.raises(UsageError, match="AE title"):
        StorageSCP.start("127.0.0.1", 0, title, Scripted())  # type: ignore[arg-type]


def test_port_in_use_is_the_users_error() -> None:
    with scripted(Scripted()) as scp, pytest.raises(UsageError, match=f"port {scp.port}: another program"):
        StorageSCP.start("127.0.0.1", scp.port, "DICOMFS", Scripted())  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_address_of_elsewhere_is_the_users_error(host: str) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on {host}"):
        StorageSCP.start(host, 0, "DICOMFS", Scripted())  # type: ignore[arg-type]


def test_drain_lets_a_slow_sender_finish_and_nobody_new_in(door: Door) -> None:
    sent = synthetic("1.2.826.0.1.3680043.8.498.11")
    drained: list[bool] = []
    stopper = threading.Thread(target=lambda: drained.append(door.scp.stop(drain_seconds=PATIENCE_S)))
    with Wire(door.port, [(MR, [EXPLICIT])]) as wire:
        wire.send_command(0, MR, sent.sop_uid)
        wire.send_pdv(0, DATA, sent.data_set[:300])
        port = door.port
        stopper.start()
        wait_until(lambda: refused(port), "the refusal of new senders")
        assert stopper.is_alive()
        wire.send_pdv(0, DATA | LAST, sent.data_set[300:])
        assert wire.read_response()[0x0900] == b"\0\0"
        second = synthetic("1.2.826.0.1.3680043.8.498.12")
        assert wire.store(second.data_set, MR, second.sop_uid) == (0, "")
    stopper.join(PATIENCE_S)
    assert drained == [True]
    assert {kept.data_set for kept in door.originals()} == {sent.data_set, second.data_set}


def refused(port: int) -> bool:
    """True when no association can be had any more: no listener, or a transient rejection."""
    try:
        with Wire(port, [(MR, [EXPLICIT])]):
            return False
    except (ConnectionError, HungUpError, RejectedError, AbortedError):
        return True


def test_drain_is_bounded(expected_warnings: list[logging.LogRecord], tmp_path: Path) -> None:
    with opened(tmp_path / "store", limits=Limits(handshake_s=1)) as door:
        contexts = [(MR, [EXPLICIT])]
        silent = socket.create_connection(("127.0.0.1", door.port))
        with silent, Wire(door.port, contexts) as lazy, Wire(door.port, contexts) as stuck:
            _half_object(lazy)
            stuck.socket.sendall(struct.pack(">BBL", P_DATA_TF, 0, 1000) + b"half")
            wait_until(lambda: door.scp.connections == 3, "the third connection")
            assert door.scp.stop(drain_seconds=0.2) is False
            assert not door.scp.associations
            assert door.scp.stop(drain_seconds=0.2) is True, "a second stop has nothing to do"
            assert lazy.is_cut_off()
            assert stuck.is_cut_off()
        assert not door.originals()
        wait_until(door.is_tidy, "a tidy spool")


def test_object_being_written_when_the_drain_ends_is_finished(
    expected_warnings: list[logging.LogRecord],
) -> None:
    go_on, inside = threading.Event(), threading.Event()

    def slowly(_: Receipt) -> None:
        inside.set()
        assert go_on.wait(PATIENCE_S)

    receiver = Scripted(slowly)
    stopped: list[bool] = []
    with scripted(receiver) as scp, Wire(scp.port, [(MR, [EXPLICIT])]) as wire:
        wire.send_command(0, MR, "1.2.3")
        wire.send_pdv(0, DATA | LAST, b"bytes")
        assert inside.wait(PATIENCE_S)
        stopper = threading.Thread(target=lambda: stopped.append(scp.stop(drain_seconds=0.1)))
        stopper.start()
        assert wire.is_cut_off()
        assert stopper.is_alive()
        go_on.set()
        stopper.join(PATIENCE_S)
        assert stopped == [False]
        assert [data for data, _ in receiver.received] == [b"bytes"]


# --- The log ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_log_names_objects_and_peers_but_never_patients(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    objects = [
        synthetic("1.2.826.0.1.3680043.8.498.21"),
        synthetic("1.2.826.0.1.3680043.8.498.21", PatientID="Quixotl"),
        synthetic("1.2.826.0.1.3680043.8.498.22", StudyInstanceUID=None, StudyID="Quixotl"),
        synthetic("1.2.826.0.1.3680043.8.498.23", StudyDate="19500101"),
    ]
    with Wire(door.port, [(MR, [EXPLICIT])], calling="MRI3") as wire:
        for one in objects:
            assert wire.store(one.data_set, MR, one.sop_uid)[0] == 0
        assert wire.store(objects[0].data_set, MR, "1.2.3.555")[0] == 0xA900
        assert wire.store(objects[0].data_set[:-100], MR, objects[0].sop_uid)[0] == 0xC000
        assert wire.store(b"Quixotl" * 20, MR, "1.2.3.556")[0] == 0xC000
        assert wire.store(objects[0].data_set, MR, "1.2\n3")[0] == 0xA900
    wait_until(lambda: "released" in caplog.text, "the end of the association")
    for shown in ("1.2.826.0.1.3680043.8.498.21", "1.2.3.555", "1.2.3.556", "MRI3 at 127.0.0.1"):
        assert shown in caplog.text
    assert {record.name.split(".")[0] for record in caplog.records} == {"dicomfs"}, "libraries quote values"
    lines = [record.getMessage() for record in caplog.records if record.name == "dicomfs.scp"]
    assert not [line for line in lines if "\n" in line]
    for hidden in ("Quixotl", "Zebediah", "19500101"):
        assert hidden not in caplog.text


# --- The real command -------------------------------------------------------------------------------


@dataclass
class Service:
    """`dicomfs scp` in a process of its own."""

    program: Running
    port: int


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    log = tmp_path / "log"
    argv = command_line(
        "scp", "--verbose", "--store", tmp_path / "store", "--host", "127.0.0.1", "--port", "0"
    )

    def port() -> int:
        found = re.search(r"listening on .* port (\d+)", log.read_text())
        return int(found[1]) if found else 0

    with running(argv, log, port, "dicomfs scp listens") as program:
        yield Service(program, port())


def test_sigterm_drains_and_ends_well(service: Service, tmp_path: Path) -> None:
    sent = synthetic("1.2.826.0.1.3680043.8.498.31")
    with Wire(service.port, [(MR, [EXPLICIT])]) as wire:
        wire.send_command(0, MR, sent.sop_uid)
        wire.send_pdv(0, DATA, sent.data_set[:300])
        service.program.process.send_signal(signal.SIGTERM)
        service.program.wait_until(lambda: refused(service.port), "the refusal of new senders")
        assert service.program.process.poll() is None
        wire.send_pdv(0, DATA | LAST, sent.data_set[300:])
        assert wire.read_response()[0x0900] == b"\0\0"
    assert service.program.process.wait(PATIENCE_S) == 0
    (kept,) = [take_apart(path) for path in tmp_path.glob("store/archive/*/*.dcm")]
    assert kept.data_set == sent.data_set
    assert "Quixotl" not in service.program.output()
    assert sent.sop_uid in service.program.output()


def test_hostile_bytes_do_not_end_the_service(service: Service) -> None:
    for harm in (_garbage, _garbage_command, _half_pdu, _unknown_context):
        with Wire(service.port, [(MR, [EXPLICIT])]) as wire:
            harm(wire)
            assert wire.is_cut_off()
    sent = synthetic("1.2.826.0.1.3680043.8.498.32")
    with Wire(service.port, [(MR, [EXPLICIT])]) as wire:
        assert wire.store(sent.data_set, MR, sent.sop_uid)[0] == 0
    service.program.process.send_signal(signal.SIGINT)
    assert service.program.process.wait(PATIENCE_S) == 0
    assert "Quixotl" not in service.program.output()


def test_a_health_check_holds_no_place() -> None:
    """Connections that are closed without a request must not keep scanners out until a time-out."""
    # Longer than the test waits: only the hang-up itself can give the place back.
    with scripted(Scripted(), Limits(associations=1, handshake_s=300)) as scp:
        for _ in range(4):
            socket.create_connection(("127.0.0.1", scp.port)).close()
        wait_until(lambda: not scp.connections, "the places of those who went")
        with Wire(scp.port, [(MR, [EXPLICIT])]) as wire:
            assert wire.results == [(ACCEPTED, EXPLICIT)]
