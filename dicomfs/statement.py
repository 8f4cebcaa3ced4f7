"""SQL that SQLAlchemy compiles once and SQLite's driver executes.

What SQLAlchemy does for each execution takes longer than SQLite itself, and all senders wait for it, or the
kernel. Used by `owners.py`, `retired.py` and `writer.py`, whose statements run for every object that comes
in, and by `queries.py` and `renditionsfile.py` for those that lookups, listings and opens run.
"""

import sqlite3
from collections import namedtuple
from functools import cached_property
from typing import Any

from sqlalchemy import Executable
from sqlalchemy.dialects.sqlite import dialect

_ALL: "list[Statement]" = []


def compile_all() -> None:
    """Compile every statement now: else somebody waits for that at the first use of each."""
    for statement in _ALL:
        _ = statement._compiled


class Statement:
    """A statement whose parameters are named by `bindparam`; made once, by a module."""

    def __init__(self, statement: Any, row: type[Any] | None = None) -> None:
        """`row`: the named tuple that a row becomes, its fields in the order of the columns."""
        self._statement = statement
        self._given = row
        _ALL.append(self)

    @cached_property
    def _compiled(self) -> tuple[str, list[str], dict[str, Any]]:
        statement: Executable = self._statement
        compiled = statement.compile(dialect=dialect())  # type: ignore[attr-defined]
        return str(compiled), list(compiled.positiontup), dict(compiled.params)

    @cached_property
    def _row(self) -> type[Any]:
        return self._given or namedtuple("_row", self._statement.selected_columns.keys())  # noqa: PYI024  made at run time

    def run(self, connection: sqlite3.Connection, **values: Any) -> None:
        """Execute what gives no rows."""
        connection.execute(*self._bound(values))

    def first(self, connection: sqlite3.Connection, **values: Any) -> Any:
        """The first row, its columns as attributes; None when there is none."""
        row = connection.execute(*self._bound(values)).fetchone()
        return None if row is None else self._row(*row)

    def all(self, connection: sqlite3.Connection, **values: Any) -> list[Any]:
        """All rows, their columns as attributes."""
        return list(map(self._row._make, connection.execute(*self._bound(values)).fetchall()))

    def _bound(self, values: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
        text, names, defaults = self._compiled
        return text, tuple(map((defaults | values).__getitem__, names))
