"""A run's use of its journal: what need not run again, and what has to be kept."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
from ..wire.strict_json import check_json, quoted

if TYPE_CHECKING:
    from . import Workflow

GATHER_S = 0.005
"""For so long, outcomes that are written wait for others, to be made safe against power failures together."""

MAX_GATHERED = 256
"""No more outcomes than so many wait for each other."""

MAX_NAMED = 10
"""So many conflicts are named in a message, at most."""

CHECKED_AT_ONCE = 1000
"""So many specs are in memory at once when an input that is no list is checked."""

_NAMES = tuple(field.name for field in attrs.fields(AgentStepSpec))
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def identity_of(workflow_id: str, spec: AgentStepSpec) -> str:
    """Return the identity of a step: a SHA-256, in hex, over canonical JSON of `workflow_id` and every field of `spec`.

    Canonical: one object, keys sorted at every depth, no white space, UTF-8; an optional field that is `None` is null.

    Raises:
        WireError: The spec holds what JSON cannot carry; the field is named.
    """
    schema, parent, most = "null", "null", "null"
    if spec.output_schema is not None:
        check_json(spec.output_schema, "output_schema")
        schema = _CANONICAL.encode(spec.output_schema)
    if spec.parent_session_id is not None:
        parent = quoted(spec.parent_session_id)
    if spec.max_steps is not None:
        most = str(int(spec.max_steps))
    canonical = (
        f'{{"agent":{quoted(spec.agent)},"description":{quoted(spec.description)},"max_steps":{most},'
        f'"output_schema":{schema},"parent_session_id":{parent},"prompt":{quoted(spec.prompt)},'
        f'"task_id":{quoted(spec.task_id)},"workflow_id":{quoted(workflow_id)}}}'
    )
    try:
        return hashlib.sha256(canonical.encode()).hexdigest()
    except UnicodeEncodeError:
        spec.to_json()  # which names the field
        raise


class SpecNotJournallable(Exception):
    """A spec has no identity, because it holds what JSON cannot carry; the index and the field are named."""


class Journalling:
    """Holds a workflow of a journal for one run, or for several in a row.

    A report is held back from `add` until it is durable: `write` makes it safe against the end of this process, `sync`
    against the end of the machine.

    Args:
        workflow: Which one.
        clock: Seconds, monotonic.

    Attributes:
        unwritten: What a killed process would lose.
        reused: How many steps need not run again.

    Raises:
        JournalError: The journal cannot be used, or another run holds the workflow.
    """

    def __init__(self, workflow: Workflow, clock: Callable[[], float] = monotonic) -> None:
        self._workflow_id = workflow.workflow_id
        self._may_rerun = workflow.on_conflict == "rerun"
        self._clock = clock
        self.reused = 0
        # The names that were there: of lists, which are in memory anyway, and of what may be larger than that.
        self._listed: set[str] = set()
        self._seen: _NameSet | None = None
        self._is_checked = False
        self._known: set[str] | None = None  # of a list that was checked, those that the journal has
        self._identities: dict[int, str] = {}
        self.unwritten: list[tuple[Report, JournalRecord]] = []
        self._written: deque[Report] = deque()
        self._sync_at = 0.0
        self._store = workflow.journal.open(workflow.workflow_id)

    @property
    def holds_back(self) -> bool:
        """Whether there are reports that are not durable yet."""
        return bool(self.unwritten or self._written)

    # What need not run again ------------------------------------------------------------------------------------------

    def check(self, specs: Iterable[Any]) -> None:
        """See that all specs of a run can be journalled, before it begins.

        Args:
            specs: All of them, read some at a time; an item that is no spec is left for the run to refuse.

        Raises:
            JournalConflict: Some `task_id` is there twice, or stands for another step in the journal.
            SpecNotJournallable: Some spec holds what JSON cannot carry.
            JournalError: The journal cannot be read.
        """
        is_list = isinstance(specs, (list, tuple))
        known: set[str] = set()
        twice: dict[str, tuple[str, ...]] = {}
        conflicts: dict[str, tuple[str, ...]] = {}
        numbered = ((index, spec) for index, spec in enumerate(specs) if isinstance(spec, AgentStepSpec))
        while some := list(islice(numbered, CHECKED_AT_ONCE)):
            for index, spec in some:
                if not self._is_new(spec.task_id, is_list):
                    twice[spec.task_id] = ()
                if not _is_plain(spec):
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
        """Return the report of a step that was journalled with success; `None` if it has to run.

        Raises:
            JournalConflict: Its `task_id` was there already, or stands for another step in the journal.
            SpecNotJournallable: The spec holds what JSON cannot carry.
            JournalError: The journal cannot be read.
        """
        identity = self._identity(index, spec)
        if not self._is_checked and not self._is_new(spec.task_id):
            raise self._duplicates({spec.task_id: ()})
        may_be_there = self._known is None or spec.task_id in self._known
        record = self._store.find(spec.task_id) if may_be_there else None
        if record is not None:
            differing = _differing(record, spec, identity)
            if differing and not self._may_rerun:
                raise self._conflicts({spec.task_id: differing})
            if record.outcome.success and not differing:
                self.reused += 1
                return _report_of(index, record)
        self._identities[index] = identity
        return None

    def _is_new(self, task_id: str, is_listed: bool = False) -> bool:
        """Take note of a name; return whether it is the first time."""
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
        """Yield the `task_id` and the differing fields of each spec, given with its index, that may not run."""
        if self._may_rerun or not there:
            return
        for index, spec in specs:
            if spec.task_id in there and (identity := self._identity(index, spec)) != there[spec.task_id]:
                record = self._store.find(spec.task_id)
                if record is not None and (differing := _differing(record, spec, identity)):
                    yield spec.task_id, differing

    def _identity(self, index: int, spec: AgentStepSpec) -> str:
        try:
            return identity_of(self._workflow_id, spec)
        except WireError as error:
            raise SpecNotJournallable(f"specs[{index}] cannot be journalled: {error}") from error

    def _duplicates(self, twice: dict[str, tuple[str, ...]]) -> JournalConflict:
        reason = (
            f"two specs of one journalled run have the same task_id: {_named(map(repr, twice))}; "
            "in a journal it names the step, so give each its own"
        )
        return JournalConflict(reason, twice)

    def _conflicts(self, conflicts: dict[str, tuple[str, ...]]) -> JournalConflict:
        told = _named(f"{task_id!r} ({', '.join(fields)})" for task_id, fields in conflicts.items())
        reason = (
            f"steps of the workflow {self._workflow_id!r} are journalled with other specs; what differs: {told}. "
            "Give the steps new task_ids, name another workflow, or run them again with on_conflict='rerun'"
        )
        return JournalConflict(reason, conflicts)

    # What has to be kept ----------------------------------------------------------------------------------------------

    def add(self, report: Report, spec: AgentStepSpec) -> None:
        """Take a step's last report; it comes back from `durable`."""
        if not self.unwritten and not self._written:
            self._sync_at = self._clock() + GATHER_S
        identity = self._identities.pop(report.index, None)
        if report.outcome.structured is not None:
            report = _frozen(report, spec)
        self.unwritten.append((report, journal_record_of(report, spec, identity)))

    def is_due(self, now: float) -> bool:
        """Return whether reports have been held back for long enough."""
        return now >= self.due_at or len(self._written) + len(self.unwritten) >= MAX_GATHERED

    @property
    def due_at(self) -> float:
        """When they will have been, on the clock; `inf` if there are none."""
        return self._sync_at if self.holds_back else math.inf

    def write(self) -> None:
        """Make what was added safe against the end of this process.

        Raises:
            JournalError: It cannot be written.
        """
        if self.unwritten:
            self._store.write([record for _, record in self.unwritten])
            self._written.extend(report for report, _ in self.unwritten)
            self.unwritten.clear()

    def durable(self) -> list[Report]:
        """Make what was added durable, and return its reports, in the order in which they came.

        Raises:
            JournalError: It cannot be written.
        """
        self.write()
        self._store.sync()
        return self.give_up()

    def give_up(self) -> list[Report]:
        """Return the reports that are held back, durable or not."""
        reports = [*self._written, *(report for report, _ in self.unwritten)]
        self._written.clear()
        self.unwritten.clear()
        return reports

    def close(self) -> None:
        """Let go of the workflow."""
        if self._seen is not None:
            self._seen.close()
        self._store.close()


