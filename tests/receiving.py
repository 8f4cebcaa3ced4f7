"""A receiver that is as far as a test needs it."""

from dicomfs.ingest import WORTH_A_PROCESS, Ingest
from tests.support import wait_until


def with_process(ingest: Ingest) -> int:
    """Have a store's committer process ready before anything comes; its process id.

    It ends with the thread that calls this.
    """
    ingest._together = WORTH_A_PROCESS
    wait_until(ingest._process.is_ready, "the committer process is ready", poll_seconds=0.005)
    return ingest._process.pid
