"""The committer process as its parent sees it: started, asked, given up.

Used by `ingest.py` only, by whichever thread has the turn to commit; started by the committer thread, since
the kernel ends the process with the thread that has started it. Nothing depends on it: a process that cannot
start, dies, hangs or refuses costs some time, and ever less often.
"""

import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from dicomfs.batch import Pending
from dicomfs.committer import READY, Answer, message
from dicomfs.errors import BadInstance
from dicomfs.model import Outcome
from dicomfs.service import python_path

COMMAND: Final = (sys.executable, "-m", "dicomfs.committer")
SILENCE_S: Final = 10.0
"""For a batch; a process that says nothing for so long is given up: it is its parent's turn then, and senders
wait for some 30 s only."""
START_S: Final = 60.0
_END_S: Final = 5.0
_PAUSE_S: Final = 1.0
"""After a failure; twice as long after each further one."""
_LONGEST_PAUSE_S: Final = 600.0
_REST_S: Final = 60.0
_MOST_IN_VAIN: Final = 5
"""Batches that it has not committed, one after the other: it is of no use now."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    pipe: Connection
    since: float
    is_ready: bool = False

    def kill(self) -> int:
        """Its exit code. Waits as long as a disk keeps it in the kernel; there it would keep us, too."""
        self.process.kill()
        return self.process.wait()


class CommitterProcess:
    """One at a time, for one store; used by one thread at a time. No failure of it is an error."""

    def __init__(
        self, store: Path, silence_s: float = SILENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._silence_s = silence_s
        self._clock = clock
        self._running: _Running | None = None
        self._pause_s = 0.0
        self._not_before = 0.0
        self._in_vain = 0

    @property
    def pid(self) -> int:
        """Of the process; 0: there is none."""
        running = self._running  # asked without the turn: it may end at any moment
        return running.process.pid if running else 0

    def is_ready(self) -> bool:
        """Whether a batch may be handed over. Starts the process if need be, and never waits for it."""
        running = self._running
        if running is None:
            if self._clock() >= self._not_before:
                self._start()
            return False
        if not running.is_ready:
            try:
                if running.pipe.poll():
                    running.is_ready = running.pipe.recv() == READY
                    if not running.is_ready:
                        self._give_up("is of another version: restart the receiver")
                elif self._clock() - running.since > START_S:
                    self._give_up(f"is not ready after {START_S:g} s")
            except Exception:  # noqa: BLE001  whatever it says: it is not needed
                self._give_up("does not start")
        return running.is_ready

    def commit(self, batch: Sequence[Pending]) -> list[Outcome | BadInstance] | None:
        """The outcomes of a batch that is committed, and durable; only when `is_ready`.

        None: it is not, or the process is dead and nobody knows. Some of the batch may be published.
        """
        if self._running is None:
            return None
        try:
            self._running.pipe.send(message(batch))
            answer: Answer = self._running.pipe.recv()
        except BlockingIOError:
            self._give_up(f"has said nothing for {self._silence_s:g} s")
            return None
        except (OSError, EOFError):
            self._give_up("has ended")
            return None
        except Exception as error:  # noqa: BLE001  its parent does what it does not
            # Its answer, should it come, would be taken for that to the next batch.
            self._give_up(f"is not understood ({type(error).__name__})")
            return None
        if isinstance(answer, list):
            self._in_vain = 0
            if self._clock() - self._running.since > _LONGEST_PAUSE_S:
                self._pause_s = 0.0
            return answer
        if answer is not None:
            log.error("internal error of the committer process: %s", answer)
        self._in_vain += 1
        if self._in_vain >= _MOST_IN_VAIN:
            self._in_vain = 0
            self._give_up(f"has committed nothing {_MOST_IN_VAIN} times in a row")
        return None

    def end(self) -> None:
        """End it; it may be started again at once."""
        running, self._running = self._running, None
        if running is not None:
            running.pipe.close()
            if not running.is_ready:
                running.kill()  # it has done nothing, and would take its time to find out
            try:
                running.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                running.kill()

    def rest(self) -> None:
        """End it, and do not start it for a while: the store is in trouble, and may have to be unmounted."""
        self.end()
        self._not_before = self._clock() + _REST_S

    def _start(self) -> None:
        try:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                # So that neither a question nor an answer is waited for without end.
                limit = struct.pack("@ll", int(self._silence_s), int(self._silence_s % 1 * 1e6))
                for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                    ours.setsockopt(socket.SOL_SOCKET, option, limit)
                number = theirs.fileno()
                process = subprocess.Popen(
                    [*COMMAND, str(self._store), str(number), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[number],
                    env={**os.environ, "PYTHONPATH": python_path()},
                    process_group=0,
                )
                self._running = _Running(process, Connection(ours.detach()), self._clock())
        except (OSError, MemoryError) as error:
            self._put_off()
            why = getattr(error, "strerror", None) or "out of memory"
            log.warning("the committer process cannot be started: %s; %s", why, self._without())

    def _give_up(self, why: str) -> None:
        """Kill and reap it: what it has not committed by then, it never will."""
        running, self._running = self._running, None
        if running is not None:
            running.pipe.close()
            code = running.kill()
            if code not in (0, -signal.SIGKILL):
                why += f" (exit code {code})"
        self._put_off()
        log.warning("the committer process %s; %s", why, self._without())

    def _put_off(self) -> None:
        self._pause_s = min(2 * self._pause_s or _PAUSE_S, _LONGEST_PAUSE_S)
        self._not_before = self._clock() + self._pause_s

    def _without(self) -> str:
        return f"receiving goes on without it; it is tried again in {self._pause_s:g} s"
