"""Whose turn it is: how urgent a job is, and an order of those that wait that is fair to who asks little.

Fair queueing over seconds of work: whoever has had least of late goes first, so that somebody who opens one
picture does not wait behind those who copy thousands, and of these none gets more than another. First come,
first served among equals, and within what one asks. Who has been still has a small credit, and no more than
that: nobody saves up.

Where somebody new begins goes forward with the work that is done, shared among all who ask (the virtual time
of weighted fair queueing). By the starting tags of jobs alone it would stand still as long as somebody new
comes again and again, and everybody else would wait for ever. So whoever waits is overtaken by a bounded
amount of work: for each who asks, twice the credit and a few jobs. Pure; used by `schedule.py`.
"""

from collections import deque
from collections.abc import Hashable, Iterator
from enum import Enum
from typing import Final, Generic, TypeVar

T = TypeVar("T")

CREDIT_S: Final = 0.05
"""How far who has been still is put before those who are served all the time, in seconds of work."""
ESTIMATE_S: Final = 0.005
"""What a job is taken to cost until it is known."""
ACCOUNTS_KEPT: Final = 1024


class Urgency(Enum):
    """Who waits for a job; what is more urgent stands first, and goes first whatever it costs the others."""

    WAITED = "somebody waits for it"
    NEXT = "nobody waits for it yet, and somebody who steps through a series is about to"
    SPARE = "nobody has asked for it: background work"


class Turns(Generic[T]):
    """A queue with an account for each who asks; accounts of those who do not wait are bounded."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[tuple[int, T]]] = {}
        self._had_s: dict[Hashable, float] = {}
        """What each has had, on a scale on which those who wait all the time go forward together."""
        self._now_s = 0.0
        """Where they are on that scale: at least what the one who was served last had had by then."""
        self._number = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[tuple[Hashable, T]]:
        """Who asked, and the job; in no order that means anything."""
        return ((asker, job) for asker, jobs in self._waiting.items() for _, job in jobs)

    def put(self, asker: Hashable, job: T) -> None:
        """Wait, behind what the same one has asked for before."""
        self._number += 1
        if asker not in self._waiting:
            self._waiting[asker] = deque()
            self._had_s[asker] = max(self._had_s.pop(asker, 0.0), self._now_s - CREDIT_S)
        self._waiting[asker].append((self._number, job))

    def put_back(self, asker: Hashable, job: T) -> None:
        """It was taken and not begun: it is the next of its asker's again, and has cost nothing."""
        self._waiting.setdefault(asker, deque()).appendleft((0, job))
        self._had_s.setdefault(asker, self._now_s)
        self.charge(asker, 0.0)

    def peek(self) -> T:
        """The job whose turn it is; it goes on waiting. One must wait."""
        return self._waiting[self._first()][0][1]

    def take(self) -> T:
        """The job whose turn it is. One must wait."""
        asker = self._first()
        jobs = self._waiting[asker]
        _, job = jobs.popleft()
        self._now_s = max(self._now_s, self._had_s[asker])
        self._had_s[asker] += ESTIMATE_S
        if not jobs:
            self._leave(asker)
        return job

    def _first(self) -> Hashable:
        return min(self._waiting, key=lambda asker: (self._had_s[asker], self._waiting[asker][0][0]))

    def remove(self, asker: Hashable, job: T) -> bool:
        """Nobody wants it any more; False when it does not wait (any more)."""
        jobs = self._waiting.get(asker, ())
        for entry in jobs:
            if entry[1] is job:
                self._waiting[asker].remove(entry)
                if not self._waiting[asker]:
                    self._leave(asker)
                return True
        return False

    def charge(self, asker: Hashable, seconds: float) -> None:
        """A job that was taken has cost so much: to its asker, and to the time of all."""
        self._now_s += seconds / (len(self._waiting) + 1)
        if asker in self._had_s:
            self._had_s[asker] += seconds - ESTIMATE_S

    def clear(self) -> None:
        """Nobody waits any more."""
        self._waiting.clear()
        self._had_s.clear()

    def _leave(self, asker: Hashable) -> None:
        """Keep the account of one who does not wait: what he has had counts if he comes back soon."""
        del self._waiting[asker]
        if len(self._had_s) > ACCOUNTS_KEPT + len(self._waiting):
            idle = [other for other in self._had_s if other not in self._waiting]
            for other in sorted(idle, key=self._had_s.__getitem__)[: ACCOUNTS_KEPT // 2]:
                del self._had_s[other]
