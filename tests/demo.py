"""The whole way of an image, shown with real programs: `make demo`, or `make demo ONCE=1` to end by itself.

In a scratch folder and on free ports: starts `dicomfs serve`, sends real images with DCMTK's storescu over
TCP, lists what a clinician sees with smbclient over SMB3, fetches pictures over SMB, says how to point a
scanner and a file browser at it, and stays until Ctrl-C. Then stops everything and checks that nothing is
left: no mount, no process, no file. Every step prints one line. Exit code 0: each step succeeded.
"""

import getpass
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from tests.phantom import cine
from tests.support import (
    LOCALHOST,
    Running,
    command_line,
    connects,
    find_tool,
    free_port,
    mounted,
    running,
    smbclient,
    stop,
    wait_until,
)

AE_TITLE = "DICOMFS"
TOOLS = ("storescu", "echoscu", "smbclient", "smbd", "fusermount3")
START_LIMIT_S = 90.0
ARRIVAL_LIMIT_S = 60.0
PROPOSAL = {  # what storescu needs to hear to send a file in the transfer syntax that it is in
    "1.2.840.10008.1.2": "--propose-implicit",
    "1.2.840.10008.1.2.1": "--propose-little",
    "1.2.840.10008.1.2.1.99": "--propose-deflated",
    "1.2.840.10008.1.2.2": "--propose-big",
    "1.2.840.10008.1.2.4.50": "--propose-jpeg8",
    "1.2.840.10008.1.2.4.51": "--propose-jpeg12",
    "1.2.840.10008.1.2.4.70": "--propose-lossless",
    "1.2.840.10008.1.2.4.80": "--propose-jls-lossless",
    "1.2.840.10008.1.2.4.81": "--propose-jls-lossy",
    "1.2.840.10008.1.2.4.90": "--propose-j2k-lossless",
    "1.2.840.10008.1.2.4.91": "--propose-j2k-lossy",
    "1.2.840.10008.1.2.5": "--propose-rle",
}
REAL_IMAGES = (  # files that come with pydicom
    *("MR_small.dcm", "CT_small.dcm"),
    *("rtdose.dcm", "eCT_Supplemental.dcm", "emri_small_jpeg_ls_lossless.dcm"),  # multi-frame
    *("examples_rgb_color.dcm", "examples_ybr_color.dcm", "examples_palette.dcm"),  # colour; a US loop
    *("MR-SIEMENS-DICOM-WithOverlays.dcm", "mlut_18.dcm", "vlut_04.dcm"),
    *("SC_rgb_jpeg_dcmtk.dcm", "JPEG-lossy.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm"),  # JPEG, three processes
    *("693_J2KR.dcm", "US1_J2KI.dcm", "RG1_J2KR.dcm"),  # JPEG 2000
    *("SC_rgb_rle.dcm", "image_dfl.dcm", "ExplVR_BigEnd.dcm"),
)


class DemoFailed(Exception):
    """A step did not succeed; the text says why."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One file that is sent: its transfer syntax, and how many pictures it should become."""

    path: Path
    syntax: str
    pictures: int


@dataclass(slots=True)
class Steps:
    """Prints one line for each step and counts those that failed."""

    failed: int = 0

    @contextmanager
    def step(self, what: str, *, needed: bool = False) -> Iterator[list[str]]:
        """The block adds to the list what is worth saying. If `needed`, failing ends the demonstration."""
        words: list[str] = []
        try:
            yield words
        except (AssertionError, DemoFailed, OSError, subprocess.SubprocessError) as error:
            self.failed += 1
            self.line("✗", what, [*words, str(error) or type(error).__name__])
            if needed:
                raise DemoFailed(what) from error
        else:
            self.line("✓", what, words)

    @staticmethod
    def line(mark: str, what: str, words: Sequence[str]) -> None:
        text = f"{what}: {'; '.join(words)}" if words else what
        print(f"{mark} {text.rstrip()}".replace("\n", "\n    "), flush=True)


