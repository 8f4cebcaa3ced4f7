"""A store that is filled from the test, and mounted and shared by the real programs."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from dicomfs import importer, samba
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates
from tests.made import data_set, save
from tests.support import Running, command_line, connects, free_port, mounted, require, require_fuse, running


@dataclass(slots=True)
class Shared:
    """Everything of one store."""

    scratch: Path
    ingest: Ingest
    port: int
    mount: Running | None = None
    saved: int = 0

    @property
    def store(self) -> Path:
        return self.scratch / "store"

    @property
    def point(self) -> Path:
        """Where it is mounted."""
        return self.scratch / "mount"

    def take(self, *data_sets: Dataset) -> None:
        """Take in data sets, as another process would: durable when this returns."""
        files = []
        for ds in data_sets:
            self.saved += 1
            files.append(save(self.scratch / f"{self.saved}.dcm", ds))
        importer.take_in(self.ingest, files, lambda _: None)
        for file in files:
            file.unlink()

    @contextmanager
    def mounted(
        self, options: str = "", *, log: str = "mount.log", program: Sequence[str] = ()
    ) -> Iterator[Running]:
        """`dicomfs mount` until the end of the block, or another program that takes its arguments."""
        words = ("mount", "--store", self.store, self.point, "-o", options)
        argv = [*program, *map(str, words)] if program else command_line(*words)
        ready = lambda: mounted(self.point)  # noqa: E731  a def would say no more
        with running(argv, self.scratch / log, ready, "the mount answers", mountpoint=self.point) as it:
            self.mount = it
            yield it


@contextmanager
def sharing(duplicates: Duplicates = Duplicates.KEEP_FIRST) -> Iterator[Shared]:
    """A store with one image of Jane Doe, and an smbd that shares where it will be mounted."""
    require_fuse()
    require("smbd")
    with ExitStack() as stack:
        # A short path: smbd makes sockets there.
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dicomfs-test-"))).resolve()
        (scratch / "mount").mkdir()
        ingest = stack.enter_context(Ingest.open(scratch / "store", duplicates))
        smbd = samba.prepare(scratch / "smb", scratch / "mount", free_port())
        ready = lambda: connects(smbd.port)  # noqa: E731  a def would say no more
        stack.enter_context(running(smbd.argv, scratch / "smbd.log", ready, "smbd answers", env=smbd.env))
        shared = Shared(scratch, ingest, smbd.port)
        shared.take(image(1))
        yield shared


def image(number: int, person: str = "Doe^Jane", day: str = "20240131", **changes: object) -> Dataset:
    """The image of that number in the only series of somebody's exam of that day: `cine_5_NUMBER.jpg`."""
    study = f"2.25.{sum(map(ord, person))}.{day}"
    usual: dict[str, object] = {
        "PatientName": person,
        "PatientID": person,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": f"{study}.1",
        "SOPInstanceUID": f"{study}.1.{number}",
        "StudyDate": day,
        "InstanceNumber": number,
    }
    return data_set(**(usual | changes))


def images(numbers: Sequence[int], person: str = "Doe^Jane", day: str = "20240131") -> list[Dataset]:
    """Several of these."""
    return [image(number, person, day) for number in numbers]
