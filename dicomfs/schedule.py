"""Which job runs next, and in which process: queues by urgency, and for each process a place.

What is more urgent goes first (`turns.Urgency`). With two or more processes one is never given background
work, nor what somebody is about to ask for unless that is quickly done, so that nobody waits behind it.

A process that is busy may have a second job in its pipe, so that it need not wait for us between two
pictures. What is in a pipe cannot be overtaken by what is more urgent, or whose asker has had less. So only
while pictures take next to no time (`PIPED_S`), only behind a picture, and no background work. And a second
job is never held up by a first that turns out slow: once that has taken `PIPED_S`, whoever can takes the
second over; the slow process finds a copy of it in its pipe all the same, and does that for nobody, or is
replaced when it takes longer than another process to start.

Knows no answers and no failures: `workers.py` uses it, on trio's thread.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

import trio

from dicomfs.errors import NotDisplayable, RenderFailed
from dicomfs.protocol import Answer
from dicomfs.turns import Turns, Urgency
from dicomfs.workerprocess import WorkerProcess

QUICK_S: Final = 0.05
"""What somebody is about to ask for may have all processes as long as it takes less than this: so long do
others wait behind it."""
PIPED_S: Final = 0.005
"""So much longer may somebody wait because a job of less urgency is in a pipe already; what a process loses
between two jobs is not worth more."""
COPY_S: Final = 1.0
"""Longer than this nobody's work is not worth waiting for: a process starts in less."""


@dataclass(eq=False, slots=True)
class Job:
    """One request to a render process, and what becomes of it."""

    body: bytes
    urgency: Urgency
    asker: Hashable = None
    is_picture: bool = False
    """Another may be put behind it: pictures are alike in what they take."""
    crashes: int = 0
    exhausted: int = 0
    abandoned: bool = False
    """Nobody waits for it any more."""
    is_copy: bool = False
    """It was taken over by another process: `abandoned` from the beginning, and counted nowhere."""
    is_out_of_time: bool = False
    outcome: Answer | RenderFailed | NotDisplayable | None = None
    finished: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False, slots=True)
class Place:
    """A place for a process, and the jobs that it has been given."""

    process: WorkerProcess | None = None
    """None: none was needed yet, or it is being replaced."""
    job: Job | None = None
    """What it does, or is about to, or what is to be tried again in the next process."""
    behind: Job | None = None
    """What is in its pipe behind that."""
    began: float | None = None
    """When it began with `job` (trio's clock); None: it has not."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Around the use of its process; cancelled when the time of a job has run out."""
    called: trio.Event = field(default_factory=trio.Event)
    """It was idle and has been given a job."""

    def use(self) -> trio.CancelScope:
        """The scope for the use of another process."""
        self.scope = trio.CancelScope()
        return self.scope

    def has_second(self) -> bool:
        """Whether a job that is wanted waits in the pipe."""
        return self.behind is not None and not self.behind.abandoned

    def is_late(self, now: float) -> bool:
        """Whether one waits there behind another that has turned out slow."""
        return self.has_second() and self.began is not None and now > self.began + PIPED_S