@dataclass(slots=True)
class Demo:
    """One demonstration below `scratch`."""

    scratch: Path
    once: bool
    steps: Steps
    port: int = field(default_factory=free_port)
    samba_port: int = field(default_factory=free_port)

    @property
    def mount(self) -> Path:
        return self.scratch / "mount"

    def run(self) -> None:
        """All steps; what is started is stopped at the end."""
        self._machine()
        files = self._files()
        host = ["--host", LOCALHOST] if self.once else []
        argv = command_line(
            *("serve", "--store", str(self.scratch / "store"), "--mount", str(self.mount), "--quiet", *host),
            *("--port", str(self.port), "--samba-port", str(self.samba_port), "--aet", AE_TITLE, "--open"),
        )
        self.mount.mkdir()
        log = self.scratch / "serve.log"
        with self._served(argv, log) as server:
            self._answers()
            self._send(files)
            listing = self._list(sum(file.pictures for file in files))
            self._fetch_one(listing)
            self._fetch_all(listing)
            if not self.once:
                # Ctrl-C is how this ends; `dicomfs serve` should not end before it.
                with suppress(KeyboardInterrupt):
                    self._invite()
                    server.process.wait()
                print(flush=True)

    @contextmanager
    def _served(self, argv: Sequence[str], log: Path) -> Iterator[Running]:
        """`dicomfs serve` until the end of the block, whatever happens in it; then nothing of it is left."""
        with ExitStack() as stack:
            with self.steps.step("dicomfs serve is running", needed=True) as said:
                start = running(
                    argv, log, self._ready, "all parts answer", seconds=START_LIMIT_S, mountpoint=self.mount
                )
                server = stack.enter_context(start)
                said.append(f"C-STORE on port {self.port}, mount {self.mount}, SMB on port {self.samba_port}")
            try:
                yield server
            finally:
                # From here on an impatient Ctrl-C would leave something behind.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                with self.steps.step("stopped, and nothing left behind") as said:
                    alone = server.process.poll() is not None
                    code = stop(server.process)
                    output = server.output()
                    stack.close()
                    self._nothing_left()
                    if alone or code != 0:
                        how = "ended by itself" if alone else f"ended with {code} when it was stopped"
                        raise DemoFailed(f"dicomfs serve {how}; it said:\n{output}")
                    said.append("no mount, no process")

    def _ready(self) -> bool:
        return mounted(self.mount) and connects(self.port) and connects(self.samba_port)

    def _machine(self) -> None:
        with self.steps.step("this machine has what it takes", needed=True) as said:
            missing = [tool for tool in TOOLS if find_tool(tool) is None]
            if missing:
                raise DemoFailed(f"not installed: {', '.join(missing)} (`make setup` installs them)")
            if not Path("/dev/fuse").exists():
                raise DemoFailed("no /dev/fuse: `modprobe fuse`; in a container, --device /dev/fuse")
            if not os.access("/dev/fuse", os.R_OK | os.W_OK):
                raise DemoFailed(
                    f"{getpass.getuser()} may not open /dev/fuse: `chmod 666 /dev/fuse`, as Debian has it"
                )
            said.append(f"as {getpass.getuser()}, scratch folder {self.scratch}")

    def _files(self) -> list[Sent]:
        with self.steps.step("images to send", needed=True) as said:
            paths = [get_testdata_file(name, download=False) for name in REAL_IMAGES]
            lacking = [name for name, path in zip(REAL_IMAGES, paths, strict=True) if path is None]
            if lacking:
                raise DemoFailed(f"pydicom does not bring {', '.join(lacking)}")
            phantom = cine(self.scratch / "cine")
            files = [described(Path(str(path))) for path in (*paths, *phantom)]
            syntaxes = len({file.syntax for file in files})
            said.append(
                f"{len(paths)} real files in {syntaxes} transfer syntaxes, a cine of {len(phantom)} images"
            )
            return files
        raise DemoFailed("no images")  # not reached: the step is needed

    def _answers(self) -> None:
        with self.steps.step("C-ECHO answered", needed=True) as said:
            call("echoscu", "--call", AE_TITLE, LOCALHOST, str(self.port))
            said.append(f"{AE_TITLE}@{LOCALHOST}:{self.port}")
        with self.steps.step("share answers", needed=True) as said:
            wait_until(lambda: smbclient(self.samba_port, "ls").returncode == 0, "a listing over SMB3")
            said.append(f"//{LOCALHOST}:{self.samba_port}/dicomfs")

    def _send(self, files: Sequence[Sent]) -> None:
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for file in files:
            groups[file.syntax].append(str(file.path))
        with self.steps.step("sent with storescu over TCP") as said:
            for syntax, paths in groups.items():
                call(
                    *("storescu", "--call", AE_TITLE, "--aetitle", "DEMO", "--required", PROPOSAL[syntax]),
                    *(LOCALHOST, str(self.port), *paths),
                )
            said.append(f"{len(files)} objects, each in its own transfer syntax, all acknowledged")

    def _list(self, expected: int) -> dict[str, dict[str, int]]:
        """Waits for all pictures; prints the tree; returns sizes by name by folder."""
        listing: dict[str, dict[str, int]] = {}

        def complete() -> bool:
            nonlocal listing
            listing = listed(smbclient(self.samba_port, "recurse; ls").stdout)
            return sum(len(names) for names in listing.values()) >= expected

        with self.steps.step("the tree as a clinician sees it, through smbclient") as said:
            try:
                wait_until(complete, f"{expected} pictures", ARRIVAL_LIMIT_S)
            finally:
                number = sum(len(names) for names in listing.values())
                said.append(f"{number} of {expected} pictures in {len(listing)} exams")
            if number != expected:
                raise DemoFailed("more pictures than were sent")
            empty = [name for names in listing.values() for name, size in names.items() if size == 0]
            if empty:
                raise DemoFailed(f"of size 0: {', '.join(empty[:3])}")
        show(listing)
        return listing

    def _fetch_one(self, listing: dict[str, dict[str, int]]) -> None:
        with self.steps.step("one picture fetched over SMB") as said:
            exam = next((folder for folder in sorted(listing) if "Demo" in folder), None)
            if exam is None:
                raise DemoFailed("the cine is not in the tree")
            name = natural(listing[exam])[0]
            there = f"{exam}/{name}"
            here = self.scratch / name
            got = smbclient(self.samba_port, f'get "{there}" "{name}"', cwd=self.scratch)
            if not here.exists():
                raise DemoFailed(got.stdout + got.stderr)
            said.append(f"{there} -> {here}, {dimensions(here)}, {here.stat().st_size} bytes")
            if here.stat().st_size != listing[exam][name]:
                raise DemoFailed(f"the listing said {listing[exam][name]} bytes")

    def _fetch_all(self, listing: dict[str, dict[str, int]]) -> None:
        with self.steps.step("every picture copied over SMB") as said:
            copy = self.scratch / "copy"
            copy.mkdir()
            got = smbclient(self.samba_port, "recurse; prompt; mget *", cwd=copy, seconds=300)
            files = [path for path in copy.rglob("*") if path.is_file()]
            wrong = [
                path.name
                for path in files
                if path.stat().st_size != listing.get(str(path.parent.relative_to(copy)), {}).get(path.name)
            ]
            for path in files:
                dimensions(path)
            megabytes = sum(path.stat().st_size for path in files) / 1e6
            if not files:
                raise DemoFailed(f"smbclient said:\n{got.stdout}{got.stderr}")
            if wrong:
                raise DemoFailed(f"other sizes than listed: {', '.join(wrong[:3])}")
            if len(files) != sum(len(names) for names in listing.values()):
                raise DemoFailed(f"not all came; smbclient said:\n{got.stdout}{got.stderr}")
            said.append(f"{len(files)} files, {megabytes:.1f} MB, all open as images")

    def _invite(self) -> None:
        host = socket.gethostname()
        share = f"{LOCALHOST}:{self.samba_port}/dicomfs"
        print(
            f"""
Look at it on this machine
    folder          {self.mount}
    Files, Dolphin  smb://{share}
    Linux           sudo mount -t cifs //{LOCALHOST}/dicomfs /mnt -o port={self.samba_port},guest,ro
    macOS           open 'smb://guest@{share}'
    Windows         \\\\{host}\\dicomfs needs port 445 and a password, so not this demonstration:
                    `dicomfs samba-config {self.mount}` and samba/README.md say how

Send your own images, from here or from a scanner
    AE title {AE_TITLE}, host {host}, port {self.port} (any calling AE title is accepted)
    storescu --call {AE_TITLE} +sd +r {LOCALHOST} {self.port} FOLDER

Ctrl-C stops it and removes all of it, received images too.""",
            flush=True,
        )

    def _nothing_left(self) -> None:
        wait_until(lambda: not mounted(self.mount), "the end of the mount", 10)
        wait_until(lambda: not processes_about(str(self.scratch)), "the end of all processes", 20)


