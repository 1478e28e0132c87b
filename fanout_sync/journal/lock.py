"""One run's hold on one workflow of an SQLite journal: a row that names it, and a token that only it knows."""

from __future__ import annotations

import secrets
import sqlite3
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from attrs import define, field

from ..errors import JournalError
from .database import transaction
from .holders import LEASE_S, RENEW_EVERY_S, Holder, this_process

_HOLDER = "SELECT token, pid, host, pid_space, started, since, renewed FROM workflows WHERE workflow_id = ?"


@define(eq=False)
class Lock:
    """The hold itself. It lasts until `release`, or until its process is dead, as far as others can tell."""

    IS_OURS: ClassVar[str] = "EXISTS (SELECT 1 FROM workflows WHERE id = ? AND token = ?)"

    _path: Path
    _connection: sqlite3.Connection
    _workflow_id: str
    workflow: int = 0
    token: str = field(factory=lambda: secrets.token_hex(16))
    _renewed: float = 0.0

    def check(self) -> None:
        """Make sure, within a transaction, that it is still ours, and give a sign of life if one is due.

        Raises:
            JournalError: Another run has taken the workflow over.
        """
        if not (self._renew() if self.is_due() else self._is_ours()):
            raise JournalError(f"{self._path}: {self._loss()}; nothing was written")

    @property
    def ours(self) -> tuple[int, str]:
        """The values for the SQL `IS_OURS`, which tells within a statement what `check` makes sure of."""
        return self.workflow, self.token

    def is_due(self) -> bool:
        """Return whether it is time for a sign of life."""
        return abs(time.time() - self._renewed) >= RENEW_EVERY_S

    def release(self) -> None:
        """Let go of the workflow, if it is still ours."""
        _LIVE.pop(self.token, None)
        self._connection.execute(
            "UPDATE workflows SET token = NULL, pid = NULL, host = NULL, pid_space = NULL, started = NULL, "
            "since = NULL, renewed = NULL WHERE id = ? AND token = ?",
            (self.workflow, self.token),
        )

    def _renew(self) -> bool:
        self._renewed = time.time()
        sql = "UPDATE workflows SET renewed = ? WHERE id = ? AND token = ?"
        return self._connection.execute(sql, (self._renewed, self.workflow, self.token)).rowcount == 1

    def _is_ours(self) -> bool:
        sql = "SELECT 1 FROM workflows WHERE id = ? AND token = ?"
        return self._connection.execute(sql, (self.workflow, self.token)).fetchone() is not None

    def _loss(self) -> str:
        row = self._connection.execute(_HOLDER, (self._workflow_id,)).fetchone()
        if row is None or row[0] is None:
            return f"workflow {self._workflow_id!r} has been taken over by another run, which has ended since"
        return f"another run ({Holder(*row[1:5])}) has taken workflow {self._workflow_id!r} over"


_LIVE: WeakValueDictionary[str, Lock] = WeakValueDictionary()
"""The locks of this process: one that nobody refers to any more was not released because the disk was full, say."""


def take(connection: sqlite3.Connection, path: Path, workflow_id: str) -> Lock:
    """Take hold of a workflow, which is begun if there is no such one.

    Raises:
        JournalError: A living run holds it.
    """
    lock = Lock(path, connection, workflow_id)
    with transaction(connection):
        connection.execute("INSERT OR IGNORE INTO workflows (workflow_id) VALUES (?)", (workflow_id,))
        refuse_if_held(connection, path, workflow_id)
        _enter(connection, lock, workflow_id)
    _LIVE[lock.token] = lock
    return lock


def refuse_if_held(connection: sqlite3.Connection, path: Path, workflow_id: str) -> None:
    """Refuse to go on, within a transaction, if a living run holds the workflow.

    Raises:
        JournalError: One does; the error names it.
    """
    row = connection.execute(_HOLDER, (workflow_id,)).fetchone()
    if row is None or row[0] is None:
        return
    token, *place, since, renewed = row
    holder = Holder(*place)
    is_alive = token in _LIVE if holder.is_this_process() else holder.is_alive()
    if is_alive or (is_alive is None and abs(time.time() - renewed) < LEASE_S):
        raise JournalError(f"{path}: {_refusal(workflow_id, holder, since, renewed if is_alive is None else None)}")


def _enter(connection: sqlite3.Connection, lock: Lock, workflow_id: str) -> None:
    now, holder = time.time(), this_process()
    connection.execute(
        "UPDATE workflows SET token = ?, pid = ?, host = ?, pid_space = ?, started = ?, since = ?, renewed = ? "
        "WHERE workflow_id = ?",
        (lock.token, holder.pid, holder.host, holder.pid_space, holder.started, now, now, workflow_id),
    )
    lock._renewed = now
    (lock.workflow,) = connection.execute("SELECT id FROM workflows WHERE workflow_id = ?", (workflow_id,)).fetchone()


def _refusal(workflow_id: str, holder: Holder, since: float, renewed: float | None) -> str:
    who = f"this process, {holder.pid} on {holder.host}" if holder.is_this_process() else str(holder)
    text = f"workflow {workflow_id!r} is held by {who}, since {_moment(since)}"
    if renewed is None:
        return f"{text}; let that run end, or use another workflow id"
    # Nobody here can ask that host. What it says of itself has to do.
    return f"{text}; if that is dead, its hold ends at {_moment(renewed + LEASE_S)}"


def _moment(seconds: Any) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
