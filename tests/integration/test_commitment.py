"""Storage commitment over TCP: a modality asks, the archive reads its files again and tells the result."""

import contextlib
import io
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION

from dicomfs.access import Access, allowed
from dicomfs.association import Limits
from dicomfs.commitment import Reason, Reference
from dicomfs.commitments import counts
from dicomfs.commitmentservice import CommitmentService
from dicomfs.errors import StoreUnavailable
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates
from dicomfs.peers import Peer
from dicomfs.reporter import Reporter
from dicomfs.scp import StorageSCP
from dicomfs.tls import Certificates, calling_context
from tests.certificates import Authority
from tests.modality import COMMITMENT, INSTANCE, Modality, Result, ask, information
from tests.support import LOCALHOST, free_port, shipped, wait_until

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"


NO_SUCH_OBJECT, DAMAGED, CLASS_CONFLICT, NOT_SUPPORTED, DUPLICATE = 0x0112, 0x0110, 0x0119, 0x0122, 0x0131
"""Failure Reasons (PS3.3 C.14.1.1)."""


@dataclass
class Archive:
    scp: StorageSCP
    store: Path

    @property
    def port(self) -> int:
        return self.scp.port

    def files(self) -> list[Path]:
        return sorted((self.store / "archive").rglob("*.dcm"), key=lambda path: path.stat().st_mtime_ns)


@contextlib.contextmanager
def archive(
    store: Path,
    *peers: Peer,
    duplicates: Duplicates = Duplicates.KEEP_FIRST,
    keeper: "Callable[[], Scripted] | None" = None,
    reporter: Reporter | None = None,
    pause_s: float = 0.1,
    idle_s: float = 300.0,
    access: Access | None = None,
    certificates: Certificates | None = None,
) -> Iterator[Archive]:
    """An archive that does not wait long before it tries again."""
    reporter = reporter or Reporter({peer.ae_title: peer for peer in peers})
    with (
        Ingest.open(store, duplicates) as ingest,
        CommitmentService(store, reporter, keeper=keeper, pause=lambda _: 0.1) as service,
    ):
        scp = StorageSCP.start(
            LOCALHOST,
            0,
            "DICOMFS",
            ingest,
            commitment=service,
            limits=Limits(pause_s=pause_s, idle_s=idle_s),
            access=access,
            certificates=certificates,
        )
        try:
            yield Archive(scp, store)
        finally:
            scp.stop(drain_seconds=5)


@dataclass
class Scripted:
    """Verifies as a test wants."""

    flaw_of: Callable[[Reference], Reason | None] = lambda _: None

    def flaw(self, reference: Reference) -> Reason | None:
        return self.flaw_of(reference)

    def close(self) -> None:
        pass


@pytest.fixture
def modality() -> Iterator[Modality]:
    with Modality() as one:
        yield one


def listed(modality: Modality) -> Peer:
    return Peer(modality.ae_title, LOCALHOST, modality.port)


def image(**changes: object) -> Dataset:
    """A CT image of its own."""
    ds = dcmread(shipped("CT_small.dcm"))
    ds.SOPInstanceUID = generate_uid()
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def sent(association: Association, *images: Dataset) -> list[tuple[str, str]]:
    """Store images; what a request says of them."""
    for ds in images:
        assert association.send_c_store(ds).Status == 0
    return [(str(ds.SOPClassUID), str(ds.SOPInstanceUID)) for ds in images]


def answered(modality: Modality, port: int, references: Sequence[tuple[str, str]]) -> Result:
    """Ask on an association that is released at once, and wait for the result."""
    assert modality.ask(port, information(references)) == 0
    return modality.result()


# --- Where the result goes --------------------------------------------------------------------------


def test_on_a_new_association_when_the_first_is_released(tmp_path: Path, modality: Modality) -> None:
    """The request follows the object at once, on the same association."""
    with archive(tmp_path / "s", listed(modality)) as it:
        with modality.association(it.port, CT) as association:
            request = information(references := sent(association, image(), image()))
            assert ask(association, request) == 0
        result = modality.result()
        assert result == Result(request.TransactionUID, 1, [uid for _, uid in references], [], "DICOMFS")
        wait_until(lambda: counts(it.store, 0.0).open == 0, "the transaction to end")


