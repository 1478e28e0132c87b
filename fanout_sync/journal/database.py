"""The SQLite file of a journal: opened, marked as ours, and every trouble with it in one sentence."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..errors import JournalError
from .rows import DECLARATIONS

APPLICATION_ID = 0x66616E6F
"""`"fano"`: what `PRAGMA application_id` of a journal says."""

SCHEMA_VERSION = 2
"""What `PRAGMA user_version` of a journal says.

Those of version 1 have four more columns in `workflows` (token, pid_space, started, renewed), which are not used now.
"""

BUSY_S = 10.0
"""How long to wait for another program that keeps the file locked."""

CHECKPOINT_PAGES = 8000
"""So large, in pages of 4 KiB, the write-ahead log becomes before it is moved into the file, while the run waits.

What is written a few rows at a time writes the same pages again and again; moved later, each is moved once.
"""

SCHEMA = f"""
CREATE TABLE workflows (
    id INTEGER PRIMARY KEY,
    workflow_id TEXT NOT NULL UNIQUE,
    pid INTEGER,     -- of the process that holds it, or was the last to hold it: see `lock`
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

_CREATION = (
    *filter(str.strip, SCHEMA.split(";\n")),
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_MARK = """
SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
FROM pragma_application_id, pragma_user_version
"""
# One statement, so that all three are of one moment: somebody else may just be making the file.
_RETRY_S = 0.01


def writer_of(path: Path) -> sqlite3.Connection:
    """Open a journal to write in, and make it if there is none; what is there is looked through for damage first.

    Raises:
        JournalError: It cannot be used; the error says why and what to do.
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
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def reader_of(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a journal to read in, for the length of a `with` block; errors of SQLite in the block are explained too.

    Raises:
        JournalError: It cannot be read; the error says why and what to do.
    """
    _refuse_what_is_no_file(path)
    with explained(path):
        if not path.exists():
            raise JournalError(f"{path}: there is no such file; check the path, or run with it as journal first")
    with explained(path), closing(_reader(path)) as connection:
        yield connection


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Make a `JournalError` of any error of SQLite or of the system in the block."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        raise JournalError(f"{path}: {_explanation(path, error)}") from error
    except UnicodeEncodeError as error:
        raise JournalError(f"{path}: no text of a journal, such as {error.object!r}: {error.reason}") from error
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror or error}; check the storage") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all of the block or nothing, with nobody else writing meanwhile."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:  # something went wrong; an interrupt too may not leave it half done
            connection.execute("ROLLBACK")


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    # A URI, because only that can say "but do not make it".
    uri = f"{path.as_uri()}?{'immutable=1' if mode == 'immutable' else f'mode={mode}'}"
    return sqlite3.connect(uri, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=True)


def _reader(path: Path) -> sqlite3.Connection:
    # Not `mode=ro`: whoever may not write leaves -wal and -shm lying about on closing. SQLite itself turns to reading
    # only where the file cannot be written.
    try:
        return _checked_reader(_connected(path, "rw"), path)
    except sqlite3.OperationalError as error:
        # In a directory that cannot be written, or on a full disk, no side files can be made. If there are none then
        # the file is all there is, and nobody writes it.
        if "locked" in str(error) or (wal_of(path).exists() and wal_of(path).stat().st_size):
            raise
        return _checked_reader(_connected(path, "immutable"), path)


def _checked_reader(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    try:
        if _is_journal(connection, path):
            connection.execute("PRAGMA query_only = 1")
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    return _empty()


def _empty() -> sqlite3.Connection:
    # A journal in memory: an empty file reads as one without workflows.
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in _CREATION:
        connection.execute(statement)
    return connection


def wal_of(path: Path) -> Path:
    """Return the path of the write-ahead log beside a journal."""
    real = Path(os.path.realpath(path))  # SQLite follows a symbolic link before it makes its files
    return real.with_name(f"{real.name}-wal")


def _is_journal(connection: sqlite3.Connection, path: Path) -> bool:
    # Whether there is a journal in it; False if there is nothing at all.
    application, version, tables = connection.execute(_MARK).fetchone()
    if not application and not version and not tables:
        return False
    if application != APPLICATION_ID:
        raise JournalError(f"{path}: is an SQLite database, but no journal of fanout_sync; give another path")
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"{path}: was written by a newer version of fanout_sync (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade fanout_sync"
        )
    return True


def _refuse_damage(connection: sqlite3.Connection, path: Path) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise JournalError(f"{path}: {_DAMAGED.format(reason=' '.join(verdict.split()))}")


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    # SQLite does not wait here: of two that make the file at once, one would hear at once that it is locked.
    give_up_at = time.monotonic() + BUSY_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_at:
                raise
        time.sleep(_RETRY_S)
    if mode != "wal":
        raise JournalError(f"{path}: its file system is not fit for a journal in use; put it on a local disk")


_DAMAGED = "is damaged ({reason}); put back a copy of it, or move it away and begin anew"
_EXPLANATIONS = {
    "not a database": "is no SQLite database, so no journal; give another path",
    "malformed": _DAMAGED,
    "no such": _DAMAGED,
    "decode": _DAMAGED,
    "is full": "cannot be written, the disk is full; make room and run again, what is journalled is kept",
    "readonly": "cannot be written, it is read-only; make it writable, or use a copy of it elsewhere",
    "locking protocol": "its file system cannot lock files; put it on a local disk",
    "locked": "is kept locked by another program (waited {busy:g} s); let that end, and run again",
    "too big": "cannot be written, a record is too big for SQLite ({reason})",
    "I/O": "the storage fails ({reason}); make sure that the disk is in order and has room",
}


def _explanation(path: Path, error: BaseException) -> str:
    # By the text: Python tells SQLite's error codes from 3.11 on.
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
            raise JournalError(f"{path}: is no regular file; give another path")
