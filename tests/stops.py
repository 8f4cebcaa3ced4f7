"""A process that stops itself (SIGSTOP) before or after a function, for a test to kill it there.

For `tests/steps.py` and `tests/committers.py`. Imports nothing of the product, to start quickly.
"""

import importlib
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """Before or after the nth call of a function; `text`: only calls with this argument count."""

    target: str
    """MODULE:NAME, where the caller finds it."""
    is_before: bool = False
    nth: int = 1
    text: str = ""


def stop_at(point: Point) -> Callable[[], None]:
    """Put a stop there; it counts once what is returned was called."""
    module, _, path = point.target.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    whole = getattr(owner, name)
    armed = threading.Event()
    calls: list[None] = []

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait()  # should another thread have taken the signal

    @wraps(whole)
    def watched(*args: Any, **kwargs: Any) -> Any:
        is_meant = armed.is_set() and (not point.text or point.text in args)
        if is_meant:
            calls.append(None)
        is_now = is_meant and len(calls) == point.nth
        if is_now and point.is_before:
            stop()
        try:
            return whole(*args, **kwargs)
        finally:
            if is_now:
                stop()

    setattr(owner, name, watched)
    return armed.set


class Statements(sqlite3.Connection):
    """SQLite's connection, as a class whose methods can be replaced."""

    is_synced = True

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """The same."""
        if sql == "BEGIN IMMEDIATE" and not self.is_synced:
            super().execute("PRAGMA synchronous = OFF")
        return super().execute(sql, *values)


def watch_statements() -> None:
    """Have all connections that are made from now on be such."""
    connect = partial(sqlite3.connect, factory=Statements)
    sqlite3.connect = sqlite3.dbapi2.connect = connect  # type: ignore[assignment]