class _NameSet:
    """A set of any number of names, in little memory: SQLite keeps what is too much in a temporary file."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID")
        self._connection.execute("BEGIN")

    def add(self, name: str) -> bool:
        """Add a name; return whether it is new."""
        return self._connection.execute("INSERT OR IGNORE INTO names VALUES (?)", (name,)).rowcount == 1

    def close(self) -> None:
        self._connection.close()


def _differing(record: JournalRecord, spec: AgentStepSpec, identity: str) -> tuple[str, ...]:
    """Return the names of the fields in which a spec is not what was journalled."""
    if record.identity == identity:
        return ()
    if record.spec is None:  # of a checkpoint, which has no specs: what it tells of the step is all that can differ
        return () if record.outcome.agent == spec.agent else ("agent",)
    names = [name for name in _NAMES if getattr(record.spec, name) != getattr(spec, name)]
    return tuple(names or ["output_schema"])  # equal in Python, as 1 and 1.0 are, but not as JSON


def _is_plain(spec: AgentStepSpec) -> bool:
    """Whether it has an identity in any case; so it is with nearly all."""
    return (
        spec.output_schema is None
        and spec.prompt.isascii()
        and spec.task_id.isascii()
        and spec.description.isascii()
        and spec.agent.isascii()
        and (spec.parent_session_id is None or spec.parent_session_id.isascii())
    )


def _frozen(report: Report, spec: AgentStepSpec) -> Report:
    """Return the report with a JSON value that nobody else can change: on threads it is the step's own object."""
    try:
        check_json(report.outcome.structured, "structured")
        copy = json.loads(json.dumps(report.outcome.structured))
    except Exception as error:  # somebody is just changing it, or has since it was checked
        refusal = StepError("InvalidOutcome", f"structured cannot be journalled: {StepError.of(error)}")
        refused = failure(report.index, spec, "invalid", refusal, report.started, report.duration_s, report.worker)
        return attrs.evolve(refused, attempts=report.attempts, usage=report.usage)
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
