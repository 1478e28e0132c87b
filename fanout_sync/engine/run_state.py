"""Where the steps of one run are that have been read and are not reported yet, and whether the run goes on."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from attrs import define, field

from ..backends.backend import Session
from ..errors import ExecutorNotPicklable, JournalError
from ..records.report import Report
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from ..retry.schedule import RetrySchedule

if TYPE_CHECKING:
    from ..journal.run_journal import RunJournal
    from ..limits.waiting_line import WaitingLine


@define(eq=False)
class RunState:
    """What feeding, the loop and the end of a run have to know of each other.

    Attributes:
        session: Where the steps run.
        schedule: The steps that wait for their next attempt.
        waiting_line: The steps that a limit or a budget does not let start yet; `None` if nothing is limited.
        journal: Knows which steps need not run, and keeps what has run; `None` without a journal.
        most_at_once: How many steps may have begun at once, those handed over early included.
        failures: How many steps have failed, those of earlier rounds of a loop included.
        flying: The steps that the session has, or whose report is in `at_once`, by index.
        at_once: Reports of steps that need not run, or may not.
        is_interrupted: Whether the run is to be given up: an interrupt, or the end of the step that it is part of.
        is_left: Whether nobody wants the rest: a stream was closed.
        journal_error: Why the journal cannot be used any more.
        refusal: Why no worker can run any step of this run.
        halt: Why no step is started for the first time any more.
        is_over: Whether none is tried again either.
    """

    session: Session
    schedule: RetrySchedule
    waiting_line: WaitingLine | None
    journal: RunJournal | None
    most_at_once: int
    failures: int = 0
    flying: dict[int, AgentStepSpec] = field(factory=dict)
    at_once: deque[Report] = field(factory=deque)
    is_interrupted: bool = False
    is_left: bool = False
    journal_error: JournalError | None = None
    refusal: ExecutorNotPicklable | None = None
    halt: StepError | None = None
    is_over: bool = False

    def interrupt(self) -> None:
        """Give the run up. May be called from any thread and from a signal handler."""
        self.is_interrupted = True
        self.session.wake()

    @property
    def ends_early(self) -> bool:
        """Whether no more is started, and what is running is waited for or cut short."""
        return self.is_cut_short or self.journal_error is not None

    @property
    def is_cut_short(self) -> bool:
        """Whether what is running is not waited for."""
        return self.is_interrupted or self.is_left or self.refusal is not None

    def lost_if_killed(self) -> int:
        """Return how many steps have begun and are not journalled: never more than may run at once."""
        return len(self.flying) + (0 if self.journal is None else len(self.journal.to_write))

    def has_room(self) -> bool:
        """Return whether one more step may begin."""
        return self.lost_if_killed() < self.most_at_once

    def is_waiting(self) -> bool:
        """Return whether anything is still to come though no step is running."""
        to_write = None if self.journal is None else self.journal.to_write
        return bool(self.at_once or self.schedule or self.waiting_line or to_write)

    def report_at_once(self, report: Report, spec: AgentStepSpec) -> None:
        """Have a step that is not started reported next."""
        self.flying[report.index] = spec
        self.at_once.append(report)

    def refuse(self, index: int, spec: AgentStepSpec, error: StepError) -> None:
        """Have a step end with `error` that gets no attempt, or no other one."""
        self.report_at_once(self.schedule.cut_short(index, spec, error), spec)

    def stop_starting(self, error: StepError, *, keep_retries: bool = False) -> None:
        """Finish what runs, and have every other step end with `error`, now or when it is read.

        Args:
            error: Why.
            keep_retries: Whether steps that have been tried before may be tried again.
        """
        self.halt = error
        self.is_over = not keep_retries
        waiting = [] if keep_retries else self.schedule.drain()
        if self.waiting_line is not None:
            waiting += self.waiting_line.drain(keep_retries=keep_retries)
        for index, spec in waiting:
            self.refuse(index, spec, error)

    def drain(self) -> list[tuple[int, AgentStepSpec]]:
        """Return all steps that are not reported, with their indices, and forget them."""
        drained = [*self.flying.items(), *self.schedule.drain()]
        if self.waiting_line is not None:
            drained += self.waiting_line.drain()
        self.flying.clear()
        return drained