def test_on_the_same_association_while_it_is_open_and_still(tmp_path: Path) -> None:
    modality = Modality()  # does not listen
    with archive(tmp_path / "s") as it, modality.association(it.port, CT) as association:
        for _ in range(2):
            request = information(references := sent(association, image()))
            assert ask(association, request) == 0
            result = modality.result()
            assert result == Result(request.TransactionUID, 1, [references[0][1]], [], "")
        assert association.send_c_echo().Status == 0


def test_on_the_same_association_before_it_is_given_up_as_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two waits for the next message, that for spool files and that for results, are not added up."""
    monkeypatch.setattr("dicomfs.association._SHORTLY_S", 5.0)
    modality = Modality()
    with archive(tmp_path / "s", idle_s=5.0) as it:
        with modality.association(it.port, CT) as association:
            references = sent(association, image())
        with modality.association(it.port) as association:
            assert ask(association, information(references)) == 0
            assert modality.result().event_type == 1


def test_several_requests_on_one_association(tmp_path: Path) -> None:
    modality = Modality()
    with archive(tmp_path / "s") as it, modality.association(it.port, CT) as association:
        references = sent(association, image())
        requests = [information(references) for _ in range(3)]
        assert [ask(association, request) for request in requests] == [0, 0, 0]
        told = [modality.result().transaction for _ in requests]
        assert told == [request.TransactionUID for request in requests]


def test_a_modality_that_breaks_off_when_it_is_told_there_is_called(
    tmp_path: Path, modality: Modality, expected_warnings: list[logging.LogRecord]
) -> None:
    with archive(tmp_path / "s", listed(modality)) as it:
        with modality.association(it.port, CT) as association:
            association.unbind(evt.EVT_N_EVENT_REPORT, modality._hear)
            association.bind(evt.EVT_N_EVENT_REPORT, _break_off)
            references = sent(association, image())
            assert ask(association, information(references)) == 0
            assert modality.result().calling == "DICOMFS"
        with modality.association(it.port) as association:
            assert ask(association, information(references)) == 0
            with pytest.raises(queue.Empty):
                modality.results.get(timeout=0.5)  # five times as long as it takes to be told there
        assert modality.result().calling == "DICOMFS", "it is called from then on"


def _break_off(event: evt.Event) -> tuple[int, None]:
    event.assoc.abort()
    return 0, None


@pytest.mark.parametrize("roles", [None, (True, False), (True, True)])
def test_roles_that_a_requester_may_have(
    tmp_path: Path, modality: Modality, roles: tuple[bool, bool] | None
) -> None:
    with archive(tmp_path / "s") as it, modality.association(it.port, CT, roles=roles) as association:
        context = next(cx for cx in association.accepted_contexts if cx.abstract_syntax == COMMITMENT)
        assert (context.as_scu, context.as_scp) == (True, False)
        assert ask(association, information(sent(association, image()))) == 0
        assert modality.result().event_type == 1


def test_who_wants_to_be_scp_only_finds_no_scu(tmp_path: Path, modality: Modality) -> None:
    with archive(tmp_path / "s") as it, modality.association(it.port, roles=(False, True)) as association:
        assert COMMITMENT not in [cx.abstract_syntax for cx in association.accepted_contexts]


def test_results_over_tls(tmp_path: Path, expected_warnings: list[logging.LogRecord]) -> None:
    authority = Authority(tmp_path / "papers")
    ours, theirs = authority.sign("archive"), authority.sign("modality")
    listening = Certificates(theirs.certificate, theirs.key, authority.certificate)
    modality = Modality()
    modality.listen(ssl_context=listening.context())
    try:
        peer = Peer("CT1", LOCALHOST, modality.port, is_tls=True)
        tls = partial(calling_context, ours.certificate, ours.key, authority.certificate)
        with archive(tmp_path / "s", reporter=Reporter({"CT1": peer}, tls)) as it:
            assert answered(modality, it.port, [(CT, "1.2.3")]).calling == "DICOMFS"
    finally:
        modality.hang_up()


def test_strangers_are_promised_nothing(tmp_path: Path, expected_warnings: list[logging.LogRecord]) -> None:
    access = Access("DICOMFS", (allowed("CT1@127.0.0.1"),))
    with archive(tmp_path / "s", access=access) as it:
        with pytest.raises(AssertionError), Modality("CT2").association(it.port):
            pass
        with Modality("CT1").association(it.port) as association:
            assert association.send_c_echo().Status == 0


# --- Results that cannot be told at once ------------------------------------------------------------


def test_a_modality_that_is_not_there_is_called_until_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    modality = Modality()
    with archive(tmp_path / "s", Peer("CT1", LOCALHOST, port)) as it:
        assert modality.ask(it.port, information([(CT, "1.2.3")])) == 0
        wait_until(lambda: counts(it.store, 0.0).waiting, "an attempt in vain")
        (waiting,) = counts(it.store, 0.0).waiting
        assert (waiting.ae_title, waiting.reports) == ("CT1", 1)
        assert f"nobody answers at 127.0.0.1 port {port}" in waiting.trouble
        modality.listen(port)
        try:
            assert modality.result().failed == [("1.2.3", NO_SUCH_OBJECT)]
        finally:
            modality.hang_up()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1, "once, however often it is tried"
    assert f"check the entry --peer CT1@127.0.0.1:{port}" in said[0]


def test_a_modality_that_is_not_in_the_address_book(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with archive(tmp_path / "s") as it:
        assert Modality().ask(it.port, information([(CT, "1.2.3")])) == 0
        wait_until(lambda: "--peer CT1@127.0.0.1:104" in caplog.text, "the remedy in the log")


def test_a_result_outlives_the_receiver(tmp_path: Path, expected_warnings: list[logging.LogRecord]) -> None:
    """Asked of one receiver, verified by it, told by the next."""
    modality = Modality()
    peer = Peer("CT1", LOCALHOST, free_port())
    with archive(tmp_path / "s", peer) as it:
        with modality.association(it.port, CT) as association:
            request = information(references := sent(association, image()))
            assert ask(association, request) == 0
        wait_until(lambda: counts(it.store, 0.0).waiting, "an attempt in vain")
    modality.listen(peer.port)
    try:
        with archive(tmp_path / "s", peer):
            result = modality.result()
        assert (result.transaction, result.committed) == (request.TransactionUID, [references[0][1]])
    finally:
        modality.hang_up()


def test_a_request_that_was_not_verified_is_verified_by_the_next_receiver(
    tmp_path: Path, modality: Modality, expected_warnings: list[logging.LogRecord]
) -> None:
    never = threading.Event()

    def wait(_: Reference) -> None:
        never.wait()

    with archive(tmp_path / "s", listed(modality), keeper=lambda: Scripted(wait)) as it:
        request = information([(CT, "1.2.3")])
        assert modality.ask(it.port, request) == 0
    with archive(tmp_path / "s", listed(modality)):
        assert modality.result().transaction == request.TransactionUID
    never.set()


def test_a_result_that_is_refused_is_told_again_where_that_may_help(
    tmp_path: Path, modality: Modality, expected_warnings: list[logging.LogRecord]
) -> None:
    modality.answer = 0x0110
    with archive(tmp_path / "s", listed(modality)) as it:
        first = answered(modality, it.port, [(CT, "1.2.3")])
        assert modality.result() == first
        modality.answer = 0x0112  # no such SOP instance: it knows nothing of it
        wait_until(lambda: counts(it.store, 0.0).given_up, "the end")
        assert counts(it.store, 0.0).open == 0


# --- What is committed ------------------------------------------------------------------------------


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def _flip(path: Path, at: int) -> None:
    path.chmod(0o640)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(_remove, NO_SUCH_OBJECT, id="missing"),
        pytest.param(_cut, DAMAGED, id="cut short"),
        pytest.param(lambda path: _flip(path, 5000), DAMAGED, id="changed"),
        pytest.param(lambda path: _flip(path, 130), DAMAGED, id="file meta changed"),
    ],
)
def test_damaged_originals_fail_until_they_are_sent_again(
    tmp_path: Path,
    modality: Modality,
    damage: Callable[[Path], None],
    reason: int,
    expected_warnings: list[logging.LogRecord],
) -> None:
    first, second = image(), image()
    with archive(tmp_path / "s", listed(modality)) as it:
        with modality.association(it.port, CT) as association:
            references = sent(association, first, second)
        damage(it.files()[0])
        result = answered(modality, it.port, references)
        assert result.event_type == 2
        assert result.failed == [(first.SOPInstanceUID, reason)]
        assert result.committed == [second.SOPInstanceUID]


def test_a_resend_repairs_what_was_damaged(
    tmp_path: Path, modality: Modality, expected_warnings: list[logging.LogRecord]
) -> None:
    ds = image()
    with archive(tmp_path / "s", listed(modality)) as it:
        with modality.association(it.port, CT) as association:
            references = sent(association, ds)
        _remove(it.files()[0])
        request = information(references)
        assert modality.ask(it.port, request) == 0
        assert modality.result().failed == [(ds.SOPInstanceUID, NO_SUCH_OBJECT)]
        with modality.association(it.port, CT) as association:
            sent(association, ds)
        # The same transaction again: it is verified anew.
        assert modality.ask(it.port, request) == 0
        assert modality.result().committed == [ds.SOPInstanceUID]


def test_objects_that_are_not_as_they_are_called(
    tmp_path: Path, modality: Modality, expected_warnings: list[logging.LogRecord]
) -> None:
    ds = image()
    with archive(tmp_path / "s", listed(modality)) as it:
        with modality.association(it.port, CT) as association:
            sent(association, ds)
        uid = ds.SOPInstanceUID
        worklist = "1.2.840.10008.5.1.4.31"
        result = answered(modality, it.port, [(CT, uid), (MR, uid), (CT, "1.2.3"), (worklist, "1.2.4")])
        assert result.committed == [uid]
        assert result.failed == [(uid, CLASS_CONFLICT), ("1.2.3", NO_SUCH_OBJECT), ("1.2.4", NOT_SUPPORTED)]


@pytest.mark.parametrize("policy", [Duplicates.KEEP_FIRST, Duplicates.NEWEST, Duplicates.BOTH])
@pytest.mark.parametrize("damaged", [None, 0, 1])
def test_every_original_of_an_instance_has_to_be_whole(
    tmp_path: Path,
    modality: Modality,
    policy: Duplicates,
    damaged: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody can tell which of them the modality means: the one that is shown, or the other one."""
    first = image(AccessionNumber="1")
    second = image(AccessionNumber="2", SOPInstanceUID=first.SOPInstanceUID)
    with archive(tmp_path / "s", listed(modality), duplicates=policy) as it:
        with modality.association(it.port, CT) as association:
            references = sent(association, first, second)
        assert len(it.files()) == 2
        if damaged is not None:
            _flip(it.files()[damaged], 5000)
        result = answered(modality, it.port, references[:1])
        expected = [] if damaged is None else [(first.SOPInstanceUID, DAMAGED)]
        assert result.failed == expected
        assert result.event_type == (2 if expected else 1)


