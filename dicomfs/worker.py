"""A render worker: one process that renders what it is asked for on stdin and answers on stdout.

It decodes bytes of strangers with C libraries, so it gives up what it does not need before it reads the
first request: it has no network, cannot write files, cannot grow beyond its memory limit, cannot gain
privileges, and dies with its parent. It never writes to the archive or the index, never logs, and keeps
nothing of a patient's pixels between two jobs: only tables, how pictures were asked for, and the headers of
a few files. Started by `workers.py` as `python -m dicomfs.worker MEMORY_BYTES PARENT_PID`.

Standard output belongs to the protocol alone: what a library prints on descriptor 1 or 2 goes nowhere
once the worker is ready (it may quote a patient). The one thing that still reaches the parent through
the old standard error is faulthandler's trace of a crash, which names code and nothing else.
"""

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dicomfs.errors import NotDisplayable
from dicomfs.model import PoolWindow, Recipe, Source
from dicomfs.protocol import (
    MAX_DATA_BYTES,
    READY_JOB,
    Answer,
    LengthsRequest,
    NoticeRequest,
    PoolRequest,
    ProbeRequest,
    RenderRequest,
    Request,
    Status,
    answer_parts,
    decode_request,
    encode_lengths,
    encode_window,
    read_request,
    sentence,
)

NICENESS = 5
"""Receiving and serving what is already rendered come first."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000


class Tasks(NamedTuple):
    """What a worker can do; the tests put others in their place."""

    render: Callable[[Source, Recipe, PoolWindow | None], bytes]
    decide_pool: Callable[[Sequence[Source], str], PoolWindow]
    probe_digest: Callable[[Recipe], str]
    notice: Callable[[Recipe, str], bytes]
    length: Callable[[Source, Recipe], int | None]


def load_tasks() -> Tasks:
    """The real tasks; imported here so that limits are in force before any decoder is loaded."""
    from dicomfs import lengths, notice, render  # noqa: PLC0415

    return Tasks(render.render, render.decide_pool, render.probe_digest, notice.notice, lengths.length)


def confine(memory_bytes: int, parent_pid: int) -> None:
    """Give up network, privileges, core dumps and memory beyond `memory_bytes`; die when the parent dies.

    Without network is best effort (a container may forbid name spaces); everything else must succeed.
    `parent_pid` closes the gap in which the parent died before it could be bound to. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    # Root keeps its user name space: in a new one it could not read files of other owners.
    libc.unshare(_CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWUSER | _CLONE_NEWNET)
    _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)  # after unshare: a change of credentials clears it
    if os.getppid() != parent_pid:
        raise SystemExit("the parent is gone")
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold patient data
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # Ctrl-C and systemd reach the whole group: the parent decides
        signal.signal(number, signal.SIG_IGN)


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) refused")


def perform(tasks: Tasks, job: int, request: Request) -> Answer:
    """Do one job. Every exception becomes an answer; only the end of the process does not."""
    try:
        return _dispatch(tasks, job, request)
    except NotDisplayable as error:
        return Answer(job, Status.PERMANENT, sentence(str(error)))
    except MemoryError:
        return Answer(job, Status.EXHAUSTED, "not enough memory")
    except OSError as error:  # its text would quote the path
        return Answer(job, Status.PASSING, f"{type(error).__name__}: {error.strerror}")
    except Exception as error:  # noqa: BLE001 - the door of this process: the parent logs it as a bug
        return Answer(job, Status.BUG, _where(error))


def _dispatch(tasks: Tasks, job: int, request: Request) -> Answer:
    match request:
        case RenderRequest(source, recipe, window):
            try:
                return Answer(job, Status.DONE, data=_bounded(tasks.render(source, recipe, window)))
            except NotDisplayable as error:
                reason = sentence(str(error))
                return Answer(job, Status.PERMANENT, reason, tasks.notice(recipe, reason))
        case PoolRequest(members, policy):
            return Answer(job, Status.DONE, encode_window(tasks.decide_pool(members, policy)))
        case ProbeRequest(recipe):
            return Answer(job, Status.DONE, tasks.probe_digest(recipe))
        case LengthsRequest(members, recipe):
            found = [_length(tasks, member, recipe) for member in members]
            return Answer(job, Status.DONE, encode_lengths(found))
        case NoticeRequest(recipe, reason):
            return Answer(job, Status.DONE, data=tasks.notice(recipe, reason))


def _length(tasks: Tasks, source: Source, recipe: Recipe) -> int | None:
    """One of many: what is in the way of it, a render will say."""
    try:
        return tasks.length(source, recipe)
    except (NotDisplayable, OSError, MemoryError):
        return None


def _bounded(picture: bytes) -> bytes:
    """The picture, unless it is longer than the parent accepts. Raises NotDisplayable."""
    if len(picture) > MAX_DATA_BYTES:
        raise NotDisplayable(f"The picture would be larger than {MAX_DATA_BYTES >> 20} MiB")
    return picture


def _where(error: BaseException) -> str:
    """Class and code line of an exception; its text is left out, for it may quote the data set."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def _take_stdout() -> int:
    """Keep standard output for the protocol and send whatever is printed from now on to standard error."""
    protocol_out = os.dup(1)
    os.dup2(2, 1)
    return protocol_out


def _silence() -> None:
    """From now on prints, warnings and byte code go nowhere; a crash still leaves its trace."""
    faulthandler.enable(os.dup(2))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    # Pipes and devices stay writable, files do not; Python ignores SIGXFSZ, so a write fails with EFBIG.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _send(out: int, answer: Answer) -> None:
    """Write one answer whole; BrokenPipeError, when the parent is gone, ends the process."""
    parts = answer_parts(answer)
    written = os.writev(out, parts)
    rest = [memoryview(part) for part in parts]
    while rest:
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][written:]
            written = os.writev(out, rest)


def run(load: Callable[[], Tasks], memory_bytes: int, parent_pid: int) -> None:
    """The life of a worker: confine, load, say `READY`, answer until standard input ends."""
    out = _take_stdout()
    confine(memory_bytes, parent_pid)
    tasks = load()
    _silence()
    _send(out, Answer(READY_JOB, Status.READY))
    while (message := read_request(sys.stdin.buffer)) is not None:
        job, body = message
        _send(out, perform(tasks, job, decode_request(body)))


if __name__ == "__main__":
    run(load_tasks, int(sys.argv[1]), int(sys.argv[2]))
