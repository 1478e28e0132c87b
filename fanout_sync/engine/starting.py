"""From the input to the session: which steps start, and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import JournalConflict, JournalError
from ..events.announcer import Announcer
from ..interrupts import InterruptScope
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from .input import StepInput
from .plan import Policies
from .run_state import RunState
from .tracking import Tracker

if TYPE_CHECKING:
    from ..journal.run_journal import RunJournal
    from ..limits.answers import Exhausted
    from ..limits.waiting_line import WaitingLine

SLOW_INPUT_S = 0.02
"""After so long, outcomes that are there do not wait any more for the input to fill the window."""

MAX_WAITING = 1024
"""How many steps at most wait for their next attempt or for a limit; then an input that is no list waits, too."""


class Starter:
    """Reads the input while there is room, and starts each step, unless it need not run, must wait, or is one too many.

    Args:
        steps: The input.
        state: Where steps are.
        policies: Timeouts, and how many failures are too many.
        announcer: Tells of starts; `None` when nobody listens.
        tracker: Notes when steps start; `None` when nobody looks.
        scope: Told when the caller's own code runs.
        clock: Seconds, monotonic.
        lookahead: How many steps may be handed over early.

    Attributes:
        window: How many steps may be under way for more of the input to be read.
        looks_at_each: Whether a step may have to wait, need not run at all, or be one too many.
    """

    def __init__(
        self,
        steps: StepInput,
        state: RunState,
        policies: Policies,
        announcer: Announcer | None,
        tracker: Tracker | None,
        scope: InterruptScope,
        clock: Callable[[], float],
        lookahead: int,
    ) -> None:
        self._input = steps
        self._state = state
        self._policies = policies
        self._announcer = announcer
        self._tracker = tracker
        self._scope = scope
        self._clock = clock
        self._lookahead = lookahead
        self.window = state.most_at_once
        has_policies = policies.timeout_for is not None or policies.max_failures is not None
        self.looks_at_each = has_policies or state.waiting_line is not None or state.journal is not None
        self._most_waiting = math.inf if steps.is_at_hand else MAX_WAITING
        self._start = self._start_inline if state.session.may_run_inline else state.session.start

    # From the input ---------------------------------------------------------------------------------------------------

    def feed(self) -> Report | None:
        """Start steps until the window is full; if that takes time, return a report that is there already."""
        if self._input.is_at_hand and not self.looks_at_each:
            return self._hand_over(self._input.slice(self.window - len(self._state.flying)))
        return self._hand_over(self._input.read(self._has_room))

    def may_feed(self) -> bool:
        """Return whether there is room for one more step, also if it has to wait for its next attempt or a limit."""
        state = self._state
        if state.lost_if_killed() >= self.window or self._may_all_fail():
            return False
        waiting_line = state.waiting_line
        if waiting_line is None:
            return len(state.schedule) < self._most_waiting
        if not waiting_line.has_keys and len(waiting_line) >= state.most_at_once:
            return False
        return len(state.schedule) + len(waiting_line) < self._most_waiting

    def _may_all_fail(self) -> bool:
        """Whether so many steps are being tried again that, if they fail in the end, there are too many by far."""
        most = self._policies.max_failures
        if most is None or self._state.halt is not None:
            return False
        return self._state.failures + len(self._state.schedule.histories) >= most + self._state.most_at_once

    def _has_room(self) -> bool:
        return self.may_feed() and not self._state.ends_early

    def _hand_over(self, specs: Iterable[Any]) -> Report | None:
        began = monotonic()
        start, announcer, flying, steps = self._start, self._announcer, self._state.flying, self._input
        started = None if self._tracker is None or not self._tracker.notes_starts else self._tracker.started_at
        timeout_s, may_take_long = self._policies.timeout_s, self.looks_at_each or not self._lookahead
        for spec in specs:
            if type(spec) is not AgentStepSpec and not steps.accepts(spec):
                break
            index = steps.count
            steps.count += 1
            if self.looks_at_each:
                self._take_in(index, spec)
            else:
                flying[index] = spec
                if may_take_long and self._state.is_interrupted:  # by another thread, while the input made it
                    break
                if announcer is not None:
                    announcer.started(index, spec)
                if started is not None:
                    started[index] = monotonic()
                start(index, spec, 1, timeout_s)
            if not may_take_long:
                continue
            if self._state.is_interrupted:
                break
            if monotonic() - began > SLOW_INPUT_S and (report := self._state.session.poll()) is not None:
                steps.has_more = steps.error is None
                return report
        return None

    def _take_in(self, index: int, spec: AgentStepSpec) -> None:
        state = self._state
        if state.journal is not None and self._is_found(state.journal, index, spec):
            return
        if state.halt is not None:
            state.refuse(index, spec, state.halt)
        elif state.waiting_line is not None:
            self._line_up(state.waiting_line, index, spec, 1)
            self.start_admitted()
        else:
            self._launch(index, spec, 1)

    def _is_found(self, journal: RunJournal, index: int, spec: AgentStepSpec) -> bool:
        """Return whether the journal ends this step, having its outcome or having failed."""
        try:
            report = journal.reuse(index, spec)
        except _refusals() as error:  # looked up only if there is an error
            self._input.fail(error, str(error))
        except JournalError as error:
            self._state.journal_error = error
        else:
            if report is None:
                return False
            self._state.report_at_once(report, spec)
        return True

    # What has waited --------------------------------------------------------------------------------------------------

    def start_due(self) -> None:
        """Start what has waited for its time, as far as there is room."""
        if self._state.schedule:
            self._try_again()
        if self._state.waiting_line is not None:
            self.start_admitted()

    def _try_again(self) -> None:
        state = self._state
        while state.schedule and state.has_room():
            if (due := state.schedule.pop_due(self._clock())) is None:
                return
            if state.waiting_line is None:
                self._launch(*due)
            else:
                self._line_up(state.waiting_line, *due)

    def _line_up(self, waiting_line: WaitingLine, index: int, spec: AgentStepSpec, attempt: int) -> None:
        try:
            with self._scope.callers_code():
                waiting_step = waiting_line.waiting_step(index, spec, attempt)
        except KeyboardInterrupt:
            self._state.flying[index] = spec  # to be cancelled
            self._state.interrupt()
        except BaseException as error:  # the caller's own code: it costs this step alone
            if attempt == 1 and self._announcer is not None:
                self._announcer.started(index, spec)  # every step that fails has a start and an end
            self._state.report_at_once(failure(index, spec, "raised", StepError.of(error)), spec)
        else:
            waiting_line.enqueue(waiting_step)

    def start_admitted(self) -> None:
        """Start what the limits and the budget let start by now."""
        state, waiting_line = self._state, self._state.waiting_line
        assert waiting_line is not None, "something is limited"
        while waiting_line and state.has_room():
            if (waiting_step := waiting_line.admit(self._clock())) is None:
                break
            self._launch(waiting_step.index, waiting_step.spec, waiting_step.attempt)
        if not state.is_over and (gone := waiting_line.exhausted(self._clock())) is not None:
            self._run_out(gone)

    def _run_out(self, gone: Exhausted) -> None:
        """Stop, as the budget is used up; of `steps`, those that have begun need no more."""
        if self._announcer is not None and self._state.halt is None:
            self._announcer.exhausted(gone.resource, gone.limit, gone.used)
        error = StepError("BudgetExhausted", f"budget exhausted: {gone}")
        self._state.stop_starting(error, keep_retries=gone.resource == "steps")

    # To the session ---------------------------------------------------------------------------------------------------

    def _launch(self, index: int, spec: AgentStepSpec, attempt: int) -> None:
        self._state.flying[index] = spec
        if self._state.is_interrupted:  # while the caller's code or the journal was asked about it
            return
        if attempt == 1 and self._announcer is not None:
            self._announcer.started(index, spec)
        if self._tracker is not None and self._tracker.notes_starts:
            self._tracker.started_at[index] = monotonic()
        if self._policies.timeout_for is None:
            self._start(index, spec, attempt, self._policies.timeout_s)
            return
        try:
            with self._scope.callers_code():
                timeout_s = self._policies.timeout_of(spec)
        except KeyboardInterrupt:
            self._state.interrupt()
        except BaseException as error:  # the executor's own code: it costs this step alone
            self._state.report_at_once(failure(index, spec, "raised", StepError.of(error)), spec)
        else:
            self._start(index, spec, attempt, timeout_s)

    def _start_inline(self, index: int, spec: AgentStepSpec, attempt: int, timeout_s: float | None) -> None:
        """Hand over to a session that may run the step then and there, in this thread."""
        self._scope.was_raised = False
        try:
            with self._scope.callers_code():
                self._state.session.start(index, spec, attempt, timeout_s)
        except KeyboardInterrupt:
            self._state.interrupt()
        if self._scope.was_raised:  # in the step, which took it for its own
            self._state.interrupt()


def _refusals() -> tuple[type[Exception], ...]:
    """Return the errors that tell of a fault of the spec, not of the journal."""
    from ..journal.identity import SpecNotJournallable  # imported lazily: most runs have no journal

    return JournalConflict, SpecNotJournallable