def test_one_transaction_uid_for_two_requests(
    tmp_path: Path, modality: Modality, expected_warnings: list[logging.LogRecord]
) -> None:
    with archive(tmp_path / "s", listed(modality)) as it:
        with modality.association(it.port, CT) as association:
            references = sent(association, image(), image())
        uid = generate_uid()
        assert modality.ask(it.port, information(references, uid)) == 0
        assert modality.result().event_type == 1
        assert modality.ask(it.port, information(references[:1], uid)) == 0
        assert modality.result().failed == [(references[0][1], DUPLICATE)]
        assert modality.ask(it.port, information(references, uid)) == 0
        assert modality.result().event_type == 1, "the first one, repeated, is still the first one"


# --- Requests that nobody can fulfil ----------------------------------------------------------------


def test_broken_requests_are_answered_and_the_association_goes_on(
    tmp_path: Path, modality: Modality, expected_warnings: list[logging.LogRecord]
) -> None:
    good = information([(CT, "1.2.3")])
    no_instance = information([(CT, "1.2.3")])
    del no_instance.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    with archive(tmp_path / "s", pause_s=10.0) as it, modality.association(it.port) as association:
        for expected, ds, action, instance in (
            (0x0115, information([(CT, "1.2.3")], TransactionUID=None), 1, INSTANCE),
            (0x0115, information([(CT, "1.2.3")], ReferencedSOPSequence=None), 1, INSTANCE),
            (0x0115, information([]), 1, INSTANCE),
            (0x0115, no_instance, 1, INSTANCE),
            (0x0115, None, 1, INSTANCE),
            (0x0123, good, 2, INSTANCE),
            (0x0112, good, 1, "1.2.3"),
        ):
            assert ask(association, ds, action, instance) == expected
        assert _ask_raw(association, b"\x08\x00\x95\x11UI\xff\xff1.2") == 0x0115
        assert _ask_raw(association, bytes(range(256)) * 5) == 0x0115
        assert _ask_raw(association, bytes(33 << 20)) == 0x0213
        assert ask(association, good) == 0


