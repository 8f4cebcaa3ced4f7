"""`python -m tests.bench`: ratios against others, on this machine, in this run.

Each `measure_NAME.py` beside this file is one benchmark: a function `measure(scale, scratch) -> Result`.
Nothing is asserted and nothing is kept, but for `--save`.
"""

import argparse
import importlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.table import MILLIONS, QUICK, Result, Scale, machine, markdown, plain, rows

_PREFIX = "measure_"
_PEERS = ("orthanc", "storescp", "dcmtk", "bindfs")


def main() -> None:
    """Measure, print the table."""
    names = sorted(path.stem.removeprefix(_PREFIX) for path in Path(__file__).parent.glob(f"{_PREFIX}*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Ratios against others.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(names)}; all")
    parser.add_argument("--quick", action="store_true", help="tiny numbers: shows that it runs, and no more")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="PEER",
        help=f"leave out one of: {', '.join(_PEERS)}",
    )
    parser.add_argument(
        "--populations",
        type=Path,
        metavar="DIR",
        help="where `scale` finds its indexes, and leaves those that it makes",
    )
    parser.add_argument(
        "--millions", action="store_true", help="`scale` with 5 million instances too (2 GB, minutes)"
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE.md", help="write machine, versions, table and commands there too"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    without = frozenset(map(str.lower, options.without))
    if strangers := without.difference(_PEERS):
        parser.error(f"no such peer: {', '.join(sorted(strangers))}; there are {', '.join(_PEERS)}")
    with tempfile.TemporaryDirectory(prefix="dicomfs-bench-") as folder:
        scratch = Path(folder)
        scale = replace(QUICK if options.quick else Scale(), without=without, shared=scratch)
        scale = replace(scale, populations=options.populations)
        if options.millions:
            scale = replace(scale, instances=(*scale.instances, MILLIONS))
        about = dict(machine(scratch))
        results: dict[str, Result] = {}
        took: dict[str, float] = {}
        for name in options.names or names:
            started = time.monotonic()
            results[name] = _measure(name, scale, scratch / name)
            took[name] = time.monotonic() - started
    each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
    about["took"] = f"{sum(took.values()) / 60:.0f} minutes: {each}"
    about["command"] = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
    print("\n".join(_report(about, results)))
    if options.save:
        options.save.write_text("\n".join(_document(about, results)) + "\n", encoding="utf-8")
    sys.exit(any(result.failed for result in results.values()))


def _measure(name: str, scale: Scale, scratch: Path) -> Result:
    print(f"measuring: {name} …", file=sys.stderr)
    scratch.mkdir()
    measure: Callable[[Scale, Path], Result] = importlib.import_module(f"tests.bench.{_PREFIX}{name}").measure
    try:
        return measure(scale, scratch)
    except pytest.skip.Exception as missing:  # what the helpers shared with the tests raise
        return Result([], [], [f"not measured: {missing}"])
    except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
        # What the others have taken minutes for is not lost.
        traceback.print_exc()
        return Result([], [], [f"failed: {error}"], failed=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_LEGEND = (
    "Medians (and the range). A ratio is that of the seconds: below 1, dicomfs is faster; 1.67 is 0.6 times "
    "as fast. Goals are the project's own."
)


def _rows(results: dict[str, Result]) -> list[tuple[str, ...]]:
    return [row for name, result in results.items() for row in rows(name, result.lines)]


def _goals(body: list[tuple[str, ...]]) -> str:
    met = Counter(row[-1].partition(",")[0] for row in body)
    return f"Here {met['met']} are met, {met['missed']} are missed."


def _report(about: dict[str, str], results: dict[str, Result]) -> Iterator[str]:
    """For a terminal."""
    yield from (f"{what:9} {answer}" for what, answer in about.items())
    for name, result in results.items():
        for number, command in enumerate(result.commands):
            yield f"{name if not number else '':9} {command}"
        yield from (f"{'':9} {note}" for note in result.notes)
    body = _rows(results)
    yield from ("", plain(body), "", _LEGEND, _goals(body))


def _document(about: dict[str, str], results: dict[str, Result]) -> Iterator[str]:
    """The same as Markdown, to be kept."""
    body = _rows(results)
    yield from ("# Results of one run of the benchmarks", "")
    yield from ("`make bench SAVE=tests/bench/RESULTS.md` writes this file.", "")
    yield from (f"* {what}: {answer}" for what, answer in about.items())
    yield from ("", markdown(body), "", f"{_LEGEND} {_goals(body)}", "", "## What was timed")
    for name, result in results.items():
        yield from ("", f"### {name}", "")
        yield from (f"    {command}" for command in result.commands)
        yield from ("", *(f"* {note}" for note in result.notes)) if result.notes else ()


if __name__ == "__main__":
    main()
