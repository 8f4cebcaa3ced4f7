"""`dicomfs status` beside a real receiver: what it tells while senders are there, and after it was killed."""

import io
import json
import logging
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dicomfs import cli
from dicomfs.runfile import records
from tests.integration.test_scp import EXPLICIT, MR, Wire, synthetic
from tests.support import LOCALHOST, Running, command_line, require, running, wait_until
from tests.system.programs import NO_DELAY, dicomfs, named

OK, USAGE, ALARM = 0, 2, 7
FAMILY, GIVEN, IDENTIFIER = "Geheimniskraemer", "Sieglinde", "PID-4711-X"
STUDY = "1.2.826.0.1.3680043.8.498.44"
TOO_LARGE = 1 << 20


@contextmanager
def receiver(folder: Path, store: Path) -> Iterator[tuple[Running, int]]:
    argv = command_line("scp", "--store", store, "--host", LOCALHOST, "--port", "0", "--allow", "CT*")
    argv += ["--duplicates", "reject", "--max-object", str(TOO_LARGE)]
    log = folder / "log"
    log.unlink(missing_ok=True)

    def port() -> int:
        found = re.search(r"listening on .* port (\d+)", log.read_text())
        return int(found[1]) if found and records(store) else 0

    with running(argv, log, port, "dicomfs scp listens") as program:
        yield program, port()


def storescu(port: int, *words: str | Path) -> str:
    argv = [require("storescu"), "-v", *map(str, words[:-1]), LOCALHOST, str(port), str(words[-1])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=NO_DELAY)
    return done.stdout + done.stderr


def status(store: Path, *arguments: str, code: int = OK) -> str:
    """What the command prints, run in this process; it must end with this code."""
    with redirect_stdout(io.StringIO()) as said:
        assert cli.main(["status", *arguments, "--store", str(store)]) == code
    return said.getvalue()