def described(path: Path) -> Sent:
    ds = dcmread(path, stop_before_pixels=True)
    return Sent(path, str(ds.file_meta.TransferSyntaxUID), int(ds.get("NumberOfFrames") or 1))


def call(tool: str, *arguments: str) -> None:
    """Run a program of DCMTK; DemoFailed with what it said if it fails."""
    # DCMTK waits for delayed acknowledgements of the network otherwise.
    environment = {**os.environ, "TCP_NODELAY": "1"}
    argv = [find_tool(tool) or tool, *arguments]
    said = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=180, check=False)
    if said.returncode != 0:
        raise DemoFailed(f"{' '.join(arguments[:6])} …\n{said.stdout}{said.stderr}")


def listed(said: str) -> dict[str, dict[str, int]]:
    """Sizes by name by folder, from `recurse; ls` of smbclient; folders without files are left out."""
    listing: dict[str, dict[str, int]] = {}
    folder = ""
    for line in said.splitlines():
        if line.startswith("\\"):
            folder = line.strip().lstrip("\\").replace("\\", "/")
        elif (entry := re.match(r"  (.+?) +([A-Z]*) +(\d+)  \w{3} \w{3} [ \d]\d [\d:]{8} \d{4}$", line)) and (
            "D" not in entry[2]
        ):
            listing.setdefault(folder, {})[entry[1]] = int(entry[3])
    return listing


