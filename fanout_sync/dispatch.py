"""The runner's heart: feed specs into a bounded window, take reports as steps end. One thread, the caller's."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen

from .announcer import Announcer
from .attempt import Report, failure
from .backends.backend import Session
from .interrupts import Guard
from .options import positive_seconds
from .records import AttemptRecord
from .status import StepError
from .steps import AgentStepSpec
from .wording import describe

if TYPE_CHECKING:
    from .retry import RetryPolicy

SLOW_INPUT_S = 0.02
"""After so long, outcomes that are there do not wait any more for the input to fill the window."""

MAX_WAITING = 1024
"""So many steps at most wait for their next attempt; then an input that is no list waits, too."""

STOP_GRACE_S = 1.0
"""How long an interrupted run waits for steps on threads to stop by themselves."""

_LONGEST_WAIT_S = 3600.0


@frozen(eq=False)
class Policies:
    """What a runner decides about its steps.

    Attributes:
        timeout_s: How long an attempt may take; `None` for any time.
        timeout_for: Asked for each step; what it says goes before `timeout_s`.
        retry: Whether and when there is another attempt; `None` for never.
    """

    timeout_s: float | None = None
    timeout_for: Callable[[AgentStepSpec], float | None] | None = None
    retry: RetryPolicy | None = None

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


@define(eq=False)
class _History:
    """The attempts at a step that failed so far."""

    first_began: float
    idle_s: float = 0.0
    attempts: list[AttemptRecord] = field(factory=list)


class Dispatch:
    """One run of specs over a session.

    Args:
        specs: The input. A list or tuple is at hand: reading it takes no time and is nobody's code.
        session: Where the steps run.
        bound: How many may run at once.
        lookahead: How many more may be handed over early, to wait in the session: only for an input that is at hand.
        policies: Timeouts and retries.
        announcer: Tells of starts and ends; `None` when nobody listens.
        guard: Told when the caller's own code runs, in which an interrupt is to be raised at once.
        expires_at: When the run is to be given up, on the clock; the deadline of the step that it is part of.
        clock: Seconds, monotonic.

    Attributes:
        guard: As given.
        window: How many steps may be under way for more of the input to be read; the consumer may change it between
            reports.
        input_error: Why the input ended early; `None` as long as it did not.
        is_interrupted: Whether the run is to be given up; then `reports` ends, and `wind_down` gives the rest.
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
    ) -> None:
        self._at_hand = specs if isinstance(specs, Sequence) else ()
        self._is_lazy = not isinstance(specs, Sequence)
        self._specs = iter(specs)
        self._session = session
        self._policies = policies or Policies()
        self._asks_timeouts = self._policies.timeout_for is not None
        self._announcer = announcer
        self.guard = guard or Guard()
        self._expires_at = expires_at
        self._is_timed = self._asks_timeouts or expires_at < math.inf
        self._clock = clock
        self._lookahead = lookahead
        self._most_at_once = self.window = bound + lookahead
        self._most_waiting = MAX_WAITING if self._is_lazy else math.inf
        self.input_error: BaseException | None = None
        self.input_error_reason = ""
        self.is_interrupted = False
        self._start = self._start_outside if session.may_run_inline else session.start
        self._has_more = True
        self._fed = 0
        self._flying: dict[int, AgentStepSpec] = {}
        self._refused: deque[Report] = deque()
        self._waiting: list[tuple[float, int, AgentStepSpec]] = []
        self._histories: dict[int, _History] = {}

    def interrupt(self) -> None:
        """Give the run up. May be called from any thread and from a signal handler."""
        self.is_interrupted = True
        self._session.wake()

    def reports(self) -> Iterator[Report]:
        """Yield one report for each spec, in the order in which the steps end; the input is read in between."""
        may_retry, flying, wait = self._policies.retry is not None, self._flying, self._session.wait
        feed = self._feed if self._is_lazy else self._feed_at_hand
        refill_below = max(1, self._lookahead // 2)
        while not self.is_interrupted:
            if self._waiting:
                self._try_again_what_is_due()
            report = None
            if self._has_more and len(flying) <= self.window - refill_below and len(self._waiting) < self._most_waiting:
                report = feed()
            if report is None:
                if not flying and not self._waiting:
                    return
                if (report := self._wait() if self._waiting or self._is_timed else wait()) is None:
                    continue
            spec = flying.pop(report.ticket, None)
            if spec is None:  # reported already: something struck a thread from outside just when it had
                continue
            if may_retry and (report := self._unless_tried_again(report, spec)) is None:
                continue
            if self._announcer is not None:
                self._announcer.ended(report)
            yield report

    def _wait(self) -> Report | None:
        """Return the next report; `None` if something else is to be done first."""
        return self._refused.popleft() if self._refused else self._session.wait(self._patience())

    def wind_down(self) -> Iterator[Report]:
        """Yield what is missing of an interrupted run: what still ended by itself, then all that did not."""
        self.guard.is_attended = True
        for report in [*self._refused, *self._session.cancel(STOP_GRACE_S)]:
            self._flying.pop(report.ticket, None)
            yield self._told(self._with_history(report))
        for ticket, spec in self._flying.items():
            yield self._told(self._cancelled(ticket, spec, "the run was interrupted before the step was done"))
        for _, ticket, spec in self._waiting:
            last = self._histories[ticket].attempts[-1]
            again = f"the run was interrupted before attempt {last.number + 1}; attempt {last.number}: {last.reason}"
            yield self._told(self._cancelled(ticket, spec, again))
        self._flying.clear()
        self._waiting.clear()
        for ticket, spec in enumerate(self._at_hand[self._fed :], self._fed):
            if isinstance(spec, AgentStepSpec):
                yield self._cancelled(ticket, spec, "the run was interrupted before the step began")

    def _told(self, report: Report) -> Report:
        if self._announcer is not None:
            self._announcer.ended(report)
        return report

    # Feeding ----------------------------------------------------------------------------------------------------------

    def _feed_at_hand(self) -> Report | None:
        """Hand over specs of a list until the window is full; see `_feed`."""
        room = self.window - len(self._flying)
        specs = self._at_hand[self._fed : self._fed + room]
        self._has_more = len(specs) == room
        return self._hand_over(specs)

    def _feed(self) -> Report | None:
        """Hand over specs until the window is full; if that takes time, return a report that is there already."""
        return self._hand_over(self._read())

    def _hand_over(self, specs: Iterable[Any]) -> Report | None:
        began = monotonic()
        start, announcer, flying = self._start, self._announcer, self._flying
        timeout_s, may_take_long = self._policies.timeout_s, self._asks_timeouts or not self._lookahead
        for spec in specs:
            if type(spec) is not AgentStepSpec and not self._is_spec(spec):
                self._has_more = False
                break
            ticket = self._fed
            if announcer is not None:
                announcer.started(ticket, spec)
            self._fed += 1
            if self._asks_timeouts:
                self._launch(ticket, spec, 1)
            else:
                flying[ticket] = spec
                start(ticket, spec, 1, timeout_s)
            if not may_take_long:
                continue
            if self.is_interrupted:
                break
            if monotonic() - began > SLOW_INPUT_S and (report := self._session.poll()) is not None:
                self._has_more = True
                return report
        return None

    def _launch(self, ticket: int, spec: AgentStepSpec, attempt: int) -> None:
        self._flying[ticket] = spec
        try:
            with self.guard.outside():
                timeout_s = self._policies.timeout_of(spec)
        except KeyboardInterrupt:
            self.interrupt()
        except BaseException as error:  # the executor's own code: it costs this step alone
            self._refused.append(failure(ticket, spec, "raised", StepError.of(error)))
        else:
            self._start(ticket, spec, attempt, timeout_s)

    def _start_outside(self, ticket: int, spec: AgentStepSpec, attempt: int, timeout_s: float | None) -> None:
        """Hand over to a session that may run the step then and there, in this thread."""
        self.guard.was_raised = False
        try:
            with self.guard.outside():
                self._session.start(ticket, spec, attempt, timeout_s)
        except KeyboardInterrupt:
            self.interrupt()
        if self.guard.was_raised:  # in the step, which took it for its own
            self.interrupt()

    def _read(self) -> Iterator[Any]:
        """Yield what the caller's iterator gives, as long as there is room."""
        while len(self._flying) < self.window and not self.is_interrupted:
            self.guard.is_inside = False
            try:
                spec = next(self._specs)
            except StopIteration:
                self._has_more = False
                return
            except KeyboardInterrupt:
                self.interrupt()
                return
            except (Exception, SystemExit) as error:  # the caller's generator; what is running is finished first
                self.input_error = error
                self.input_error_reason = f"the input raised after {self._fed} specs: {StepError.of(error)}"
                self._has_more = False
                return
            finally:
                self.guard.is_inside = True
            yield spec

    def _is_spec(self, spec: Any) -> bool:
        """Return whether what came is a spec; if not, it is the end of the input, and the reason is set."""
        if isinstance(spec, AgentStepSpec):
            return True
        self.input_error = TypeError(f"expected an AgentStepSpec, got {describe(spec)}")
        self.input_error_reason = (
            f"specs[{self._fed}] is {describe(spec)}, expected an AgentStepSpec "
            "(AgentStepSpec.from_dict makes one from a mapping)"
        )
        return False

    # Trying again -----------------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        until = self._expires_at
        if self._waiting and len(self._flying) < self._most_at_once:
            until = min(until, self._waiting[0][0])
        left = until - self._clock()
        if left <= 0 and until == self._expires_at:
            self.is_interrupted = True
        return min(max(0.0, left), _LONGEST_WAIT_S)

    def _try_again_what_is_due(self) -> None:
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now and len(self._flying) < self._most_at_once:
            _, ticket, spec = heapq.heappop(self._waiting)
            self._launch(ticket, spec, len(self._histories[ticket].attempts) + 1)

    def _unless_tried_again(self, report: Report, spec: AgentStepSpec) -> Report | None:
        """Return the report if it is the step's last one."""
        if report.status == "succeeded" and report.retry_in is None:
            return self._with_history(report) if self._histories else report
        wait_s = self._wait_after(report, spec)
        if wait_s is None:
            return self._with_history(report)
        history = self._histories.setdefault(report.ticket, _History(self._clock() - (report.duration_s or 0.0)))
        number = len(history.attempts) + 1
        reason = report.reason or "the retry strategy wants another attempt"
        history.attempts.append(AttemptRecord(number, report.status, reason, report.duration_s, wait_s))
        history.idle_s += wait_s
        if self._announcer is not None:
            self._announcer.tried_again(spec, number, wait_s, reason)
        heapq.heappush(self._waiting, (self._clock() + wait_s, report.ticket, spec))
        return None

    def _wait_after(self, report: Report, spec: AgentStepSpec) -> float | None:
        policy = self._policies.retry
        assert policy is not None, "there are retries"
        history = self._histories.get(report.ticket)
        number = 1 if history is None else len(history.attempts) + 1
        began = self._clock() - (report.duration_s or 0.0) if history is None else history.first_began
        idle_s = 0.0 if history is None else history.idle_s
        try:
            wait_s = report.retry_in
            if wait_s is None and report.started is not None:
                wait_s = policy.rule.wait_after_loss(spec, number, report.status, report.reason or "")
            if wait_s is None:
                return None
            with self.guard.outside():
                is_over = policy.is_over(spec, number, began, idle_s, wait_s, report)
        except KeyboardInterrupt:
            self.interrupt()
            return None
        except BaseException as error:  # the caller's own strategies: what they raise costs the other attempts alone
            from .retry import told_of_strategy

            told_of_strategy(error)
            return None
        return None if is_over else wait_s

    def _with_history(self, report: Report) -> Report:
        history = self._histories.pop(report.ticket, None)
        if history is None:
            return report
        outcome = report.outcome
        if not outcome.success:
            outcome = evolve(outcome, output=f"{outcome.output} (after {len(history.attempts) + 1} attempts)")
        return report._replace(outcome=outcome, earlier=tuple(history.attempts))

    def _cancelled(self, ticket: int, spec: AgentStepSpec, reason: str) -> Report:
        report = failure(ticket, spec, "cancelled", StepError("CancelledError", reason))
        history = self._histories.pop(ticket, None)
        return report if history is None else report._replace(earlier=tuple(history.attempts))
