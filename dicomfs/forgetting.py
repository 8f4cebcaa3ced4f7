"""`dicomfs forget`: what would go is listed first; a second call, with the list's token, does it.

Knows which object of the store a path in a mount is. Prints; called by `cli.py`.
"""

import argparse
import json
import os
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from dicomfs import forget
from dicomfs.archive import Archive
from dicomfs.database import BUSY_TIMEOUT_S
from dicomfs.errors import UsageError
from dicomfs.fuse import STORE_ATTRIBUTE
from dicomfs.index import INDEX_NAME, Index
from dicomfs.inode import Inode, Kind
from dicomfs.removal import Chosen, Plan

_LISTED: Final = 50
"""Exams that are listed one by one."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument(
        "--study", action="append", default=[], metavar="UID", help="all with this Study Instance UID"
    )
    command.add_argument(
        "--patient-id", action="append", default=[], metavar="ID", help="all with this Patient ID"
    )
    command.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="patients, exams, images in a mount of the store",
    )
    command.add_argument("--yes", metavar="TOKEN", help="do it: the token is at the end of the list")
    command.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, store: Path) -> None:
    """List what would go or, with a token, forget it.

    Raises UsageError (nothing chosen, nothing found, another token), StoreError.
    """
    if not (options.study or options.patient_id or options.paths):
        raise UsageError("forget what? Name --study UID, --patient-id ID, or paths in a mount")
    index = Index(store / INDEX_NAME, timeout_s=BUSY_TIMEOUT_S)
    try:
        archive = Archive(store)
        forget.finish(archive, index)
        chosen = _chosen(options, index)
        if options.yes is None:
            plan = forget.plan(index, chosen)
            if not plan.originals:
                raise UsageError("nothing in the store is what you name")
            _list(plan, options)
        else:
            plan, folder = forget.carry_out(archive, index, chosen, options.yes)
            _tell(plan, folder, options)
    finally:
        index.close()


def _chosen(options: argparse.Namespace, index: Index) -> Chosen:
    chosen = Chosen(patient_ids=frozenset(options.patient_id), studies=frozenset(options.study))
    for path in options.paths:
        chosen = _with_path(chosen, path, index)
    return chosen


def _with_path(chosen: Chosen, path: Path, index: Index) -> Chosen:
    try:
        inode = Inode.of(path.stat().st_ino)
        store_id = os.getxattr(path, STORE_ATTRIBUTE).decode()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except OSError:
        inode, store_id = None, ""
    # Numbers of another store's mount would mean other people here.
    if inode is None or store_id != index.store_id:
        raise UsageError(f"{path} is not in a mount of this store")
    if inode.kind is Kind.PATIENT:
        return replace(chosen, patients=chosen.patients | {inode.id})
    if inode.kind is Kind.EXAM:
        return replace(chosen, exams=chosen.exams | {inode.id})
    row = index.image_shown(inode.id) if inode.kind is Kind.FILE else None
    if row is None:
        raise UsageError(f"{path} is neither a patient, nor an exam, nor an image")
    return replace(chosen, instances=chosen.instances | {row.id})


def _facts(plan: Plan) -> dict[str, object]:
    return {"images": plan.instances, "originals": len(plan.originals), "bytes": plan.size}


def _sentence(plan: Plan, what: str) -> str:
    size = f"{plan.size / 1e6:.1f} MB"
    return f"{plan.instances} images ({len(plan.originals)} originals, {size}) {what}"


def _list(plan: Plan, options: argparse.Namespace) -> None:
    exams = [
        {"patient": doomed.patient, "exam": doomed.exam, "images": len(doomed.instances)}
        for doomed in plan.exams
    ]
    if options.json:
        print(json.dumps({**_facts(plan), "exams": exams, "token": plan.token}))
        return
    for exam in exams[:_LISTED]:
        print(f"{exam['images']:8}  {exam['patient']}/{exam['exam']}")
    if len(exams) > _LISTED:
        print(f"{'':8}  … and {len(exams) - _LISTED} more exams")
    print(_sentence(plan, "would be forgotten; nothing is changed yet."))
    print(f"To forget them:  dicomfs {shlex.join(_words(options))} --yes {plan.token}")


def _words(options: argparse.Namespace) -> Iterable[str]:
    """The command, as it was given."""
    yield "forget"
    for flag, values in (("--store", [options.store]), ("--config", [options.config])):
        yield from (word for value in values if value is not None for word in (flag, str(value)))
    yield from (word for uid in options.study for word in ("--study", uid))
    yield from (word for one in options.patient_id for word in ("--patient-id", one))
    yield from map(str, options.paths)


def _tell(plan: Plan, folder: Path, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({**_facts(plan), "folder": str(folder)}))
        return
    print(_sentence(plan, f"forgotten. The originals are in {folder}:"))
    print("delete that folder to be rid of them, or bring them back with")
    print(f"  dicomfs {shlex.join(['import', *_store(options), str(folder)])}")


def _store(options: argparse.Namespace) -> list[str]:
    return ["--store", str(options.store)] if options.store is not None else []