def natural(names: Sequence[str] | dict[str, int]) -> list[str]:
    """As file browsers sort: 2 before 10."""
    return sorted(
        names, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    )


def show(listing: dict[str, dict[str, int]]) -> None:
    """One line for each exam: how many pictures, how they are called."""
    width = max((len(exam) for exam in listing), default=0)
    for exam in sorted(listing):
        series = Counter(name.split("_")[0] for name in listing[exam])
        names = natural(listing[exam])
        examples = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        more = f" ({len(series)} series)" if len(series) > 1 else ""
        print(f"    {exam:{width}} {len(names):4}  {examples}{more}", flush=True)


def dimensions(path: Path) -> str:
    """Columns and rows of a picture that is decoded to its end; OSError if it cannot be."""
    with Image.open(path) as picture:
        picture.load()
        return f"{picture.width} x {picture.height} {picture.format}"


def processes_about(text: str) -> list[int]:
    """Other processes whose command line contains `text`; those that ended and were not fetched have none."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if (
                path.name.isdecimal()
                and int(path.name) != os.getpid()
                and text.encode() in (path / "cmdline").read_bytes()
            ):
                found.append(int(path.name))
    return found


def main() -> int:
    """0: every step succeeded; 1: not; 130: interrupted before the end."""
    once = os.environ.get("ONCE", "") not in ("", "0")
    steps = Steps()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    scratch = Path()
    try:
        with TemporaryDirectory(prefix="dicomfs-demo-") as folder:
            scratch = Path(folder).resolve()
            Demo(scratch, once, steps).run()
    except DemoFailed as error:
        print(f"The demonstration ends here: {error}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    with steps.step("scratch folder removed"):
        if scratch.exists():
            raise DemoFailed(f"{scratch} is still there")
    return 1 if steps.failed else 0


if __name__ == "__main__":
    sys.exit(main())
