"""How the run of a workflow stands, for those who watch it from outside. Nothing is locked, and nothing is written."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from .connection import Connection
from .database import explained, reader_of
from .lock_file import is_held

_HAS_TABLE = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'status'"
_OF_LATEST_RUN = """
SELECT text, has_ended, written FROM status JOIN workflows ON workflows.id = status.workflow
WHERE workflow_id = ? AND status.since IS workflows.since
"""
_COUNT_DONE = """
SELECT count(*) FROM steps JOIN workflows ON workflows.id = steps.workflow
WHERE workflow_id = ? AND (status = 'succeeded' OR started >= workflows.since)
"""


@frozen
class WatchedRun:
    """The latest run of a workflow.

    Attributes:
        is_held: Whether a run holds the workflow.
        text: What the run wrote last, as `OpenWorkflow.write_status` got it; `None` if it has written nothing.
        has_ended: Whether it wrote that at its end. If it did not, and nobody holds the workflow, its process is dead.
        written: When it wrote that, in seconds since the epoch.
    """

    is_held: bool
    text: str | None = None
    has_ended: bool = False
    written: float = 0.0


def look_at(path: Path, workflow_id: str) -> WatchedRun:
    """Return how the latest run of a workflow stands; of a workflow that does not exist, that there is none.

    Args:
        path: The file of the journal, which need not exist yet.
        workflow_id: Which workflow.

    Raises:
        JournalError: The journal cannot be read.
    """
    if not path.exists():
        return WatchedRun(is_held=False)
    # A run writes the end before it lets go, so that it is found if the lock is looked at first.
    was_held = _is_held(path, workflow_id)
    with reader_of(path) as connection:
        row = _row(connection, workflow_id)
    if row is None:
        return WatchedRun(was_held)
    text, has_ended, written = row
    # Another run may have begun in between, and have written this.
    return WatchedRun(was_held or _is_held(path, workflow_id), text, bool(has_ended), written)


def count_done(path: Path, workflow_id: str) -> int:
    """Return how many steps of a workflow are done: those that have succeeded, and those that its latest run has tried.

    Raises:
        JournalError: The journal cannot be read.
    """
    with reader_of(path) as connection:
        (count,) = connection.row(_COUNT_DONE, (workflow_id,))
    return int(count)


def _row(connection: Connection, workflow_id: str) -> tuple[str, int, float] | None:
    (has_table,) = connection.row(_HAS_TABLE)
    if not has_table:
        return None
    row: tuple[str, int, float] | None = connection.row(_OF_LATEST_RUN, (workflow_id,))
    return row


def _is_held(path: Path, workflow_id: str) -> bool:
    with explained(path):
        return is_held(path, workflow_id)
