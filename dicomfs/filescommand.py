"""`dicomfs import` and `dicomfs render`: files on disk, taken in with progress and a summary. Prints."""

import argparse
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dicomfs import importer, offline
from dicomfs.config import Settings, mount_options
from dicomfs.errors import UsageError
from dicomfs.exitcodes import OK, SOME_REFUSED
from dicomfs.ingest import Ingest
from dicomfs.model import Stored
from dicomfs.progress import progress
from dicomfs.scpcommand import with_flags

log = logging.getLogger("dicomfs.cli")


def import_files(options: argparse.Namespace, settings: Settings) -> int:
    """`dicomfs import`; its exit code."""
    chosen = with_flags(options, settings).scp
    way_in = partial(Ingest.open, settings.store, chosen.duplicates, chosen.min_free.of)
    tally = _take_in(options, way_in, as_json=options.json)
    return OK if tally.complete else SOME_REFUSED


def _take_in(options: argparse.Namespace, way_in: Callable[[], Ingest], *, as_json: bool = False) -> "Tally":
    """Take the files of `options.paths` into a store, with progress and summary."""
    files = importer.find(options.paths)
    tally = Tally(len(files))
    with way_in() as ingest, progress("importing", len(files), quiet=options.quiet) as advance:

        def done(result: importer.Result) -> None:
            tally.note(result)
            advance()

        try:
            importer.take_in(ingest, files, done)
        finally:
            tally.print(as_json=as_json)
    return tally


def render(options: argparse.Namespace, settings: Settings) -> int:
    """`dicomfs render`; its exit code."""
    chosen = mount_options(options.options, settings.mount)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {options.output}: {error.strerror}") from error
    # A store of its own, thrown away afterwards, so that names and pools are exactly a mount's.
    with tempfile.TemporaryDirectory(prefix="dicomfs-render-") as scratch:
        store = Path(scratch, "store")
        tally = _take_in(options, partial(Ingest.open, store))
        total = offline.count(store, chosen)
        with progress("rendering", total, quiet=options.quiet) as advance:
            written = offline.write_out(store, options.output, chosen, advance)
    for path, why in written.failed:
        log.warning("%s cannot be displayed: %s", path, why)
    print(f"{written.files:8} files in {options.output}")
    if written.failed:
        print(f"{len(written.failed):8} of them say why they cannot be displayed")
    return OK if tally.complete and not written.failed else SOME_REFUSED


class Tally:
    """What became of the files of one import."""

    def __init__(self, files: int) -> None:
        self._files = files
        self._stored: Counter[Stored] = Counter()
        self._refused: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()

    def note(self, result: importer.Result) -> None:
        """Count one file, and log what needs somebody's attention."""
        if result.outcome is not None:
            self._stored[result.outcome.stored] += 1
            for warning in result.outcome.warnings:
                log.warning("%s: %s", result.outcome.sop_instance_uid, warning)
        elif result.is_dicom:
            self._refused[result.reason] += 1
            log.warning("refused %s: %s", result.path, result.reason)
        else:
            self._skipped[result.reason] += 1
            log.debug("skipped %s: %s", result.path, result.reason)

    @property
    def complete(self) -> bool:
        """True when something was taken in and every DICOM object was."""
        return bool(self._stored) and not self._refused

    def print(self, *, as_json: bool) -> None:
        """The summary: what was stored, already there, refused, skipped, and why."""
        refused, skipped = self._refused.total(), self._skipped.total()
        left = self._files - self._stored.total() - refused - skipped
        if as_json:
            facts: dict[str, object] = {"files": self._files}
            facts |= {stored.name.lower(): self._stored[stored] for stored in Stored}
            facts |= {"refused": refused, "skipped": skipped, "not_tried": left}
            print(json.dumps({**facts, "reasons": self._refused + self._skipped}))
            return
        for stored in Stored:
            if self._stored[stored] or stored is Stored.NEW:
                print(f"{self._stored[stored]:8} {stored.value}")
        for word, reasons in (("refused", self._refused), ("skipped", self._skipped)):
            if reasons:
                print(f"{reasons.total():8} {word}")
            for reason, number in reasons.most_common():
                print(f"{'':8}   {number} × {reason}")
        if left:
            print(f"{left:8} not tried")
