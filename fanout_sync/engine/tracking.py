"""Counts what becomes of the steps of a call, and has its progress shown."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

from attrs import define

from .. import forks
from ..records.report import Report, reason_in
from ..records.steps import AgentStepSpec
from ..records.usage import Usage
from ..results.failures import FailureGroups, first_line
from ..results.progress import Progress, ProgressSink, Unit
from ..results.progress_function import ProgressFunction

if TYPE_CHECKING:
    from ..limits.usage_meter import RunMeter
    from .run_state import RunState

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_REASON_READ = 2000
"""How many characters of a failed step's output are looked at for its reason."""


class Counted(Protocol):
    """What a call counts as done, if that is not its steps.

    Attributes:
        unit: What it is.
        total: How many there are; `None` if that is not known.
        done: How many are done.
    """

    @property
    def unit(self) -> Unit: ...
    @property
    def total(self) -> int | None: ...
    @property
    def done(self) -> int: ...


class Ask(Protocol):
    """As `Call.ask`."""

    def __call__(self, question: Callable[[], T], default: T) -> T: ...


@define(eq=False)
class _Shown:
    """A sink, and when it is its turn, on the clock."""

    sink: ProgressSink
    next_at: float = 0.0


class Tracker:
    """The view of one call, for the one who shows its progress. See `RunView`.

    Args:
        make_sinks: Each makes one of what shows the progress, when the first run of the call begins; `None` if nobody
            would see it.
        ask: Calls a function of the caller's, which an interrupt may end.
        undisturbed: Calls what draws, which no interrupt ends: half of it would be left on the screen.
        counted: What is counted as done; `None` for steps.

    Attributes:
        unit: What that is.
        done: How many steps have ended. Whoever takes their last reports counts them.
        next_at: When the progress is to be shown again, on the clock of `time.monotonic()`.
        notes_starts: Whether it is to be told when steps start, and of each that ends. Else only those that end are of
            interest that failed, were cancelled or come from the journal.
        started_at: When each step that has not ended was started, by index, on the clock of `time.monotonic()`.
    """

    def __init__(
        self,
        make_sinks: Sequence[Callable[[], ProgressSink | None]],
        ask: Ask,
        undisturbed: Callable[[Callable[[], object]], object],
        counted: Counted | None = None,
    ) -> None:
        self.unit: Unit = "step" if counted is None else counted.unit
        self._make_sinks = make_sinks
        self._shown: list[_Shown] = []
        self._ask = ask
        self._undisturbed = undisturbed
        self._has_begun = False
        self.notes_starts = False
        self._began = monotonic()
        self.next_at = math.inf
        self._counted = counted
        self._total: int | None = None
        self.done = 0
        self._failed = self._cancelled = self._retried = self._reused = 0
        self._usage = Usage()
        self._ended_cost_usd = 0.0
        self._has_ended = False
        self._state: RunState | None = None
        self._meter: RunMeter | None = None
        self._bound = 0
        self.started_at: dict[int, float] = {}
        self._failures: FailureGroups | None = None

    # What happens -----------------------------------------------------------------------------------------------------

    def follow(self, state: RunState, meter: RunMeter, total: int | None, bound: int) -> None:
        """Take the numbers from a run that begins, until another one of the same call begins."""
        self._usage = self._used()  # in the runs before
        self._state, self._meter, self._bound = state, meter, bound
        self._total = None if total is None else self.done + total
        self.started_at.clear()
        if not self._has_begun:
            self._has_begun = True
            for make_sink in self._make_sinks:
                self._guarded(partial(self._begin, make_sink), self._undisturbed)
            for shown in [*self._shown]:
                self._show(shown, partial(shown.sink.begin, self))
            self._set_next()

    def _begin(self, make_sink: Callable[[], ProgressSink | None]) -> None:
        if (sink := make_sink()) is None:
            return
        if sink.shows_steps:
            self.notes_starts = True
            self._failures = self._failures or FailureGroups(first_line)
        self._shown.append(_Shown(sink))

    def tried_again(self, report: Report) -> None:
        """Count an attempt after which there is another one."""
        self._retried += 1
        self.started_at.pop(report.index, None)

    def ended(self, report: Report) -> None:
        """Count a step by its last report, besides in `done`."""
        self.started_at.pop(report.index, None)
        if report.usage is not None and report.journalled is None:
            self._ended_cost_usd += report.usage.cost_usd
        if report.status == "cancelled":
            self._cancelled += 1
        elif not (outcome := report.outcome).success:
            self._failed += 1
            if self._failures is not None:
                self._failures.add(outcome.task_id, outcome.agent, "", reason_in(outcome.output)[:MAX_REASON_READ])
        if report.journalled is not None:
            self._reused += 1

    def tick(self) -> None:
        """Have the progress shown where it is time."""
        now = monotonic()
        if now < self.next_at:
            return
        for shown in [*self._shown]:
            if now >= shown.next_at:
                self._show(shown, shown.sink.update)
        self._set_next()

    def _set_next(self) -> None:
        self.next_at = min((shown.next_at for shown in self._shown), default=math.inf)

    def end(self) -> None:
        """Have the last progress shown."""
        self._state, self._has_ended = None, True  # nothing runs or waits any more
        for shown in [*self._shown]:
            self._show(shown, shown.sink.end)
        self._shown.clear()

    def _show(self, shown: _Shown, act: Callable[[], object]) -> None:
        is_callers = isinstance(shown.sink, ProgressFunction)
        if self._guarded(act, partial(self._ask, default=None) if is_callers else self._undisturbed):
            # Counted from the end of the drawing: what is slow must not take all the time.
            shown.next_at = monotonic() + shown.sink.interval_s
        else:
            self._shown.remove(shown)
            self.notes_starts = any(shown.sink.shows_steps for shown in self._shown)

    def _guarded(self, act: Callable[[], object], call: Callable[[Callable[[], object]], object]) -> bool:
        """Return whether a sink did what was asked of it, or was interrupted; an error is logged."""
        forks_before = forks.count
        try:
            call(act)
        except KeyboardInterrupt:
            raise
        except BaseException:
            forks.pass_on_in_child(forks_before)
            logger.exception("the progress of a run cannot be shown any more")
            return False
        return True

    # The view ---------------------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Return how far the call is."""
        total, done = self._total, self.done
        if self._counted is not None:
            total, done = self._counted.total, self._counted.done
        elapsed_s = monotonic() - self._began
        return Progress(
            total=total,
            done=done,
            succeeded=self.done - self._failed - self._cancelled,
            failed=self._failed,
            cancelled=self._cancelled,
            retried=self._retried,
            reused=self._reused,
            running=self._running(),
            waiting=self._waiting(),
            elapsed_s=elapsed_s,
            eta_s=self._eta_s(total, done, elapsed_s),
            usage=self._used(),
        )

    def running_steps(self) -> Sequence[tuple[AgentStepSpec, float]]:
        """Return the steps that are running and for how many seconds each has, the longest first."""
        if (state := self._state) is None:
            return []
        now, flying = monotonic(), state.flying
        # Steps that were handed over early wait behind those that run.
        started = sorted(self.started_at.copy().items(), key=lambda item: item[1])[: self._bound]
        return [(spec, now - at) for index, at in started if (spec := flying.get(index)) is not None]

    def held_back_by(self) -> str | None:
        """Return what keeps waiting steps from starting; `None` if nothing does."""
        waiting_line = None if (state := self._state) is None else state.waiting_line
        return None if waiting_line is None else waiting_line.held_back_by(monotonic())

    def latest_failures(self, most: int) -> Sequence[tuple[int, str]]:
        """Return how many steps have failed for which reason, that of the last failure first."""
        return [] if self._failures is None else self._failures.latest(most)

    def ended_cost_usd(self) -> float:
        """Return what the steps that have ended have cost, without those from the journal."""
        return self._ended_cost_usd

    def _running(self) -> int:
        state = self._state
        return 0 if state is None else min(self._bound, max(0, len(state.flying) - len(state.at_once)))

    def _waiting(self) -> int:
        state = self._state
        if state is None:
            return 0
        return len(state.schedule) + (0 if state.waiting_line is None else len(state.waiting_line))

    def _used(self) -> Usage:
        return self._usage if self._meter is None else self._usage + Usage.of_sum(*self._meter.reported())

    def _eta_s(self, total: int | None, done: int, elapsed_s: float) -> float | None:
        # What was reused took no time, and says nothing about the rest.
        timed = done if self._counted is not None else done - self._reused
        if total is None or total < done:
            return None
        if done == total:
            return 0.0
        return None if timed <= 0 or self._has_ended else (total - done) * elapsed_s / timed