def told(store: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(status(store, "--json"))
    return facts


def rejected(store: Path) -> int:
    """Associations of those who are not in the list, as the file of the receiver has it."""
    return records(store)[0].activity.failed_totals.get("rejected: calling AE title not recognized", 0)


def by(refusals: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """What was refused or rejected in the last hour, by reason and title."""
    return {(one["what"][:30], one["who"].split(" at ")[0]): one["last_hour"] for one in refusals}


def test_a_day_of_a_receiver(tmp_path: Path) -> None:
    store = tmp_path / "store"
    patient = f"{FAMILY}^{GIVEN}"
    good = named(tmp_path / "1.dcm", patient, patient_id=IDENTIFIER, study=STUDY, seed="one")
    other = named(tmp_path / "2.dcm", patient, patient_id=IDENTIFIER, study=STUDY, seed="one", number=2)
    stranger = named(tmp_path / "3.dcm", f"{GIVEN}^{FAMILY}", patient_id="7", study=STUDY, seed="one")
    with receiver(tmp_path, store) as (program, port):
        assert told(store)["receivers"][0]["pid"] == program.process.pid
        assert "Success" in storescu(port, "-aet", "CT1", "-aec", "DICOMFS", good)
        assert "Success" in storescu(port, "-aet", "CT1", "-aec", "DICOMFS", good)
        for again in (other, stranger):
            storescu(port, "-aet", "CT1", "-aec", "DICOMFS", again)
        assert "Calling AE Title Not" in storescu(port, "-aet", "XX1", "-aec", "DICOMFS", good)
        assert "Called AE Title Not" in storescu(port, "-aet", "CT1", "-aec", "WRONG", good)
        one = synthetic("2.25.77", PatientName=patient)
        with Wire(port, [(MR, [EXPLICIT])], calling="CT2") as wire:
            assert wire.store(one.data_set, MR, "2.25.77")[0] == 0x0000
            assert wire.store(one.data_set, MR, "2.25.78")[0] == 0xA900
            assert wire.store(one.data_set[:-100], MR, "2.25.77")[0] == 0xC000
            assert wire.store(bytes(TOO_LARGE + 1), MR, "2.25.79")[0] == 0xC002
            received = 3 * len(one.data_set) - 100 + TOO_LARGE + 1
            wait_until(
                lambda: any(visit.refused == 3 for visit in records(store)[0].activity.visits),
                "the next report",
            )
            facts = told(store)
            (visit,) = facts["receivers"][0]["open"]
            assert (visit["ae_title"], visit["address"]) == ("CT2", "127.0.0.1")
            assert (visit["objects"], visit["refused"], visit["bytes"]) == (1, 3, received)
            assert facts["receivers"][0]["running"]
            people = status(store)
            assert re.search(r"CT2 at 127\.0\.0\.1 +since .* 1 stored +3 refused", people)
            os.kill(program.process.pid, signal.SIGKILL)
            program.process.wait()
            assert wire.is_cut_off()
    facts = told(store)
    said = people + json.dumps(facts)
    assert not facts["receivers"][0]["running"]
    assert [alarm["kind"] for alarm in facts["alarms"]] == ["receiver_died", "identity_conflict"]
    assert by(facts["refused"]) == {
        ("0111 Another object of these U", "CT1"): 1,
        ("0111 Another patient's object ", "CT1"): 1,
        ("A900 SOP UIDs of command and d", "CT2"): 1,
        ("C000 Data set cannot be read, ", "CT2"): 1,
        ("C002 Object is larger than thi", "CT2"): 1,
    }
    assert by(facts["associations_failed"]) == {
        ("rejected: calling AE title not", "XX1"): 1,
        ("rejected: called AE title not ", "CT1"): 1,
    }
    assert facts["totals"]["objects_received"] == {
        "new": 2,
        "already_there": 1,
        "repaired": 0,
        "other_version": 0,
    }
    assert {(one["source_ae"], one["objects"]) for one in facts["last_hour"]} == {("CT1", 1), ("CT2", 1)}
    assert facts["quarantined"] == 2  # what was too large is not kept
    check = dicomfs("status", "--check", "--store", store)
    assert check.returncode == ALARM
    assert "without being stopped" in check.stdout
    # The next one goes on where that one ended.
    with receiver(tmp_path, store) as (program, port):
        storescu(port, "-aet", "XX1", "-aec", "DICOMFS", good)
        wait_until(lambda: rejected(store) == 2, "the next report")
        assert [alarm["kind"] for alarm in told(store)["alarms"]] == ["identity_conflict"]
        text = status(store, "--metrics")
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert [s.value for s in samples if "calling" in s.labels.get("reason", "")] == [2]
    (file,) = (store / "run").iterdir()
    facts = told(store)
    assert facts["receivers"][0]["stopped"]
    said += text + json.dumps(facts) + check.stdout + file.read_bytes().decode("latin-1")
    for arguments in (["--superseded"], ["--conflicts"], ["--conflicts", "--json"], []):
        said += status(store, *arguments)
    for word in (FAMILY, GIVEN, IDENTIFIER):
        assert word.lower() not in said.lower()


def test_conflicts_are_listed_and_reviewed(
    tmp_path: Path, expected_warnings: list[logging.LogRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    for number, patient in enumerate(("A^B", "C^D")):
        path = named(tmp_path / f"{number}.dcm", patient, patient_id=patient, study=STUDY, seed="one")
        assert cli.main(["import", "-q", "--store", str(store), str(path)]) == OK
    status(store, "--check", code=ALARM)
    for what in ("--conflicts", "--superseded"):
        (listed,) = json.loads(status(store, what, "--json"))
        assert listed["conflict"]
        assert str(listed["sequence"]) in status(store, what)
    status(store, "--reviewed", str(listed["sequence"] + 1), code=USAGE)
    assert f"the newest original is {listed['sequence']}" in capsys.readouterr().err
    status(store, "--reviewed", str(listed["sequence"]))
    assert status(store, "--check") == "no alarm\n"
