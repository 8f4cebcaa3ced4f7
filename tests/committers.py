"""A committer process that stops, fails or never begins: `python -m tests.committers HOW … STORE FD PID`.

Put in the place of the real one by `tests/integration/test_committer.py`, for it to be killed or given up.
"""

import json
import logging
import sys
import threading
from functools import partial

from dicomfs import committer
from dicomfs.errors import StoreFull
from dicomfs.writer import Writer
from tests.stops import Point, stop_at, watch_statements


def _fail(error: Exception, *_: object) -> None:
    raise error


def main() -> int:
    """As `committer.main`, but for `HOW`."""
    how, detail, *argv = sys.argv[1:]
    logging.disable()
    if how == "end":
        return 3
    if how == "silent":
        threading.Event().wait()
    if how == "full":
        Writer.add = partial(_fail, StoreFull("on purpose"))  # type: ignore[method-assign,assignment]
    if how == "bug":
        Writer.add = partial(_fail, RuntimeError(detail))  # type: ignore[method-assign,assignment]
    if how == "stop":
        watch_statements()
        stop_at(Point(**json.loads(detail)))()
    return committer.main(argv)


if __name__ == "__main__":
    sys.exit(main())
