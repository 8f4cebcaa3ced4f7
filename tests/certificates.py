"""Certificates for tests, made by the program `openssl`: an authority, and what it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support import require

_ELLIPTIC = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
_RSA = ("rsa:2048",)


def openssl(*arguments: str | Path) -> str:
    """Run it; what it printed."""
    argv = [require("openssl"), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, PEM."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates; its own is `certificate`. Files are made below `folder`."""

    def __init__(self, folder: Path, name: str = "Test Authority", days: int = 30) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._serial = 100
        self.key, self.certificate = folder / "ca.key", folder / "ca.pem"
        openssl(
            *("req", "-x509", "-newkey", *_ELLIPTIC, "-nodes", "-days", str(days), "-subj", f"/CN={name}"),
            *("-keyout", self.key, "-out", self.certificate),
        )

    def sign(
        self, name: str, subject: str | None = None, *, days: int = 10, usage: str = "", rsa: bool = False
    ) -> Pair:
        """A new pair; `days` from now until it expires, `usage` an extended key usage such as clientAuth."""
        key, request = self.folder / f"{name}.key", self.folder / f"{name}.csr"
        certificate, extensions = self.folder / f"{name}.pem", self.folder / f"{name}.cnf"
        openssl(
            *("req", "-newkey", *(_RSA if rsa else _ELLIPTIC), "-nodes", "-subj", subject or f"/CN={name}"),
            *("-keyout", key, "-out", request),
        )
        extensions.write_text(
            "subjectAltName=DNS:localhost,IP:127.0.0.1\n" + (f"extendedKeyUsage={usage}\n" if usage else "")
        )
        self._serial += 1
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key),
            *("-set_serial", str(self._serial), "-days", str(days), "-extfile", extensions),
            *("-out", certificate),
        )
        return Pair(certificate, key)