def _ask_raw(association: Association, data_set: bytes) -> int:
    """An N-ACTION with these bytes as its data set."""
    request = N_ACTION()
    request.MessageID, request.ActionTypeID = 7, 1
    request.RequestedSOPClassUID, request.RequestedSOPInstanceUID = COMMITMENT, UID(INSTANCE)
    request.ActionInformation = io.BytesIO(data_set)
    context = next(cx for cx in association.accepted_contexts if cx.abstract_syntax == COMMITMENT)
    association._reactor_checkpoint.clear()
    wait_until(lambda: association._is_paused, "the library to stand aside")
    assert context.context_id is not None
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert isinstance(response, N_ACTION)
    return response.Status or 0


def test_ten_thousand_objects_hold_up_nobody(tmp_path: Path, modality: Modality) -> None:
    """While they are verified, images are received and other requests answered."""
    go_on, begun = threading.Event(), threading.Event()

    def wait(_: Reference) -> None:
        begun.set()
        go_on.wait()

    many = [(CT, f"1.2.826.0.1.3680043.8.498.{number}") for number in range(10_000)]
    with archive(tmp_path / "s", listed(modality), keeper=lambda: Scripted(wait)) as it:
        big, small = information(many), information([(CT, "1.2.3")])
        assert modality.ask(it.port, big) == 0
        assert begun.wait(20)
        with modality.association(it.port, CT) as association:
            sent(association, image())
            assert ask(association, small) == 0
        assert modality.results.empty()
        go_on.set()
        result = modality.result()
        assert (result.transaction, result.event_type) == (big.TransactionUID, 1)
        assert result.committed == [uid for _, uid in many]
        assert modality.result().transaction == small.TransactionUID


def test_trouble_with_the_store_is_waited_out(
    tmp_path: Path, modality: Modality, expected_warnings: list[logging.LogRecord]
) -> None:
    troubles = iter([StoreUnavailable("locked")] * 2)

    def flaw(_: Reference) -> None:
        for trouble in troubles:
            raise trouble

    with archive(tmp_path / "s", listed(modality), keeper=lambda: Scripted(flaw)) as it:
        assert answered(modality, it.port, [(CT, "1.2.3")]).event_type == 1


def test_what_cannot_be_verified_is_not_committed(
    tmp_path: Path, modality: Modality, expected_warnings: list[logging.LogRecord]
) -> None:
    def flaw(_: Reference) -> None:
        raise StoreUnavailable("locked")

    with archive(tmp_path / "s", listed(modality), keeper=lambda: Scripted(flaw)) as it:
        assert answered(modality, it.port, [(CT, "1.2.3")]).failed == [("1.2.3", DAMAGED)]
