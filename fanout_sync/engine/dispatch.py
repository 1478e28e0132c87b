"""The runner's heart: feed specs into a bounded window, take reports as steps end. One thread, the caller's."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve, frozen

from ..backends.backend import Session
from ..checks import positive_seconds
from ..errors import JournalConflict, JournalError
from ..events.announcer import Announcer
from ..interrupts import Guard
from ..limits.usage_meter import RunMeter
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from ..retry.schedule import Retrying
from .input import Intake

if TYPE_CHECKING:
    from ..journal.resuming import Journalling
    from ..limits.answers import Exhausted
    from ..limits.waiting_line import WaitingLine
    from ..retry.policy import RetryPolicy

T = TypeVar("T")

logger = logging.getLogger(__name__)

SLOW_INPUT_S = 0.02
"""After so long, outcomes that are there do not wait any more for the input to fill the window."""

MAX_WAITING = 1024
"""So many steps at most wait for their next attempt, or at a gate; then an input that is no list waits, too."""

STOP_GRACE_S = 1.0
"""How long an interrupted run waits for steps on threads to stop by themselves."""

RENEW_EVERY_S = 5.0
"""How often the journal hears that the run goes on, at the least."""

_LONGEST_WAIT_S = 3600.0


@frozen(eq=False)
class Policies:
    """What a runner decides about its steps.

    Attributes:
        timeout_s: How long an attempt may take; `None` for any time.
        timeout_for: Asked for each step; what it says goes before `timeout_s`.
        retry: Whether and when there is another attempt; `None` for never.
        max_failures: After so many failed steps no more are started; `None` for any number.
    """

    timeout_s: float | None = None
    timeout_for: Callable[[AgentStepSpec], float | None] | None = None
    retry: RetryPolicy | None = None
    max_failures: int | None = None

    def timeout_of(self, spec: AgentStepSpec) -> float | None:
        """Return the timeout of an attempt at `spec`.

        Raises:
            Exception: `timeout_for` raised, or returned what is no timeout.
        """
        own = None if self.timeout_for is None else self.timeout_for(spec)
        if own is None:
            return self.timeout_s
        seconds = positive_seconds("what timeout_for() of the executor returned", own)
        return None if seconds == math.inf else seconds


class Dispatch:
    """One run of specs over a session.

    Args:
        specs: The input. A list or tuple is at hand: reading it takes no time and is nobody's code.
        session: Where the steps run.
        bound: How many may run at once.
        lookahead: How many more may be handed over early, to wait in the session: only for an input that is at hand.
        policies: Timeouts, retries, and how many failures are too many.
        announcer: Tells of starts and ends; `None` when nobody listens.
        guard: Told when the caller's own code runs, in which an interrupt is to be raised at once.
        expires_at: When the run is to be given up, on the clock; the deadline of the step that it is part of.
        clock: Seconds, monotonic.
        waiting_line: Says when a step may start; `None` for at once.
        journalling: Knows what need not run, and keeps what has run; `None` without a journal.
        meter: Knows what steps have used up.
        failures: How many steps have failed before, in the same loop.

    Attributes:
        guard: As given.
        window: How many steps may be under way for more of the input to be read; the consumer may change it between
            reports.
        intake: The input, and why it ended early if it did.
        is_interrupted: Whether the run is to be given up; then `reports` ends, and `wind_down` gives the rest.
        failures: How many steps have failed, with those before.
        journal_error: Why the journal cannot be used any more; then, too, `reports` ends, and `wind_up` gives the rest.
    """

    def __init__(
        self,
        specs: Iterator[Any] | Sequence[Any],
        session: Session,
        bound: int,
        lookahead: int = 0,
        policies: Policies | None = None,
        announcer: Announcer | None = None,
        guard: Guard | None = None,
        expires_at: float = math.inf,
        clock: Callable[[], float] = monotonic,
        *,
        waiting_line: WaitingLine | None = None,
        journalling: Journalling | None = None,
        meter: RunMeter | None = None,
        failures: int = 0,
    ) -> None:
        self._session = session
        self._policies = policies or Policies()
        self._announcer = announcer
        self.guard = guard or Guard()
        self._expires_at = expires_at
        self._clock = clock
        self._waiting_line = waiting_line
        self._journalling = journalling
        self._meter = RunMeter() if meter is None else meter
        self.is_interrupted = False
        self.journal_error: JournalError | None = None
        self.intake = Intake(specs, self.guard, self.interrupt)
        self._retrying = Retrying(self._policies.retry, self.guard, self.interrupt, clock)
        is_governed = waiting_line is not None or journalling is not None
        asks_timeouts = self._policies.timeout_for is not None
        self._looks_at_each = is_governed or asks_timeouts or self._policies.max_failures is not None
        # Where a step may have to wait or need not run at all, or be the last one, nothing is handed over early.
        self._lookahead = 0 if self._looks_at_each else lookahead
        self._is_timed = is_governed or expires_at < math.inf
        self._must_watch = self._looks_at_each or self._is_timed
        self._most_at_once = self.window = bound + self._lookahead
        self._most_written_together = max(1, bound // 8)
        self._most_waiting = math.inf if self.intake.is_at_hand else MAX_WAITING
        self._start = self._start_outside if session.may_run_inline else session.start
        self._flying: dict[int, AgentStepSpec] = {}
        self._at_once: deque[Report] = deque()
        self.failures = failures
        # Why no step is started for the first time any more; and whether none is tried again either.
        self._halt: StepError | None = None
        self._is_over = False

    def interrupt(self) -> None:
        """Give the run up. May be called from any thread and from a signal handler."""
        self.is_interrupted = True
        self._session.wake()

    @property
    def is_halted(self) -> bool:
        """Whether no more steps are started, because the budget is exhausted or too many have failed."""
        return self._halt is not None

    def reports(self) -> Iterator[Report]:  # noqa: C901 - in one piece, as each step takes this path
        """Yield one report for each spec, in the order in which the steps end; the input is read in between."""
        flying, intake, wait, tried = self._flying, self.intake, self._session.wait, self._retrying.histories
        may_retry = self._policies.retry is not None
        feed = self._feed if self._looks_at_each or not intake.is_at_hand else self._feed_at_hand
        refill_below = max(1, self._lookahead // 2)
        while not (self.is_interrupted or self.journal_error):
            must_watch = self._must_watch or tried
            if must_watch and self._do_what_is_due():
                yield from self._durable()
            report = None
            if intake.has_more and len(flying) <= self.window - refill_below and (not must_watch or self._may_feed()):
                report = feed()
            if report is None:
                if not flying and not (must_watch and self._is_waiting()):
                    if not self._holds_back():
                        return
                    yield from self._durable()
                    continue
                if (report := self._next() if must_watch else wait()) is None:
                    continue
            spec = flying.pop(report.index, None)
            if spec is None:  # reported already: something struck a thread from outside just when it had
                continue
            if must_watch or (may_retry and (report.status != "succeeded" or report.retry_in is not None)):
                report = self._concluded(report, spec)
            if report is not None:
                yield self._told(report)

    def _do_what_is_due(self) -> bool:
        """Start what has waited for its time; return whether what is held back has waited long enough, too."""
        if self._retrying:
            self._try_again_what_is_due()
        if self._waiting_line is not None:
            self._start_what_is_admitted()
        return self._journalling is not None and self._journalling.is_due(self._clock())

    def _is_waiting(self) -> bool:
        """Whether anything is still to come though no step is running."""
        unwritten = None if self._journalling is None else self._journalling.unwritten
        return bool(self._at_once or self._retrying or self._waiting_line or unwritten)

    def _next(self) -> Report | None:
        """Return the next report; `None` if something else is to be done first."""
        if self._at_once:
            return self._at_once.popleft()
        if self._journalling is not None:
            return self._next_while_writing(self._journalling)
        if self._is_timed or self._retrying:
            return self._session.wait(self._patience())
        return self._session.wait()

    def _next_while_writing(self, journalling: Journalling) -> Report | None:
        if not journalling.unwritten:
            if (report := self._session.wait(self._patience())) is None:
                self._with_journal(journalling.renew)
            return report
        # What has come meanwhile is written together; but not all of it, where much ends at once: the first of them
        # make room for others, which then end at another time than the rest.
        report = self._session.poll() if len(journalling.unwritten) < self._most_written_together else None
        if report is None:
            self._with_journal(journalling.write)
        return report

    def _concluded(self, report: Report, spec: AgentStepSpec) -> Report | None:
        """Return a step's last report; `None` if it is not the last one, or has to be made durable first."""
        final = self._final(report, spec)
        if final is None or self._journalling is None or not _is_new(final):
            return final
        self._journalling.add(final, spec)
        return None

    def _patience(self) -> float:
        """Return how long nothing is to be done but wait for reports, in seconds."""
        now = self._clock()
        until = self._expires_at
        if self._lost_if_killed() < self._most_at_once:
            until = min(until, self._retrying.due_at)
            if self._waiting_line is not None and not self._is_over:
                until = min(until, self._waiting_line.asks_at(now))
        if self._journalling is not None:
            until = min(until, self._journalling.due_at, now + RENEW_EVERY_S)
        return min(max(0.0, until - now), self._time_left())

    def _time_left(self) -> float:
        """Return how long the run may still wait, in seconds."""
        left = self._expires_at - self._clock()
        if left <= 0:
            self.is_interrupted = True
        return min(max(0.0, left), _LONGEST_WAIT_S)

    def _told(self, report: Report) -> Report:
        if self._meter:
            report = self._metered(report)
        if self._announcer is not None:
            self._announcer.ended(report)
        return report

    # Ends that come early ---------------------------------------------------------------------------------------------

    def rest(self) -> Iterator[Report]:
        """Yield what `reports` has left, having ended early; nothing if it has not."""
        if self.journal_error is not None:
            yield from self.wind_up()
        elif self.is_interrupted:
            yield from self.wind_down()

    def wind_down(self) -> Iterator[Report]:
        """Yield what is missing of an interrupted run: what still ended by itself, then all that did not."""
        self.guard.is_attended = True
        at_once = list(self._at_once)
        self._at_once.clear()
        for report in [*at_once, *self._session.cancel(STOP_GRACE_S)]:
            self._keep_final(report, self._flying.pop(report.index, None))
        yield from self._all_kept()
        yield from self._cancelled("the run was interrupted before the step was done")
        for index, spec in self.intake.unread():
            reason = _cancellation("the run was interrupted before the step began")
            yield self._told(self._retrying.cut_short(index, spec, reason))

    def wind_up(self) -> Iterator[Report]:
        """Yield what is missing of a run whose journal failed: of the steps that were started, all."""
        at_once = self._at_once
        self._at_once = deque()
        while self._flying and not self.is_interrupted:
            report = at_once.popleft() if at_once else self._session.wait(self._time_left())
            if report is not None:
                self._keep_final(report, self._flying.pop(report.index, None))
        if self.is_interrupted:
            self._at_once.extendleft(reversed(at_once))
            yield from self.wind_down()
            return
        yield from self._all_kept()
        yield from self._cancelled("the journal failed before the step was done")

    def _keep_final(self, report: Report, spec: AgentStepSpec | None) -> None:
        if spec is None:
            return
        if self._waiting_line is not None:
            self._waiting_line.settle(report, self._clock())
        report = self._retrying.completed(self._metered(report))
        if self._journalling is not None and _is_new(report):
            self._journalling.add(report, spec)
        else:
            self._at_once.append(report)

    def _all_kept(self) -> Iterator[Report]:
        """Yield what `_keep_final` was given."""
        if self._journalling is not None:
            if self.journal_error is None:
                yield from self._durable()
            yield from map(self._told, self._journalling.give_up())
        while self._at_once:
            yield self._told(self._at_once.popleft())

    def _cancelled(self, reason: str) -> Iterator[Report]:
        for index, spec in self._drained():
            yield self._told(self._metered(self._retrying.cut_short(index, spec, _cancellation(reason))))

    def _drained(self) -> list[tuple[int, AgentStepSpec]]:
        """Return all steps that are under way in any manner, and forget them."""
        drained = [*self._flying.items(), *self._retrying.drain()]
        if self._waiting_line is not None:
            drained += self._waiting_line.drain()
        self._flying.clear()
        return drained

    def _stop_starting(self, error: StepError, *, spares_retries: bool = False) -> None:
        """Finish what runs, and have every other step end with `error`, now or when it is read.

        Args:
            error: Why.
            spares_retries: Whether steps that have been tried before may be tried again.
        """
        self._halt = error
        self._is_over = not spares_retries
        waiting = [] if spares_retries else self._retrying.drain()
        if self._waiting_line is not None:
            waiting += self._waiting_line.drain(spares_retries=spares_retries)
        for index, spec in waiting:
            self._refuse(index, spec, error)

    def _refuse(self, index: int, spec: AgentStepSpec, error: StepError) -> None:
        self._flying[index] = spec
        self._at_once.append(self._retrying.cut_short(index, spec, error))

    # Feeding ----------------------------------------------------------------------------------------------------------

    def _may_feed(self) -> bool:
        """Whether there is room for one more step, also if it has to wait: for its next attempt, or at a gate."""
        if self._lost_if_killed() >= self.window:
            return False
        if self._may_all_fail():
            return False
        if self._waiting_line is None:
            return len(self._retrying) < self._most_waiting
        if not self._waiting_line.has_keys and len(self._waiting_line) >= self._most_at_once:
            return False
        return len(self._retrying) + len(self._waiting_line) < self._most_waiting

    def _may_all_fail(self) -> bool:
        """Whether so many steps are being tried again that, if they fail in the end, there are too many by far."""
        most = self._policies.max_failures
        if most is None or self._halt is not None:
            return False
        return self.failures + len(self._retrying.histories) >= most + self._most_at_once

    def _lost_if_killed(self) -> int:
        """Return how many steps have begun and are not journalled: never more than may run at once."""
        return len(self._flying) + (0 if self._journalling is None else len(self._journalling.unwritten))

    def _holds_back(self) -> bool:
        return self._journalling is not None and self._journalling.holds_back

    def _feed_at_hand(self) -> Report | None:
        """Hand over specs of a list until the window is full; see `_feed`."""
        return self._hand_over(self.intake.slice(self.window - len(self._flying)))

    def _feed(self) -> Report | None:
        """Hand over specs until the window is full; if that takes time, return a report that is there already."""
        return self._hand_over(self.intake.read(self._has_room))

    def _has_room(self) -> bool:
        return self._may_feed() and not (self.is_interrupted or self.journal_error)

    def _hand_over(self, specs: Iterable[Any]) -> Report | None:
        began = monotonic()
        start, announcer, flying, intake = self._start, self._announcer, self._flying, self.intake
        timeout_s, may_take_long = self._policies.timeout_s, self._looks_at_each or not self._lookahead
        for spec in specs:
            if type(spec) is not AgentStepSpec and not intake.accepts(spec):
                break
            index = intake.count
            intake.count += 1
            if self._looks_at_each:
                self._take_in(index, spec)
            else:
                if announcer is not None:
                    announcer.started(index, spec)
                flying[index] = spec
                start(index, spec, 1, timeout_s)
            if not may_take_long:
                continue
            if self.is_interrupted:
                break
            if monotonic() - began > SLOW_INPUT_S and (report := self._session.poll()) is not None:
                intake.has_more = intake.error is None
                return report
        return None

    def _take_in(self, index: int, spec: AgentStepSpec) -> None:
        """Start a step, unless it need not run, must wait, or is one too many."""
        if self._journalling is not None and self._is_found(self._journalling, index, spec):
            return
        if self._halt is not None:
            self._refuse(index, spec, self._halt)
        elif self._waiting_line is not None:
            self._line_up(index, spec, 1)
            self._start_what_is_admitted()
        else:
            self._launch(index, spec, 1)

    def _is_found(self, journalling: Journalling, index: int, spec: AgentStepSpec) -> bool:
        """Return whether the journal ends this step, having its outcome or having failed."""
        from ..journal.resuming import SpecNotJournallable

        try:
            report = journalling.reuse(index, spec)
        except (JournalConflict, SpecNotJournallable) as error:
            self.intake.fail(error, str(error))
        except JournalError as error:
            self.journal_error = error
        else:
            if report is None:
                return False
            self._flying[index] = spec
            self._at_once.append(report)
        return True

    def _line_up(self, index: int, spec: AgentStepSpec, attempt: int) -> None:
        assert self._waiting_line is not None, "there are gates"
        try:
            with self.guard.outside():
                waiting_step = self._waiting_line.waiting_step(index, spec, attempt)
        except KeyboardInterrupt:
            self.interrupt()
        except BaseException as error:  # the caller's own code: it costs this step alone
            self._flying[index] = spec
            self._at_once.append(failure(index, spec, "raised", StepError.of(error)))
        else:
            self._waiting_line.enqueue(waiting_step)

    def _start_what_is_admitted(self) -> None:
        assert self._waiting_line is not None, "there are gates"
        while self._waiting_line and self._lost_if_killed() < self._most_at_once:
            if (waiting_step := self._waiting_line.admit(self._clock())) is None:
                break
            self._launch(waiting_step.index, waiting_step.spec, waiting_step.attempt)
        if not self._is_over and (gone := self._waiting_line.exhausted(self._clock())) is not None:
            self._run_out(gone)

    def _run_out(self, gone: Exhausted) -> None:
        """Take note that there is no more of something; of `steps`, those that have begun need no more."""
        if self._announcer is not None and self._halt is None:
            self._announcer.exhausted(gone.resource, gone.limit, gone.used)
        error = StepError("BudgetExhausted", f"budget exhausted: {gone}")
        self._stop_starting(error, spares_retries=gone.resource == "steps")

    def _launch(self, index: int, spec: AgentStepSpec, attempt: int) -> None:
        self._flying[index] = spec
        if attempt == 1 and self._announcer is not None:
            self._announcer.started(index, spec)
        if self._policies.timeout_for is None:
            self._start(index, spec, attempt, self._policies.timeout_s)
            return
        try:
            with self.guard.outside():
                timeout_s = self._policies.timeout_of(spec)
        except KeyboardInterrupt:
            self.interrupt()
        except BaseException as error:  # the executor's own code: it costs this step alone
            self._at_once.append(failure(index, spec, "raised", StepError.of(error)))
        else:
            self._start(index, spec, attempt, timeout_s)

    def _start_outside(self, index: int, spec: AgentStepSpec, attempt: int, timeout_s: float | None) -> None:
        """Hand over to a session that may run the step then and there, in this thread."""
        self.guard.was_raised = False
        try:
            with self.guard.outside():
                self._session.start(index, spec, attempt, timeout_s)
        except KeyboardInterrupt:
            self.interrupt()
        if self.guard.was_raised:  # in the step, which took it for its own
            self.interrupt()

    # After an attempt -------------------------------------------------------------------------------------------------

    def _try_again_what_is_due(self) -> None:
        while self._retrying and self._lost_if_killed() < self._most_at_once:
            if (due := self._retrying.pop_due(self._clock())) is None:
                return
            if self._waiting_line is None:
                self._launch(*due)
            else:
                self._line_up(*due)

    def _final(self, report: Report, spec: AgentStepSpec) -> Report | None:
        """Return a step's last report, with all that is known of it; `None` if there is another attempt."""
        if self._waiting_line is not None:
            self._waiting_line.settle(report, self._clock())
        if not self._is_over and (wait_s := self._retrying.wait_after(report, spec)) is not None:
            attempt = self._retrying.postpone(report, spec, wait_s)
            if self._announcer is not None:
                self._announcer.tried_again(spec, attempt)
            return None
        report = self._retrying.completed(self._metered(report))
        if not report.outcome.success and report.status != "cancelled":
            self._count_failure()
        return report

    def _metered(self, report: Report) -> Report:
        if self._meter and (usage := self._meter.take(report.index)) is not None:
            return evolve(report, usage=usage)
        return report

    def _count_failure(self) -> None:
        self.failures += 1
        if not self._is_over and self.failures == self._policies.max_failures:
            steps = "1 step had" if self.failures == 1 else f"{self.failures} steps had"
            reason = f"no more steps are started: {steps} failed by then, which is max_failures"
            self._stop_starting(_cancellation(reason))

    def _durable(self) -> Iterator[Report]:
        assert self._journalling is not None, "there is a journal"
        for report in self._with_journal(self._journalling.durable) or ():
            yield self._told(report)

    def _with_journal(self, use: Callable[[], T]) -> T | None:
        try:
            return use()
        except JournalError as error:
            logger.error("the journal failed; no more steps are started: %s", error)
            self.journal_error = error
            return None


def _cancellation(reason: str) -> StepError:
    return StepError("CancelledError", reason)


def _is_new(report: Report) -> bool:
    """Whether a report is for the journal: not if it came from there, nor if the step never got its chance."""
    return report.journalled is None and report.status != "cancelled"
