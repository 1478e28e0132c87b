"""The loop that runs steps: it feeds specs into a bounded window, and takes reports as steps end. One thread."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve, field, frozen

from ..backends.backend import Session
from ..errors import ExecutorNotPicklable, JournalError
from ..events.announcer import Announcer
from ..interrupts import InterruptScope
from ..limits.usage_meter import RunMeter
from ..records.report import Report
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from ..retry.schedule import RetrySchedule
from .input import StepInput
from .plan import Policies
from .run_state import RunState
from .starting import Starter
from .tracking import Tracker

if TYPE_CHECKING:
    from ..journal.run_journal import RunJournal
    from ..limits.waiting_line import WaitingLine

T = TypeVar("T")

logger = logging.getLogger(__name__)

STOP_GRACE_S = 1.0
"""How long an interrupted run waits for steps on threads to stop by themselves, in seconds."""

TICK_S = 0.5
"""While nothing happens, the progress is shown this often, in seconds."""

_LONGEST_WAIT_S = 3600.0


@frozen(eq=False, kw_only=True)
class Setting:
    """What a dispatch works with, besides its input and its session.

    Attributes:
        bound: How many steps may run at once.
        lookahead: How many more may be handed over early, to wait in the session: only for an input that is at hand.
        policies: Timeouts, retries, and how many failures are too many.
        scope: Told when the caller's own code runs, in which an interrupt is to be raised at once.
        announcer: Tells of starts and ends; `None` when nobody listens.
        tracker: Counts steps and has the progress shown; `None` when nobody looks.
        waiting_line: Says when a step may start; `None` for at once.
        journal: Knows what need not run, and keeps what has run; `None` without a journal.
        meter: Knows what steps have used up.
        expires_at: When the run is to be given up, on the clock: the deadline of the step that it is part of.
        failures: How many steps have failed before, in the same loop.
        total: How many steps there are; `None` if that is not known.
        clock: Seconds, monotonic.
    """

    bound: int
    lookahead: int = 0
    policies: Policies = field(factory=Policies)
    scope: InterruptScope = field(factory=InterruptScope)
    announcer: Announcer | None = None
    tracker: Tracker | None = None
    waiting_line: WaitingLine | None = None
    journal: RunJournal | None = None
    meter: RunMeter = field(factory=RunMeter)
    expires_at: float = math.inf
    failures: int = 0
    total: int | None = None
    clock: Callable[[], float] = monotonic


class Dispatch:
    """One run of specs over a session.

    Args:
        specs: The input. A list or tuple is at hand: reading it takes no time and is nobody's code.
        session: Where the steps run.
        setting: What else it works with.

    Attributes:
        input: The input, and why it ended early if it did.
        state: Where the steps are, and whether the run goes on.
    """

    def __init__(self, specs: Iterator[Any] | Sequence[Any], session: Session, setting: Setting) -> None:
        policies, scope, clock = setting.policies, setting.scope, setting.clock
        must_ask = setting.waiting_line is not None or setting.journal is not None
        has_extras = policies.timeout_for is not None or policies.max_failures is not None
        # Where a step may have to wait, need not run at all, or be the last one, nothing is handed over early.
        lookahead = 0 if must_ask or has_extras else setting.lookahead
        self.state = RunState(
            session,
            RetrySchedule(policies.retry, scope, self.interrupt, clock),
            setting.waiting_line,
            setting.journal,
            setting.bound + lookahead,
            setting.failures,
        )
        self.input = StepInput(specs, scope, self.interrupt)
        tracker = self._tracker = setting.tracker
        if tracker is not None:
            tracker.follow(self.state, setting.meter, setting.total, setting.bound)
        self._starter = Starter(self.input, self.state, policies, setting.announcer, tracker, scope, clock, lookahead)
        self._session = session
        self._policies = policies
        self._scope = scope
        self._announcer = setting.announcer
        self._meter = setting.meter
        self._expires_at = setting.expires_at
        self._clock = clock
        self._is_timed = must_ask or setting.expires_at < math.inf
        self._must_watch = self._starter.looks_at_each or self._is_timed
        self._refill_below = max(1, lookahead // 2)
        self._most_written_together = max(1, setting.bound // 8)
        self._being_told: Report | None = None  # a second interrupt is raised where the caller's own `send` hangs
        self._ready: deque[Report] = deque()  # the journal has them, and nobody has asked for them yet

    @property
    def window(self) -> int:
        """How many steps may be under way for more of the input to be read; it may be changed between reports."""
        return self._starter.window

    @window.setter
    def window(self, window: int) -> None:
        self._starter.window = window

    def interrupt(self) -> None:
        """Give the run up. May be called from any thread and from a signal handler."""
        self.state.interrupt()

    def leave(self) -> None:
        """Give the run up because nobody wants the rest; only the journal gets what has finished."""
        self.state.is_left = True

    # The loop ---------------------------------------------------------------------------------------------------------

    def reports(self) -> Iterator[Report]:  # noqa: C901 - in one piece, as each step takes this path
        """Yield one report for each spec, in the order in which the steps end; the input is read in between."""
        state, starter, steps, wait = self.state, self._starter, self.input, self._session.wait
        flying, tried, refill_below = state.flying, state.schedule.histories, self._refill_below
        may_retry, tracker = self._policies.retry is not None, self._tracker
        try:
            while not (state.is_interrupted or state.journal_error):
                must_watch = self._must_watch or tried
                if must_watch:
                    starter.start_due()
                    if state.journal is not None and state.journal.is_due(self._clock()):
                        yield from self._committed(state.journal)
                report = None
                if (
                    steps.has_more
                    and len(flying) <= starter.window - refill_below
                    and (not must_watch or starter.may_feed())
                ):
                    report = starter.feed()
                # Only now, when the place of the step that has ended is taken again, do as many run as can.
                if tracker is not None and monotonic() >= tracker.next_at:
                    tracker.tick()
                if report is None:
                    if not flying and not (must_watch and state.is_waiting()):
                        if state.journal is None or not state.journal.has_pending:
                            return
                        yield from self._committed(state.journal)
                        continue
                    if (report := self._next() if must_watch else wait()) is None:
                        continue
                spec = flying.pop(report.index, None)
                if spec is None:  # reported already: something struck a thread from outside just when it had
                    continue
                if report.status != "succeeded":
                    report.spec = spec
                if must_watch or (may_retry and (report.status != "succeeded" or report.retry_in is not None)):
                    report = self._concluded(report, spec)
                elif report.retry_after is not None:
                    report = state.schedule.completed(report)
                if report is not None:
                    yield self._told(report)
        except ExecutorNotPicklable as refusal:
            state.refusal = refusal

    def _next(self) -> Report | None:
        """Return the next report; `None` if something else is to be done first."""
        state = self.state
        if state.at_once:
            return state.at_once.popleft()
        if state.journal is not None and state.journal.to_write:
            return self._next_while_writing(state.journal)
        if self._is_timed or state.schedule:
            return self._session.wait(self._patience())
        return self._session.wait()

    def _next_while_writing(self, journal: RunJournal) -> Report | None:
        # What has come meanwhile is written together; but not all of it, where much ends at once: the first of them
        # make room for others, which then end at another time than the rest.
        report = self._session.poll() if len(journal.to_write) < self._most_written_together else None
        if report is None:
            self._with_journal(journal.write)
        return report

    def _patience(self) -> float:
        """Return how long nothing is to be done but wait for reports, in seconds."""
        state, now = self.state, self._clock()
        until = self._expires_at
        if state.has_room():
            until = min(until, state.schedule.due_at)
            if state.waiting_line is not None and not state.is_over:
                until = min(until, state.waiting_line.asks_at(now))
        if state.journal is not None:
            until = min(until, state.journal.due_at)
        most_s = math.inf if self._tracker is None else TICK_S
        return min(max(0.0, until - now), self._time_left(), most_s)

    def _time_left(self) -> float:
        """Return how long the run may still wait, in seconds."""
        left = self._expires_at - self._clock()
        if left <= 0:
            self.state.is_interrupted = True
        return min(max(0.0, left), _LONGEST_WAIT_S)

    # After an attempt -------------------------------------------------------------------------------------------------

    def _concluded(self, report: Report, spec: AgentStepSpec) -> Report | None:
        """Return a step's last report; `None` if it is not the last one, or has to be made durable first."""
        if self._is_tried_again(report, spec):
            return None
        report = self.state.schedule.completed(self._metered(report))
        if not report.outcome.success and report.status != "cancelled":
            self._count_failure()
        if self.state.journal is None or not _is_new(report):
            return report
        self.state.journal.add(report, spec)
        return None

    def _is_tried_again(self, report: Report, spec: AgentStepSpec) -> bool:
        state = self.state
        if state.waiting_line is not None:
            state.waiting_line.settle(report, self._clock())
        if state.is_over or (wait_s := state.schedule.wait_after(report, spec)) is None:
            return False
        attempt = state.schedule.postpone(report, spec, wait_s)
        if self._tracker is not None:
            self._tracker.tried_again(report)
        if self._announcer is not None and not state.ends_early:
            self._announcer.tried_again(spec, attempt)
        return True

    def _count_failure(self) -> None:
        state = self.state
        state.failures += 1
        if not state.is_over and state.failures == self._policies.max_failures:
            steps = "1 step had" if state.failures == 1 else f"{state.failures} steps had"
            reason = f"no more steps are started: {steps} failed by then, which is max_failures"
            state.stop_starting(_cancellation(reason))

    def _metered(self, report: Report) -> Report:
        if self._meter and (usage := self._meter.take(report.index)) is not None:
            return evolve(report, usage=usage)
        return report

    def _told(self, report: Report) -> Report:
        if self._meter:
            report = self._metered(report)
        if self._announcer is not None:
            self._being_told = report
            self._announcer.ended(report)
            self._being_told = None
        if (tracker := self._tracker) is not None:  # here and not in a method of its own, as each step takes this path
            tracker.done += 1
            if report.status != "succeeded" or report.journalled is not None or tracker.notes_starts:
                tracker.ended(report)
        return report

    def _committed(self, journal: RunJournal) -> Iterator[Report]:
        self._ready.extend(self._with_journal(journal.commit) or ())
        yield from self._handed_out()

    def _handed_out(self) -> Iterator[Report]:
        # One by one, because the consumer may go away after each.
        while self._ready:
            yield self._told(self._ready.popleft())
            if self._tracker is not None:
                self._tracker.tick()

    def _with_journal(self, use: Callable[[], T]) -> T | None:
        try:
            return use()
        except JournalError as error:
            logger.info("the journal failed; no more steps are started: %s", error)  # it is raised at the end
            self.state.journal_error = error
            return None

    # The early end ----------------------------------------------------------------------------------------------------

    def rest(self) -> Iterator[Report]:
        """Yield what `reports` has left, having ended early; nothing if it has not.

        There is one way to end early, whatever the reason. If only the journal has failed, what was started is
        finished first; otherwise it is cut short. All that had finished is journalled and yielded. What had not is
        cancelled, a step that would have been tried again included.
        """
        if not self.state.ends_early:
            return
        self._scope.is_handled = True
        if self._being_told is not None:
            yield self._being_told
        yield from self._handed_out()
        finished = self._finish_running()
        if self.state.is_cut_short:
            finished += self._cut_short()
        yield from self._kept(finished)
        for index, spec in self.state.drain():
            error = _cancellation(self._why_unfinished())
            yield self._told(self._metered(self.state.schedule.cut_short(index, spec, error)))
        if self.state.is_interrupted:
            for index, spec in self.input.unread():
                error = _cancellation("the run was interrupted before the step began")
                yield self._told(self.state.schedule.cut_short(index, spec, error))

    def _why_unfinished(self) -> str:
        if self.state.is_interrupted:
            return "the run was interrupted before the step was done"
        if self.state.is_left:
            return "the stream was left before the step was done"
        if self.state.refusal is not None:
            return "the step did not run: no worker could unpickle the executor"
        return "the journal failed before the step was done"

    def _finish_running(self) -> list[Report]:
        """Wait for what was started, unless it is to be cut short; return the last reports of steps."""
        state, finished = self.state, list[Report]()
        try:
            while state.flying and not state.is_cut_short:
                report = state.at_once.popleft() if state.at_once else self._session.wait(self._time_left())
                if report is not None:
                    self._conclude_early(report, finished)
        except ExecutorNotPicklable as refusal:
            state.refusal = refusal
        return finished

    def _cut_short(self) -> list[Report]:
        """Stop what is running; return the last reports of steps that had finished by then."""
        state, finished = self.state, list[Report]()
        at_once = list(state.at_once)
        state.at_once.clear()
        for report in [*at_once, *self._session.cancel(0.0 if state.is_left else STOP_GRACE_S)]:
            self._conclude_early(report, finished)
        return finished

    def _conclude_early(self, report: Report, finished: list[Report]) -> None:
        spec = self.state.flying.pop(report.index, None)
        if spec is not None and not self._is_tried_again(report, spec):
            report.spec = None if report.status == "succeeded" else spec
            report = self.state.schedule.completed(self._metered(report))
            if self.state.journal is not None and _is_new(report):
                self.state.journal.add(report, spec)
            else:
                finished.append(report)

    def _kept(self, finished: list[Report]) -> Iterator[Report]:
        """Yield the reports of finished steps when the journal has them, if there is one that can."""
        if (journal := self.state.journal) is not None:
            if self.state.journal_error is None:
                yield from self._committed(journal)
            yield from map(self._told, journal.drain())
        yield from map(self._told, finished)


def _cancellation(reason: str) -> StepError:
    return StepError("CancelledError", reason)


def _is_new(report: Report) -> bool:
    """Whether a report is for the journal: not if it came from there, nor if the step never got its chance."""
    return report.journalled is None and report.status != "cancelled"
