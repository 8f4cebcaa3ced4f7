"""What can be wrong with a store, and the report of those who have looked: `scrub.py` and `reindex.py`.

Pure. Names originals by file, receipt sequence number and SOP Instance UID, and never by patient.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

MOST_LISTED: Final = 10_000
"""Findings that a report keeps; all are counted, and told at once to whoever wants to know."""

Watch = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Of a piece of work and how many steps it has: a context in which each step is told."""


class Kind(Enum):
    """What can be wrong with a store."""

    MISSING = "missing"
    """An original has a row, and no file."""
    DAMAGED = "damaged"
    """The file of an original has another length or content, or cannot be read."""
    MISLABELLED = "mislabelled"
    """The file is whole, but its file meta information is damaged or says other than the row, or the number
    in its name is not that of the row."""
    ORPHANED = "orphaned"
    """A whole file without a row: left by a crash, then it was never acknowledged; or its row is lost."""
    BROKEN = "broken"
    """A file that is named as an original, without a row, and not whole."""
    FOREIGN = "foreign"
    """Something in the archive that is not named as an original, or lies in the wrong folder."""
    ABANDONED = "abandoned"
    """A spool file that nobody writes any more: removed by the next receiver or import that starts."""
    INDEX = "index"
    """The index contradicts itself."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: Kind
    path: str
    """Of the file, below the store."""
    detail: str
    """In words, without any value of a patient."""
    sequence: int | None = None
    """Receipt sequence number, where there is a row."""
    sop_instance_uid: str = ""
    repaired: bool = False
    """It is as it should be again."""

    @property
    def is_wrong(self) -> bool:
        """False for what was repaired, and for left-overs that go by themselves."""
        return not self.repaired and self.kind is not Kind.ABANDONED


@dataclass(frozen=True, slots=True)
class Report:
    """What a scrub has found."""

    originals: int
    """That have a row, and were checked."""
    counts: Mapping[Kind, int]
    """All findings, repaired ones too."""
    wrong: int
    """Findings that somebody has to see to."""
    findings: tuple[Finding, ...]
    """The first `MOST_LISTED`."""

    @property
    def is_clean(self) -> bool:
        """True when nothing is wrong (any more)."""
        return self.wrong == 0

    def of(self, *kinds: Kind) -> list[Finding]:
        """Findings of some kinds."""
        return [finding for finding in self.findings if finding.kind in kinds]


@contextmanager
def unwatched(_what: str, _steps: int) -> Iterator[Callable[[], None]]:
    """A `Watch` that nobody sees."""
    yield lambda: None


class Tally:
    """Counts findings, and keeps the first of them."""

    def __init__(self, found: Callable[[Finding], None]) -> None:
        """`found` is told of each at once."""
        self.originals = 0
        self._found = found
        self._wrong = 0
        self._counts: Counter[Kind] = Counter()
        self._findings: list[Finding] = []

    def note(self, finding: Finding) -> None:
        """One more."""
        self._counts[finding.kind] += 1
        self._wrong += finding.is_wrong
        if len(self._findings) < MOST_LISTED:
            self._findings.append(finding)
        self._found(finding)

    def report(self) -> Report:
        """What was found so far."""
        counts = {kind: self._counts[kind] for kind in Kind}
        return Report(self.originals, counts, self._wrong, tuple(self._findings))


def shown_path(path: Path, store: Path) -> str:
    """A path below the store, fit for one line of a log: somebody else may have chosen its name."""
    return str(path.relative_to(store)).encode("unicode_escape").decode()
