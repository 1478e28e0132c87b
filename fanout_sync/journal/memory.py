"""A journal in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from weakref import WeakValueDictionary

from attrs import define, field

from .. import forks
from ..errors import JournalError
from ..records.step_record import JournalRecord
from .journal import Journal, OpenWorkflow
from .rows import IDENTITY, Row, record_of, row_of

__all__ = ["MemoryJournal"]


@define(eq=False)
class MemoryJournal(Journal):
    """A journal that lasts as long as this object, for tests and notebooks.

    Several threads may use it at once.
    """

    # Rows, not records: the caller may change the value of an outcome, and must not change the journal with it.
    _workflows: dict[str, dict[str, Row]] = field(init=False, factory=dict, repr=False)
    _holders: WeakValueDictionary[str, _OpenMemoryWorkflow] = field(init=False, factory=WeakValueDictionary, repr=False)
    _lock: threading.Lock = field(init=False, factory=threading.Lock, repr=False)

    def __attrs_post_init__(self) -> None:
        forks.disown_in_child(self)

    def __deepcopy__(self, memo: object) -> MemoryJournal:
        return self  # the copies of an executor share it, as threads may

    def disown(self) -> None:
        """Let go of the workflows, in a forked child: it has a copy, and the runs are its parent's."""
        self._lock = threading.Lock()  # a thread of the parent may hold the other one
        for workflow in list(self._holders.values()):
            workflow.let_go()
        self._holders.clear()

    def open(self, workflow_id: str) -> OpenWorkflow:
        with self._lock:
            self._refuse_if_held(workflow_id)
            rows = self._workflows.setdefault(workflow_id, {})
            opened = self._holders[workflow_id] = _OpenMemoryWorkflow(self, workflow_id, rows)
        return opened

    def workflows(self) -> list[str]:
        with self._lock:
            return list(self._workflows)

    def records(self, workflow_id: str) -> Sequence[JournalRecord]:
        with self._lock:
            rows = list(self._workflows.get(workflow_id, {}).values())
        return sorted(map(record_of, rows), key=lambda record: (record.index, record.task_id))

    def delete(self, workflow_id: str) -> None:
        with self._lock:
            self._refuse_if_held(workflow_id)
            self._workflows.pop(workflow_id, None)

    def _refuse_if_held(self, workflow_id: str) -> None:
        if workflow_id in self._holders:
            raise JournalError(
                f"workflow {workflow_id!r} is held by this process, {os.getpid()}; let that run end, or use another "
                "workflow id"
            )

    def _let_go(self, workflow: _OpenMemoryWorkflow) -> None:
        with self._lock:
            self._holders.pop(workflow.workflow_id)


@define(eq=False)
class _OpenMemoryWorkflow(OpenWorkflow):
    _journal: MemoryJournal
    workflow_id: str
    _rows: dict[str, Row]
    _is_open: bool = True

    def identities(self, task_ids: Iterable[str]) -> dict[str, str | None]:
        rows = self._usable()
        return {task_id: rows[task_id][IDENTITY] for task_id in task_ids if task_id in rows}

    def find(self, task_id: str) -> JournalRecord | None:
        row = self._usable().get(task_id)
        return None if row is None else record_of(row)

    def write(self, records: Sequence[JournalRecord]) -> None:
        rows = self._usable()
        added = {record.task_id: row_of(record) for record in records}
        with self._journal._lock:
            rows.update(added)

    def sync(self) -> None:
        self._usable()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._journal._let_go(self)

    def let_go(self) -> None:
        self._is_open = False

    def _usable(self) -> dict[str, Row]:
        if not self._is_open:
            raise JournalError(f"workflow {self.workflow_id!r} has been closed; open it again")
        return self._rows
