"""What the commands that look after a store print. Called by `cli.py`, which parses, logs and exits."""

import argparse
import json
import logging
import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from dicomfs import reindex, scrub
from dicomfs.errors import UsageError
from dicomfs.findings import Finding, Kind, Report, Watch

log = logging.getLogger("dicomfs.maintenance")

_REMEDIES = {
    Kind.MISSING: "send these again: that repairs them",
    Kind.DAMAGED: "scrub --repair moves them to damaged/; then send them again: that repairs them",
    Kind.MISLABELLED: "scrub --repair puts their names and file meta information right",
    Kind.ORPHANED: "scrub --repair takes them in under new numbers; if the index was put back from a backup: "
    "dicomfs reindex, which keeps their numbers",
    Kind.BROKEN: "scrub --repair moves them to damaged/",
    Kind.FOREIGN: "not ours: see what they are, and move them out of the archive",
    Kind.ABANDONED: "nothing to do: the next receiver or import that starts removes them",
    Kind.INDEX: "dicomfs reindex rebuilds the index from the archive",
}
_DONE = {
    Kind.DAMAGED: "moved to damaged/: send these again: that repairs them",
    Kind.MISLABELLED: "their names and file meta information were put right",
    Kind.ORPHANED: "taken in under new numbers, or removed where their content is kept already",
    Kind.BROKEN: "moved to damaged/: nothing of them was acknowledged, or their rows are lost",
    Kind.ABANDONED: "removed: nothing of them was acknowledged",
}
_LEFT_OUT = "left out of the index: scrub --repair moves them to damaged/; then send them again"
_REBUILT = {
    Kind.MISSING: "known to the former index, but not there: send these again",
    Kind.DAMAGED: _LEFT_OUT,
    Kind.BROKEN: _LEFT_OUT,
    Kind.MISLABELLED: "their names and file meta information were put right",
    Kind.ORPHANED: "taken in under new numbers: left by a crash, or their numbers are others' too; those "
    "whose content is kept already stay: scrub --repair removes them",
}


def add_scrub_arguments(command: argparse.ArgumentParser) -> None:
    """Those of `dicomfs scrub`."""
    command.add_argument("--quick", action="store_true", help="do not read the content of data sets")
    command.add_argument(
        "--repair",
        action="store_true",
        help="move damaged originals to STORE/damaged, so that sending them again repairs them; take in "
        "whole files without a row; write damaged file meta information anew",
    )
    command.add_argument("--json", action="store_true", help="print the summary as JSON")


def run_scrub(store: Path, watch: Watch, *, quick: bool, repair: bool, as_json: bool) -> bool:
    """Scrub a store, log each finding, print the summary; True when nothing is wrong."""
    if repair:
        check_owner(store)
    _step_back()
    report = scrub.scrub(store, quick=quick, repair=repair, watch=watch, found=_tell)
    remedies = {**_REMEDIES, **(_DONE if repair else {})}
    how = "checked, but not their content" if quick else "checked"
    _print(store, report, how, remedies, as_json=as_json)
    return report.is_clean


def run_reindex(store: Path, watch: Watch, *, as_json: bool) -> bool:
    """Rebuild the index of a store, log each finding, print the summary; True when nothing is wrong."""
    check_owner(store)
    report = reindex.reindex(store, watch=watch, found=_tell)
    _print(store, report, "in the rebuilt index", {**_REMEDIES, **_REBUILT}, as_json=as_json)
    return report.is_clean


def check_owner(store: Path) -> None:
    """What another user writes into a store, its receiver could not read. Raises UsageError."""
    try:
        owner = store.stat().st_uid
    except OSError:
        return  # whoever opens it says what is wrong
    if owner != os.geteuid():
        raise UsageError(f"the store {store} belongs to {_user(owner)}: run this command as that user")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _step_back() -> None:
    """People and scanners come first: least share of processor and, with most schedulers, of the disk.

    As long as no I/O priority was set, it follows niceness (ioprio_set(2)).
    """
    os.setpriority(os.PRIO_PROCESS, 0, 19)


def _tell(finding: Finding) -> None:
    level = logging.WARNING if finding.is_wrong else logging.INFO
    log.log(level, "%s: %s: %s", finding.kind.value, _named(finding), finding.detail)


def _named(finding: Finding) -> str:
    number = f" (original {finding.sequence})" if finding.sequence is not None else ""
    uid = f" {finding.sop_instance_uid}" if finding.sop_instance_uid else ""
    return f"{finding.path}{uid}{number}"


def _facts(store: Path, report: Report) -> dict[str, object]:
    return {
        "store": str(store),
        "clean": report.is_clean,
        "originals": report.originals,
        "wrong": report.wrong,
        **{kind.value: number for kind, number in report.counts.items()},
        "findings": [
            {
                "kind": finding.kind.value,
                "path": finding.path,
                "original": finding.sequence,
                "sop_instance_uid": finding.sop_instance_uid,
                "detail": finding.detail,
                "repaired": finding.repaired,
            }
            for finding in report.findings
        ],
    }


def _print(store: Path, report: Report, how: str, remedies: Mapping[Kind, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_facts(store, report), indent=2))
        return
    print(f"{report.originals:8} originals {how}")
    for kind, number in report.counts.items():
        if number:
            print(f"{number:8} {kind.value}: {remedies[kind]}")
    if report.wrong:
        print(f"{report.wrong:8} of these have to be seen to; the log above names them")
    else:
        print(f"{'':8} nothing is wrong")
