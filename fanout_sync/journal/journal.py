"""The interface of a journal: what a run, and its users, can do with it."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from attrs import field, frozen

from ..checks import one_of
from ..errors import JournalError, OptionError
from ..formatting import describe
from ..records.step_record import JournalRecord
from .checkpoint import read_checkpoint, write_checkpoint

__all__ = ["Journal", "OpenWorkflow", "Workflow"]

DEFAULT_WORKFLOW_ID = "default"
"""The workflow id of a run that does not name one."""


class OpenWorkflow(abc.ABC):
    """A workflow that one run holds, exclusively, until `close`. Used by one thread at a time.

    Attributes:
        keeps_status: Whether `write_status` keeps anything. Journals need not support it.
    """

    keeps_status: ClassVar[bool] = False

    @abc.abstractmethod
    def identities(self, task_ids: Iterable[str]) -> dict[str, str | None]:
        """Return the identity of each of these steps that is journalled, succeeded or not; see `JournalRecord`.

        Raises:
            JournalError: The journal cannot be read.
        """

    @abc.abstractmethod
    def find(self, task_id: str) -> JournalRecord | None:
        """Return the record of a step; `None` if the step is not journalled.

        Raises:
            JournalError: The journal cannot be read.
        """

    @abc.abstractmethod
    def write(self, records: Sequence[JournalRecord]) -> None:
        """Write records, all or none; each replaces an earlier record of its step. They survive a killed process.

        Raises:
            JournalError: The journal cannot be written.
        """

    @abc.abstractmethod
    def sync(self) -> None:
        """Make everything that was written survive a power failure, too, and return when that is done.

        Raises:
            JournalError: The disk reports that data was lost.
        """

    def write_status(self, text: str, *, has_ended: bool) -> None:
        """Write how the run stands, for those who watch it; it replaces what was written before.

        Args:
            text: How it stands, for whoever knows how to read it.
            has_ended: Whether the run is over.

        Raises:
            JournalError: The journal cannot be written.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release the workflow. Raises nothing; calling it again does nothing."""


class Journal(abc.ABC):
    """A durable store of outcomes, by workflow and `task_id`. Subclasses store them in their own way."""

    @abc.abstractmethod
    def open(self, workflow_id: str) -> OpenWorkflow:
        """Open a workflow and hold it; create it if it does not exist.

        Raises:
            JournalError: The journal cannot be used, or another living run, which is named, holds the workflow.
        """

    @abc.abstractmethod
    def workflows(self) -> list[str]:
        """Return the ids of all workflows, in the order in which they were created.

        Raises:
            JournalError: The journal cannot be read.
        """

    @abc.abstractmethod
    def records(self, workflow_id: str) -> Sequence[JournalRecord]:
        """Return the records of a workflow, in the order of its steps' indices; none if there is no such workflow.

        Raises:
            JournalError: The journal cannot be read.
        """

    @abc.abstractmethod
    def delete(self, workflow_id: str) -> None:
        """Delete a workflow and its records; do nothing if it does not exist.

        Raises:
            JournalError: The journal cannot be written, or a living run holds the workflow.
        """

    def workflow(self, workflow_id: str, on_conflict: Literal["refuse", "rerun"] = "refuse") -> Workflow:
        """Return a workflow of this journal, as `Runner(journal=…)` takes it.

        Args:
            workflow_id: Names the work: a run reuses what an earlier run with the same id has done.
            on_conflict: What to do if the `task_id` of a step is journalled with another spec: `"refuse"` the run, or
                `"rerun"` the step.

        Raises:
            OptionError: An argument has no valid value; it is named.
        """
        return Workflow(self, workflow_id, on_conflict)

    def export_checkpoint(self, workflow_id: str) -> str:
        """Return the steps of a workflow that succeeded, as JSON for other programs.

        Returns:
            Compact JSON, an object such as
            `{"schema_version":1,"workflow_id":…,"steps":[{"task_id":…,"outcome":{…}}, …],"checkpoint_ms":…}`.
            The steps are those that succeeded, in order, because a reader takes all steps in a checkpoint for done;
            `checkpoint_ms` is the time now, in milliseconds since the epoch.

        Raises:
            JournalError: The journal cannot be read, there is no such workflow, or an outcome nests too deep.
        """
        if workflow_id not in self.workflows():
            raise JournalError(f"there is no workflow {workflow_id!r} in {self!r}; workflows() tells which there are")
        return write_checkpoint(workflow_id, self.records(workflow_id))

    def import_checkpoint(self, json: str | bytes | Mapping[str, Any]) -> str:
        """Journal the steps of a checkpoint, all or none. A step that has succeeded in the journal stays as it is.

        Args:
            json: What `export_checkpoint` returns, as text or as a mapping. A missing `schema_version` counts as 0,
                unknown fields are ignored, and a step that failed is journalled as failed.

        Returns:
            The id of the workflow.

        Raises:
            WireError: This is not a checkpoint; the field at fault is named, such as `"steps[3].outcome.success"`.
            JournalError: The checkpoint was written by a newer version, the journal cannot be used, or a living run
                holds the workflow.
        """
        workflow_id, records = read_checkpoint(json)
        workflow = self.open(workflow_id)
        try:
            for task_id in workflow.identities(records):
                known = workflow.find(task_id)
                if known is not None and known.outcome.success:
                    del records[task_id]
            workflow.write(list(records.values()))
            workflow.sync()
        finally:
            workflow.close()
        return workflow_id


def _a_workflow_id(_: Any, __: Any, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise OptionError(f"workflow_id must be a str that is not empty, got {describe(value)}")


def _a_reaction(_: Any, __: Any, value: Any) -> None:
    one_of("on_conflict", value, ("refuse", "rerun"))


@frozen
class Workflow:
    """One workflow of a journal, as `Journal.workflow` returns it."""

    journal: Journal
    workflow_id: str = field(default=DEFAULT_WORKFLOW_ID, validator=_a_workflow_id)
    on_conflict: Literal["refuse", "rerun"] = field(default="refuse", validator=_a_reaction)
