"""Storage commitment from the request to its result: kept, verified, reported, however long that takes.

    association --accept--> commitments (durable) --> 0000
                                  |
              verifier (one thread, low priority): every referenced original read again
                                  |
        the association that asked, if it is open and still  --or--  a new one, again and again, for days

The result goes one way at a time: while an association holds a transaction it has the first claim, and gives
it back when it ends. Transactions of one AE title and address go by one association, and wait together.
Waiting is measured by a clock that does not jump; after a restart everything open is tried at once, and what
was waited before counts on. Owns the threads; SQL is in `commitments.py`. Made by `cli.py`, used by
`actions.py`.
"""

import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, Self

from dicomfs.commitment import Reason, Reference, Report, Request, pause_s
from dicomfs.commitments import COMMITMENTS_NAME, Commitments, Open
from dicomfs.errors import ReportFailed, StoreError, StoreFull, StoreUnavailable
from dicomfs.logtext import where
from dicomfs.reporter import Reporter, check_answer
from dicomfs.safekeeping import SafeKeeping

LOGGER: Final = logging.getLogger("dicomfs.commitment")

MOST_OPEN: Final = 10_000
"""Open transactions; more are refused, as "resource limitation"."""
GIVE_UP_S: Final = 4 * 86_400.0
"""A result that could not be told for so long, a long weekend, is given up."""
_CALLS: Final = 4
"""Peers that are called at the same time."""
_PRUNE_S: Final = 3600.0
_NICE: Final = 10
_TRIES: Final = 5
"""Times that a store is asked which cannot be read, before everything counts as failed."""
_STOP_S: Final = 2.0


class Keeper(Protocol):
    """Tells what is safe: `safekeeping.SafeKeeping`."""

    def flaw(self, reference: Reference, /) -> Reason | None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Job:
    """One open transaction. Times are the steady clock's."""

    it: Open
    is_verified: bool
    holder: object | None = None
    """The association that may still be told the result."""
    missed_at: float = 0.0
    """When it was last tried in vain; 0: not since this receiver began."""


@dataclass(frozen=True, slots=True)
class _Destination:
    ae_title: str
    address: str
    called_ae: str


@dataclass(slots=True)
class _Line:
    """What one peer has to be told."""

    due: float = 0.0
    """When it is called next."""
    is_called: bool = False
    is_warned: bool = False
    """It has been said in the log that this peer cannot be reached."""
    waiting: dict[int, _Job] = field(default_factory=dict)
    """By transaction, in order."""


