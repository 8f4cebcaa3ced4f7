"""`python -m tests.quality`: what dicomfs makes of images, in figures, beside others on the same files.

Each metric is a file beside this one, with its formula and its gate. Two tables: the packaged images, and
those of a folder (`--data`, else DICOMFS_QUALITY_DATA). Exit code 1 when a gate fails and `--gates` asks.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.quality import packaged, syntaxes
from tests.quality.contestants import Contestants, orthanc
from tests.quality.contrast import Contrast
from tests.quality.expert import Expert
from tests.quality.fidelity import Fidelity
from tests.quality.flicker import Flicker
from tests.quality.images import UNREADABLE, Collection, Pool, collect
from tests.quality.report import Metric, Row, Shown, remarks, table
from tests.quality.robustness import Flat, HotPixels
from tests.quality.separation import Separation
from tests.quality.sheet import Sheet
from tests.support import find_tool

METRICS: tuple[type[Metric], ...] = (Fidelity, Contrast, Flicker, Separation, Expert, HotPixels, Flat)


def main() -> None:
    """Measure, print."""
    options = _options()
    warnings.simplefilter("ignore")  # the files are full of what pydicom warns of
    held = True
    with tempfile.TemporaryDirectory(prefix="dicomfs-quality-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        server = None
        if "orthanc" not in options.without and find_tool("Orthanc"):
            server = stack.enter_context(orthanc(scratch / "orthanc"))
        contestants = Contestants(scratch, server, dcmtk="dcmtk" not in options.without)
        stack.callback(contestants.close)
        collections = []
        if options.packaged != "none":
            folders = packaged.folders(scratch, with_wheels=options.packaged == "all")
            collections.append((collect("packaged images", folders), folders))
        if options.data:
            label = f"images of {options.data}"
            collections.append((collect(label, [options.data], options.leave_out), [options.data]))
        for collection, folders in collections:
            sheet = Sheet()
            rows = survey(collection, contestants, [metric() for metric in METRICS], sheet)
            held &= all(row.gate is None or row.gate.holds is not False for row in rows)
            print("\n".join([*syntaxes.table(folders), ""]))
            if options.sheet and collection is collections[-1][0]:
                sheet.write(options.sheet)
    sys.exit(0 if held or not options.gates else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.quality", description=(__doc__ or "").split("\n")[0]
    )
    data = os.environ.get("DICOMFS_QUALITY_DATA")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None, metavar="DIR",
                        help="folder of real images")  # fmt: skip
    parser.add_argument("--leave-out", action="append", default=[], metavar="PATTERN",
                        help="files of DIR that are not looked at, by relative path")  # fmt: skip
    parser.add_argument("--packaged", choices=("all", "cine", "none"), default="all",
                        help="pydicom's images and the synthetic cine; the cine alone; neither")  # fmt: skip
    parser.add_argument("--without", action="append", default=[], choices=("orthanc", "dcmtk"))
    parser.add_argument("--sheet", type=Path, metavar="FILE",
                        help="contact sheet (.png, .jpg) of DIR, or of the packaged images")  # fmt: skip
    parser.add_argument("--gates", action="store_true", help="exit code 1 when a gate fails")
    options = parser.parse_args()
    if options.data and not options.data.is_dir():
        parser.error(f"no such folder: {options.data}")
    return options


def survey(
    collection: Collection, contestants: Contestants, metrics: Sequence[Metric], sheet: Sheet
) -> list[Row]:
    """Show every pool to every metric; print the table."""
    start = time.monotonic()
    seen: set[str] = set()
    unread: list[str] = []
    count = 0
    for number, pool in enumerate(collection.pools, 1):
        if sys.stderr.isatty():
            print(f"\r{collection.label}: {number} of {len(collection.pools)} ", end="", file=sys.stderr)
        shown = _show(pool, contestants, seen, unread)
        count += len(shown.images)
        for one in (*metrics, sheet):
            one.look(shown)
        for image in pool.images:
            image.forget()
    rows = [row for metric in metrics for row in metric.rows()]
    copies = count - len(seen)
    print(
        f"{collection.label}: {collection.files} files; measured {count} grey frames in "
        f"{len(collection.pools)} pools ({copies} of them copies of others' pixels); left out "
        f"{len(collection.colour)} colour files and {len(unread)} frames that pydicom cannot read; "
        f"{time.monotonic() - start:.0f} s\n"
    )
    print("\n".join([*table(rows), "", *remarks(rows), ""]))
    if unread:
        print("not read by pydicom, so not measured:", ", ".join(unread), "\n")
    return rows


def _show(pool: Pool, contestants: Contestants, seen: set[str], unread: list[str]) -> Shown:
    window = contestants.window(pool)
    readable, copies = [], set()
    for image in pool.images:
        try:
            digest, _ = image.digest, image.body
        except UNREADABLE:
            unread.append(image.name)
            continue
        if digest in seen:
            copies.add(image.name)
        seen.add(digest)
        readable.append(image)
    pictures = contestants.show(Pool(pool.name, readable), window)
    return Shown(pool, window, readable, pictures, frozenset(copies), contestants)


if __name__ == "__main__":
    main()
