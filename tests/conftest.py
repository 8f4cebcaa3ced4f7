"""Fixtures for all tests; helpers that are no fixtures are in `tests/support.py`."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dicomfs.index import INDEX_NAME, Index

_TAKEN_BY = frozenset({"caplog", "expected_warnings"})


class _Collector(logging.Handler):
    """Keeps records; asks nothing of their text."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def log_guard(request: pytest.FixtureRequest) -> Iterator[list[logging.LogRecord]]:
    """A warning that nobody expects fails the test.

    A test that provokes some takes `expected_warnings`, or `caplog` and looks for itself.
    """
    collector = _Collector()
    logger = logging.getLogger("dicomfs")
    handlers, level = list(logger.handlers), logger.level
    logger.addHandler(collector)
    try:
        yield collector.records
    finally:
        # Commands that were run in this process have set up logging for themselves.
        logger.handlers[:] = handlers
        logger.setLevel(level)
    if collector.records and not _TAKEN_BY & set(request.fixturenames):
        lines = [f"{r.levelname} {r.name}: {r.getMessage()}" for r in collector.records]
        pytest.fail("logged, and not expected:\n" + "\n".join(lines), pytrace=False)


@pytest.fixture
def expected_warnings(log_guard: list[logging.LogRecord]) -> Iterator[list[logging.LogRecord]]:
    """Records of level WARNING and above from `dicomfs`, as they come; at least one must have come."""
    yield log_guard
    if not log_guard:
        pytest.fail("the test expects a warning in the log, and there was none", pytrace=False)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Index]:
    """The receiver's connection to the index of a new store, `tmp_path`."""
    with closing(Index(tmp_path / INDEX_NAME, create=True)) as opened:
        yield opened
