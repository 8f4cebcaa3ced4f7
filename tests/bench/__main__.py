"""`python -m tests.bench`: ratios against others, on this machine, in this run.

Each `measure_NAME.py` beside this file is one benchmark: a function `measure(scale, scratch) -> Result`.
Nothing is asserted and nothing is kept, but for `--save`.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.table import QUICK, Result, Scale, machine, rows, table

_PREFIX = "measure_"


def main() -> None:
    """Measure, print the table."""
    names = sorted(path.stem.removeprefix(_PREFIX) for path in Path(__file__).parent.glob(f"{_PREFIX}*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Ratios against others.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(names)}; all")
    parser.add_argument("--quick", action="store_true", help="tiny numbers: shows that it runs, and no more")
    parser.add_argument(
        "--without", action="append", default=[], metavar="PEER", help="leave out orthanc, storescp"
    )
    parser.add_argument(
        "--populations",
        type=Path,
        metavar="DIR",
        help="where `scale` finds its indexes, and leaves those that it makes (5 million: 2 GB, minutes)",
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="write what is printed there too")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    scale = replace(QUICK if options.quick else Scale(), without=frozenset(map(str.lower, options.without)))
    scale = replace(scale, populations=options.populations)
    with tempfile.TemporaryDirectory(prefix="dicomfs-bench-") as folder:
        scratch = Path(folder)
        lines = list(machine(scratch))
        results = {name: _measure(name, scale, scratch / name) for name in options.names or names}
    lines += _report(results)
    print("\n".join(lines))
    if options.save:
        options.save.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _measure(name: str, scale: Scale, scratch: Path) -> Result:
    print(f"measuring: {name} …", file=sys.stderr)
    scratch.mkdir()
    measure: Callable[[Scale, Path], Result] = importlib.import_module(f"tests.bench.{_PREFIX}{name}").measure
    try:
        return measure(scale, scratch)
    except pytest.skip.Exception as missing:  # what the helpers shared with the tests raise
        return Result([], [f"not measured: {missing}"])


def _report(results: dict[str, Result]) -> Iterator[str]:
    for name, result in results.items():
        for number, command in enumerate(result.commands):
            yield f"{name if not number else '':9} {command}"
        yield from (f"{'':9} {note}" for note in result.notes)
    yield ""
    yield table([row for name, result in results.items() for row in rows(name, result.lines)])
    yield ""
    yield "Seconds are medians (and the range); a ratio below 1 means that dicomfs is faster."


if __name__ == "__main__":
    main()
