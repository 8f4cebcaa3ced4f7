"""Import: the same way in as the SCP, and an honest account of every file."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UID

from dicomfs import cli, exitcodes
from dicomfs.archive import Archive
from dicomfs.filemeta import DATA_SET_OFFSET
from dicomfs.index import Index
from dicomfs.selection import Selection
from tests.support import shipped
from tests.upkeep import read_archived_meta


def originals(store: Path) -> list[Path]:
    return sorted((store / "archive").rglob("*.dcm"))


def data_set_of(path: Path) -> bytes:
    """The encoded data set of a file, found by pydicom."""
    with path.open("rb") as file:
        meta = dcmread(file, stop_before_pixels=True, specific_tags=[]).file_meta
        # 128 + DICM + the group length element (12 bytes) + what it counts (PS3.10 table 7.1-1)
        file.seek(132 + 12 + meta.FileMetaInformationGroupLength)
        return file.read()


def test_the_data_set_is_kept_bit_for_bit_under_its_hash(tmp_path: Path) -> None:
    source = shipped("CT_small.dcm")
    assert cli.main(["import", "-q", "--store", str(tmp_path / "s"), str(source)]) == exitcodes.OK
    (stored,) = originals(tmp_path / "s")
    data_set = data_set_of(source)
    assert stored.read_bytes()[DATA_SET_OFFSET:] == data_set
    syntax = dcmread(source).file_meta.TransferSyntaxUID
    assert stored.stem.split("-")[0] == hashlib.sha256(syntax.encode() + b"\0" + data_set).hexdigest()
    assert dcmread(stored).PatientID == dcmread(source).PatientID


def test_again_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["import", "-q", "--json", "--store", str(tmp_path / "s"), str(shipped("MR_small.dcm"))]
    assert cli.main(arguments) == exitcodes.OK
    before = [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in originals(tmp_path / "s")]
    capsys.readouterr()
    assert cli.main(arguments) == exitcodes.OK
    summary = json.loads(capsys.readouterr().out)
    assert (summary["new"], summary["already_there"]) == (0, 1)
    assert before == [(p, p.stat().st_ino, p.stat().st_mtime_ns) for p in originals(tmp_path / "s")]


@pytest.mark.usefixtures("expected_warnings")
def test_a_damaged_original_is_repaired_with_its_old_number(tmp_path: Path) -> None:
    store = tmp_path / "s"
    for name in ("MR_small.dcm", "CT_small.dcm"):
        assert cli.main(["import", "-q", "--store", str(store), str(shipped(name))]) == exitcodes.OK
    # By the data set's own length, not by the order of hashes.
    damaged = next(p for p in originals(store) if dcmread(p).Modality == "MR")
    whole = damaged.read_bytes()
    sequence = read_archived_meta(damaged).sequence
    damaged.chmod(0o600)
    os.truncate(damaged, len(whole) // 2)
    assert cli.main(["import", "-q", "--store", str(store), str(shipped("MR_small.dcm"))]) == exitcodes.OK
    assert damaged.read_bytes()[DATA_SET_OFFSET:] == whole[DATA_SET_OFFSET:]
    assert read_archived_meta(damaged).sequence == sequence


@pytest.mark.usefixtures("expected_warnings")
def test_a_mixed_folder_is_accounted_for_file_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cd"
    (folder / "deep").mkdir(parents=True)
    (folder / "README.txt").write_text("read me")
    (folder / "empty").touch()
    whole = shipped("CT_small.dcm").read_bytes()
    (folder / "deep" / "good").write_bytes(whole)
    (folder / "cut.dcm").write_bytes(whole[:-5000])
    (folder / "DICOMDIR").write_bytes(shipped("DICOMDIR").read_bytes())
    code = cli.main(["import", "-q", "--json", "--store", str(tmp_path / "s"), str(folder)])
    summary = json.loads(capsys.readouterr().out)
    assert code == exitcodes.SOME_REFUSED
    assert summary["files"] == 5
    assert (summary["new"], summary["refused"], summary["skipped"], summary["not_tried"]) == (1, 1, 3, 0)
    assert any("cut short" in reason for reason in summary["reasons"])
    assert any("DICOMDIR" in reason for reason in summary["reasons"])
    assert len(originals(tmp_path / "s")) == 1
    assert list((tmp_path / "s" / "incoming").iterdir()) == []


def test_other_files_alone_are_no_failure_but_nothing_at_all_is(tmp_path: Path) -> None:
    folder = tmp_path / "cd"
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing to see")
    store = str(tmp_path / "s")
    assert cli.main(["import", "-q", "--store", store, str(folder)]) == exitcodes.SOME_REFUSED
    (folder / "image").write_bytes(shipped("MR_small.dcm").read_bytes())
    assert cli.main(["import", "-q", "--store", store, str(folder)]) == exitcodes.OK


def test_a_missing_path_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["import", "--store", str(tmp_path / "s"), str(tmp_path / "nowhere")])
    assert code == exitcodes.USAGE
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_a_folder_that_is_no_store_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    code = cli.main(["import", "--store", str(tmp_path / "s"), str(shipped("MR_small.dcm"))])
    assert code == exitcodes.STORE_TROUBLE
    assert "choose another folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["thesis.txt"]


def test_edited_file_meta_does_not_matter(tmp_path: Path) -> None:
    """The data set says what an object is; files are edited and their meta information forgotten."""
    data_set = dcmread(shipped("CT_small.dcm"))
    data_set.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    data_set.save_as(tmp_path / "edited.dcm", enforce_file_format=False)
    assert (
        cli.main(["import", "-q", "--store", str(tmp_path / "s"), str(tmp_path / "edited.dcm")])
        == exitcodes.OK
    )
    (stored,) = originals(tmp_path / "s")
    assert dcmread(stored).file_meta.MediaStorageSOPInstanceUID == data_set.SOPInstanceUID


@pytest.mark.usefixtures("expected_warnings")
def test_the_same_uids_with_other_bytes_keep_both_and_show_the_first(tmp_path: Path) -> None:
    store = tmp_path / "s"
    data_set = dcmread(shipped("CT_small.dcm"))
    assert cli.main(["import", "-q", "--store", str(store), str(shipped("CT_small.dcm"))]) == exitcodes.OK
    data_set.ImageComments = "another"
    data_set.save_as(tmp_path / "other.dcm")
    assert cli.main(["import", "-q", "--store", str(store), str(tmp_path / "other.dcm")]) == exitcodes.OK
    assert len(originals(store)) == 2
    index = Index(store / "index.sqlite3")
    try:
        counts = index.counts()
        assert (counts.instances, counts.originals) == (1, 2)
        image = index.image(1)
        assert image is not None
        shown = dcmread(Archive(store).path(image.hash, image.original))
    finally:
        index.close()
    assert shown.ImageComments == dcmread(shipped("CT_small.dcm")).ImageComments != "another"


def test_numbers_are_given_in_the_order_of_the_files(tmp_path: Path) -> None:
    """So that equal files give equal trees, whichever of several threads was faster."""
    data_set = dcmread(shipped("CT_small.dcm"))
    for number in range(1, 61):
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = UID(f"2.25.{number}")
        data_set.InstanceNumber = number
        data_set.save_as(tmp_path / f"{number:03}.dcm")
    files = sorted(str(path) for path in tmp_path.glob("*.dcm"))
    assert cli.main(["import", "-q", "--store", str(tmp_path / "s"), *files]) == exitcodes.OK
    index = Index(tmp_path / "s" / "index.sqlite3")
    try:
        rows = index.name_page(1, 0, 100, Selection(), sized=False)
        assert [row.number for row in rows] == list(range(1, 61))
    finally:
        index.close()


def test_a_lost_index_is_never_replaced_by_an_empty_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s"
    arguments = ["import", "-q", "--store", str(store), str(shipped("CT_small.dcm"))]
    assert cli.main(arguments) == exitcodes.OK
    before = {path: path.read_bytes() for path in originals(store)}
    for path in store.glob("index.sqlite3*"):
        path.unlink()
    assert cli.main(arguments) == exitcodes.STORE_TROUBLE
    assert "dicomfs reindex" in capsys.readouterr().err
    assert not (store / "index.sqlite3").exists()
    assert {path: path.read_bytes() for path in originals(store)} == before


def test_a_placeholder_id_does_not_merge_strangers(tmp_path: Path) -> None:
    data_set = dcmread(shipped("CT_small.dcm"))
    for number, name in enumerate(("Meier^Anna", "Schulz^Bernd", "MEIER^ANNA^"), 1):
        data_set.PatientName, data_set.PatientID, data_set.PatientBirthDate = name, "123", ""
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(data_set, keyword, UID(f"2.25.{number}{len(keyword)}"))
        data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
        data_set.save_as(tmp_path / f"{number}.dcm")
    files = sorted(str(path) for path in tmp_path.glob("*.dcm"))
    assert cli.main(["import", "-q", "--store", str(tmp_path / "s"), *files]) == exitcodes.OK
    index = Index(tmp_path / "s" / "index.sqlite3")
    try:
        patients = index.patient_page(0, 10, Selection())
    finally:
        index.close()
    assert [patient.name.folder for patient in patients] == ["Meier Anna", "Schulz Bernd"]


@pytest.mark.usefixtures("expected_warnings")
def test_policy_and_watermark_are_those_of_the_receiver(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the file's [scp], and from flags of the same names, which win."""
    store = tmp_path / "s"
    data_set = dcmread(shipped("CT_small.dcm"))
    data_set.ImageComments = "another"
    data_set.save_as(tmp_path / "other.dcm")
    config = tmp_path / "dicomfs.toml"
    config.write_text('[scp]\nduplicates = "reject"\nmin_free = "0%"\n')
    common = ["import", "-q", "--json", "--store", str(store), "--config", str(config)]

    def summary(code: int, *words: str) -> dict[str, object]:
        assert cli.main([*common, *words]) == code
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    assert summary(exitcodes.OK, str(shipped("CT_small.dcm")))["new"] == 1
    refused = summary(exitcodes.SOME_REFUSED, str(tmp_path / "other.dcm"))
    assert (refused["refused"], refused["other_version"]) == (1, 0)
    disk = os.statvfs(tmp_path)
    watermark = str(disk.f_blocks * disk.f_frsize)
    full = summary(exitcodes.STORE_FULL, "--min-free", watermark, str(tmp_path / "other.dcm"))
    assert (full["not_tried"], full["other_version"]) == (1, 0)
    assert summary(exitcodes.OK, "--duplicates=newest", str(tmp_path / "other.dcm"))["other_version"] == 1
    index = Index(store / "index.sqlite3")
    try:
        image = index.image(1)
        assert image is not None
        assert dcmread(Archive(store).path(image.hash, image.original)).ImageComments == "another"
    finally:
        index.close()


def test_import_takes_no_other_option_of_the_receiver(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["import", "--port", "104", "nowhere"])
    assert ended.value.code == exitcodes.USAGE
    assert "--port" in capsys.readouterr().err
