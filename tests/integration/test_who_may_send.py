"""Allow-list, TLS and limits, through the real command and DCMTK's senders."""

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import LOCALHOST, Running, command_line, require, running, shipped, wait_until

IMAGE = "CT_small.dcm"
PATIENCE_S = 30


@dataclass
class Receiver:
    program: Running
    port: int
    store: Path

    def send(self, *options: object, host: str = LOCALHOST, called: str = "DICOMFS") -> str:
        """What storescu says; empty when it has nothing to complain of."""
        argv = [require("storescu"), "-v", "-aec", called, *map(str, options), host, str(self.port)]
        done = subprocess.run(
            [*argv, shipped(IMAGE)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def originals(self) -> int:
        return len(list(self.store.glob("archive/*/*.dcm")))


@contextlib.contextmanager
def receiver(folder: Path, *options: object, host: str = "0.0.0.0") -> Iterator[Receiver]:  # noqa: S104
    log, store = folder / "log", folder / "store"
    argv = command_line("scp", "--store", store, "--host", host, "--port", "0", *map(str, options))

    def port() -> int:
        found = re.search(r"listening on .* port (\d+)", log.read_text())
        return int(found[1]) if found else 0

    with running(argv, log, port, "dicomfs scp listens") as program:
        yield Receiver(program, port(), store)


# The allow-list


def test_title_and_address_have_to_be_on_the_list(tmp_path: Path) -> None:
    with receiver(tmp_path, "--allow", "CT1@127.0.0.1", "--allow", "MR*@127.0.0.0/8") as one:
        assert one.send("-aet", "CT1") == ""
        assert one.send("-aet", "MR7", host="127.0.0.2") == ""
        assert "Calling AE Title Not Recognized" in one.send("-aet", "CT2")
        assert "Calling AE Title Not Recognized" in one.send("-aet", "ct1")
        assert "Called AE Title Not Recognized" in one.send("-aet", "CT1", called="OTHER")
        assert one.originals() == 1
        assert "'CT2' is not in the allow-list" in one.program.output()


def test_an_address_that_is_not_meant(tmp_path: Path) -> None:
    with receiver(tmp_path, "--allow", "CT1@127.0.0.2") as one:
        # The sender's own address is that of the way to the receiver's: 127.0.0.1.
        assert "Calling AE Title Not Recognized" in one.send("-aet", "CT1")
        assert "may not send from 127.0.0.1" in one.program.output()


def test_ipv6(tmp_path: Path) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
    with receiver(tmp_path, "--allow", "CT1@127.0.0.1", host="::") as one:
        # As a peer of IPv4 it comes as ::ffff:127.0.0.1.
        assert one.send("-aet", "CT1") == ""


def test_open_is_loud(tmp_path: Path) -> None:
    with receiver(tmp_path, "--open") as one:
        assert one.send("-aet", "ANYBODY") == ""
        assert "EVERY SENDER IS ACCEPTED" in one.program.output()


def test_one_sender_cannot_take_every_place(tmp_path: Path) -> None:
    with receiver(tmp_path, "--open", "--max-associations-per-peer", "1", "--acse-seconds", "5") as one:
        argv = [require("storescu"), "-v", "-aec", "DICOMFS", "--repeat", "200"]
        first = subprocess.Popen(
            [*argv, LOCALHOST, str(one.port), shipped(IMAGE)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            one.program.wait_until(lambda: "opened" in one.program.output(), "the first association")
            assert "Local Limit Exceeded" in one.send()
        finally:
            first.kill()
            first.communicate()
        wait_until(lambda: not one.send(), "the place of the one that went")


def test_those_who_never_ask_keep_nobody_out(tmp_path: Path) -> None:
    """More slow connections than there are places, each with a byte now and then."""
    with receiver(tmp_path, "--open", "--max-associations", "2") as one, contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection((LOCALHOST, one.port), timeout=PATIENCE_S))
            for _ in range(100)
        ]
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.sendall(b"\x01")
        assert one.send() == ""
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.sendall(b"\x00")
        assert one.send() == ""


# Pressure


def test_below_the_watermark_nothing_is_taken_until_there_is_space(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    ballast = tmp_path / "ballast"
    with receiver(tmp_path, "--open", "--min-free", str(free - (200 << 20))) as one:
        assert one.send() == ""
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 30)
        assert "Refused: OutOfResources" in one.send()
        ballast.unlink()
        wait_until(lambda: not one.send(), "space again")
        assert one.program.output().count("nothing is taken in below") == 1


# TLS


def openssl(folder: Path, *words: str) -> None:
    subprocess.run([require("openssl"), *words], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> None:
    """A certificate authority: NAME.pem, NAME.key."""
    openssl(
        folder,
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
        *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
    )


def certificate(folder: Path, name: str, by: str) -> None:
    """NAME.pem and NAME.key, signed by an authority."""
    openssl(
        folder,
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
    )
    openssl(
        folder,
        *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{by}.pem", "-CAkey", f"{by}.key"),
        *("-CAcreateserial", "-days", "2", "-out", f"{name}.pem"),
    )
    (folder / f"{name}.key").chmod(0o600)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("papers")
    for name in ("hospital", "stranger"):
        authority(folder, name)
    certificate(folder, "archive", "hospital")
    certificate(folder, "scanner", "hospital")
    certificate(folder, "intruder", "stranger")
    return folder


def ours(papers: Path) -> list[object]:
    return ["--tls-certificate", papers / "archive.pem", "--tls-key", papers / "archive.key",
            "--tls-ca", papers / "hospital.pem"]  # fmt: skip


def theirs(papers: Path, name: str) -> list[object]:
    return ["+tls", papers / f"{name}.key", papers / f"{name}.pem", "+cf", papers / "hospital.pem"]


def test_senders_with_a_certificate_of_the_authority(tmp_path: Path, papers: Path) -> None:
    with receiver(tmp_path, "--allow", "CT1@127.0.0.0/8", *ours(papers)) as one:
        assert one.send("-aet", "CT1", *theirs(papers, "scanner")) == ""
        assert one.originals() == 1
        assert "certificate of CN=scanner" in one.program.output()
        assert one.send("-aet", "CT1", *theirs(papers, "intruder"))
        assert one.send("-aet", "CT1", "+tla", "-ic")
        assert one.send("-aet", "CT1")  # without TLS
        assert "Calling AE Title Not Recognized" in one.send("-aet", "CT9", *theirs(papers, "scanner"))
        # All the while others are served.
        assert one.send("-aet", "CT1", *theirs(papers, "scanner")) == ""
        assert "does not speak TLS" in one.program.output()


def test_tls_without_certificates_of_senders(tmp_path: Path, papers: Path) -> None:
    options = [*ours(papers)[:4], "--tls-client", "off", "--open"]
    with receiver(tmp_path, *options) as one:
        assert one.send("+tla", "-ic") == ""
        assert one.send(*theirs(papers, "scanner")) == ""


def test_a_renewed_certificate_counts_at_the_next_connection(tmp_path: Path, papers: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name in ("archive.pem", "archive.key", "hospital.pem", "hospital.key", "scanner.pem", "scanner.key"):
        (own / name).write_bytes((papers / name).read_bytes())
        (own / name).chmod(0o600)

    def serial(port: int) -> str:
        done = subprocess.run(
            [require("openssl"), "s_client", "-connect", f"{LOCALHOST}:{port}",
             "-cert", "scanner.pem", "-key", "scanner.key"],
            cwd=own, input="", capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        shown = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", done.stdout, re.DOTALL)
        assert shown, done.stderr
        return shown[0]

    with receiver(tmp_path, "--open", *ours(own)) as one:
        former = serial(one.port)
        many = [require("storescu"), "-aec", "DICOMFS", "--repeat", "300", *map(str, theirs(own, "scanner"))]
        sender = subprocess.Popen(
            [*many, LOCALHOST, str(one.port), shipped(IMAGE)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        one.program.wait_until(lambda: one.program.output().count("opened") >= 1, "an association")
        certificate(own, "archive", "hospital")
        time.sleep(0.1)
        assert serial(one.port) != former
        said, _ = sender.communicate(timeout=PATIENCE_S)
        assert sender.returncode == 0, said
        (own / "archive.pem").write_text("not a certificate")
        assert one.send(*theirs(own, "scanner")) == "", "the former one stays in use"
