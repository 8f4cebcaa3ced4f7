"""What an administrator looks for, gathered from the files of a store: receiving, space, trouble.

Receivers, mounts and this are different processes; all that is known of them is in `run/` (`runfile.py`,
`mountfile.py`), the index and the disk. Looks and changes nothing, apart from `review`. What cannot be read
is missing in the answer and named there, so that there is an answer on the worst day. Never tells a
patient's name: objects are named by sequence number and UID, senders by AE title and address. Printed by
`statusview.py`, as metrics by `metrics.py`.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicomfs import forget
from dicomfs.activity import DAY_S, OTHER_PATIENT, Events
from dicomfs.archive import Archive
from dicomfs.census import Census, Conflicts, Intake
from dicomfs.commitments import CommitmentCounts
from dicomfs.commitments import counts as commitment_counts
from dicomfs.errors import StoreError, StoreUnavailable
from dicomfs.filemeta import DATA_SET_OFFSET
from dicomfs.mountfile import MountRecord, mounts
from dicomfs.renditions import RENDITIONS_NAME, failures_noted
from dicomfs.rows import Counts
from dicomfs.runfile import Record, records
from dicomfs.scpoptions import Watermark
from dicomfs.slotfile import RUN_FOLDER

HOUR_S: Final = 3600
RATE_DAYS: Final = 7
"""The present rate is that of the last so many days, if the store has existed so long."""
_RATE_OBJECTS: Final = 1_000_000
"""Most objects that are looked at for the rate; of a busier store the days are fewer."""
_SHORTEST_RATE_S: Final = HOUR_S
"""From less than that nobody can tell a rate."""
_MOST_FAILURES: Final = 1000
_MOST_REASONS: Final = 10
_LONGEST_REASON: Final = 200
_REVIEWED: Final = "conflicts-reviewed"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person has to see to."""

    kind: str
    """One of `ALARMS`."""
    text: str
    """What it is, and what to do."""


ALARMS: Final = (
    "index_unavailable",
    "receiver_died",
    "store_unavailable",
    "low_space",
    "identity_conflict",
)


@dataclass(frozen=True, slots=True)
class Refusals:
    """One reason why a peer's objects or associations were turned away."""

    what: str
    """For objects: status and comment of the answer; for associations the reason, as PS3.8 calls it."""
    who: str
    """AE title and address, or `activity.OTHERS`."""
    last_hour: int
    last_day: int
    latest: float
    """Seconds since the epoch."""
    text: str
    """What was logged the latest time."""


@dataclass(frozen=True, slots=True)
class Receiving:
    """What all receivers of the store do and did; None where that is in the index, which cannot be read."""

    receivers: tuple[Record, ...]
    """Those that run; if none does, the one that did last."""
    last_hour: tuple[Intake, ...] | None
    """New objects, by AE title; imported ones too."""
    latest: float | None
    """Receipt of the newest original."""
    refused: tuple[Refusals, ...]
    failed: tuple[Refusals, ...]
    """Associations that were rejected or did not end well."""
    opened_total: int
    stored_total: dict[str, int]
    """Objects by what became of them, since the first receiver that counted; so are the other totals."""
    bytes_total: int
    refused_total: dict[str, int]
    failed_total: dict[str, int]


@dataclass(frozen=True, slots=True)
class Space:
    """The disk, and how long it will do."""

    free: int
    """Bytes that we may still write."""
    size: int
    min_free: int
    """Bytes below which nothing is taken in; as the newest receiver was told, else as configured."""
    rate: float | None
    """Bytes a second that the archive has grown by; None: nothing came in, or too little time has gone by."""
    rate_days: float
    """Over so many days."""

    @property
    def days_left(self) -> float | None:
        """Until `min_free` is reached at that rate."""
        return max(self.free - self.min_free, 0) / self.rate / DAY_S if self.rate else None


@dataclass(frozen=True, slots=True)
class Aside:
    """Refused data sets that are kept in quarantine."""

    number: int
    newest: tuple[tuple[float, str], ...]
    """When, and why."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A frame that cannot be displayed."""

    original: int
    frame: int
    """Counted from 1."""
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """All of it."""

    store: str
    taken: float
    """When this was gathered."""
    alarms: tuple[Alarm, ...]
    receiving: Receiving
    mounts: tuple[MountRecord, ...]
    """Those that run, and may write into the store."""
    space: Space | None
    counts: Counts | None
    conflicts: Conflicts | None
    """All of them."""
    unreviewed: Conflicts | None
    """Those that nobody has marked as reviewed."""
    quarantined: Aside
    commitments: CommitmentCounts | None
    """Of modalities that asked whether they may delete; None when it cannot be told."""
    forgotten: int
    """Originals that were taken out on purpose and are kept aside."""
    not_displayable: tuple[Failure, ...] | None
    """At most 1 000; None when it cannot be told."""
    troubles: tuple[str, ...]
    """What could not be looked at, and why."""
    index_trouble: str
    """Why the index cannot be read; empty: it can."""

    @property
    def superseded(self) -> int | None:
        """Originals that are kept and not shown: every instance shows exactly one."""
        return None if self.counts is None else self.counts.originals - self.counts.instances


