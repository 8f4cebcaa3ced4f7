"""SQL that is compiled once; what SQLAlchemy does for each execution costs more than SQLite's part.

Used by `owners.py` and `writer.py`, whose statements run for every object that comes in.
"""

from functools import cached_property
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable
from sqlalchemy.dialects.sqlite import dialect


class Statement:
    """A statement whose parameters are named by `bindparam`."""

    def __init__(self, statement: Any) -> None:
        self._statement = statement

    @cached_property
    def _compiled(self) -> tuple[str, list[str], dict[str, Any]]:
        statement: Executable = self._statement
        compiled = statement.compile(dialect=dialect())  # type: ignore[attr-defined]
        return str(compiled), list(compiled.positiontup), dict(compiled.params)

    def run(self, connection: Connection, **values: Any) -> CursorResult[Any]:
        """Execute with these values for its parameters."""
        text, names, defaults = self._compiled
        given = tuple(values[name] if name in values else defaults[name] for name in names)
        return connection.exec_driver_sql(text, given)
