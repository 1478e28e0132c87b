"""The SQLite file of a journal: opening it, recognising it, and explaining each error of SQLite in one sentence."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..errors import JournalError
from .connection import Connection, connect
from .rows import DECLARATIONS

APPLICATION_ID = 0x66616E6F
"""`"fano"` in ASCII: the `PRAGMA application_id` of a journal."""

SCHEMA_VERSION = 2
"""The `PRAGMA user_version` of a journal.

Journals of version 1 have four more columns in `workflows` (token, pid_space, started, renewed), unused now.
"""

BUSY_S = 10.0
"""How many seconds to wait for another program that keeps the file locked."""

CHECKPOINT_PAGES = 8000
"""The size of the write-ahead log, in pages of 4 KiB, at which SQLite copies it into the file, while the run waits.

A journal is written a few rows at a time, so the same pages are written again and again. A larger log is copied less
often, and each page in it only once.
"""

SCHEMA = f"""
CREATE TABLE workflows (
    id INTEGER PRIMARY KEY,
    workflow_id TEXT NOT NULL UNIQUE,
    pid INTEGER,     -- of the process that holds the workflow or was the last to hold it: see `lock`
    host TEXT,       -- of that process
    since REAL       -- seconds since the epoch
);
CREATE TABLE steps (
    workflow INTEGER NOT NULL REFERENCES workflows (id),
    {", ".join(DECLARATIONS)},
    PRIMARY KEY (workflow, task_id)
);
CREATE INDEX steps_in_order ON steps (workflow, position, task_id);
"""

STATUS_SCHEMA = """
CREATE TABLE IF NOT EXISTS status (
    workflow INTEGER PRIMARY KEY REFERENCES workflows (id),
    since REAL,      -- of the run that wrote it: as in its workflow, unless another run holds that now, or did
    written REAL NOT NULL,       -- seconds since the epoch
    has_ended INTEGER NOT NULL,  -- whether the run was over then
    text TEXT NOT NULL           -- JSON: how the run stood
)
"""
"""How the latest run of each workflow stands.