def gather(store: Path, min_free: Watermark, now: float | None = None) -> Status:
    """Look at everything. `min_free`: as configured, in case no receiver has said.

    Raises StoreMismatch when it is no store of this version. A store that cannot be read now is an answer
    with an alarm.
    """
    now = time.time() if now is None else now
    known = records(store)
    counts = conflicts = unreviewed = last_hour = latest = None
    rate: tuple[float | None, float] = (None, 0.0)
    failures: tuple[Failure, ...] | None = None
    troubles: list[str] = []
    index_trouble = ""
    try:
        with contextlib.closing(Census.of(store)) as census:
            counts = census.counts()
            conflicts, unreviewed = census.conflicts_after(0), census.conflicts_after(reviewed(store))
            latest = census.last_received()
            first = census.first_since(now - HOUR_S)
            last_hour = tuple(census.intake(first[0])) if first else ()
            rate = _rate(census, now)
            try:
                noted = failures_noted(store / RENDITIONS_NAME, census.store_id, _MOST_FAILURES)
                failures = tuple(Failure(original, frame + 1, why) for original, frame, why in noted)
            except StoreUnavailable as error:
                troubles.append(f"what cannot be displayed is not known: {error}")
    except StoreUnavailable as error:
        index_trouble = str(error)
    for name, what in ((RUN_FOLDER, "what receivers and mounts do"), ("quarantine", "what is in quarantine")):
        folder = store / name
        if os.access(folder, os.F_OK) and not os.access(folder, os.R_OK | os.X_OK):
            troubles.append(f"{what} is not known: this user may not look into {folder}")
    commitments = None
    try:
        commitments = commitment_counts(store, now)
    except StoreError as error:
        troubles.append(f"storage commitments are not known: {error}")
    space = _space(store, known, min_free, rate)
    if space is None:
        troubles.append("free space is not known: the disk cannot be asked")
    receiving = _receiving(known, last_hour, latest, now)
    return Status(
        store=str(store),
        taken=now,
        alarms=tuple(_alarms(receiving, space, unreviewed, index_trouble)),
        receiving=receiving,
        mounts=tuple(mounts(store)),
        space=space,
        counts=counts,
        conflicts=conflicts,
        unreviewed=unreviewed,
        quarantined=_aside(store / "quarantine"),
        commitments=commitments,
        forgotten=forget.count(Archive(store)),
        not_displayable=failures,
        troubles=tuple(troubles),
        index_trouble=index_trouble,
    )


# Parts


def _rate(census: Census, now: float) -> tuple[float | None, float]:
    """Bytes a second, and over how many days."""
    since = now - RATE_DAYS * DAY_S
    oldest, first = census.at_or_after(0), census.first_since(since)
    if oldest is None or first is None:
        return None, RATE_DAYS
    began = max(since, oldest[1])
    enough = census.at_or_after(census.last_sequence() - _RATE_OBJECTS)
    if enough is not None and enough[0] > first[0]:
        first, began = enough, enough[1]
    span = now - began
    if span < _SHORTEST_RATE_S:
        return None, span / DAY_S
    grown = sum(one.bytes + one.objects * DATA_SET_OFFSET for one in census.intake(first[0]))
    return grown / span, span / DAY_S


def _space(
    store: Path, known: list[Record], min_free: Watermark, rate: tuple[float | None, float]
) -> Space | None:
    try:
        disk = os.statvfs(store)
    except OSError:
        return None
    told = sorted(known, key=lambda one: (one.is_running, one.process.started))
    size = disk.f_blocks * disk.f_frsize
    return Space(
        free=disk.f_bavail * disk.f_frsize,
        size=size,
        min_free=told[-1].process.min_free if told else min_free.of(size),
        rate=rate[0],
        rate_days=rate[1],
    )


