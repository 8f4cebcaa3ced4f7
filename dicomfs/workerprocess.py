"""One render process as its parent sees it: started, asked, killed.

Knows the protocol and the operating system, and nothing of queues or priorities. Used by `workers.py` and
`schedule.py`, on trio's thread.
"""

import fcntl
import logging
import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import trio

from dicomfs.errors import WorkerStartFailed
from dicomfs.protocol import (
    READY_JOB,
    REQUEST_HEAD_BYTES,
    Answer,
    AnswerReader,
    BrokenAnswer,
    Status,
    frame_request,
)
from dicomfs.service import python_path

log = logging.getLogger(__name__)

REAP_LIMIT_S = 5.0
"""How long a killed process may take to vanish; longer only when it hangs in the kernel."""
DEATH_LIMIT_S = 1.0
"""From the end of a process's output to the end of the process."""
PIPE_BYTES = 1 << 20
"""Capacity of the answer pipe: most pictures arrive in one piece."""
_PUT_BYTES = select.PIPE_BUF - REQUEST_HEAD_BYTES
"""So much is written whole or not at all (pipe(7))."""
LAST_WORDS_CHARACTERS = 4_000


class WorkerDied(Exception):
    """The process closed its output before the answer was complete."""


class WorkerProcess:
    """One worker process, seen from the parent. One task sends and reads; `put` is for any."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._pipes = [pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe is not None]
        self._in, self._out, self._err = (pipe.fileno() for pipe in self._pipes)
        self._pidfd = os.pidfd_open(process.pid)
        self.pid = process.pid
        self.jobs = 0
        """That it has been given."""
        self._due: deque[tuple[int, bytes]] = deque()
        """Number and body of those that it has not answered."""
        for number in (self._in, self._out, self._err):
            os.set_blocking(number, False)
        with suppress(OSError):  # the user's share of pipe memory is used up: slower, not wrong
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @classmethod
    async def start(cls, command: Sequence[str], memory_bytes: int, limit_s: float) -> Self:
        """A process that has said it is ready. Raises WorkerStartFailed with what it printed."""
        # Started in this thread and not in one of trio's: the kernel ends the worker with the *thread* that
        # started it, and trio's threads end when they have been idle for some seconds.
        try:
            self = cls(_spawn((*command, str(memory_bytes), str(os.getpid()))))
        except OSError as error:
            raise WorkerStartFailed(f"The render worker cannot be started: {error}") from error
        why = f"not ready within {limit_s:g} s"
        try:
            with trio.move_on_after(limit_s):
                if (await self._read(AnswerReader(READY_JOB, 0))).status is Status.READY:
                    return self
        except WorkerDied:
            why = await self.how_it_ended()
        except BrokenAnswer as error:
            why = str(error)
        except BaseException:
            await self.end()
            raise
        words = self.last_words()
        await self.end()
        raise WorkerStartFailed(f"The render worker does not start ({why}): {words}")

    async def send(self, body: bytes) -> None:
        """Give it a job; it has none. Raises WorkerDied; after that and after cancellation, `end` it."""
        rest = memoryview(frame_request(self.jobs + 1, body))
        while rest:
            try:
                rest = rest[os.write(self._in, rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._in)
            except BrokenPipeError:
                raise WorkerDied from None
        self._is_given(body)

    def put(self, body: bytes) -> bool:
        """Put a job behind the one that it has; False when that cannot be done whole and at once."""
        if len(body) > _PUT_BYTES:
            return False
        try:
            os.write(self._in, frame_request(self.jobs + 1, body))
        except (BlockingIOError, BrokenPipeError):  # the job that it has will show that it has ended
            return False
        self._is_given(body)
        return True

    def _is_given(self, body: bytes) -> None:
        self.jobs += 1
        self._due.append((self.jobs, body))

    @property
    def due(self) -> int:
        """Jobs that it has been given and has not answered."""
        return len(self._due)

    async def answer(self, body: bytes) -> Answer:
        """To that job, the earliest that is due.

        Raises WorkerDied, BrokenAnswer; after these and after cancellation, `end` it.
        """
        number, due = self._due[0]
        if due != body:  # never: but it would be one patient's picture under another's name
            raise BrokenAnswer("the answer that is due is to another job")
        answer = await self._read(AnswerReader(number))
        self._due.popleft()
        return answer

    async def _read(self, reader: AnswerReader) -> Answer:
        # First: an answer takes far longer than it takes us to come here.
        await trio.lowlevel.wait_readable(self._out)
        while True:
            try:
                # No more than belongs to this answer: the next may have come, too.
                piece = os.read(self._out, min(reader.missing, PIPE_BYTES))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._out)
                continue
            if not piece:
                raise WorkerDied
            if (answer := reader.feed(piece)) is not None:
                return answer

    def has_ended(self) -> bool:
        """True when the process is gone, whoever ended it."""
        return self._process.poll() is not None

    async def how_it_ended(self) -> str:
        """Name of the signal or exit code, for a process that has closed its output."""
        with trio.move_on_after(DEATH_LIMIT_S):
            await trio.lowlevel.wait_readable(self._pidfd)
        code = self._process.poll()
        if code is None:
            return "closed its output"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def last_words(self) -> str:
        """The end of what it wrote on standard error: of a start, or the trace of a crash."""
        try:
            words = os.read(self._err, PIPE_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            return "(silence)"
        return "".join(
            c if c.isprintable() or c == "\n" else "?" for c in words[-LAST_WORDS_CHARACTERS:]
        ).strip()

    async def end(self) -> None:
        """Kill it if it lives, and reap it. *Cancellation*: shielded, at most `REAP_LIMIT_S`."""
        self._process.kill()
        with trio.move_on_after(REAP_LIMIT_S, shield=True):
            await trio.lowlevel.wait_readable(self._pidfd)
        if self._process.poll() is None:
            log.error("Render worker %d does not die: it hangs in the kernel", self.pid)
        os.close(self._pidfd)
        for pipe in self._pipes:
            pipe.close()


def _spawn(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a process with three pipes, out of reach of Ctrl-C, with an environment of its own."""
    inherited = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME")
    env = {name: os.environ[name] for name in inherited if name in os.environ}
    env["PYTHONPATH"] = python_path()
    env["LC_ALL"] = "C.UTF-8"
    # Threads reserve address space and buy nothing: jobs run in parallel.
    for library in ("OPENBLAS", "OMP", "MKL"):
        env[f"{library}_NUM_THREADS"] = "1"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, env=env, process_group=0
    )
