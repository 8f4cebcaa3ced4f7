"""Rendering in worker processes: who renders what, and when; bounded, with priorities and a time limit.

`Workers` owns up to `count` processes of `worker.py`; what each does next, `schedule.py` decides. A process
that is silent too long, dies or talks nonsense is killed and replaced. That is held against the job that it
was at, never against one that was in its pipe behind it. It never decodes a picture, opens an original, or
keeps a result: that is `cache.py`.
Used by the mount; everything here belongs to trio's thread.

Waiting jobs are bounded by the waiting callers: a job whose caller is cancelled leaves the queue.
"""

import logging
import signal
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import trio

from dicomfs.errors import NotDisplayable, RenderFailed, WorkerStartFailed
from dicomfs.model import PoolWindow, Recipe, Source
from dicomfs.protocol import (
    Answer,
    BrokenAnswer,
    LengthsRequest,
    NoticeRequest,
    PoolRequest,
    ProbeRequest,
    RenderRequest,
    Request,
    Status,
    decode_lengths,
    decode_window,
    encode_request,
    sentence,
)
from dicomfs.schedule import Job, Place, Schedule
from dicomfs.turns import Urgency
from dicomfs.workerprocess import WorkerDied, WorkerProcess

log = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-P", "-m", "dicomfs.worker")
"""`-P`: nothing that lies in the current folder is imported."""
READY_AT_ONCE = 4
"""So many processes are started at once, the others on demand: each takes 30 MB before its first job."""
START_FAILURES_IN_A_ROW = 3
"""So many, after a good start, and `Workers.run` gives up: the installation changed under our feet."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture."""

    data: bytes
    failure: str | None = None
    """Why the frame can never be shown, when the picture is the notice that says so."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What has happened since the start, and what is going on."""

    done: int
    """Jobs with a result, notices among them."""
    failed: int
    """Jobs that ended in `RenderFailed`, those out of time among them."""
    crashed: int
    """Processes that died or talked nonsense with a job in their hands."""
    timed_out: int
    waiting: int
    running: int
    processes: int


