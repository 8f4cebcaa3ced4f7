"""Storage commitment without network: requests read, results written, transactions kept, the address book."""

import io
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomfs.commitment import (
    MOST_REFERENCES,
    Reason,
    Reference,
    Report,
    Request,
    check_addressee,
    encoded,
    pause_s,
    read_request,
)
from dicomfs.commitments import COMMITMENTS_NAME, KEEP_S, Commitments, counts
from dicomfs.commitmentservice import CommitmentService
from dicomfs.errors import ReportFailed, RequestRefused, StoreMismatch, UsageError
from dicomfs.peers import Peer, address_book, peer
from dicomfs.reporter import Reporter, check_answer
from tests.modality import information
from tests.support import wait_until

CT = "1.2.840.10008.5.1.4.1.1.2"
CLASS, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
PAIRS = [(CT, "1.2.3"), (CT, "1.2.3.44"), ("1.3.12.2.1107.5.9.1", "1.2.3.4.5")]
TRANSACTION = "1.2.840.99"


def data_set(ds: Dataset, syntax: UID, *, is_undefined: bool = False) -> bytes:
    """Encoded by pydicom; `is_undefined`: sequences and items end at delimiters."""
    if is_undefined:
        ds["ReferencedSOPSequence"].is_undefined_length = True
        for item in ds.ReferencedSOPSequence:
            item.is_undefined_length_sequence_item = True
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_dataset(buffer, ds)
    return buffer.getvalue()


# Requests


@pytest.mark.parametrize("is_undefined", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_request_is_read_in_every_encoding(syntax: UID, is_undefined: bool) -> None:
    ds = information(PAIRS, TRANSACTION)
    ds.StorageMediaFileSetID = "DISC"
    step = Dataset()
    step.ReferencedSOPClassUID, step.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.3", "1.2.5"
    ds.ReferencedPerformedProcedureStepSequence = [step]
    found = read_request(data_set(ds, syntax, is_undefined=is_undefined), syntax)
    assert found == Request(TRANSACTION, tuple(Reference(*pair) for pair in PAIRS))


def _twice(raw: bytes) -> bytes:
    return raw + raw


@pytest.mark.parametrize(
    ("ds", "change"),
    [
        (information(PAIRS, TransactionUID=None), None),
        (information(PAIRS, TransactionUID=""), None),
        (information(PAIRS, ReferencedSOPSequence=None), None),
        (information([]), None),
        (information([(CT, "")]), None),
        (information([("", "1.2.3")]), None),
        (information(PAIRS), _twice),
        (information(PAIRS), lambda raw: raw[:-3]),
        (information(PAIRS), lambda raw: raw[1:]),
        (information(PAIRS), lambda raw: raw.replace(b"UI", b"LO")),
        (information([(CT, "1.2.3456")]), lambda raw: raw.replace(b"1.2.3456", b"Doe^John")),
        (information([(CT, "1.2.3456")]), lambda raw: raw.replace(b"1.2.3456", b"1..23456")),
        (Dataset(), None),
    ],
)
def test_broken_requests_are_refused(ds: Dataset, change: Callable[[bytes], bytes] | None) -> None:
    raw = data_set(ds, ExplicitVRLittleEndian)
    with pytest.raises(RequestRefused) as caught:
        read_request(change(raw) if change else raw, ExplicitVRLittleEndian)
    assert caught.value.status == 0x0115
    assert "Doe" not in str(caught.value)


def test_a_request_without_end_is_refused_for_want_of_resources() -> None:
    item = b"\xfe\xff\x00\xe0\x20\0\0\0\x08\0\x50\x11UI\x06\x001.2.30\x08\0\x55\x11UI\x0a\x001.2.345678"
    sequence = item * (MOST_REFERENCES + 1)
    raw = b"\x08\0\x99\x11SQ\0\0" + len(sequence).to_bytes(4, "little") + sequence
    with pytest.raises(RequestRefused) as caught:
        read_request(raw, ExplicitVRLittleEndian)
    assert caught.value.status == 0x0213


@given(
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4)), max_size=8),
    st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]),
)
def test_changed_bytes_are_read_or_refused(changes: list[tuple[int, bytes]], syntax: UID) -> None:
    raw = data_set(information(PAIRS, TRANSACTION), syntax)
    for at, piece in changes:
        raw = raw[:at] + piece + raw[at + max(len(piece) - 1, 0) :]
    with suppress(RequestRefused):  # and nothing else
        assert read_request(raw, syntax).references


