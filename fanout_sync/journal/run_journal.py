"""A run's side of its journal: which steps need not run again, and which outcomes are still to be made durable."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

import attrs

from ..errors import JournalConflict, WireError
from ..records.conversion import journal_record_of
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.step_record import JournalRecord
from ..records.steps import AgentStepSpec
from ..wire.item_spec import ItemSpec
from ..wire.strict_json import check_json
from .connection import connect
from .identity import SpecNotJournallable, always_has_identity, identity_of

if TYPE_CHECKING:
    from . import Workflow

COMMIT_DELAY_S = 0.005
"""How many seconds an outcome waits for others, so that one sync makes all of them safe against a power failure."""

MAX_PENDING = 256
"""When so many outcomes wait for a sync, it is made at once."""

MAX_NAMED = 10
"""How many conflicts an error message names at most."""

CHECKED_AT_ONCE = 1000
"""How many specs are in memory at once while an input that is not a list is checked."""

_NAMES = tuple(field.name for field in attrs.fields(AgentStepSpec))


class RunJournal:
    """Holds a workflow of a journal for one run, or for several runs in a row.

    `add` keeps a report back until it is durable. `write` makes it safe if this process is killed; `commit` makes it
    safe in a power failure, too, and returns it.

    Args:
        workflow: The workflow to hold.
        places: The index under which each step is kept, if that is not its own: a run of failed steps has only some of
            the steps that the workflow has.
        clock: Returns seconds; monotonic.

    Attributes:
        to_write: The reports that `write` will write, with their records; they are lost if this process is killed.
        reused: How many steps were found in the journal and did not run again.

    Raises:
        JournalError: The journal cannot be used, or another run holds the workflow.
    """

    def __init__(
        self, workflow: Workflow, places: Sequence[int] | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._workflow_id = workflow.workflow_id
        self._may_rerun = workflow.on_conflict == "rerun"
        self._places = places
        self._clock = clock
        self.reused = 0
        # The task ids so far: of lists, which are in memory anyway, and of other inputs, which may be larger than that.
        self._listed: set[str] = set()
        self._seen: _NameSet | None = None
        self._is_checked = False
        self._has_items = False  # whether the steps are those of `fanout_map`
        self._known: set[str] | None = None  # the task ids of a checked list that the journal has
        self._identities: dict[int, str] = {}
        self.to_write: list[tuple[Report, JournalRecord]] = []
        self._to_sync: deque[Report] = deque()
        self._commit_at = 0.0
        self._store = workflow.journal.open(workflow.workflow_id)

    @property
    def has_pending(self) -> bool:
        """Whether there are reports that are not durable yet."""
        return bool(self.to_write or self._to_sync)

    # Steps that need not run again ------------------------------------------------------------------------------------

    def check(self, specs: Iterable[Any]) -> None:
        """Check before a run begins that all its specs can be journalled.

        Args:
            specs: All specs; they are read some at a time. An item that is not a spec is left for the run to refuse.

        Raises:
            JournalConflict: Two specs have the same `task_id`, or the journal has another spec under it.
            SpecNotJournallable: JSON cannot carry a spec.
            JournalError: The journal cannot be read.
        """
        is_list = isinstance(specs, Sequence)
        known: set[str] = set()
        twice: dict[str, tuple[str, ...]] = {}
        conflicts: dict[str, tuple[str, ...]] = {}
        numbered = ((index, spec) for index, spec in enumerate(specs) if isinstance(spec, AgentStepSpec))
        while some := list(islice(numbered, CHECKED_AT_ONCE)):
            for index, spec in some:
                if not self._is_new(spec.task_id, is_list):
                    twice[spec.task_id] = ()
                if not always_has_identity(spec):
                    self._identity(index, spec)
            there = self._store.identities(spec.task_id for _, spec in some)
            known.update(there if is_list else ())
            conflicts.update(self._conflicting(some, there))
        if twice:
            raise self._duplicates(twice)
        if conflicts:
            raise self._conflicts(conflicts)
        self._is_checked = True
        self._known = known if is_list else None

    def reuse(self, index: int, spec: AgentStepSpec) -> Report | None:
        """Return the report of a step that is journalled as succeeded; `None` if the step has to run.

        Raises:
            JournalConflict: An earlier spec has the same `task_id`, or the journal has another spec under it.
            SpecNotJournallable: JSON cannot carry the spec.
            JournalError: The journal cannot be read.
        """
        identity = self._identity(index, spec)
        if not self._is_checked and not self._is_new(spec.task_id):
            raise self._duplicates({spec.task_id: ()})
        may_be_there = self._known is None or spec.task_id in self._known
        record = self._store.find(spec.task_id) if may_be_there else None
        if record is not None:
            differing = self._differing(record, spec, identity)
            if differing and not self._may_rerun:
                raise self._conflicts({spec.task_id: differing})
            if record.outcome.success and not differing:
                self.reused += 1
                return _report_of(index, record)
        self._identities[index] = identity
        return None

    def _is_new(self, task_id: str, is_listed: bool = False) -> bool:
        """Remember a task id; return whether it is new."""
        if is_listed:
            if task_id in self._listed:
                return False
            self._listed.add(task_id)
            return True
        if self._seen is None:
            self._seen = _NameSet()
        return self._seen.add(task_id)

    def _conflicting(
        self, specs: Iterable[tuple[int, AgentStepSpec]], there: dict[str, str | None]
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the `task_id` and the differing fields of each spec that is journalled with other fields."""
        if self._may_rerun or not there:
            return
        for index, spec in specs:
            if spec.task_id in there and (identity := self._identity(index, spec)) != there[spec.task_id]:
                record = self._store.find(spec.task_id)
                if record is not None and (differing := self._differing(record, spec, identity)):
                    yield spec.task_id, differing

    def _differing(self, record: JournalRecord, spec: AgentStepSpec, identity: str) -> tuple[str, ...]:
        """Return the names of the fields in which a spec differs from the journalled one."""
        if record.identity == identity:
            return ()
        if record.spec is None:  # imported from a checkpoint, which has no specs: only the agent can be compared
            return () if record.outcome.agent == spec.agent else ("agent",)
        names = [name for name in _NAMES if getattr(record.spec, name) != getattr(spec, name)]
        if type(spec) is not ItemSpec:
            return tuple(names or ["output_schema"])  # equal in Python, as 1 and 1.0 are, but different as JSON
        # The prompt stands for the item, and may be the same for two of them.
        others = tuple(name for name in names if name != "prompt")
        with_its_agent = ItemSpec.of(spec.task_id, record.spec.agent, spec.item)
        is_same_item = identity_of(self._workflow_id, with_its_agent) == record.identity
        return others if is_same_item and others else (*others, "item")

    def _identity(self, index: int, spec: AgentStepSpec) -> str:
        self._has_items = type(spec) is ItemSpec
        try:
            return identity_of(self._workflow_id, spec)
        except WireError as error:
            name = "items" if type(spec) is ItemSpec else "specs"
            raise SpecNotJournallable(f"{name}[{index}] cannot be journalled: {error}") from error

    def _duplicates(self, twice: dict[str, tuple[str, ...]]) -> JournalConflict:
        reason = (
            f"two specs of one journalled run have the same task_id: {_named(map(repr, twice))}; "
            "in a journal it names the step, so give each its own"
        )
        return JournalConflict(reason, twice)

    def _conflicts(self, conflicts: dict[str, tuple[str, ...]]) -> JournalConflict:
        differences = _named(f"{task_id!r} ({', '.join(fields)})" for task_id, fields in conflicts.items())
        reason = (
            f"steps of the workflow {self._workflow_id!r} are journalled with other specs; what differs: "
            f"{differences}. {self._advice(conflicts)}"
        )
        return JournalConflict(reason, conflicts)

    def _advice(self, conflicts: Mapping[str, tuple[str, ...]]) -> str:
        if not self._has_items:
            return "Give the steps new task_ids, name another workflow, or run them again with on_conflict='rerun'"
        ways = "name the steps anew with task_id=, name another workflow, or run them again with on_conflict='rerun'"
        record = self._store.find(next(iter(conflicts)))
        if record is None or any(fields != ("agent",) for fields in conflicts.values()):
            return f"N{ways[1:]}"
        agent = f"agent={record.outcome.agent!r}"
        return f"Give {agent} if it is the same function under another name, which is the agent by default; or {ways}"

    # Outcomes to keep -------------------------------------------------------------------------------------------------

    def add(self, report: Report, spec: AgentStepSpec) -> None:
        """Add a step's last report; `commit` returns it."""
        if not self.to_write and not self._to_sync:
            self._commit_at = self._clock() + COMMIT_DELAY_S
        identity = self._identities.pop(report.index, None)
        if report.outcome.structured is not None:
            report = _with_copy(report, spec)
        record = journal_record_of(report, spec, identity)
        if self._places is not None:
            record = attrs.evolve(record, index=self._places[report.index])
        self.to_write.append((report, record))

    def is_due(self, now: float) -> bool:
        """Return whether it is time to commit."""
        return now >= self.due_at or len(self._to_sync) + len(self.to_write) >= MAX_PENDING

    @property
    def due_at(self) -> float:
        """When it will be time to commit, on the clock, in seconds; `inf` if no report is pending."""
        return self._commit_at if self.has_pending else math.inf

    def write(self) -> None:
        """Write what was added to the journal: then it is safe if this process is killed.

        Raises:
            JournalError: The journal cannot be written.
        """
        if self.to_write:
            self._store.write([record for _, record in self.to_write])
            self._to_sync.extend(report for report, _ in self.to_write)
            self.to_write.clear()

    def commit(self) -> list[Report]:
        """Make all pending reports durable and return them, in the order in which they were added.

        Raises:
            JournalError: The journal cannot be written.
        """
        self.write()
        self._store.sync()
        return self.drain()

    def drain(self) -> list[Report]:
        """Return all pending reports and forget them, whether they are durable or not."""
        reports = [*self._to_sync, *(report for report, _ in self.to_write)]
        self._to_sync.clear()
        self.to_write.clear()
        return reports

    @property
    def keeps_status(self) -> bool:
        """Whether the journal keeps what `write_status` writes."""
        return self._store.keeps_status

    def write_status(self, text: str, *, has_ended: bool) -> None:
        """Write how the run stands; see `OpenWorkflow.write_status`.

        Raises:
            JournalError: The journal cannot be written.
        """
        self._store.write_status(text, has_ended=has_ended)

    def close(self) -> None:
        """Release the workflow."""
        if self._seen is not None:
            self._seen.close()
        self._store.close()