def _receiving(
    known: list[Record], last_hour: tuple[Intake, ...] | None, latest: float | None, now: float
) -> Receiving:
    running = sorted((one for one in known if one.is_running), key=lambda one: one.process.started)
    last = max(known, key=lambda one: max(one.written, one.stopped), default=None)
    counted = [one.activity for one in known]
    return Receiving(
        receivers=tuple(running) or ((last,) if last else ()),
        last_hour=last_hour,
        latest=latest or None,
        refused=_refusals((events for one in counted for events in one.refused), now),
        failed=_refusals((events for one in counted for events in one.failed), now),
        opened_total=sum(one.opened for one in counted),
        stored_total=_summed(one.stored for one in counted),
        bytes_total=sum(one.bytes for one in counted),
        refused_total=_summed(one.refused_totals for one in counted),
        failed_total=_summed(one.failed_totals for one in counted),
    )


def _summed(parts: Iterator[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, number in part.items():
            total[name] = total.get(name, 0) + number
    return total


def _refusals(events: Iterator[Events], now: float) -> tuple[Refusals, ...]:
    """Those of the last day, the latest first; of several receivers together."""
    found: dict[tuple[str, str], Refusals] = {}
    for one in events:
        hour, day = one.within(HOUR_S, now), one.within(DAY_S, now)
        former = found.get((one.what, one.who))
        newer = former is None or one.latest > former.latest
        if former is not None:
            hour, day = hour + former.last_hour, day + former.last_day
        latest, text = (one.latest, one.text) if newer or former is None else (former.latest, former.text)
        if day:
            found[one.what, one.who] = Refusals(one.what, one.who, hour, day, latest, text)
    return tuple(sorted(found.values(), key=lambda one: -one.latest))


def _aside(quarantine: Path) -> Aside:
    """Names begin with the time in nanoseconds."""
    try:
        notes = sorted(quarantine.glob("*.txt"), reverse=True)
    except OSError:  # Python before 3.12 says so when this user may not look there
        notes = []
    newest = []
    for note in notes[:_MOST_REASONS]:
        with contextlib.suppress(OSError, ValueError):
            with note.open(encoding="utf-8", errors="replace") as file:
                lines = file.read(4 * _LONGEST_REASON).splitlines()
            newest.append((int(note.name.partition("-")[0]) / 1e9, "".join(lines[1:2])[:_LONGEST_REASON]))
    return Aside(len(notes), tuple(newest))


def _alarms(
    receiving: Receiving, space: Space | None, unreviewed: Conflicts | None, index_trouble: str
) -> Iterator[Alarm]:
    if index_trouble:
        yield Alarm("index_unavailable", index_trouble)
    for one in receiving.receivers:
        if not one.is_running and not one.stopped:
            yield Alarm("receiver_died", "the receiver has ended without being stopped: start it again")
        trouble = one.activity.trouble
        if one.is_running and trouble is not None:
            yield Alarm("store_unavailable", f"the latest object could not be stored: {trouble.what}")
    if space is not None and space.free < space.min_free:
        yield Alarm(
            "low_space",
            f"{space.free / 1e9:.2f} GB free, less than min_free ({space.min_free / 1e9:.2f} GB): "
            "objects are refused until there is space",
        )
    if unreviewed is not None and unreviewed.number:
        yield Alarm(
            "identity_conflict",
            f"{counted(unreviewed.number, 'original')} with another patient's identity than earlier ones of "
            "the same UIDs: find out who is right (status --conflicts), then: status --reviewed "
            f"{unreviewed.latest_sequence}",
        )
    strangers = sum(one.last_day for one in receiving.refused if one.what.endswith(OTHER_PATIENT))
    if strangers:
        yield Alarm(
            "identity_conflict",
            f"{counted(strangers, 'object')} refused within a day, with another patient's identity than the "
            "stored ones of the same UIDs: find out who is right",
        )


def counted(number: int, noun: str) -> str:
    """As people write it: `1 object`, `2,000 objects`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


# Review


def reviewed(store: Path) -> int:
    """Receipt sequence up to which somebody has looked at the conflicts; 0: nobody has."""
    try:
        return int((store / RUN_FOLDER / _REVIEWED).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def review(store: Path, sequence: int) -> None:
    """Note that conflicts up to this sequence have been looked at. Raises StoreUnavailable."""
    folder = store / RUN_FOLDER
    try:
        folder.mkdir(mode=0o750, exist_ok=True)
        part = folder / f"{_REVIEWED}.{os.getpid()}"
        part.write_text(f"{sequence}\n", encoding="ascii")
        part.rename(folder / _REVIEWED)
    except OSError as error:
        raise StoreUnavailable(f"cannot write to {folder}: {error.strerror}") from error
