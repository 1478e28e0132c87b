"""One run's hold on one workflow of an SQLite journal: a lock of the system, and a row that names the holder."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from datetime import datetime, timezone
from pathlib import Path

from ..errors import JournalError
from .database import transaction
from .lock_file import ByteLock, byte_lock


def take(connection: sqlite3.Connection, path: Path, workflow_id: str) -> tuple[int, ByteLock]:
    """Take hold of a workflow, which is begun if there is no such one.

    Returns:
        The id of its row, and the lock.

    Raises:
        JournalError: Another run holds it, or it cannot be locked.
    """
    lock = byte_lock(path, workflow_id)
    try:
        with transaction(connection):
            connection.execute("INSERT OR IGNORE INTO workflows (workflow_id) VALUES (?)", (workflow_id,))
            _lock_or_refuse(lock, connection, path, workflow_id)
            holder = (os.getpid(), socket.gethostname(), time.time())
            connection.execute(
                "UPDATE workflows SET pid = ?, host = ?, since = ? WHERE workflow_id = ?", (*holder, workflow_id)
            )
            sql = "SELECT id FROM workflows WHERE workflow_id = ?"
            (workflow,) = connection.execute(sql, (workflow_id,)).fetchone()
    except BaseException:
        lock.release()
        raise
    return workflow, lock


def refuse_if_held(connection: sqlite3.Connection, path: Path, workflow_id: str) -> None:
    """Refuse to go on, within a transaction, if a run holds the workflow; none can begin before that ends.

    Raises:
        JournalError: One does; the error names it. Or it cannot be locked.
    """
    lock = byte_lock(path, workflow_id)
    _lock_or_refuse(lock, connection, path, workflow_id)
    lock.release()


def _lock_or_refuse(lock: ByteLock, connection: sqlite3.Connection, path: Path, workflow_id: str) -> None:
    # Within a transaction, so that the row names whoever has the lock and not who had it before.
    if not lock.take():
        sql = "SELECT pid, host, since FROM workflows WHERE workflow_id = ?"
        row = connection.execute(sql, (workflow_id,)).fetchone()
        who = "another run" if row is None or None in row else _named(*row)  # in a file that has replaced theirs
        raise JournalError(
            f"{path}: workflow {workflow_id!r} is held by {who}; let that run end, or use another workflow id"
        )


def _named(pid: int, host: str, since: float) -> str:
    who = "this process," if (pid, host) == (os.getpid(), socket.gethostname()) else "process"
    moment = datetime.fromtimestamp(since, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{who} {pid} on {host}, since {moment}"