class _NameSet:
    """A set of any number of names in little memory: SQLite moves what does not fit into a temporary file."""

    def __init__(self) -> None:
        self._connection = connect("")
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID")
        self._connection.execute("BEGIN")

    def add(self, name: str) -> bool:
        """Add a name; return whether it is new."""
        return self._connection.execute("INSERT OR IGNORE INTO names VALUES (?)", (name,)).rowcount == 1

    def close(self) -> None:
        self._connection.close()


def _with_copy(report: Report, spec: AgentStepSpec) -> Report:
    """Return the report with a copy of `structured`: on threads the step still has that object and may change it."""
    try:
        check_json(report.outcome.structured, "structured")
        copy = json.loads(json.dumps(report.outcome.structured))
    except Exception as error:  # the step is changing it now, or has changed it since it was checked
        refusal = StepError("InvalidOutcome", f"structured cannot be journalled: {StepError.of(error)}")
        output = f"{refusal.message}\n{report.outcome.output}"
        refused = failure(
            report.index, spec, "invalid", refusal, report.started, report.duration_s, report.worker, output
        )
        return attrs.evolve(refused, attempts=report.attempts, usage=report.usage, spec=spec)
    return attrs.evolve(report, outcome=attrs.evolve(report.outcome, structured=copy))


def _report_of(index: int, record: JournalRecord) -> Report:
    started = None if record.started is None else record.started.timestamp()
    return Report(
        index, record.status, record.outcome, None, started, record.duration_s, record.worker, journalled=record
    )


def _named(items: Iterable[str]) -> str:
    names = list(items)
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
