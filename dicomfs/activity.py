"""What a receiver does now and did lately, counted in memory: associations, objects, refusals.

Counting costs the reception path some tenths of a microsecond for an object, never fails it, and takes
bounded memory whatever peers call themselves. Pure apart from a lock: no files, no logging, and the time is
given. Counted by `association.py`; `runfile.py` takes a snapshot now and then for other processes, and gives
the next receiver its predecessor's. Peers are AE titles and addresses; nothing of a data set comes in here.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from dicomfs.model import Stored

SLOT_S: Final = 300
"""Refusals are counted in slots of so many seconds: what "the last hour" means is exact to one of them."""
DAY_S: Final = 86_400
_SLOTS: Final = DAY_S // SLOT_S + 1
OTHERS: Final = "others"
"""Who stands for all the peers that are too many to be told apart."""
OTHER_PATIENT: Final = "Another patient's object of these UIDs is stored"
"""The comment of an answer that is an alarm: somebody has to find out who is right."""
MOST_EVENTS: Final = 24
"""Kinds of refusal and peer that are told apart at a time."""
MOST_VISITS: Final = 64
"""Open associations that are described; the others are counted."""
_LONGEST_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Events:
    """How often one thing happened to one peer."""

    what: str
    who: str
    latest: float
    """Seconds since the epoch."""
    text: str
    """What the log said the latest time."""
    first_slot: int
    counts: tuple[int, ...]
    """One number for each slot from `first_slot` on."""

    def within(self, seconds: float, now: float) -> int:
        """How often in the last so many seconds (at most a day)."""
        oldest, newest = (now - seconds) // SLOT_S, now // SLOT_S
        slots = enumerate(self.counts, self.first_slot)
        return sum(count for slot, count in slots if oldest <= slot <= newest)


class _History:
    """Events of the last day by what happened and to whom; totals by what, for ever. Not thread-safe."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._events: dict[tuple[str, str], _Recent] = {}

    def note(self, what: str, who: str, text: str, now: float) -> None:
        self.totals[what] += 1
        recent = self._recent(what, who, now)
        recent.latest, recent.text = now, text[:_LONGEST_TEXT]
        recent.slots[int(now // SLOT_S)] += 1
        if len(recent.slots) > _SLOTS:
            recent.forget(now)

    def _recent(self, what: str, who: str, now: float) -> "_Recent":
        found = self._events.get((what, who))
        if found is None and len(self._events) >= MOST_EVENTS:
            self._events = {key: kept for key, kept in self._events.items() if kept.latest > now - DAY_S}
            if len(self._events) >= MOST_EVENTS:
                # What happened is one of a few fixed texts, so these are few.
                who = OTHERS
        return found or self._events.setdefault((what, who), _Recent())

    def events(self) -> tuple[Events, ...]:
        return tuple(recent.events(what, who) for (what, who), recent in self._events.items())

    def inherit(self, events: tuple[Events, ...], totals: Mapping[str, int]) -> None:
        self.totals.update(totals)
        for former in events:
            recent = self._recent(former.what, former.who, former.latest)
            if former.latest > recent.latest:
                recent.latest, recent.text = former.latest, former.text
            recent.slots.update(
                {slot: count for slot, count in enumerate(former.counts, former.first_slot) if count}
            )


@dataclass(slots=True)
class _Recent:
    latest: float = 0.0
    text: str = ""
    slots: Counter[int] = field(default_factory=Counter)

    def forget(self, now: float) -> None:
        """Leave out what is older than a day, or of a future that a wrong clock has told."""
        newest = int(now // SLOT_S)
        self.slots = Counter({s: n for s, n in self.slots.items() if newest - _SLOTS < s <= newest})

    def events(self, what: str, who: str) -> Events:
        self.forget(self.latest)
        first, last = min(self.slots, default=0), max(self.slots, default=-1)
        counts = tuple(self.slots.get(slot, 0) for slot in range(first, last + 1))
        return Events(what, who, self.latest, self.text, first, counts)


@dataclass(slots=True, eq=False)
class Visit:
    """One open association. Its own thread alone counts; others read."""

    ae_title: str
    address: str
    since: float
    bytes: int = 0
    """Of data sets, as they arrive; of refused ones too."""
    refused: int = 0
    stored: dict[Stored, int] = field(default_factory=lambda: dict.fromkeys(Stored, 0))

    @property
    def peer(self) -> str:
        """AE title and address."""
        return f"{self.ae_title} at {self.address}"


@dataclass(frozen=True, slots=True)
class OpenAssociation:
    """One open association, as others see it."""

    ae_title: str
    address: str
    since: float
    objects: int
    """Received and stored."""
    refused: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why nothing can be stored at present, by the latest object's fate."""

    what: str
    since: float
    latest: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that was counted; totals are since the first receiver that kept such a file."""

    visits: tuple[OpenAssociation, ...]
    """The longest open ones; `open` counts all."""
    open: int
    opened: int
    stored: dict[str, int]
    """Objects by what became of them (`Stored`)."""
    bytes: int
    """Of data sets received, refused ones too."""
    refused: tuple[Events, ...]
    """Objects that were not stored, by status and comment of the answer."""
    refused_totals: dict[str, int]
    failed: tuple[Events, ...]
    """Associations that were rejected or did not end well."""
    failed_totals: dict[str, int]
    trouble: Trouble | None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Back from `asdict` and JSON. Raises TypeError or KeyError when that was another version's."""
        made: dict[str, object] = {
            "visits": tuple(OpenAssociation(**one) for one in facts["visits"]),
            "trouble": None if facts["trouble"] is None else Trouble(**facts["trouble"]),
        }
        for name in ("refused", "failed"):
            made[name] = tuple(Events(**{**one, "counts": tuple(one["counts"])}) for one in facts[name])
        return cls(**{**facts, **made})


class Activity:
    """Counts what one receiver does. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visits: dict[Visit, None] = {}
        self._opened = 0
        self._bytes = 0
        self._stored: Counter[str] = Counter()
        self._refused = _History()
        self._failed = _History()
        self._trouble: Trouble | None = None

    def opened(self, ae_title: str, address: str, now: float) -> Visit:
        """An association was accepted; give it back to `closed`."""
        visit = Visit(ae_title, address, now)
        with self._lock:
            self._visits[visit] = None
            self._opened += 1
        return visit

    def closed(self, visit: Visit) -> None:
        """It is over, in whatever way."""
        with self._lock:
            del self._visits[visit]
            self._bytes += visit.bytes
            self._stored.update(_named(visit))

    def failed(self, what: str, who: str, text: str, now: float) -> None:
        """An association was rejected (`what`: as the standard calls it) or did not end well."""
        with self._lock:
            self._failed.note(what, who, text, now)

    def stored(self, visit: Visit, stored: Stored) -> None:
        """An object was stored. For every object, so it takes no lock."""
        visit.stored[stored] += 1
        if self._trouble is not None:
            self._trouble = None

    def refused(self, visit: Visit, what: str, text: str, now: float, *, is_trouble: bool) -> None:
        """An object was not stored; `is_trouble`: nothing could be, for the store has a fault or no space."""
        visit.refused += 1
        with self._lock:
            self._refused.note(what, visit.peer, text, now)
            if is_trouble:
                former = self._trouble
                same = former is not None and former.what == what
                self._trouble = Trouble(what, former.since if former and same else now, now)

    def inherit(self, former: Snapshot) -> None:
        """Go on counting where the receiver before this one has stopped."""
        with self._lock:
            self._opened += former.opened
            self._bytes += former.bytes
            self._stored.update(former.stored)
            self._refused.inherit(former.refused, former.refused_totals)
            self._failed.inherit(former.failed, former.failed_totals)

    def snapshot(self) -> Snapshot:
        """All that was counted up to now."""
        with self._lock:
            visits = list(self._visits)
            stored = Counter({one.name.lower(): 0 for one in Stored})
            stored.update(self._stored)
            for visit in visits:
                stored.update(_named(visit))
            return Snapshot(
                visits=tuple(_seen(visit) for visit in visits[:MOST_VISITS]),
                open=len(visits),
                opened=self._opened,
                stored=dict(stored),
                bytes=self._bytes + sum(visit.bytes for visit in visits),
                refused=self._refused.events(),
                refused_totals=dict(self._refused.totals),
                failed=self._failed.events(),
                failed_totals=dict(self._failed.totals),
                trouble=self._trouble,
            )


def _named(visit: Visit) -> dict[str, int]:
    return {stored.name.lower(): count for stored, count in visit.stored.items()}


def _seen(visit: Visit) -> OpenAssociation:
    return OpenAssociation(
        visit.ae_title,
        visit.address,
        visit.since,
        sum(visit.stored.values()),
        visit.refused,
        visit.bytes,
    )
