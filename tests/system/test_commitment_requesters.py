"""Storage commitment through the real command: Orthanc asks for it, and the receiver is killed in between."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.modality import Modality, ask, information
from tests.support import (
    LOCALHOST,
    Running,
    command_line,
    connects,
    free_port,
    require,
    running,
    wait_until,
)
from tests.system.programs import NO_DELAY, dicomfs, original, series, storescu


@contextmanager
def receiving(store: Path, log: Path, *options: str) -> Iterator[tuple[Running, int]]:
    port = free_port()
    argv = command_line("scp", "--open", "--host", LOCALHOST, "--port", str(port), "--store", store, *options)
    with running(argv, log, lambda: connects(port), "the receiver answers") as process:
        yield process, port


class Orthanc:
    """A running Orthanc, by its REST interface."""

    def __init__(self, http: int, dicom: int) -> None:
        self.http = http
        self.dicom = dicom

    def ask(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"http://{LOCALHOST}:{self.http}/{path}", data=body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def orthanc(folder: Path, archive_port: int, dicom: int) -> Iterator[Orthanc]:
    folder.mkdir()
    it = Orthanc(free_port(), dicom)
    settings = {
        "Name": "requester",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [],
        "HttpPort": it.http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": it.dicom,
        "DicomModalities": {"archive": {"AET": "DICOMFS", "Host": LOCALHOST, "Port": archive_port}},
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    ready = lambda: connects(it.http) and connects(it.dicom)  # noqa: E731
    with running([require("Orthanc"), path], folder / "log", ready, "Orthanc answers", env=NO_DELAY):
        yield it


def test_orthanc_asks(tmp_path: Path) -> None:
    files = series(tmp_path / "sent", 2)
    dicom = free_port()
    with (
        receiving(tmp_path / "store", tmp_path / "log", "--peer", f"ORTHANC@{LOCALHOST}:{dicom}") as (
            _,
            port,
        ),
        orthanc(tmp_path / "orthanc", port, dicom) as it,
    ):
        kept = [it.ask("instances", path.read_bytes())["ID"] for path in files]
        # It stores the first one, and asks for both.
        it.ask("modalities/archive/store", json.dumps({"Resources": kept[:1]}).encode())
        request = {"Resources": kept, "Timeout": 10}
        asked = it.ask("modalities/archive/storage-commitment", json.dumps(request).encode())
        wait_until(lambda: it.ask(asked["Path"].lstrip("/"))["Status"] != "Pending", "Orthanc's report")
        told = it.ask(asked["Path"].lstrip("/"))
    first, second = [original(path).sop_uid for path in files]
    assert told["Status"] == "Failure"
    assert [entry["SOPInstanceUID"] for entry in told["Success"]] == [first]
    (failed,) = told["Failures"]
    assert failed["SOPInstanceUID"] == second
    assert failed["FailureReason"] == 0x0112


def test_killed_between_answer_and_result(tmp_path: Path) -> None:
    """What was answered 0000 is reported by the next receiver, without being asked again."""
    store, log = tmp_path / "store", tmp_path / "log"
    files = series(tmp_path / "sent", 3)
    references = [("1.2.840.10008.5.1.4.1.1.4", original(path).sop_uid) for path in files]
    modality, listening = Modality(), free_port()
    peer = ["--peer", f"CT1@{LOCALHOST}:{listening}"]
    requests = [information(references) for _ in range(3)]
    with receiving(store, log, *peer) as (program, port):
        storescu(port, *files)
        with modality.association(port) as association:
            assert [ask(association, request) for request in requests] == [0, 0, 0]
            program.process.kill()  # while the association is open, so that no result is told elsewhere
            program.process.wait()
    assert modality.results.empty()
    modality.listen(listening)
    try:
        with receiving(store, log, *peer):
            told = [modality.result() for _ in requests]
            # The last one is noted after its answer has come.
            noted = "0 open; in the last hour 3 reported"
            wait_until(lambda: noted in dicomfs("status", "--store", store).stdout, "all are noted")
    finally:
        modality.hang_up()
    assert {it.transaction for it in told} == {str(request.TransactionUID) for request in requests}
    assert all(it.committed == [uid for _, uid in references] for it in told)
