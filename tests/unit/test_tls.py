"""TLS of the receiving port: profile, client certificates, files that change, mistakes."""

import logging
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dicomfs.errors import AssociationEnded, UsageError
from dicomfs.tls import Certificates, shake_hands, wrap
from tests.certificates import Authority, Pair, openssl
from tests.support import LOCALHOST, require

PATIENCE_S = 20.0
LONG_S = 400 * 86_400.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), days=500)


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Pair:
    return authority.sign("server", "/O=Hospital/CN=pacs.hospital.example", days=400)


@pytest.fixture(scope="module")
def scanner(authority: Authority) -> Pair:
    return authority.sign("scanner", "/C=DE/O=Hospital/OU=Radiology/CN=CT1", usage="clientAuth")


@dataclass
class Door:
    """A port that shakes hands with whoever comes, and notes how each handshake ended."""

    port: int
    ends: list[str] = field(default_factory=list)


@contextmanager
def door(
    certificates: Certificates, *, seconds: float = PATIENCE_S, greeting: bytes = b"welcome"
) -> Iterator[Door]:
    with socket.create_server((LOCALHOST, 0)) as listener:
        it = Door(listener.getsockname()[1])

        def serve() -> None:
            while True:
                try:
                    connected, _ = listener.accept()
                except OSError:
                    return
                with wrap(connected, certificates.context()) as wrapped:
                    try:
                        it.ends.append(f"subject {shake_hands(wrapped, seconds)}")
                        wrapped.sendall(greeting)
                        # Until the peer goes, or the kernel may overtake what it has not read.
                        while wrapped.recv(1000):
                            pass
                    except AssociationEnded as error:
                        it.ends.append(str(error))
                    except OSError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield it
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def sender(authority: Authority, own: Pair | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.certificate)
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