@pytest.mark.parametrize(
    ("sop_class", "instance", "action", "status"),
    [
        ("1.2.840.10008.1.20.2", INSTANCE, 1, 0x0118),
        ("", INSTANCE, 1, 0x0118),
        (CLASS, "1.2.3", 1, 0x0112),
        (CLASS, INSTANCE, 0, 0x0123),
        (CLASS, INSTANCE, 2, 0x0123),
    ],
)
def test_what_is_addressed_otherwise(sop_class: str, instance: str, action: int, status: int) -> None:
    with pytest.raises(RequestRefused) as caught:
        check_addressee(sop_class, instance, action)
    assert caught.value.status == status
    check_addressee(CLASS, INSTANCE, 1)


# Results


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("failed", [(), (1,), (0, 1, 2)])
def test_every_reference_is_in_the_result(syntax: UID, failed: tuple[int, ...]) -> None:
    references = [Reference(*pair) for pair in PAIRS]
    report = Report(TRANSACTION, references, dict.fromkeys(failed, Reason.NO_SUCH_OBJECT))
    assert report.event_type == (2 if failed else 1)
    ds = dcmread(io.BytesIO(_as_file(encoded(report, syntax), syntax)))
    assert ds.TransactionUID == TRANSACTION
    listed = [(it.ReferencedSOPInstanceUID, None) for it in ds.get("ReferencedSOPSequence", [])]
    listed += [(it.ReferencedSOPInstanceUID, it.FailureReason) for it in ds.get("FailedSOPSequence", [])]
    expected = {uid: 0x0112 if place in failed else None for place, (_, uid) in enumerate(PAIRS)}
    assert dict(listed) == expected
    # Type 1C: an empty sequence is none.
    assert ("ReferencedSOPSequence" in ds) == (len(failed) < 3)
    assert ("FailedSOPSequence" in ds) == bool(failed)


def _as_file(raw: bytes, syntax: UID) -> bytes:
    meta = b"\x02\0\x10\0UI" + len(syntax + " " * (len(syntax) % 2)).to_bytes(2, "little")
    return bytes(128) + b"DICM" + meta + syntax.encode().ljust(len(syntax) + len(syntax) % 2, b"\0") + raw


def test_waits_are_doubled_up_to_half_an_hour() -> None:
    assert [pause_s(n) for n in (1, 2, 3, 10, 1000)] == [10, 20, 40, 1800, 1800]


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0x0107])
def test_answers_that_mean_it_was_heard(status: int) -> None:
    check_answer(status)


@pytest.mark.parametrize(
    ("status", "is_final"), [(0x0110, False), (0x0213, False), (0x0112, True), (0x0211, True)]
)
def test_answers_that_mean_it_was_not(status: int, is_final: bool) -> None:
    with pytest.raises(ReportFailed) as caught:
        check_answer(status)
    assert caught.value.is_final == is_final


# Transactions


@contextmanager
def opened(folder: Path) -> Iterator[Commitments]:
    with closing(Commitments(folder / COMMITMENTS_NAME, create=True)) as commitments:
        yield commitments


REQUEST = Request(TRANSACTION, tuple(Reference(*pair) for pair in PAIRS))
OTHER = Request(TRANSACTION, REQUEST.references[:1])


def test_a_transaction_is_kept_through_its_life(tmp_path: Path) -> None:
    with opened(tmp_path) as them:
        it = them.accept(REQUEST, "CT1", "10.1.2.3", "DICOMFS", 1000.0)
    with opened(tmp_path) as them:
        assert them.open_ones() == [it]
        assert them.report(it.id) == Report(TRANSACTION, REQUEST.references, {})
        them.verified(it.id, {2: 0x0112})
        assert them.open_ones()[0].is_verified
        assert them.report(it.id).failures == {2: 0x0112}
        them.missed([it], "nobody answers")
        them.ended(it.id, 2000.0)
        assert them.open_ones() == []
        found = them.counts(2001.0)
        assert (found.open, found.reported_last_hour, found.failed_last_hour) == (0, 1, 1)
        assert them.counts(2000.0 + 4000).reported_last_hour == 0


def test_the_same_request_again_is_the_same_transaction(tmp_path: Path) -> None:
    with opened(tmp_path) as them:
        first = them.accept(REQUEST, "CT1", "10.1.2.3", "DICOMFS", 1.0)
        again = them.accept(REQUEST, "CT1", "10.1.2.4", "DICOMFS", 2.0)
        assert (again.id, again.address, again.is_reuse) == (first.id, "10.1.2.4", False)
        them.verified(first.id, {0: 0x0110})
        them.ended(first.id, 3.0)
        begun = them.accept(REQUEST, "CT1", "10.1.2.3", "DICOMFS", 4.0)
        assert (begun.id, begun.is_verified, begun.is_reuse) == (first.id, False, False)
        assert them.report(first.id).failures == {}