Journals that were written before have no such table until they are opened for writing again. It is no new version of
the schema: earlier versions of this package read and write the file as before.
"""

_CREATION = (
    *filter(str.strip, SCHEMA.split(";\n")),
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_MARK = """
SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
FROM pragma_application_id, pragma_user_version
"""
# One statement, so that the three values are consistent: another process may be creating the file at the same time.
_RETRY_S = 0.01


def writer_of(path: Path) -> Connection:
    """Open a journal for writing and check it for damage; create it if there is none.

    Raises:
        JournalError: The journal cannot be used; the error says why and what to do.
    """
    _refuse_what_is_no_file(path)
    with explained(path):
        connection = _connected(path, "rwc")
        try:
            if _is_journal(connection, path):
                _refuse_damage(connection, path)
            _use_wal(connection, path)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            with transaction(connection):
                if not _is_journal(connection, path):
                    for statement in _CREATION:
                        connection.execute(statement)
                connection.execute(STATUS_SCHEMA)
                # An older version, which would not see who holds a workflow, refuses the file from now on.
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def reader_of(path: Path) -> Iterator[Connection]:
    """Open a journal for reading, for the length of a `with` block; errors of SQLite in the block are explained too.

    Raises:
        JournalError: The journal cannot be read; the error says why and what to do.
    """
    _refuse_what_is_no_file(path)
    with explained(path):
        if not path.exists():
            raise JournalError(f"{path}: there is no such file; check the path, or run with it as journal first")
    with explained(path), closing(_reader(path)) as connection:
        yield connection


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn any error of SQLite or of the operating system in the block into a `JournalError`."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        raise JournalError(f"{path}: {_explanation(path, error)}") from error
    except UnicodeEncodeError as error:
        raise JournalError(f"{path}: {error.object!r} cannot be stored in a journal: {error.reason}") from error
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror or error}; check the storage") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block as one transaction: all or nothing, and no other connection writes meanwhile."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:  # an error or an interrupt; neither may leave the transaction open
            connection.execute("ROLLBACK")


def _connected(path: Path, mode: str) -> Connection:
    # A URI, because only a URI can say "do not create the file".
    uri = f"{path.as_uri()}?{'immutable=1' if mode == 'immutable' else f'mode={mode}'}"
    return connect(uri, path, timeout=BUSY_S, uri=True)


def _reader(path: Path) -> Connection:
    # Not `mode=ro`: a read-only connection leaves -wal and -shm behind when it closes. SQLite itself opens a file
    # read-only that it cannot write.
    try:
        return _checked_reader(_connected(path, "rw"), path)
    except sqlite3.OperationalError as error:
        # In a read-only directory, or on a full disk, SQLite cannot create its side files. If there is no log, then
        # nobody writes the journal and the file is complete.
        if "locked" in str(error) or (wal_of(path).exists() and wal_of(path).stat().st_size):
            raise
        return _checked_reader(_connected(path, "immutable"), path)


def _checked_reader(connection: Connection, path: Path) -> Connection:
    try:
        if _is_journal(connection, path):
            connection.execute("PRAGMA query_only = 1")
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    return _empty()


def _empty() -> Connection:
    # An empty file is read as a journal without workflows.
    connection = connect(":memory:")
    for statement in _CREATION:
        connection.execute(statement)
    return connection


def wal_of(path: Path) -> Path:
    """Return the path of the write-ahead log beside a journal."""
    real = Path(os.path.realpath(path))  # SQLite follows a symbolic link before it makes its files
    return real.with_name(f"{real.name}-wal")


def _is_journal(connection: Connection, path: Path) -> bool:
    # False if the file is empty.
    application, version, tables = connection.row(_MARK)
    if not application and not version and not tables:
        return False
    if application != APPLICATION_ID:
        raise JournalError(f"{path}: is an SQLite database, but not a journal of fanout_sync; give another path")
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"{path}: was written by a newer version of fanout_sync (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade fanout_sync"
        )
    return True


def _refuse_damage(connection: Connection, path: Path) -> None:
    (verdict,) = connection.row("PRAGMA quick_check(1)")
    if verdict != "ok":
        raise JournalError(f"{path}: {_DAMAGED.format(reason=' '.join(verdict.split()))}")


def _use_wal(connection: Connection, path: Path) -> None:
    # SQLite does not wait here: of two processes that create the file, one would get the error "locked" at once.
    give_up_at = time.monotonic() + BUSY_S
    while True:
        try:
            (mode,) = connection.row("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_at:
                raise
        time.sleep(_RETRY_S)
    if mode != "wal":
        raise JournalError(
            f"{path}: its file system does not support the write-ahead log of SQLite; put it on a local disk"
        )


_DAMAGED = "is damaged ({reason}); restore it from a copy, or move it away and start again"
_EXPLANATIONS = {
    "not a database": "is not an SQLite database, so not a journal; give another path",
    "malformed": _DAMAGED,
    "no such": _DAMAGED,
    "decode": _DAMAGED,
    "is full": "cannot be written, the disk is full; make room and run again: what is journalled is kept",
    "readonly": "cannot be written, it is read-only; make it writable, or use a copy of it elsewhere",
    "locking protocol": "its file system cannot lock files; put it on a local disk",
    "locked": "is locked by another program (waited {busy:g} s); let that program end, and run again",
    "too big": "cannot be written, a record is too big for SQLite ({reason})",
    "I/O": "reading or writing failed ({reason}); make sure that the disk is in order and has room",
}


def _explanation(path: Path, error: BaseException) -> str:
    # By the text, because Python has SQLite's error codes only from 3.11 on.
    text = str(error)
    if "unable to open" in text:
        return _obstacle(path)
    for sign, explanation in _EXPLANATIONS.items():
        if sign in text:
            return explanation.format(reason=text, busy=BUSY_S)
    return f"SQLite fails ({type(error).__name__}: {text})"


def _obstacle(path: Path) -> str:
    folder = wal_of(path).parent
    if not folder.is_dir():
        return f"there is no directory {folder}; make it, or give another path"
    if path.exists() and not os.access(path, os.R_OK):
        return "cannot be read, permission is denied; change its permissions, or give another path"
    if not os.access(folder, os.W_OK):
        if wal_of(path).exists():
            return f"cannot be read while {folder} cannot be written; copy it and {wal_of(path).name} elsewhere"
        return f"cannot be written, {folder} is read-only or permission is denied; give another path"
    return "cannot be opened; make sure that the disk has room, and that not too many files are open"


def _refuse_what_is_no_file(path: Path) -> None:
    with explained(path):
        if path.is_dir():
            raise JournalError(f"{path}: is a directory; give the path of a file")
        if path.exists() and not path.is_file():
            raise JournalError(f"{path}: is not a regular file; give another path")
