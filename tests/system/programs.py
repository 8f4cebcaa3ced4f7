"""What the system tests share: images with names, DCMTK's programs, `serve` as a user starts it."""

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.support import (
    LOCALHOST,
    Running,
    command_line,
    connects,
    free_port,
    mounted,
    require,
    require_fuse,
    running,
    shipped,
    smbclient,
)

NO_DELAY = {**os.environ, "TCP_NODELAY": "1"}


# Images


def named(
    path: Path,
    patient_name: str,
    *,
    patient_id: str = "1",
    number: int = 1,
    study: str | None = None,
    seed: str | None = None,
) -> Path:
    """A small MR image of somebody, in UTF-8, with UIDs of its own (the same for the same `seed`)."""
    ds = dcmread(shipped("MR_small.dcm"))
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = patient_name, patient_id, "19700101"
    ds.StudyDate, ds.SeriesDescription, ds.SeriesNumber = "20240229", "FIESTA", 4
    ds.InstanceNumber = number
    entropy = [seed] if seed else None
    ds.SOPInstanceUID = generate_uid(entropy_srcs=entropy)
    if study is not None:
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, f"{study}.1"
    else:
        ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    # Other pixels for each number, so that no two originals are equal.
    ds.PixelData = bytes([number % 256, 0]) + ds.PixelData[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, count: int, patient_name: str = "Beat^Heart") -> list[Path]:
    """`count` images of one series."""
    study = generate_uid()[:60]
    return [named(folder / f"{n:04}.dcm", patient_name, number=n, study=study) for n in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class Original:
    """What a file holds, found by pydicom and not by the code under test."""

    sop_uid: str
    syntax: str
    data_set: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of transfer syntax UID, NUL, data set: the name of the file in the archive."""
        return hashlib.sha256(self.syntax.encode() + b"\0" + self.data_set).hexdigest()


def original(path: Path) -> Original:
    """The encoded data set of a DICOM file, and what it is called."""
    with path.open("rb") as file:
        ds: Dataset = dcmread(file, stop_before_pixels=True)
        # 128 + DICM + the group length element (12 bytes) + what it counts (PS3.10 table 7.1-1)
        file.seek(132 + 12 + ds.file_meta.FileMetaInformationGroupLength)
        return Original(str(ds.SOPInstanceUID), str(ds.file_meta.TransferSyntaxUID), file.read())


# Programs


def storescu(port: int, *files: Path) -> subprocess.CompletedProcess[str]:
    """Send uncompressed files."""
    return _sent([require("storescu"), "-v", "-aec", "DICOMFS", LOCALHOST, str(port), *map(str, files)])


def sending(port: int, files: list[Path], log: Path) -> "subprocess.Popen[bytes]":
    """The same, while others do something else; what it says goes to `log`."""
    argv = [require("storescu"), "-v", "-aec", "DICOMFS", LOCALHOST, str(port), *map(str, files)]
    with log.open("wb") as said:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=NO_DELAY
        )


_SENDING = re.compile(r"Sending file: (.+)")
_ANSWER = re.compile(r"Received Store Response \((.+)\)")


def acknowledged(log: Path) -> list[Path]:
    """Files that were answered with Success, out of what `storescu -v` says, line by line."""
    files: list[Path] = []
    sending = None
    for line in log.read_text(errors="replace").splitlines():
        if match := _SENDING.search(line):
            sending = Path(match[1].strip())
        elif (match := _ANSWER.search(line)) and match[1] == "Success" and sending is not None:
            files.append(sending)
            sending = None
    return files


def taken(logs: list[Path], enough: int) -> bool:
    """Whether so many files were answered with Success."""
    return sum(len(acknowledged(log)) for log in logs) >= enough


def dcmsend(port: int, *files: Path) -> subprocess.CompletedProcess[str]:
    """Send files of any transfer syntax, each in its own."""
    argv = [require("dcmsend"), "-v", "--decompress-never", "-aec", "DICOMFS", LOCALHOST, str(port)]
    return _sent([*argv, *map(str, files)])


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """DCMTK's receiver on some port: it writes what came over the wire into `folder`, bit for bit."""
    folder.mkdir()
    port = free_port()
    argv = [require("storescp"), "+xa", "--bit-preserving", "--output-directory", str(folder), str(port)]
    log = folder.with_name(f"{folder.name}.log")
    with running(argv, log, lambda: connects(port), "storescp answers", env=NO_DELAY):
        yield port


def _sent(argv: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv, capture_output=True, text=True, errors="replace", check=False, timeout=120, env=NO_DELAY
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def dicomfs(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command that ends by itself."""
    return subprocess.run(
        command_line(*arguments), capture_output=True, text=True, check=False, timeout=120, env=env
    )


@dataclass(frozen=True, slots=True)
class Served:
    """A running `dicomfs serve`."""

    running: Running
    store: Path
    mount: Path
    port: int
    smb_port: int
    temporary: Path
    """Its TMPDIR."""

    def smb(self, command: str, cwd: Path | None = None) -> str:
        """What smbclient says to commands on the share."""
        done = smbclient(self.smb_port, command, cwd=cwd)
        return done.stdout + done.stderr


@contextmanager
def serving(scratch: Path, *options: str) -> Iterator[Served]:
    """`dicomfs serve` with a private smbd, in a folder with a short path, ready to be used."""
    require_fuse()
    for tool in ("smbd", "smbclient"):
        require(tool)
    mountpoint, temporary = scratch / "mount", scratch / "tmp"
    mountpoint.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    port, smb_port = free_port(), free_port()
    argv = command_line(
        "serve",
        *("--store", scratch / "store", "--mount", mountpoint, "--host", LOCALHOST, "--port", str(port)),
        *("--samba-port", str(smb_port), "--open", *options),
    )
    log = scratch / "serve.log"
    env = {**os.environ, "TMPDIR": str(temporary)}

    def ready() -> bool:
        return f":{smb_port}/" in log.read_text() and connects(port) and mounted(mountpoint)

    with running(argv, log, ready, "serve answers", env=env, mountpoint=mountpoint, seconds=60) as process:
        yield Served(process, scratch / "store", mountpoint, port, smb_port, temporary)


_LISTED = re.compile(r"^  (.+?) +([DAHSRN]*) +(\d+)  \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}$")


def parse_listing(said: str) -> dict[str, int]:
    """Path -> size of every file in the answer to `recurse ON; ls`."""
    sizes: dict[str, int] = {}
    folder = ""
    for line in said.splitlines():
        if line.startswith("\\"):
            folder = line.strip("\\").replace("\\", "/") + "/"
        elif (match := _LISTED.match(line)) and "D" not in match[2]:
            sizes[f"{folder}{match[1]}"] = int(match[3])
    return sizes


# Processes


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the machine; `started` tells it from a later one of the same number."""

    pid: int
    started: str
    words: tuple[str, ...]


def process(pid: int) -> Process | None:
    """None when there is none, or only its exit code is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    return Process(pid, fields[19], tuple(word.decode(errors="replace") for word in words if word))


def descendants(pid: int) -> list[Process]:
    """All processes below one."""
    found = []
    try:
        children = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it ended while we looked
    for child in map(int, " ".join(children).split()):
        if (it := process(child)) is not None:
            found += [it, *descendants(child)]
    return found


def alive(processes: list[Process]) -> list[Process]:
    """Those that still run."""
    return [it for it in processes if (now := process(it.pid)) is not None and now.started == it.started]
