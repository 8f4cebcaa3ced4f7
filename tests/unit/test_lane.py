"""Spool files that are made before they are asked for, and put away after the answer."""

import errno
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dicomfs.archive import Archive
from dicomfs.errors import StoreUnavailable
from dicomfs.ingest import Ingest
from dicomfs.lane import Lane
from dicomfs.model import Receipt
from tests.made import RECEIVED, data_set, encoded
from tests.support import opened_below


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path)
    made.create()
    return made


@pytest.fixture
def lane(archive: Archive) -> Iterator[Lane]:
    with Lane(archive) as made:
        yield made
    assert not spooled(archive)
    assert not opened_below(archive.incoming)


def spooled(archive: Archive) -> list[Path]:
    return list(archive.incoming.iterdir())


def test_what_is_done_with_lies_there_until_the_sender_is_busy(archive: Archive, lane: Lane) -> None:
    spool = lane.spool("1.2")
    lane.leave(spool)
    assert spooled(archive) == [spool.path]
    lane.rest()
    (ready,) = spooled(archive)
    assert ready != spool.path
    assert not ready.stat().st_size
    following = lane.spool("1.2")
    assert following.path == ready
    lane.leave(following)


def test_a_file_that_was_made_before_is_for_any_transfer_syntax(archive: Archive, lane: Lane) -> None:
    lane.leave(lane.spool("1.2"))
    lane.rest()
    spool = lane.spool("1.3")
    spool.write(b"data set")
    assert spool.digest == sha256(b"1.3\0data set").digest()
    assert spooled(archive) == [spool.path]
    lane.leave(spool)


def test_when_closed_no_file_is_open_until_another_object_is_stored(archive: Archive, lane: Lane) -> None:
    lane.leave(lane.spool("1.2"))
    lane.rest()
    assert opened_below(archive.incoming) == spooled(archive) != []
    lane.close()
    assert not opened_below(archive.incoming)
    lane.rest()
    assert not opened_below(archive.incoming)
    lane.leave(lane.spool("1.2"))
    lane.rest()
    assert opened_below(archive.incoming) == spooled(archive) != []


def test_an_archive_that_is_gone_is_not_met_before_it_is_needed(archive: Archive, lane: Lane) -> None:
    lane.leave(lane.spool("1.2"))
    archive.incoming.rename(archive.incoming.with_name("elsewhere"))
    lane.rest()
    with pytest.raises(FileNotFoundError):
        lane.spool("1.2")
    archive.incoming.with_name("elsewhere").rename(archive.incoming)
    for left in spooled(archive):  # its name was not where it had been
        left.unlink()


def test_after_trouble_no_file_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Ingest.open(tmp_path) as ingest, ingest.lane() as lane:
        receipt = Receipt(ExplicitVRLittleEndian, RECEIVED)
        ingest.receive([encoded(data_set(SOPInstanceUID="2.25.1"))], receipt, lane)
        lane.rest()
        assert opened_below(ingest.archive.incoming)
        monkeypatch.setattr("dicomfs.batch.sync_directory", fail)
        with pytest.raises(StoreUnavailable):
            ingest.receive([encoded(data_set(SOPInstanceUID="2.25.2"))], receipt, lane)
        lane.rest()
        assert not opened_below(ingest.archive.incoming)