def welcome(context: ssl.SSLContext, port: int) -> tuple[str | None, int]:
    """Protocol and serial number of the certificate that a sender meets."""
    with (
        socket.create_connection((LOCALHOST, port), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.recv(7) == b"welcome"
        certificate = secured.getpeercert()
        assert certificate is not None
        return secured.version(), int(str(certificate["serialNumber"]), 16)


def s_client(port: int, authority: Authority, *options: str) -> "subprocess.CompletedProcess[str]":
    """What the program `openssl s_client` makes of it."""
    argv = [require("openssl"), "s_client", "-connect", f"{LOCALHOST}:{port}"]
    argv += ["-CAfile", str(authority.certificate), *options]
    return subprocess.run(
        argv, input="R\nQ\n", capture_output=True, text=True, check=False, timeout=60, errors="replace"
    )


# The profile


@pytest.mark.parametrize("rsa", [False, True])
@pytest.mark.parametrize(
    ("options", "is_taken"),
    [
        # RFC 9325 4.2 and RFC 8446 9.1; PS3.15 B.12.
        (["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], True),
        (["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"], True),
        (["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"], True),
        (["-tls1_2", "-cipher", "ECDHE-{kind}-AES128-GCM-SHA256"], True),
        (["-tls1_2", "-cipher", "ECDHE-{kind}-AES256-GCM-SHA384"], True),
        # No forward secrecy, no authenticated encryption, or an old version.
        (["-tls1_2", "-cipher", "AES128-GCM-SHA256:AES256-GCM-SHA384:@SECLEVEL=0"], False),
        (["-tls1_2", "-cipher", "ECDHE-{kind}-AES128-SHA256:ECDHE-{kind}-AES256-SHA:@SECLEVEL=0"], False),
        (["-tls1_2", "-cipher", "NULL:@SECLEVEL=0"], False),
        (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], False),
        (["-tls1", "-cipher", "ALL:@SECLEVEL=0"], False),
    ],
    ids=lambda value: value[0] + " " + value[-1] if isinstance(value, list) else "",
)
def test_only_the_suites_of_bcp_195(
    authority: Authority, options: Sequence[str], is_taken: bool, rsa: bool
) -> None:
    pair = authority.sign(f"suites{rsa}", rsa=rsa, days=400)
    kind = "RSA" if rsa else "ECDSA"
    with door(Certificates(pair.certificate, pair.key)) as it:
        done = s_client(it.port, authority, *(option.format(kind=kind) for option in options))
    assert ("Cipher is (NONE)" not in done.stdout) is is_taken, done.stdout + done.stderr
    assert it.ends[0].startswith("subject ") is is_taken, it.ends


def test_neither_compression_nor_renegotiation(authority: Authority, ours: Pair) -> None:
    with door(Certificates(ours.certificate, ours.key), greeting=b"") as it:
        done = s_client(it.port, authority, "-tls1_2", "-comp")
    assert "Compression: NONE" in done.stdout
    assert "RENEGOTIATING" in done.stdout + done.stderr, "the sender asked for it"
    assert "no renegotiation" in done.stderr.lower()


def test_the_newest_version_is_preferred(authority: Authority, ours: Pair) -> None:
    with door(Certificates(ours.certificate, ours.key)) as it:
        assert welcome(sender(authority), it.port)[0] == "TLSv1.3"


# Senders' certificates


def test_a_sender_of_the_authority_is_known_by_its_subject(
    authority: Authority, ours: Pair, scanner: Pair
) -> None:
    with door(Certificates(ours.certificate, ours.key, authority.certificate)) as it:
        welcome(sender(authority, scanner), it.port)
    assert it.ends == ["subject CN=CT1, OU=Radiology, O=Hospital"]


def test_without_an_authority_senders_need_none(authority: Authority, ours: Pair) -> None:
    with door(Certificates(ours.certificate, ours.key)) as it:
        welcome(sender(authority), it.port)
    assert it.ends == ["subject "]


def test_a_sender_without_certificate_is_told_so(authority: Authority, ours: Pair) -> None:
    with (
        door(Certificates(ours.certificate, ours.key, authority.certificate)) as it,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        welcome(sender(authority), it.port)
    assert len(it.ends) == 1
    assert "showed no certificate" in it.ends[0]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("stranger", "certificate is refused: .*issuer"),
        ("expired", "certificate is refused: .*expired"),
        ("usage", "certificate is refused: .*purpose"),
    ],
)
def test_a_wrong_certificate_is_refused(
    authority: Authority, ours: Pair, tmp_path: Path, fault: str, said: str
) -> None:
    other = Authority(tmp_path / "other", "Other Authority")
    own = {
        "stranger": lambda: other.sign("x"),
        "expired": lambda: authority.sign("old", days=-1),
        "usage": lambda: authority.sign("webserver", usage="serverAuth"),
    }[fault]()
    with (
        door(Certificates(ours.certificate, ours.key, authority.certificate)) as it,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        welcome(sender(authority, own), it.port)
    (end,) = it.ends
    assert re.search(said, end), end


# What is no TLS


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (bytes.fromhex("0100000000cd00010000") + b"DICOMFS".ljust(16) + b"CT1".ljust(16), "speak TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
        (b"", "hung up|broke"),
        (bytes.fromhex("16030100a5"), "hung up|broke"),
    ],
    ids=["dicom", "http", "nothing", "half a record"],
)
def test_what_is_no_handshake_is_told_from_one(ours: Pair, sent: bytes, said: str) -> None:
    with (
        door(Certificates(ours.certificate, ours.key)) as it,
        socket.create_connection((LOCALHOST, it.port), timeout=PATIENCE_S) as plain,
        suppress(OSError),
    ):
        plain.sendall(sent)
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(1000):
            pass
    (end,) = it.ends
    assert re.search(said, end), end


def test_a_handshake_has_one_limit_for_all_of_it(ours: Pair) -> None:
    """A byte now and then does not prolong it."""
    with (
        door(Certificates(ours.certificate, ours.key), seconds=0.3) as it,
        socket.create_connection((LOCALHOST, it.port), timeout=PATIENCE_S) as plain,
    ):
        hello = bytes.fromhex("16030100a5") + bytes(165)
        deadline = time.monotonic() + PATIENCE_S
        for byte in hello:
            if it.ends or time.monotonic() > deadline:
                break
            plain.sendall(bytes([byte]))
            time.sleep(0.1)
    assert it.ends == ["the TLS handshake was not finished in time"]


# Files that change


def put(pair: Pair, certificate: Path, key: Path) -> None:
    """As an administrator would: each file replaced in one step."""
    for source, target in ((pair.key, key), (pair.certificate, certificate)):
        shutil.copy(source, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)


@pytest.fixture
def served(authority: Authority, ours: Pair, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of our certificate and key, to be changed."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    put(ours, certificate, key)
    return certificate, key


def serial(certificate: Path) -> int:
    return int(openssl("x509", "-in", certificate, "-noout", "-serial").strip().partition("=")[2], 16)


def test_a_new_certificate_is_for_new_connections(
    authority: Authority, served: tuple[Path, Path], ours: Pair
) -> None:
    certificate, key = served
    newer = authority.sign("newer", days=400)
    certificates = Certificates(certificate, key)
    before = certificates.context()
    assert certificates.context() is before, "not made anew without need"
    context = sender(authority)
    with door(certificates) as it:
        assert welcome(context, it.port)[1] == serial(ours.certificate)
        put(newer, certificate, key)
        assert welcome(context, it.port)[1] == serial(newer.certificate)
    assert certificates.context() is not before


def test_broken_new_files_change_nothing_and_are_told_once(
    authority: Authority, served: tuple[Path, Path], ours: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = served
    certificates = Certificates(certificate, key)
    context = sender(authority)
    newer = authority.sign("newest", days=400)
    with door(certificates) as it:
        certificate.write_text("in the middle of being written")
        for _ in range(3):
            assert welcome(context, it.port)[1] == serial(ours.certificate)
        told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(told) == 1
        assert str(certificate) in told[0]
        assert "stays in use" in told[0]
        key.unlink()
        assert welcome(context, it.port)[1] == serial(ours.certificate)
        put(newer, certificate, key)
        assert welcome(context, it.port)[1] == serial(newer.certificate)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 2, "one more for the other kind of trouble"


def test_a_link_that_points_elsewhere_is_a_change(authority: Authority, ours: Pair, tmp_path: Path) -> None:
    newer = authority.sign("linked", days=400)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.symlink_to(ours.certificate)
    key.symlink_to(ours.key)
    certificates = Certificates(certificate, key)
    before = certificates.context()
    for link, target in ((certificate, newer.certificate), (key, newer.key)):
        link.unlink()
        link.symlink_to(target)
    assert certificates.context() is not before


def test_another_authority_of_senders_counts_from_the_next_connection(
    authority: Authority, ours: Pair, scanner: Pair, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other", "Other Authority")
    trusted = tmp_path / "scanners.pem"
    shutil.copy(other.certificate, trusted)
    with door(Certificates(ours.certificate, ours.key, trusted)) as it:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            welcome(sender(authority, scanner), it.port)
        trusted.write_bytes(other.certificate.read_bytes() + authority.certificate.read_bytes())
        welcome(sender(authority, scanner), it.port)
        welcome(sender(authority, other.sign("theirs")), it.port)
    assert it.ends[1:] == ["subject CN=CT1, OU=Radiology, O=Hospital", "subject CN=theirs"]


# What is wrong at the start


def test_certificate_and_key_may_share_a_file(authority: Authority, ours: Pair, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(ours.key.read_bytes() + ours.certificate.read_bytes())
    both.chmod(0o600)
    with door(Certificates(both)) as it:
        welcome(sender(authority), it.port)


@pytest.mark.parametrize("which", ["tls_certificate", "tls_key", "tls_ca"])
def test_wrong_files_are_named(ours: Pair, authority: Authority, tmp_path: Path, which: str) -> None:
    files = {"tls_certificate": ours.certificate, "tls_key": ours.key, "tls_ca": authority.certificate}
    wrong = files[which] = tmp_path / "file.pem"
    for content, said in ((None, "No such file"), ("nothing of the kind", "PEM format"), ("", "PEM format")):
        if content is not None:
            wrong.write_text(content)
        with pytest.raises(UsageError, match=said) as caught:
            Certificates(*files.values())
        assert f"{which} {wrong}" in str(caught.value)


def test_a_damaged_certificate_is_named(ours: Pair, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pem"
    lines = ours.certificate.read_text().splitlines()
    damaged.write_text("\n".join([lines[0], *lines[2:]]))
    with pytest.raises(UsageError, match=str(damaged)):
        Certificates(damaged, ours.key)
    with pytest.raises(UsageError, match=f"tls_ca {damaged}"):
        Certificates(ours.certificate, ours.key, damaged)


def test_the_key_of_another_certificate(ours: Pair, scanner: Pair) -> None:
    with pytest.raises(UsageError, match="does not belong to") as caught:
        Certificates(ours.certificate, scanner.key)
    assert str(ours.certificate) in str(caught.value)
    assert str(scanner.key) in str(caught.value)


def test_a_key_with_a_passphrase_asks_nobody(ours: Pair, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    openssl("pkey", "-in", ours.key, "-aes256", "-passout", "pass:secret", "-out", locked)
    with pytest.raises(UsageError, match=r"has a passphrase.*openssl pkey"):
        Certificates(ours.certificate, locked)


def test_a_folder_is_no_key(ours: Pair, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read tls_key"):
        Certificates(ours.certificate, tmp_path)


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o601])
def test_a_key_that_everybody_may_use_is_told(
    ours: Pair, tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "key.pem"
    shutil.copy(ours.key, key)
    key.chmod(mode)
    certificates = Certificates(ours.certificate, key)
    for _ in range(3):
        certificates.context()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"chmod o= {key}" in caplog.text


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_a_key_for_a_user_or_a_group_is_well(
    ours: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    key = tmp_path / "key.pem"
    shutil.copy(ours.key, key)
    key.chmod(mode)
    Certificates(ours.certificate, key).context()
    assert caplog.records == []


def test_an_expired_certificate_is_an_alarm_and_no_refusal(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    old = authority.sign("expired", days=-1)
    certificates = Certificates(old.certificate, old.key)
    for _ in range(3):
        certificates.context()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert f"{old.certificate} has expired" in record.getMessage()


def test_a_certificate_that_comes_to_its_end_is_told_before_and_then(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.sign("ending", days=100)
    now = time.time()
    certificates = Certificates(pair.certificate, pair.key, clock=lambda: now)
    certificates.context()
    assert not caplog.records
    now += 71 * 86_400
    for _ in range(3):
        certificates.context()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "expires in 28 days" in caplog.text or "expires in 29 days" in caplog.text
    now += 30 * 86_400
    for _ in range(3):
        certificates.context()
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_a_certificate_that_is_not_for_servers_is_told(
    scanner: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    Certificates(scanner.certificate, scanner.key)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "purpose" in record.getMessage()


def test_an_authority_that_has_expired_is_told(
    ours: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brief = Authority(tmp_path / "brief", "Old Authority", days=10)
    now = time.time() + 11 * 86_400
    Certificates(ours.certificate, ours.key, brief.certificate, clock=lambda: now)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "CN=Old Authority has expired" in caplog.text


def test_an_intermediate_authority_may_follow_in_the_file(
    authority: Authority, ours: Pair, tmp_path: Path
) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(ours.certificate.read_bytes() + authority.certificate.read_bytes())
    with door(Certificates(chain, ours.key)) as it:
        done = s_client(it.port, authority, "-showcerts")
    assert done.stdout.count("BEGIN CERTIFICATE") >= 2


def test_many_threads_may_ask_while_files_change(authority: Authority, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    pairs = [authority.sign(f"swap{n}", days=400) for n in range(2)]
    texts = [pair.key.read_bytes() + pair.certificate.read_bytes() for pair in pairs]

    def swap(text: bytes) -> None:
        new = both.with_suffix(".new")
        new.write_bytes(text)
        new.chmod(0o600)
        new.replace(both)

    swap(texts[0])
    certificates = Certificates(both)
    errors: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                assert certificates.context().get_ciphers()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        swap(texts[turn % 2])
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
