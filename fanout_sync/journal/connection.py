"""Connections to SQLite that a forked child neither uses nor closes.

SQLite notes in the memory of a process which locks it holds on a file, and a forked child inherits these notes, but not
the locks. So a connection that the child opened to the same file would work without locks. Other processes, which see
none, would remove the write-ahead log while the child writes to it, and its rows would be lost. See
https://sqlite.org/howtocorrupt.html#_carrying_an_open_database_file_across_a_fork_.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import forks
from ..errors import JournalError

_in_sqlite = forks.ForkDelay()
"""SQLite has locks, such as that of its memory, which all its connections share."""


class Connection(sqlite3.Connection):
    """A connection; made by `connect`.

    Attributes:
        file: The device and the inode of its file; `None` if it has none.
        is_inherited: Whether this is a forked child of the process that has opened it.
    """

    file: tuple[int, int] | None = None
    is_inherited = False

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """As in the class above, for statements that return no rows."""
        with _in_sqlite:
            return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> sqlite3.Cursor:  # type: ignore[override]
        with _in_sqlite:
            return super().executemany(sql, parameters)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query."""
        with _in_sqlite:
            return super().execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Return the first row of a query; `None` if there is none."""
        with _in_sqlite:
            return super().execute(sql, parameters).fetchone()

    def disown(self) -> None:
        self.is_inherited = True
        _inherited.append(self)  # kept, because the garbage collector would close it

    def close(self) -> None:
        """Close the connection; in a forked child do nothing."""
        if not self.is_inherited:
            with _in_sqlite:
                super().close()
            forks.keep_in_child(self)


def connect(database: str, path: Path | None = None, **options: Any) -> Connection:
    """Open a connection for one thread at a time, without transactions of Python's own.

    Args:
        database: As for `sqlite3.connect`.
        path: Its file; `None` if it is temporary.
        **options: As for `sqlite3.connect`.

    Raises:
        JournalError: The parent of this process had the file open when it forked.
        sqlite3.Error: As for `sqlite3.connect`.
    """
    if path is not None:
        _refuse_inherited(path)
    with _in_sqlite:
        connection = sqlite3.connect(
            database, isolation_level=None, check_same_thread=False, factory=Connection, **options
        )
    if path is not None:
        connection.file = _file_of(path)
    forks.disown_in_child(connection)
    return connection


def refuse_if_inherited(connection: Connection, path: Path) -> None:
    """Refuse to use a connection in a forked child.

    Raises:
        JournalError: It was opened before the fork.
    """
    if connection.is_inherited:
        raise JournalError(f"{path}: was opened before this process was forked, and belongs to its parent")


_inherited: list[Connection] = []
"""The connections of the parent, and of its parents."""


def _refuse_inherited(path: Path) -> None:
    files = {connection.file for connection in _inherited if connection.file is not None}
    if files and _file_of(path) in files:
        raise JournalError(
            f"{path}: was open when this process was forked, and SQLite cannot keep apart what parent and child write; "
            "give the child a journal of its own, start it before the journal is open, or with "
            "multiprocessing.get_context('spawn')"
        )


def _file_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
