"""What is said of space and of trouble, how often, and when it is said to be over."""

import logging
import os
from pathlib import Path

import pytest

from dicomfs.errors import StoreFull
from dicomfs.pressure import REMIND_S, REPEAT_S, Level, Space, Trouble


class Clock:
    """Seconds, as a test wants them."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


class Disk:
    """The real disk, with a watermark that moves instead of the space."""

    def __init__(self, folder: Path) -> None:
        disk = os.statvfs(folder)
        self.free = disk.f_bavail * disk.f_frsize
        self.wanted = 0
        self.clock = Clock()
        self.space = Space(folder, lambda _: self.wanted, self.clock)

    def be(self, level: Level) -> None:
        share = {Level.ENOUGH: 0.1, Level.LOW: 0.75, Level.SHORT: 3.0}[level]
        self.wanted = int(self.free * share)
        if level is Level.SHORT:
            with pytest.raises(StoreFull, match="have to stay free"):
                self.space.check()
        else:
            self.space.check()
        assert self.space.state.level is level
        assert self.space.state.wanted_bytes == self.wanted


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [
        record.getMessage().partition("free: ")[2][:15] or record.getMessage()[:20]
        for record in caplog.records
    ]
    caplog.clear()
    return said


def test_somebody_is_warned_before_anything_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(tmp_path)
    disk.be(Level.ENOUGH)
    assert texts(caplog) == []
    disk.be(Level.LOW)
    assert caplog.records[0].levelno == logging.WARNING
    assert texts(caplog) == ["nothing will be"]
    disk.be(Level.SHORT)
    assert caplog.records[0].levelno == logging.ERROR
    assert texts(caplog) == ["nothing is take"]
    disk.be(Level.ENOUGH)
    assert texts(caplog) == ["there is space again"]
    disk.be(Level.ENOUGH)
    assert texts(caplog) == []


def test_a_disk_at_the_edge_does_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk(tmp_path)
    for _ in range(50):
        disk.be(Level.LOW)
        disk.be(Level.SHORT)
    assert texts(caplog) == ["nothing will be", "nothing is take", "there is space again"]
    disk.clock.now += REMIND_S
    disk.be(Level.LOW)
    assert texts(caplog) == ["nothing will be"]
    disk.be(Level.LOW)
    assert texts(caplog) == []


def test_without_a_watermark_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Space(tmp_path, lambda _: 0).check()
    assert texts(caplog) == []


def test_the_same_trouble_is_told_once_a_minute_and_counted() -> None:
    clock = Clock()
    trouble = Trouble(clock)
    assert trouble.over() == 0
    assert [trouble.note("locked") for _ in range(4)] == [0, None, None, None]
    assert trouble.note("full") == 3
    assert trouble.note("full") is None
    assert (trouble.state.kind, trouble.state.count, trouble.state.total) == ("full", 6, 6)
    clock.now += REPEAT_S
    assert trouble.note("full") == 1
    assert trouble.over() == 7
    assert trouble.over() == 0
    assert (trouble.state.kind, trouble.state.count, trouble.state.total) == ("", 0, 7)


def test_trouble_that_comes_and_goes_does_not_fill_the_log() -> None:
    clock = Clock()
    trouble = Trouble(clock)
    told = [(trouble.note("one folder"), trouble.over()) for _ in range(100)]
    assert told == [(0, 1)] + [(None, 0)] * 99
    clock.now += REPEAT_S
    assert (trouble.note("one folder"), trouble.over()) == (0, 1)