class Workers:
    """Up to `count` render processes of at most `memory_bytes` address space each.

    A job may take `time_limit_s`, the start of a process `start_limit_s`. A process is replaced after
    `recycle_after` jobs, because decoders leak. `command` is for tests.
    """

    def __init__(
        self,
        count: int,
        memory_bytes: int,
        time_limit_s: float,
        *,
        start_limit_s: float = 60,
        recycle_after: int = 5_000,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._count = count
        self._memory_bytes = memory_bytes
        self._time_limit_s = time_limit_s
        self._start_limit_s = start_limit_s
        self._recycle_after = recycle_after
        self._command = command
        self._schedule = Schedule(recycle_after)
        self._closed = False
        self._start_failures = 0
        self._broken: WorkerStartFailed | None = None
        self._processes = self._done = self._failed = self._crashed = self._timed_out = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the processes until cancelled; `started` when the first is ready, others later or on demand.

        Raises WorkerStartFailed when the first cannot start, or later several in a row.
        *Cancellation*: every process is killed, every job still waited for ends in RenderFailed.
        """
        try:
            first, *more = [self._schedule.open() for _ in range(self._count)]
            first.process = await self._start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._schedule.keep_time, self._time_limit_s)
                nursery.start_soon(self._slot, first, nursery.cancel_scope)
                task_status.started()
                for number, place in enumerate(more, start=1):
                    place.process = await self._try_to_start() if number < READY_AT_ONCE else None
                    nursery.start_soon(self._slot, place, nursery.cancel_scope)
            if self._broken is not None:
                raise self._broken
        finally:
            self._closed = True
            for job in self._schedule.clear():
                self._finish(job, RenderFailed("Rendering has stopped"))

    async def render(
        self,
        source: Source,
        recipe: Recipe,
        window: PoolWindow | None,
        *,
        urgency: Urgency = Urgency.WAITED,
        asker: Hashable = None,
    ) -> Rendered:
        """One frame as a picture, or the notice that says why it can never be one.

        Those who wait take turns by `asker`: what one asks for does not wait behind all of another's.

        A job that crashes its process twice, the second time a fresh one, can never be shown either.
        So can one that needs more memory than a fresh process may have.
        Raises RenderFailed: time-out, I/O, a bug of ours.
        *Cancellation*: the job leaves the queue; if it already runs it runs to its end, unheard.
        """
        try:
            request = RenderRequest(source, recipe, window)
            answer = await self._ask(request, urgency=urgency, asker=asker)
            failure = sentence(answer.text) if answer.status is Status.PERMANENT else None
        except NotDisplayable as error:
            failure = str(error)
            # It takes milliseconds, and somebody may have come to wait for it meanwhile.
            answer = await self._ask_surely(NoticeRequest(recipe, failure), urgency=Urgency.WAITED)
        if not answer.data:
            raise RenderFailed("The render worker answered without a picture")
        return Rendered(answer.data, failure)

    async def decide_pool(
        self,
        members: Sequence[Source],
        policy: str = "auto",
        *,
        urgency: Urgency = Urgency.WAITED,
        asker: Hashable = None,
    ) -> PoolWindow:
        """The window of a pool under a policy of `recipes.pool_policy`; `asker` as for `render`.

        Raises NotDisplayable (a member crashes the decoder), RenderFailed. *Cancellation*: as for `render`.
        """
        answer = await self._ask(PoolRequest(tuple(members), policy), urgency=urgency, asker=asker)
        if answer.status is Status.PERMANENT:
            raise NotDisplayable(sentence(answer.text))
        try:
            return decode_window(answer.text)
        except BrokenAnswer as error:
            raise RenderFailed(f"The render worker answered nonsense: {error}") from error

    async def probe(self, recipe: Recipe) -> str:
        """Digest of what the recipe's encoder makes of probe images. Raises RenderFailed.

        *Cancellation*: as for `render`.
        """
        return sentence((await self._ask_surely(ProbeRequest(recipe), urgency=Urgency.WAITED)).text)

    async def lengths(
        self, members: Sequence[Source], recipe: Recipe, *, urgency: Urgency = Urgency.WAITED
    ) -> list[int | None]:
        """Bytes of the pictures' files, of a format that is not compressed; None: they have to be rendered.

        Raises RenderFailed. *Cancellation*: as for `render`.
        """
        request = LengthsRequest(tuple(members), recipe)
        try:
            return decode_lengths((await self._ask_surely(request, urgency=urgency)).text, len(members))
        except BrokenAnswer as error:
            raise RenderFailed(f"The render worker answered nonsense: {error}") from error

    def hurry(
        self, source: Source, recipe: Recipe, window: PoolWindow | None, *, asker: Hashable = None
    ) -> None:
        """Somebody waits for what was asked for as less urgent: if it has not begun, it is his now."""
        if self._schedule.is_any_unwaited():
            self._schedule.hurry(encode_request(RenderRequest(source, recipe, window)), asker)

    def statistics(self) -> Statistics:
        """Counters and gauges of this moment."""
        waiting, running = self._schedule.counts()
        return Statistics(
            done=self._done,
            failed=self._failed,
            crashed=self._crashed,
            timed_out=self._timed_out,
            waiting=waiting,
            running=running,
            processes=self._processes,
        )

    # -- the side of the callers

    async def _ask(self, request: Request, *, urgency: Urgency, asker: Hashable = None) -> Answer:
        """Queue a request and wait: an answer, `DONE` or `PERMANENT`; NotDisplayable after two crashes."""
        if self._closed:
            raise RenderFailed("Rendering has stopped")
        # Background work is done in the order in which it is asked for.
        asker = None if urgency is Urgency.SPARE else asker
        is_picture = isinstance(request, RenderRequest)
        job = Job(encode_request(request), urgency, asker, is_picture=is_picture)
        self._schedule.put(job)
        try:
            await job.finished.wait()
        except trio.Cancelled:
            self._schedule.remove(job)
            raise
        if isinstance(job.outcome, Answer):
            return job.outcome
        assert job.outcome is not None  # noqa: S101 - set before `finished`
        raise job.outcome

    async def _ask_surely(self, request: Request, *, urgency: Urgency) -> Answer:
        """As `_ask`, for what depends on no data set and so cannot fail for good."""
        try:
            answer = await self._ask(request, urgency=urgency)
        except NotDisplayable as error:
            raise RenderFailed(str(error)) from error
        if answer.status is Status.PERMANENT:
            raise RenderFailed(sentence(answer.text))
        return answer

    def _finish(self, job: Job, outcome: Answer | RenderFailed | NotDisplayable) -> None:
        if isinstance(outcome, RenderFailed):
            self._failed += not job.abandoned
        else:
            self._done += not job.is_copy
        job.outcome = outcome
        job.finished.set()

    # -- the side of the processes

    async def _slot(self, place: Place, everything: trio.CancelScope) -> None:
        """One place for a process: start it on demand, use it, replace it."""
        if place.process is None:
            await self._schedule.demand()
        while True:
            if place.process is None:
                try:
                    place.process = await self._start()
                except WorkerStartFailed as error:
                    log.warning("%s", error)
                    if self._start_failures >= START_FAILURES_IN_A_ROW:
                        self._broken = error
                        everything.cancel()
                    if place.job is not None:
                        self._finish(place.job, RenderFailed("No render worker could be started"))
                        place.job = None
                    await self._schedule.demand()
                    continue
            process = place.process
            try:
                await self._use(place, process)
            finally:
                self._processes -= 1
                place.process = None
                self._schedule.lose(place)
                await process.end()

    async def _try_to_start(self) -> WorkerProcess | None:
        """A process before there is work for it; None: it is tried again when there is."""
        if self._start_failures:
            return None
        try:
            return await self._start()
        except WorkerStartFailed as error:
            log.warning("%s", error)
            return None

    async def _start(self) -> WorkerProcess:
        try:
            process = await WorkerProcess.start(self._command, self._memory_bytes, self._start_limit_s)
        except WorkerStartFailed:
            self._start_failures += 1
            raise
        self._start_failures = 0
        self._processes += 1
        return process

    async def _use(self, place: Place, process: WorkerProcess) -> None:
        """Work until the process has to be replaced; a job left in its place is tried again in the next."""
        with place.use() as scope:
            while place.job is not None or process.jobs < self._recycle_after:
                if place.job is None:
                    await self._schedule.take(place)
                elif not await self._perform(place.job, place, process):
                    return
        if scope.cancelled_caught and place.job is not None and place.job.is_out_of_time:
            if place.job.is_copy:
                log.debug("Render worker %d replaced: it did what another did", process.pid)
                self._finish(place.job, RenderFailed("Nobody waits"))
                return
            self._timed_out += not place.job.abandoned
            log.warning("Render worker %d killed: no answer within %g s", process.pid, self._time_limit_s)
            self._finish(place.job, RenderFailed(f"Rendering took longer than {self._time_limit_s:g} s"))

    async def _perform(self, job: Job, place: Place, process: WorkerProcess) -> bool:
        """Do one job; False when the process is of no more use."""
        try:
            if not process.due:
                if process.has_ended():  # killed while idle: not the job's fault
                    return False
                if job.abandoned:
                    self._finish(job, RenderFailed("Nobody waits"))
                    self._schedule.end(place)
                    return True
            self._schedule.begin(place)
            if not process.due:
                await process.send(job.body)
            # Another may be put behind it; and what nobody waits for may begin elsewhere, if that has ended.
            self._schedule.dispatch()
            answer = await process.answer(job.body)
        except (WorkerDied, BrokenAnswer) as error:
            await self._crash(process, job, error)
            return False
        if answer.status is Status.EXHAUSTED:
            self._exhaust(job)
            return False
        self._finish(job, _judge(answer))
        self._schedule.end(place)
        return True

    def _exhaust(self, job: Job) -> None:
        """What earlier jobs have left behind may take the memory: a fresh process has the second try."""
        job.exhausted += 1
        if job.abandoned:
            self._finish(job, RenderFailed("Nobody waits"))
        elif job.exhausted > 1:
            self._finish(job, NotDisplayable("It needs more memory than a render process may have"))

    async def _crash(self, process: WorkerProcess, job: Job, error: WorkerDied | BrokenAnswer) -> None:
        """Once may be the fault of an earlier job: the first crash is forgiven, the second ends the job."""
        self._crashed += 1
        job.crashes += 1
        how = await process.how_it_ended() if isinstance(error, WorkerDied) else sentence(str(error))
        log.warning("Render worker %d failed in a job: %s", process.pid, how)
        log.debug("Last words of render worker %d: %s", process.pid, process.last_words())
        if job.abandoned:
            self._finish(job, RenderFailed("Nobody waits"))
        elif job.crashes == 1:
            return
        elif how == signal.SIGKILL.name:  # not a thing that decoders do: the kernel, out of memory
            self._finish(job, RenderFailed("The render worker was killed"))
        else:
            self._finish(job, NotDisplayable(f"The decoder crashed on this image ({how})"))


def _judge(answer: Answer) -> Answer | RenderFailed:
    """What the caller gets for an answer that came back whole."""
    if answer.status is Status.BUG:
        text = sentence(answer.text)
        log.error("Bug in rendering: %s", text)
        return RenderFailed(f"Rendering failed by a fault of the program: {text}")
    if answer.status is Status.PASSING:
        return RenderFailed(f"Rendering failed: {sentence(answer.text)}")
    return answer
