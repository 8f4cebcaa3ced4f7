"""Other bytes under known UIDs: what each policy stores, shows and says, and that names stay."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dicomfs.census import Census
from dicomfs.entries import Entry
from dicomfs.errors import DuplicateRefused
from dicomfs.index import Index
from dicomfs.ingest import Ingest
from dicomfs.model import Duplicates, Receipt, Stored
from tests.made import RECEIVED, data_set, encoded, tree, walk
from tests.upkeep import read_archived_meta

RECEIPT = Receipt(ExplicitVRLittleEndian, RECEIVED, "SCANNER", "DICOMFS")
NAME = "Doe Jane/2024-01-31/cine_5_1"


def image(comment: str, **changes: object) -> bytes:
    return encoded(data_set(ImageComments=comment, **changes))


def files(store: Path) -> dict[str, Entry]:
    index = Index(store / "index.sqlite3")
    view, renditions = tree(store, index, formats=("jpg",))
    try:
        return {name: entry for name, entry in walk(view).items() if not entry.is_folder}
    finally:
        renditions.close()
        index.close()


def shown_bytes(store: Path) -> dict[str, bytes]:
    """What `dcm` files show, without file meta information."""
    index = Index(store / "index.sqlite3")
    view, renditions = tree(store, index, formats=("dcm",))
    try:
        found = {}
        for name, entry in walk(view).items():
            stored = None if entry.is_folder else view.stored_file(entry.inode)
            if stored is not None:
                found[name] = stored[0].read_bytes()[1024:]
        return found
    finally:
        renditions.close()
        index.close()


def originals(store: Path) -> int:
    return len(list((store / "archive").rglob("*.dcm")))


@pytest.fixture(params=list(Duplicates), ids=lambda policy: policy.value)
def policy(request: pytest.FixtureRequest) -> object:
    return request.param


def test_equal_bytes_change_nothing_whatever_the_policy(tmp_path: Path, policy: Duplicates) -> None:
    with Ingest.open(tmp_path, policy) as ingest:
        ingest.receive([image("a")], RECEIPT)
        before = files(tmp_path)
        later = replace(RECEIPT, received=RECEIVED + 1000)
        assert ingest.receive([image("a")], later).stored is Stored.ALREADY_THERE
    assert files(tmp_path) == before
    assert originals(tmp_path) == 1


def test_keep_first(tmp_path: Path) -> None:
    with Ingest.open(tmp_path, Duplicates.KEEP_FIRST) as ingest:
        ingest.receive([image("a")], RECEIPT)
        before = files(tmp_path)
        assert ingest.receive([image("b")], RECEIPT).stored is Stored.OTHER_VERSION
    assert files(tmp_path) == before
    assert shown_bytes(tmp_path) == {f"{NAME}.dcm": image("a")}
    assert originals(tmp_path) == 2


def test_newest_is_another_inode_of_a_later_date_under_the_same_name(tmp_path: Path) -> None:
    with Ingest.open(tmp_path, Duplicates.NEWEST) as ingest:
        ingest.receive([image("a")], RECEIPT)
        (before,) = files(tmp_path).values()
        # A number that changed does not rename what people have seen.
        outcome = ingest.receive([image("b", InstanceNumber=9)], RECEIPT)
        assert outcome.stored is Stored.OTHER_VERSION
        ((name, after),) = files(tmp_path).items()
        assert name == f"{NAME}.jpg"
        assert after.inode != before.inode
        assert after.modified > before.modified
        ingest.receive([image("c")], RECEIPT)
        (third,) = files(tmp_path).values()
        assert third.inode not in (before.inode, after.inode)
        assert third.modified > after.modified
        # The first again: known bytes, so nothing changes.
        assert ingest.receive([image("a")], RECEIPT).stored is Stored.ALREADY_THERE
    assert shown_bytes(tmp_path) == {f"{NAME}.dcm": image("c")}
    assert originals(tmp_path) == 3


def test_the_former_inode_is_gone(tmp_path: Path) -> None:
    with Ingest.open(tmp_path, Duplicates.NEWEST) as ingest:
        ingest.receive([image("a")], RECEIPT)
        (before,) = files(tmp_path).values()
        ingest.receive([image("b")], RECEIPT)
    index = Index(tmp_path / "index.sqlite3")
    view, renditions = tree(tmp_path, index, formats=("jpg",))
    assert view.entry(before.inode) is None
    assert view.picture(before.inode) is None
    renditions.close()
    index.close()


def test_both_are_shown_side_by_side(tmp_path: Path) -> None:
    with Ingest.open(tmp_path, Duplicates.BOTH) as ingest:
        ingest.receive([image("a")], RECEIPT)
        before = files(tmp_path)
        for comment in "bc":
            assert ingest.receive([image(comment)], RECEIPT).stored is Stored.OTHER_VERSION
    after = files(tmp_path)
    assert before.items() <= after.items()
    assert sorted(shown_bytes(tmp_path).values()) == sorted(image(comment) for comment in "abc")


def test_reject_stores_nothing_and_says_so(tmp_path: Path) -> None:
    with Ingest.open(tmp_path, Duplicates.REJECT) as ingest:
        ingest.receive([image("a")], RECEIPT)
        with pytest.raises(DuplicateRefused, match="stored already"):
            ingest.receive([image("b")], RECEIPT)
        with pytest.raises(DuplicateRefused, match="another patient"):
            ingest.receive([image("b", PatientID="99", PatientName="Roe^Max")], RECEIPT)
        assert ingest.receive([image("a")], RECEIPT).stored is Stored.ALREADY_THERE
    assert originals(tmp_path) == 1
    assert not list((tmp_path / "incoming").iterdir())


@pytest.mark.parametrize("kept", [Duplicates.KEEP_FIRST, Duplicates.NEWEST])
def test_another_patient_never_takes_a_place_and_raises_an_alarm(tmp_path: Path, kept: Duplicates) -> None:
    stranger = {"PatientID": "99", "PatientName": "Roe^Max", "PatientBirthDate": "19500505"}
    with Ingest.open(tmp_path, kept) as ingest:
        ingest.receive([image("a")], RECEIPT)
        before = files(tmp_path)
        outcome = ingest.receive([image("a", **stranger)], RECEIPT)
    assert any("another patient" in warning for warning in outcome.warnings)
    assert not any("Roe" in warning or "Doe" in warning for warning in outcome.warnings)
    assert files(tmp_path) == before
    with closing(Census.of(tmp_path)) as census:
        assert census.conflicts_after(0).number == 1


def test_policy_is_kept_with_the_original(tmp_path: Path, policy: Duplicates) -> None:
    with Ingest.open(tmp_path, policy) as ingest:
        ingest.receive([image("a")], RECEIPT)
    (path,) = (tmp_path / "archive").rglob("*.dcm")
    assert read_archived_meta(path).receipt.duplicates is policy
