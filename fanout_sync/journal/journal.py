"""What a run needs of a journal."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from attrs import field, frozen

from ..checks import one_of
from ..errors import JournalError, OptionError
from ..formatting import describe
from ..records.step_record import JournalRecord
from .checkpoint import read_checkpoint, write_checkpoint

__all__ = ["Journal", "OpenWorkflow", "Workflow"]

DEFAULT_WORKFLOW_ID = "default"
"""The workflow of a run that names none."""


class OpenWorkflow(abc.ABC):
    """One run's hold on one workflow of a journal; nobody else has it until `close`. Used by one thread at a time."""

    @abc.abstractmethod
    def identities(self, task_ids: Iterable[str]) -> dict[str, str | None]:
        """Return the identities of those of the steps that are journalled with success, or not; see `JournalRecord`.

        Raises:
            JournalError: The journal cannot be read.
        """

    @abc.abstractmethod
    def find(self, task_id: str) -> JournalRecord | None:
        """Return what is journalled of a step; `None` if nothing is.

        Raises:
            JournalError: The journal cannot be read.
        """

    @abc.abstractmethod
    def write(self, records: Sequence[JournalRecord]) -> None:
        """Journal steps, all or none, each in the place of what was there; a killed process does not undo it.

        Raises:
            JournalError: It cannot be written.
        """

    @abc.abstractmethod
    def sync(self) -> None:
        """Return when nothing that was written can be lost by a power failure either.

        Raises:
            JournalError: The storage says that it is lost.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the workflow. Raises nothing; calling it again does nothing."""


class Journal(abc.ABC):
    """A durable store of outcomes, by workflow and `task_id`: one from the box, or a subclass with its own store."""

    @abc.abstractmethod
    def open(self, workflow_id: str) -> OpenWorkflow:
        """Take hold of a workflow, which need not exist.

        Raises:
            JournalError: The journal cannot be used, or another living run, which is named, holds the workflow.
        """

    @abc.abstractmethod
    def workflows(self) -> list[str]:
        """Return the ids of all workflows, in the order in which they were begun.

        Raises:
            JournalError: The journal cannot be read.
        """

    @abc.abstractmethod
    def records(self, workflow_id: str) -> Sequence[JournalRecord]:
        """Return what is journalled of a workflow, in the order of its steps' indices; empty if there is no such one.

        Raises:
            JournalError: The journal cannot be read.
        """

    @abc.abstractmethod
    def delete(self, workflow_id: str) -> None:
        """Forget a workflow; one that does not exist is forgotten already.

        Raises:
            JournalError: The journal cannot be written, or a living run holds the workflow.
        """

    def workflow(self, workflow_id: str, on_conflict: Literal["refuse", "rerun"] = "refuse") -> Workflow:
        """Return what `Runner(journal=…)` takes.

        Args:
            workflow_id: Names the work: a run resumes what an earlier one with the same id has done.
            on_conflict: What to do with a step whose `task_id` is journalled with another spec: `"refuse"` the run, or
                `"rerun"` the step.

        Raises:
            OptionError: An argument that nobody can mean; it is named.
        """
        return Workflow(self, workflow_id, on_conflict)

    def export_checkpoint(self, workflow_id: str) -> str:
        """Return what is done of a workflow, for other programs.

        Returns:
            Compact JSON, an object such as
            `{"schema_version":1,"workflow_id":…,"steps":[{"task_id":…,"outcome":{…}}, …],"checkpoint_ms":…}`.
            The steps are those that succeeded, in order, because whoever reads it takes all of them for done;
            `checkpoint_ms` is now, in milliseconds since the epoch.

        Raises:
            JournalError: The journal cannot be read, there is no such workflow, or an outcome nests too deep.
        """
        if workflow_id not in self.workflows():
            raise JournalError(f"there is no workflow {workflow_id!r} in {self!r}; workflows() tells which there are")
        return write_checkpoint(workflow_id, self.records(workflow_id))

    def import_checkpoint(self, json: str | bytes | Mapping[str, Any]) -> str:
        """Journal the steps of a checkpoint, all or none. A step that is journalled with success already is kept.

        Args:
            json: What `export_checkpoint` returns, or such data. A missing `schema_version` is 0; fields that are not
                known are ignored; a step that failed is journalled as failed.

        Returns:
            The id of its workflow.

        Raises:
            WireError: It is no checkpoint; the field is named, such as `"steps[3].outcome.success"`.
            JournalError: A newer version has written it, the journal cannot be used, or a living run holds the
                workflow.
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
    """One workflow of a journal, as `Journal.workflow` gives it."""

    journal: Journal
    workflow_id: str = field(default=DEFAULT_WORKFLOW_ID, validator=_a_workflow_id)
    on_conflict: Literal["refuse", "rerun"] = field(default="refuse", validator=_a_reaction)