class Schedule:
    """Jobs that wait and places that do them; `most_jobs` is what one process may do in its life."""

    def __init__(self, most_jobs: int) -> None:
        self._most_jobs = most_jobs
        self._queues: dict[Urgency, Turns[Job]] = {urgency: Turns() for urgency in Urgency}
        self._next_s = 1.0
        """What pictures may take, the longest of the latest few; slow until it is known."""
        self._places: list[Place] = []
        self._idle: list[Place] = []
        self._cold: list[trio.Event] = []

    # What callers do

    def put(self, job: Job) -> None:
        """Wait for a process."""
        self._queues[job.urgency].put(job.asker, job)
        self.dispatch()

    def remove(self, job: Job) -> None:
        """Nobody wants it any more. What has been given to a process runs to its end, unheard."""
        job.abandoned = True
        self._queues[job.urgency].remove(job.asker, job)

    def is_any_unwaited(self) -> bool:
        """Whether a job is in a queue for which nobody waits."""
        return any(queue for urgency, queue in self._queues.items() if urgency is not Urgency.WAITED)

    def hurry(self, body: bytes, asker: Hashable) -> None:
        """Somebody waits for this: if it is in a queue, it is his now."""
        less_urgent = (queue for urgency, queue in self._queues.items() if urgency is not Urgency.WAITED)
        job = next((job for queue in less_urgent for _, job in queue if job.body == body), None)
        if job is not None:
            self._queues[job.urgency].remove(job.asker, job)
            job.urgency, job.asker = Urgency.WAITED, asker
            self.put(job)

    def counts(self) -> tuple[int, int]:
        """Jobs that wait, those in a pipe among them, and jobs that are being done."""
        piped = sum(place.has_second() for place in self._places)
        running = sum(place.job is not None for place in self._places)
        return piped + sum(map(len, self._queues.values())), running

    def clear(self) -> list[Job]:
        """No more jobs; those that wait or run."""
        given = [job for place in self._places for job in (place.job, place.behind) if job is not None]
        waiting = [job for queue in self._queues.values() for _, job in queue]
        for queue in self._queues.values():
            queue.clear()
        return [*waiting, *given]

    # What places do

    def open(self) -> Place:
        """One more place, without a process."""
        place = Place()
        self._places.append(place)
        return place

    async def demand(self) -> None:
        """Wait until a place without a process is needed."""
        demand = trio.Event()
        self._cold.append(demand)
        self.dispatch()
        await demand.wait()

    async def take(self, place: Place) -> None:
        """Wait for a job for a place whose process has nothing to do."""
        # At once, before any caller goes on with a picture: the process has nothing to do meanwhile.
        place.job = self._pull()
        if place.job is not None:
            return
        place.called = trio.Event()
        self._idle.append(place)
        try:
            while place.job is None:
                self.dispatch()
                # Nobody says when a job becomes late.
                is_any_piped = any(other.has_second() for other in self._places)
                with trio.move_on_after(PIPED_S if is_any_piped else math.inf):
                    await place.called.wait()
        finally:
            if place in self._idle:
                self._idle.remove(place)

    async def keep_time(self, limit_s: float) -> None:
        """Cancel the use of processes that have been at one job for longer than that.

        One task for all: to set a time limit for each job costs a tenth of what there is to do for a picture.
        """
        while True:
            now = trio.current_time()
            # At the latest: what begins meanwhile may be a copy.
            next_time = now + min(limit_s, COPY_S)
            for place in self._places:
                if place.job is None or place.began is None:
                    continue
                end = place.began + (min(limit_s, COPY_S) if place.job.is_copy else limit_s)
                if end > now:
                    next_time = min(next_time, end)
                else:
                    place.job.is_out_of_time = True
                    place.scope.cancel()
            await trio.sleep_until(next_time)

    def begin(self, place: Place) -> None:
        """The process of a place begins with its job now."""
        place.began = trio.current_time()

    def end(self, place: Place) -> None:
        """Its job is done: what was behind it is next, and the process is at that already."""
        self._charge(place)
        place.job, place.behind = place.behind, None

    def lose(self, place: Place) -> None:
        """Its process is of no more use. A job that was begun and is not over stays, for the next process."""
        job = place.job
        # One that is tried again is owed a fresh process, even if it comes to nothing before it begins.
        is_begun = place.began is not None or (job is not None and job.crashes + job.exhausted > 0)
        self._charge(place)
        for one in (place.behind, None if is_begun else job):
            if one is not None:
                self._put_back(one)
        place.behind = None
        if job is not None and (job.finished.is_set() or not is_begun):
            place.job = None
        self.dispatch()

    def _charge(self, place: Place) -> None:
        job, began = place.job, place.began
        place.began = None
        if job is None or began is None:
            return
        took = trio.current_time() - began
        if not job.is_copy:
            self._queues[job.urgency].charge(job.asker, took)
        if job.urgency is not Urgency.SPARE:
            # Also of what somebody waits for: with that he begins to step. What is no picture says nothing of
            # how quick pictures are.
            self._next_s = max(took, self._next_s / 2 if job.is_picture else self._next_s)

    def _put_back(self, job: Job) -> None:
        """It was given to a process and not begun."""
        if not (job.abandoned or job.finished.is_set()):
            self._queues[job.urgency].put_back(job.asker, job)

    # Who does what

    def dispatch(self) -> None:
        """Give jobs to idle processes; if none is idle have one more started, or give busy ones a second."""
        while self._idle and (job := self._pull()) is not None:
            place = self._idle.pop()
            place.job = job
            place.called.set()
        if self._idle:
            return
        if not self._cold:
            while (room := self._room()) is not None and self._pipe(room):
                pass
        elif self._next() is not None and self._starting() < sum(map(len, self._queues.values())):
            self._cold.pop().set()

    def _starting(self) -> int:
        """Processes that are being started or replaced."""
        return sum(place.process is None for place in self._places) - len(self._cold)

    def _pull(self) -> Job | None:
        """The job that runs next, if one may."""
        job = self._late()
        if job is None and (queue := self._next()) is not None:
            job = queue.take()
        return job

    def _late(self) -> Job | None:
        """A job that waits behind one that has turned out slow; there it will be done for nobody."""
        now = trio.current_time()
        place = next((place for place in self._places if place.is_late(now)), None)
        if place is None or place.behind is None:
            return None
        job = place.behind
        place.behind = Job(
            job.body, job.urgency, job.asker, is_picture=job.is_picture, abandoned=True, is_copy=True
        )
        return job

    def _room(self) -> Place | None:
        """A place whose process may have one more job in its pipe."""
        if self._next_s > PIPED_S:
            return None
        since = trio.current_time() - PIPED_S
        return next((place for place in self._places if self._has_room(place, since)), None)

    def _has_room(self, place: Place, since: float) -> bool:
        job, process = place.job, place.process
        if job is None or process is None or place.behind is not None:
            return False
        is_alike = job.is_picture and job.urgency is not Urgency.SPARE
        is_young = place.began is not None and place.began >= since
        return is_alike and is_young and process.due == 1 and process.jobs < self._most_jobs

    def _pipe(self, place: Place) -> bool:
        """Put the job that is next behind that of a place; False when there is none for it."""
        process = place.process
        if process is None:
            return False
        late = self._late()
        if late is not None:
            if not process.put(late.body):
                self._put_back(late)
                return False
            place.behind = late
            return True
        queue = self._queues[Urgency.WAITED] or self._queues[Urgency.NEXT]
        if not queue:
            return False
        job = queue.peek()
        if not job.is_picture or not process.put(job.body):
            return False
        place.behind = queue.take()
        return True

    def _next(self) -> Turns[Job] | None:
        """The queue whose first job may run now."""
        for urgency, queue in self._queues.items():
            if queue and (urgency is Urgency.WAITED or self._unwaited() < self._most(urgency)):
                return queue
        return None

    def _unwaited(self) -> int:
        """Processes that do what nobody waits for."""
        jobs = (place.job for place in self._places)
        return sum(job is not None and job.urgency is not Urgency.WAITED for job in jobs)

    def _most(self, urgency: Urgency) -> int:
        """How many may, when another such job is of this urgency."""
        count = len(self._places)
        return count if urgency is Urgency.NEXT and self._next_s <= QUICK_S else max(1, count - 1)