class CommitmentService:
    """Takes requests and sees to their results; thread-safe. Close it, or use it as a context manager."""

    def __init__(
        self,
        store: Path,
        reporter: Reporter,
        *,
        keeper: Callable[[], Keeper] | None = None,
        pause: Callable[[int], float] = pause_s,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """Open or make the file of transactions of a store, and go on with what is open.

        `keeper` makes what verifies, in the verifier's own thread; `pause` gives the seconds between two
        attempts. Raises StoreMismatch, StoreFull, StoreUnavailable.
        """
        self._keeper = keeper or (lambda: SafeKeeping(store))
        self._reporter = reporter
        self._pause = pause
        self._give_up_s = give_up_s
        self._changed = threading.Condition()
        self._commitments = Commitments(store / COMMITMENTS_NAME, create=True)
        self._jobs: dict[int, _Job] = {}
        self._lines: dict[_Destination, _Line] = {}
        self._averse: set[str] = set()
        self._to_verify: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._pruned = float("-inf")
        self._stopping = threading.Event()
        self._is_closed = False
        try:
            self._resume()
        except BaseException:
            self._commitments.close()
            raise
        self._threads = [
            threading.Thread(target=self._verify_all, name="commitment verifier", daemon=True),
            threading.Thread(target=self._dispatch, name="commitment reports", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _resume(self) -> None:
        for it in self._commitments.open_ones():
            self._jobs[it.id] = job = _Job(it, it.is_verified)
            if it.is_verified:
                self._line_up(job)
            else:
                self._to_verify.put(it.id)
        if self._jobs:
            LOGGER.info("%d storage commitments are open from before", len(self._jobs))

    def close(self) -> None:
        """Stop, without waiting long for calls and reads: the next receiver goes on with what is open."""
        self._stopping.set()
        self._to_verify.put(None)
        with self._changed:
            self._changed.notify_all()
        self._reporter.close()
        deadline = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._changed.wait_for(
                lambda: not any(line.is_called for line in self._lines.values()),
                max(0.0, deadline - time.monotonic()),
            )
            self._is_closed = True
            self._commitments.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What associations ask

    def accept(self, request: Request, ae_title: str, address: str, called_ae: str, holder: object) -> int:
        """Keep a request, durably, and begin with it; the number of the transaction.

        `holder` may be told the result (`result`) until it lets the transaction go. Raises StoreFull (also
        when too many are open) or StoreUnavailable.
        """
        with self._changed:
            if self._is_closed:
                raise StoreUnavailable("the receiver is being stopped")
            if len(self._jobs) >= MOST_OPEN:
                raise StoreFull(f"{MOST_OPEN} storage commitments are open")
            it = self._commitments.accept(request, ae_title, address, called_ae, time.time())
            job = self._jobs.get(it.id)
            if job is None:
                self._jobs[it.id] = _Job(it, is_verified=False, holder=holder)
                self._to_verify.put(it.id)
            else:
                self._leave_lines(it.id)
                job.it, job.holder, job.missed_at = it, holder, 0.0
            # It is there now: what could not be told before is tried again.
            for to, line in self._lines.items():
                if to.ae_title == ae_title:
                    line.due = 0.0
            self._changed.notify_all()
        return it.id

    def result(self, transaction: int, holder: object) -> Report | None:
        """The result for who holds the transaction; None: it is not known yet, or is not to be told here.

        Raises StoreUnavailable.
        """
        with self._changed:
            job = self._jobs.get(transaction)
            if self._is_closed or job is None or job.holder is not holder or not job.is_verified:
                return None
            return None if job.it.ae_title in self._averse else self._commitments.report(transaction)

    def told(self, transaction: int, holder: object, status: int) -> None:
        """The holder told the result, and was answered with this status."""
        with self._changed:
            job = self._jobs.get(transaction)
            if job is None or job.holder is not holder:
                return
            job.holder = None
            try:
                check_answer(status)
                self._end(job)
            except (ReportFailed, StoreError) as error:
                LOGGER.info("a storage commitment of %s: %s; it is called", job.it.ae_title, error)
                self._line_up(job)
            self._changed.notify_all()

    def let_go(self, transactions: Iterable[int], holder: object, *, is_averse: bool) -> None:
        """The association is over: what it was not told goes on a new one.

        `is_averse`: it broke when it was told something, so this AE title is from now on told elsewhere.
        """
        with self._changed:
            for transaction in transactions:
                job = self._jobs.get(transaction)
                if job is None or job.holder is not holder:
                    continue
                job.holder = None
                if is_averse:
                    self._averse.add(job.it.ae_title)
                if job.is_verified:
                    self._line_up(job)
            self._changed.notify_all()

    # Verifying

    def _verify_all(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # of this thread alone (setpriority(2), Linux)
        keeper: Keeper | None = None
        try:
            while (transaction := self._to_verify.get()) is not None:
                keeper = self._verify_patiently(transaction, keeper)
        finally:
            if keeper is not None:
                keeper.close()

    def _verify_patiently(self, transaction: int, keeper: Keeper | None) -> Keeper | None:
        """Verify one transaction, whatever trouble the store is in; what is to be used for the next one."""
        attempts = 0
        while not self._stopping.is_set():
            try:
                if keeper is None and attempts < _TRIES:
                    keeper = self._keeper()
                self._verify(transaction, keeper if attempts < _TRIES else None)
                break
            except StoreError as error:
                attempts += 1
                LOGGER.error("a storage commitment cannot be verified now: %s", error)  # noqa: TRY400
                self._stopping.wait(self._pause(attempts))
            except Exception as error:  # noqa: BLE001  one request may fail, never the verifier
                attempts = max(attempts + 1, _TRIES)  # a bug would be met again: nothing is promised then
                LOGGER.error("a storage commitment failed: internal error %s", where(error))  # noqa: TRY400
                self._stopping.wait(self._pause(attempts - _TRIES + 1))
        return keeper

    def _verify(self, transaction: int, keeper: Keeper | None) -> None:
        """Verify a transaction; without a keeper all of it has failed."""
        with self._changed:
            job = self._jobs[transaction]
            report = self._commitments.report(transaction)
        failures: dict[int, int] = {}
        for place, reference in enumerate(report.references):
            if self._stopping.is_set():
                return
            if job.it.is_reuse:
                failures[place] = Reason.DUPLICATE_TRANSACTION
            elif keeper is None:
                failures[place] = Reason.PROCESSING_FAILURE
            elif (reason := keeper.flaw(reference)) is not None:
                failures[place] = reason
        with self._changed:
            self._commitments.verified(transaction, failures)
            job.is_verified = True
            if job.holder is None:
                self._line_up(job)
            self._changed.notify_all()
        LOGGER.log(
            logging.WARNING if failures else logging.INFO,
            "storage commitment %s of %s: %d objects verified, %d committed%s",
            report.transaction_uid,
            job.it.ae_title,
            len(report.references),
            len(report.references) - len(failures),
            "".join(
                f", {count} failed ({reason:04X})" for reason, count in Counter(failures.values()).items()
            ),
        )

    # Reporting: the dispatcher's thread

    def _dispatch(self) -> None:
        with self._changed:
            while not self._stopping.is_set():
                self._prune()
                now = time.monotonic()
                self._lines = {
                    key: line for key, line in self._lines.items() if line.waiting or line.is_called
                }
                free = _CALLS - sum(line.is_called for line in self._lines.values())
                idle = [(key, line) for key, line in self._lines.items() if not line.is_called]
                for key, line in [item for item in idle if item[1].due <= now][:free]:
                    line.is_called = True
                    threading.Thread(
                        target=self._call, args=(key, line), name=f"commitment to {key.ae_title}", daemon=True
                    ).start()
                    free -= 1
                # Whoever changes something wakes us: a new request, a verified one, a call that is over.
                waits = [line.due - now for _, line in idle if not line.is_called and free]
                self._changed.wait(min([*waits, _PRUNE_S]))

    def _prune(self) -> None:
        if time.monotonic() - self._pruned < _PRUNE_S:
            return
        self._pruned = time.monotonic()
        try:
            self._commitments.prune(time.time())
        except StoreError as error:
            LOGGER.warning("ended storage commitments could not be cleared away: %s", error)

    def _line_up(self, job: _Job) -> None:
        line = self._lines.setdefault(
            _Destination(job.it.ae_title, job.it.address, job.it.called_ae), _Line()
        )
        line.waiting[job.it.id] = job

    def _leave_lines(self, transaction: int) -> None:
        for line in self._lines.values():
            line.waiting.pop(transaction, None)

    # Reporting: a thread for each call

    def _call(self, to: _Destination, line: _Line) -> None:
        """Tell one peer all that waits for it."""
        trouble = ""
        try:
            with self._reporter.association(to.ae_title, to.address, to.called_ae) as tell:
                while (job := self._next(line)) is not None:
                    self._tell(job, tell)
        except (ReportFailed, StoreError) as error:
            trouble = str(error)
        except Exception as error:  # noqa: BLE001  a thread of its own: nobody else would tell
            trouble = "internal error"
            LOGGER.error("a storage commitment was not reported: internal error %s", where(error))  # noqa: TRY400
        with self._changed:
            line.is_called = False
            if trouble and not self._stopping.is_set():
                self._missed(to, line, trouble)
            self._changed.notify_all()

    def _next(self, line: _Line) -> _Job | None:
        with self._changed:
            return None if self._stopping.is_set() else next(iter(line.waiting.values()), None)

    def _tell(self, job: _Job, tell: Callable[[Report], None]) -> None:
        with self._changed:
            report = self._commitments.report(job.it.id)
        refusal = ""
        try:
            tell(report)
        except ReportFailed as error:
            if not error.is_final:
                raise
            refusal = str(error)
        with self._changed:
            self._end(job, refusal)

    def _end(self, job: _Job, trouble: str = "") -> None:
        """The result was told, or never will be."""
        if self._is_closed:
            return  # it is told once more by the next receiver
        self._commitments.ended(job.it.id, time.time(), trouble)
        self._jobs.pop(job.it.id, None)
        self._leave_lines(job.it.id)
        if trouble:
            LOGGER.error("a storage commitment of %s was given up: %s", job.it.ae_title, trouble)
        else:
            LOGGER.info("a storage commitment of %s was reported", job.it.ae_title)

    def _missed(self, to: _Destination, line: _Line, trouble: str) -> None:
        """A call was in vain: wait longer than the last time, or give up."""
        if self._is_closed:
            return
        now = time.monotonic()
        jobs = list(line.waiting.values())
        for job in jobs:
            waited = job.it.waited_s + (now - job.missed_at if job.missed_at else 0.0)
            job.it = replace(job.it, attempts=job.it.attempts + 1, waited_s=waited)
            job.missed_at = now
        line.due = now + self._pause(min((job.it.attempts for job in jobs), default=1))
        if not line.is_warned:
            line.is_warned = True
            LOGGER.error(
                "%d storage commitments could not be reported to %s: %s; %s. It is tried again for days",
                *(len(jobs), to.ae_title, trouble, self._reporter.remedy(to.ae_title, to.address)),
            )
        try:
            self._commitments.missed([job.it for job in jobs], trouble)
            for job in jobs:
                if job.it.waited_s > self._give_up_s:
                    self._end(job, trouble)
        except StoreError as error:
            LOGGER.warning("attempts to report storage commitments could not be noted: %s", error)
