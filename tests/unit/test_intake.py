"""Spool files that are made before they are asked for, and put away after the answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomfs.archive import Archive
from dicomfs.intake import Intake


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path)
    made.create()
    return made


@pytest.fixture
def intake(archive: Archive) -> Iterator[Intake]:
    with Intake(archive) as made:
        yield made
    assert not spooled(archive)


def spooled(archive: Archive) -> list[Path]:
    return list(archive.incoming.iterdir())


def test_what_is_done_with_lies_there_until_the_sender_is_busy(archive: Archive, intake: Intake) -> None:
    spool = intake.spool("1.2")
    intake.leave(spool)
    assert spooled(archive) == [spool.path]
    intake.rest()
    (ready,) = spooled(archive)
    assert ready != spool.path
    assert not ready.stat().st_size
    following = intake.spool("1.2")
    assert following.path == ready
    intake.leave(following)


def test_another_transfer_syntax_has_a_file_of_its_own(archive: Archive, intake: Intake) -> None:
    intake.leave(intake.spool("1.2"))
    intake.rest()
    (ready,) = spooled(archive)
    spool = intake.spool("1.3")
    assert spool.transfer_syntax == "1.3"
    assert spooled(archive) == [spool.path] != [ready]
    intake.leave(spool)


def test_a_pause_leaves_no_file_open(archive: Archive, intake: Intake) -> None:
    intake.leave(intake.spool("1.2"))
    intake.rest()
    assert spooled(archive)
    intake.pause()
    assert not spooled(archive)
    intake.rest()
    assert not spooled(archive)  # nothing was sent meanwhile


def test_an_archive_that_is_gone_is_not_met_before_it_is_needed(archive: Archive, intake: Intake) -> None:
    intake.leave(intake.spool("1.2"))
    archive.incoming.rename(archive.incoming.with_name("elsewhere"))
    intake.rest()
    with pytest.raises(FileNotFoundError):
        intake.spool("1.2")
    archive.incoming.with_name("elsewhere").rename(archive.incoming)
    for left in spooled(archive):  # its name was not where it had been
        left.unlink()
