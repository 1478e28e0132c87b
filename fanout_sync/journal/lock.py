"""How a run holds a workflow of an SQLite journal: a lock of the operating system, and a row that names the holder."""

from __future__ import annotations

import os
import socket
import time
from datetime import datetime, timezone
from pathlib import Path

from ..errors import JournalError
from .connection import Connection
from .database import transaction
from .lock_file import ByteLock, byte_lock


def take(connection: Connection, path: Path, workflow_id: str) -> tuple[int, ByteLock]:
    """Lock a workflow for this run; create it if it does not exist.

    Returns:
        The id of its row, and the lock.

    Raises:
        JournalError: Another run holds the workflow, or it cannot be locked.
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
            (workflow,) = connection.row(sql, (workflow_id,))
    except BaseException:
        lock.release()
        raise
    return workflow, lock


def refuse_if_held(connection: Connection, path: Path, workflow_id: str) -> None:
    """Refuse to go on if a run holds the workflow. To be called in a transaction: no run can lock it before that ends.

    Raises:
        JournalError: A run holds the workflow, and is named; or the workflow cannot be locked.
    """
    lock = byte_lock(path, workflow_id)
    _lock_or_refuse(lock, connection, path, workflow_id)
    lock.release()


def _lock_or_refuse(lock: ByteLock, connection: Connection, path: Path, workflow_id: str) -> None:
    # In a transaction, so that the row names the process that has the lock, not an earlier one.
    if not lock.take():
        sql = "SELECT pid, host, since FROM workflows WHERE workflow_id = ?"
        row = connection.row(sql, (workflow_id,))
        who = (
            "another run" if row is None or None in row else _named(*row)
        )  # the file has been replaced since, and its row knows no holder
        raise JournalError(
            f"{path}: workflow {workflow_id!r} is held by {who}; let that run end, or use another workflow id"
        )


def _named(pid: int, host: str, since: float) -> str:
    who = "this process," if (pid, host) == (os.getpid(), socket.gethostname()) else "process"
    moment = datetime.fromtimestamp(since, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{who} {pid} on {host}, since {moment}"