def test_another_request_under_the_uid_of_the_first(tmp_path: Path) -> None:
    with opened(tmp_path) as them:
        first = them.accept(REQUEST, "CT1", "10.1.2.3", "DICOMFS", 1.0)
        reuse = them.accept(OTHER, "CT1", "10.1.2.3", "DICOMFS", 2.0)
        stranger = them.accept(OTHER, "MR1", "10.1.2.3", "DICOMFS", 3.0)
        assert [it.is_reuse for it in (first, reuse, stranger)] == [False, True, False]
        assert len({first.id, reuse.id, stranger.id}) == 3
        assert not them.accept(REQUEST, "CT1", "10.1.2.3", "DICOMFS", 4.0).is_reuse


def test_what_ended_long_ago_is_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path) as them:
        for number, ended in enumerate((1000.0, 5000.0)):
            it = them.accept(Request(f"1.{number}", REQUEST.references), "CT1", "a", "DICOMFS", 1.0)
            them.ended(it.id, ended, "in vain")
        them.accept(Request("1.9", REQUEST.references), "CT1", "a", "DICOMFS", 1.0)
        them.prune(1000.0 + KEEP_S + 1)
        found = them.counts(0.0)
        assert (found.open, found.given_up) == (1, 1)


def test_a_store_without_commitments_has_none(tmp_path: Path) -> None:
    assert counts(tmp_path, 0.0).open == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["text", "other version"])
def test_a_file_of_something_else_is_not_touched(tmp_path: Path, damage: str) -> None:
    path = tmp_path / COMMITMENTS_NAME
    if damage == "text":
        path.write_text("not a database" * 100)
    else:
        with opened(tmp_path):
            pass
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE about SET value = '99'")
            connection.commit()
    for create in (True, False):
        with pytest.raises(StoreMismatch, match="move it away"):
            Commitments(path, create=create)


# Giving up


class Nobody(Reporter):
    """Whose peers are never there."""

    def __init__(self) -> None:
        super().__init__({})
        self.calls = 0

    @contextmanager
    def association(self, *_: str) -> Iterator[Callable[[Report], None]]:
        self.calls += 1
        if self.calls:
            raise ReportFailed("nobody answers")
        yield lambda _: None


class Certain:
    """Finds everything well."""

    def flaw(self, _: Reference) -> None:
        return None

    def close(self) -> None:
        return None


def test_a_result_is_given_up_after_days_of_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days are those of a steady clock: the wall clock may say what it likes."""
    monkeypatch.setattr("dicomfs.commitmentservice.time.time", lambda: 0.0)
    nobody, holder = Nobody(), object()
    with CommitmentService(tmp_path, nobody, keeper=Certain, pause=lambda _: 0.01, give_up_s=0.1) as service:
        transaction = service.accept(REQUEST, "CT1", "10.1.2.3", "DICOMFS", holder)
        wait_until(lambda: service.result(transaction, holder), "the result")
        assert nobody.calls == 0, "while somebody holds it, nobody is called"
        service.let_go([transaction], holder, is_averse=False)
        wait_until(lambda: counts(tmp_path, 0.0).given_up, "the end")
        assert nobody.calls > 2
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert ["--peer CT1@10.1.2.3:104" in line for line in said] == [True, False]
    assert "given up" in said[1]
    assert not [thread for thread in threading.enumerate() if "commitment" in thread.name]


# The address book


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("CT1@10.1.2.3:104", Peer("CT1", "10.1.2.3", 104)),
        ("MR 2@mr2.radiology.example:11112", Peer("MR 2", "mr2.radiology.example", 11112)),
        ("US3@[2001:db8::7]:2762/tls", Peer("US3", "2001:db8::7", 2762, is_tls=True)),
        ("A@B@localhost:1", Peer("A@B", "localhost", 1)),
    ],
)
def test_entries_of_the_address_book(text: str, found: Peer) -> None:
    assert peer(text) == found
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        *("CT1", "CT1@10.1.2.3", "@10.1.2.3:104", "CT1@10.1.2.3:0", "CT1@10.1.2.3:65536", "CT1@:104"),
        *(
            "CT1@2001:db8::7:104",
            "CT1@host name:104",
            "SEVENTEEN_LETTERS@h:104",
            "CT\\1@h:104",
            "CT1@h:104/ssl",
        ),
    ],
)
def test_wrong_entries_are_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        peer(text)
    assert f"peer '{text}'" in str(caught.value)


def test_one_ae_title_has_one_place() -> None:
    one, other = Peer("CT1", "10.1.2.3", 104), Peer("CT1", "10.1.2.4", 104)
    assert address_book([one, one]) == {"CT1": one}
    with pytest.raises(UsageError, match="CT1 has two places"):
        address_book([one, other])


def test_who_is_not_in_it_is_called_where_he_asked_from() -> None:
    reporter = Reporter({"CT1": Peer("CT1", "h", 11112)})
    assert reporter.destination("CT1", "10.1.2.3") == Peer("CT1", "h", 11112)
    assert reporter.destination("CT2", "10.1.2.3") == Peer("CT2", "10.1.2.3", 104)
