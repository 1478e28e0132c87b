"""A journal in one SQLite file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar, overload

from attrs import define, field, frozen

from ..errors import JournalError, OptionError
from ..formatting import describe
from ..records.step_record import JournalRecord
from .connection import Connection, refuse_if_inherited
from .database import explained, reader_of, transaction, writer_of
from .durability import Durability
from .journal import Journal, OpenWorkflow
from .lock import refuse_if_held, take
from .lock_file import ByteLock
from .rows import COLUMNS, POSITION, TASK_ID, Row, is_text, record_of, row_of

__all__ = ["SqliteJournal"]

logger = logging.getLogger(__name__)

_COLUMNS = ", ".join(COLUMNS)
_INSERT = f"INSERT OR REPLACE INTO steps (workflow, {_COLUMNS})"
_VALUES = f"(?{', ?' * len(COLUMNS)})"
_WRITE = f"{_INSERT} VALUES {_VALUES}"
_WRITE_STATUS = """
INSERT OR REPLACE INTO status (workflow, since, written, has_ended, text)
SELECT id, since, ?, ?, ? FROM workflows WHERE id = ?
"""
_FIND = f"SELECT {_COLUMNS} FROM steps WHERE workflow = ? AND task_id = ?"
_OF_WORKFLOW = "workflow = (SELECT id FROM workflows WHERE workflow_id = ?)"
_ROWS = f"SELECT {_COLUMNS} FROM steps WHERE {_OF_WORKFLOW}"
_IDS_AT_ONCE = 900  # SQLite before 3.32 takes 999 parameters
_ROWS_AT_ONCE = 50
_ROWS_WRITTEN_AT_ONCE = 50  # of 17 parameters each: see above


def _absolute(path: str | os.PathLike[str]) -> Path:
    is_path: bool = isinstance(path, (str, os.PathLike))
    if not is_path or not os.fspath(path) or "\0" in os.fsdecode(path):
        raise OptionError(f"path must be the path of a file, a str or a pathlib.Path, got {describe(path)}")
    if path == ":memory:":
        raise OptionError(
            "path must be the path of a file, got ':memory:'; use MemoryJournal() for a journal in memory"
        )
    return Path(os.fsdecode(path)).absolute()


@frozen
class SqliteJournal(Journal):
    """A journal in one SQLite file, which the first run creates.

    Any number of runs, in one process or in several, may use one file at once, each with its own workflow, while other
    programs read it. The file must be on a local disk: SQLite's write-ahead log does not work on network file systems
    (https://sqlite.org/wal.html).

    Attributes:
        path: The file; a relative path is made absolute. While it is in use, SQLite keeps `<path>-wal` and
            `<path>-shm` beside it. They are part of the journal: to copy a journal in use, use SQLite's own backup.
            The first run creates `<path>-lock`, which stays: an empty file in which the operating system locks a byte
            for each workflow that a run holds. It need not be copied, and may be deleted while no run uses the journal.

    Raises:
        OptionError: `path` is not the path of a file.
    """

    path: Path = field(converter=_absolute)

    def open(self, workflow_id: str) -> OpenWorkflow:
        connection = writer_of(self.path)
        try:
            with explained(self.path):
                durability = Durability.of(self.path)
                return _OpenSqliteWorkflow(self.path, connection, *take(connection, self.path, workflow_id), durability)
        except BaseException:
            connection.close()
            raise

    def workflows(self) -> list[str]:
        with reader_of(self.path) as connection:
            rows = connection.rows("SELECT workflow_id FROM workflows ORDER BY id")
        return [workflow_id for (workflow_id,) in rows]

    def records(self, workflow_id: str) -> Sequence[JournalRecord]:
        records = _Records(self.path, workflow_id)
        len(records)  # a journal that cannot be read raises here, not at the first use of the records
        return records

    def delete(self, workflow_id: str) -> None:
        with reader_of(self.path):  # does not create a missing file
            pass
        with explained(self.path), closing(writer_of(self.path)) as connection, transaction(connection):
            refuse_if_held(connection, self.path, workflow_id)
            connection.execute(f"DELETE FROM steps WHERE {_OF_WORKFLOW}", (workflow_id,))
            connection.execute(f"DELETE FROM status WHERE {_OF_WORKFLOW}", (workflow_id,))
            connection.execute("DELETE FROM workflows WHERE workflow_id = ?", (workflow_id,))


@define(eq=False)
class _OpenSqliteWorkflow(OpenWorkflow):
    _path: Path
    _connection: Connection | None
    _workflow: int  # the id of its row
    _lock: ByteLock
    _durability: Durability
    _is_unsynced: bool = True  # the row of the workflow is not synced yet
    keeps_status: ClassVar[bool] = True

    def identities(self, task_ids: Iterable[str]) -> dict[str, str | None]:
        connection = self._usable()
        wanted = filter(is_text, task_ids)
        found: dict[str, str | None] = {}
        with explained(self._path):
            while some := list(islice(wanted, _IDS_AT_ONCE)):
                marks = ", ".join("?" * len(some))
                sql = f"SELECT task_id, identity FROM steps WHERE workflow = ? AND task_id IN ({marks})"
                found.update(connection.rows(sql, (self._workflow, *some)))
        return found

    def find(self, task_id: str) -> JournalRecord | None:
        connection = self._usable()
        if not is_text(task_id):
            return None
        with explained(self._path):
            row = connection.row(_FIND, (self._workflow, task_id))
        return None if row is None else _read(self._path, row)

    def write(self, records: Sequence[JournalRecord]) -> None:
        connection = self._usable()
        rows = [(self._workflow, *row_of(record)) for record in records]
        self._is_unsynced = True
        with explained(self._path):
            self._lock.keep()
            if len(rows) > _ROWS_WRITTEN_AT_ONCE:
                with transaction(connection):
                    connection.executemany(_WRITE, rows)
            elif rows:
                # One statement is a transaction, too. Each further one would let other threads run in between.
                sql = f"{_INSERT} VALUES {', '.join([_VALUES] * len(rows))}"
                connection.execute(sql, tuple(chain.from_iterable(rows)))

    def sync(self) -> None:
        self._usable()
        if self._is_unsynced:
            with explained(self._path):
                self._lock.check()
                self._durability.sync()
            self._is_unsynced = False

    def write_status(self, text: str, *, has_ended: bool) -> None:
        # Not synced: after a power failure nobody watches.
        connection = self._usable()
        with explained(self._path):
            self._lock.keep()
            connection.execute(_WRITE_STATUS, (time.time(), has_ended, text, self._workflow))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            with explained(self._path), closing(connection):
                self._durability.close()
        except JournalError:  # what was written is in the file or in its log all the same
            logger.warning("a journal could not be closed", exc_info=True)
        finally:
            self._lock.release()

    def __del__(self) -> None:
        with suppress(Exception):  # an interrupt may have prevented `close`, or the end of the constructor
            self.close()

    def _usable(self) -> Connection:
        if self._connection is None:
            raise JournalError(f"{self._path}: the workflow has been closed; open it again")
        refuse_if_inherited(self._connection, self._path)
        return self._connection


@frozen(eq=False)
class _Records(Sequence[JournalRecord]):
    # The records of a workflow, read when they are asked for.
    _path: Path
    _workflow_id: str

    def __len__(self) -> int:
        with reader_of(self._path) as connection:
            return self._count(connection)

    def __iter__(self) -> Iterator[JournalRecord]:
        return self._walk("ASC", ">", (-1, ""))

    def __reversed__(self) -> Iterator[JournalRecord]:
        return self._walk("DESC", "<", (2**63 - 1, ""))

    def _walk(self, order: str, beyond: str, place: tuple[int, str]) -> Iterator[JournalRecord]:
        # Read in batches, each from where the last one ended: a query that stays open while the caller works on a row
        # would keep SQLite from starting the write-ahead log again.
        sql = (
            f"{_ROWS} AND (position, task_id) {beyond} (?, ?) "
            f"ORDER BY position {order}, task_id {order} LIMIT {_ROWS_AT_ONCE}"
        )
        with reader_of(self._path) as connection:
            while rows := connection.rows(sql, (self._workflow_id, *place)):
                for row in rows:
                    yield _read(self._path, row)
                refuse_if_inherited(connection, self._path)
                place = (rows[-1][POSITION], rows[-1][TASK_ID])

    @overload
    def __getitem__(self, index: int) -> JournalRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[JournalRecord]: ...
    def __getitem__(self, index: int | slice) -> JournalRecord | list[JournalRecord]:
        with reader_of(self._path) as connection:
            places = range(self._count(connection))[index]
            if isinstance(places, int):
                return self._some(connection, places, 1)[0]
            if not places:
                return []
            first = min(places[0], places[-1])
            rows = self._some(connection, first, max(places[0], places[-1]) - first + 1)
            return [rows[place - first] for place in places]

    def _count(self, connection: Connection) -> int:
        sql = f"SELECT count(*) FROM steps WHERE {_OF_WORKFLOW}"
        (count,) = connection.row(sql, (self._workflow_id,))
        return int(count)

    def _some(self, connection: Connection, first: int, count: int) -> list[JournalRecord]:
        sql = f"{_ROWS} ORDER BY position, task_id LIMIT ? OFFSET ?"
        rows = connection.rows(sql, (self._workflow_id, count, first))
        return [_read(self._path, row) for row in rows]

    def __repr__(self) -> str:
        return f"<records of workflow {self._workflow_id!r} in {self._path}>"


def _read(path: Path, row: Row) -> JournalRecord:
    try:
        return record_of(row)
    except JournalError as error:
        raise JournalError(f"{path}: {error}") from error
