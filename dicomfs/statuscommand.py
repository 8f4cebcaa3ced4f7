"""The arguments of `dicomfs status`, and which answer they ask for. Used by `cli.py`, which prints it."""

import argparse
import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dicomfs import status, statusview
from dicomfs.census import ALL, Census
from dicomfs.config import Settings
from dicomfs.errors import UsageError


@dataclass(frozen=True, slots=True)
class Answer:
    """What is printed, and what the exit code has to say."""

    text: str
    is_alarm: bool = False
    """Asked for alarms, and there are some."""
    trouble: str = ""
    """Why the store could not be read, so that the answer is not whole."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What `answer` reads."""
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--metrics", action="store_true", help="print metrics in the text format of Prometheus")
    form.add_argument(
        "--check", action="store_true", help="print alarms only, and tell by the exit code if there are any"
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--superseded", action="store_true", help="list originals that are kept and not shown")
    what.add_argument(
        "--conflicts", action="store_true", help="list originals that bear another patient's identity"
    )
    what.add_argument(
        "--reviewed", type=int, metavar="N", help="conflicts up to original N are no alarm any more"
    )
    command.add_argument(
        "--before", type=int, default=ALL, metavar="N", help="list only those older than original N"
    )
    command.add_argument("--most", type=int, default=100, metavar="N", help="list at most so many (100)")
    command.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="files in a mount: what is behind them, and why"
    )


def answer(options: argparse.Namespace, settings: Settings) -> Answer:
    """Look, and put it into words. Raises UsageError, StoreError."""
    if options.paths:
        return _explained(options, settings)
    if options.reviewed is not None:
        return _reviewed(options.reviewed, settings)
    if options.superseded or options.conflicts:
        return _kept(options, settings)
    found = status.gather(settings.store, settings.scp.min_free)
    if options.check:
        text = "; ".join(alarm.text for alarm in found.alarms) or "no alarm"
        return Answer(f"{text}\n", is_alarm=bool(found.alarms))
    if options.metrics:
        from dicomfs import metrics  # noqa: PLC0415  its library is large, and others start without it

        return Answer(metrics.exposition(found))  # which says so itself when the store cannot be read
    text = _json(statusview.facts(found)) if options.json else _text(statusview.lines(found))
    return Answer(text, trouble=found.index_trouble)


def _kept(options: argparse.Namespace, settings: Settings) -> Answer:
    if options.most < 1:
        raise UsageError(f"--most {options.most}: must be at least 1")
    with contextlib.closing(Census.of(settings.store)) as census:
        ask = census.superseded if options.superseded else census.conflicting
        kept = ask(min(options.before, ALL), options.most)
    if options.json:
        return Answer(_json([asdict(one) for one in kept]))
    return Answer(_text(statusview.kept_lines(kept, options.most, time.time())))


def _reviewed(sequence: int, settings: Settings) -> Answer:
    with contextlib.closing(Census.of(settings.store)) as census:
        last = census.last_sequence()
    if not 0 <= sequence <= last:
        raise UsageError(f"--reviewed {sequence}: the newest original is {last}")
    status.review(settings.store, sequence)
    return Answer("")


def _explained(options: argparse.Namespace, settings: Settings) -> Answer:
    # Only here: a mount answers the sooner without the decoders.
    from dicomfs import explain  # noqa: PLC0415

    found = {str(path): explain.explain(settings.store, path) for path in options.paths}
    if options.json:
        return Answer(_json(found))
    lines = []
    for path, facts in found.items():
        lines += [path, *(f"  {what:16}  {words}" for what, words in facts)]
    return Answer(_text(lines))


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
