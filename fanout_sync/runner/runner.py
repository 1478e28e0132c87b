"""Bounded, ordered, isolating dispatch of specs over a backend."""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast
from weakref import WeakSet

from ..backends import Backend
from ..backends.backend import RunContext, Session
from ..checks import one_of, positive_int, refuse_unknown
from ..engine.dispatch import Dispatch, Policies
from ..engine.input import Rereadable, an_iterator, checked, length_of, read_and_checked
from ..engine.loop import NextRound, specs_of_next_round
from ..engine.pipeline import Pipeline, Stage
from ..errors import FanoutInterrupted, InputError, JournalConflict, JournalError, OptionError
from ..events.announcer import FLUSH_S, INTERRUPTED_FLUSH_S, Announcer
from ..events.senders import EventSink
from ..executors.current_step import CurrentStep, StopSignal, current_step, running_step
from ..executors.executor import AgentExecutor
from ..executors.step_events import StepEvents
from ..formatting import describe
from ..interrupts import Guard, end_as_if_killed
from ..limits.usage_meter import RunMeter
from ..records.report import Report
from ..records.steps import AgentStepSpec, StepOutcome
from ..results.run import Run
from .arguments import (
    OPTIONS,
    a_backend,
    a_budget,
    a_retry,
    a_timeout,
    a_workflow,
    an_event_sink,
    an_executor,
    own_timeout_for,
    rate_limits,
)

if TYPE_CHECKING:
    from tenacity import BaseRetrying

    from ..journal import Journal, Workflow
    from ..journal.resuming import Journalling
    from ..limits.budget import Budget
    from ..limits.rate_limit import RateLimit
    from ..limits.waiting_line import WaitingLine
    from ..retry.policy import Retry

__all__ = ["Runner"]

MAX_UNREAD = 256
"""How many outcomes `stream(order="input")` holds back behind a slow step before it stops feeding."""


class Runner:
    """Runs specs on an executor, many at once, and gives back every outcome.

    A step that raises, dies or returns garbage becomes a failed outcome that says so and keeps the spec's `task_id`
    and `agent`; the others are not touched. One runner can be used any number of times, from several threads at once
    and inside its own steps; each call has its own bound.

    As a context manager it keeps process workers warm between calls; streams that are open at its end are closed.

    Args:
        executor: How a step runs.
        backend: Where: `"thread"`, `"process"`, a `Backend`, or any `concurrent.futures.Executor`.
        max_concurrency: How many steps of one call may run at once; by default what the executor hints.
        timeout: How many seconds an attempt at a step may take, from when it begins in its worker; by default any
            time. `AgentExecutor.timeout_for` goes before it. In a worker process the step is killed with all that it
            started; a thread is abandoned; on a foreign pool the step is given up, and keeps its place there (a
            `UserWarning` says so).
        retry: Whether steps that failed are tried again: how many attempts there are, a `Retry`, or a
            `tenacity.Retrying` object, of which `stop`, `wait` and `retry` count. By default each step is tried once.
        rate_limit: A `RateLimit`, or several: steps wait, holding no slot, until all of them let them start.
        budget: A `Budget`: what all steps together may use up.
        max_failures: After so many failed steps (not attempts) no more are started; those left end as `cancelled`.
        journal: Keeps outcomes, so that a run that was cut short resumes where it was: the path of an SQLite file, a
            `Journal`, or one of its workflows (`SqliteJournal("run.db").workflow("nightly")`). Every outcome is durable
            before it is handed out. A step that is journalled with success is not run again; each step of a run needs
            a `task_id` of its own.
        event_tx: Where events go, usually an `EventChannel`: anything with a `send` method.
        on_interrupt: What Ctrl-C does when everything is cleaned up: `"raise"` a `FanoutInterrupted`, or `"return"`
            what there is.

    Raises:
        OptionError: An argument that nobody can mean; it is named.
    """

    def __init__(
        self,
        executor: AgentExecutor,
        *,
        backend: Literal["thread", "process"] | Executor = "thread",
        max_concurrency: int | None = None,
        timeout: float | None = None,
        retry: int | Retry | BaseRetrying | None = None,
        rate_limit: RateLimit | Sequence[RateLimit] | None = None,
        budget: Budget | None = None,
        max_failures: int | None = None,
        journal: str | os.PathLike[str] | Journal | Workflow | None = None,
        event_tx: EventSink | None = None,
        on_interrupt: Literal["raise", "return"] = "raise",
        **unknown: NoReturn,
    ) -> None:
        refuse_unknown("Runner", unknown, OPTIONS)
        self._executor = an_executor(executor)
        self._backend = a_backend(backend)
        self._max_concurrency = None if max_concurrency is None else positive_int("max_concurrency", max_concurrency)
        breaker = None if max_failures is None else positive_int("max_failures", max_failures)
        self._policies = Policies(a_timeout(timeout), own_timeout_for(self._executor), a_retry(retry), breaker)
        self._limits = rate_limits(rate_limit)
        self._budget = a_budget(budget)
        self._workflow = None if journal is None else a_workflow(journal)
        self._event_tx = an_event_sink(event_tx)
        self._streams: WeakSet[Generator[StepOutcome, None, None]] = WeakSet()
        self._raises_interrupts = one_of("on_interrupt", on_interrupt, ("raise", "return")) == "raise"
        has_limits = self._policies.timeout_s is not None or self._policies.timeout_for is not None
        if has_limits and not isinstance(self._backend, Backend):
            warnings.warn(
                f"the timeout is a soft one: {type(backend).__name__} cannot stop a step that is overdue, which is "
                "reported as timed out and keeps its place there; backend='process' kills it",
                stacklevel=_level_of_the_caller(),
            )

    def run(self, specs: Iterable[AgentStepSpec]) -> Run:
        """Run every spec and return when all are done.

        Args:
            specs: Any iterable, consumed lazily, in this thread; with a journal, read to its end first.

        Returns:
            One outcome per spec, in the order of `specs`.

        Raises:
            InputError: `specs` is not iterable, its iterator raised, or an item is no spec. Steps that were started
                by then are finished first, and are in its `.run`.
            ExecutorNotPicklable: The executor cannot be sent to worker processes; nothing was run.
            JournalError: The journal cannot be used; if that comes to light in the middle, steps that were started are
                finished first, and are in its `.run`.
            JournalConflict: Two specs have the same `task_id`, or one is journalled with another spec; nothing was run.
            FanoutInterrupted: Ctrl-C. Worker processes are killed, steps on threads have `current_step().cancelled`
                set and a second to stop. Its `.run` has what was done.
        """
        with self._journalled() as journalling:
            run, _ = self._run(specs, journalling)
        self._raise_late_interrupt(journalling, run)
        return run

    def stream(
        self, specs: Iterable[AgentStepSpec], order: Literal["input", "completion"] = "input"
    ) -> Generator[StepOutcome, None, None]:
        """Yield outcomes as they become available; a consumer that stops taking them stops the feed.

        Args:
            specs: Any iterable, consumed lazily, in this thread: at most the bound of specs plus unread outcomes are
                held. Behind one slow step at most `MAX_UNREAD` finished ones wait for it.
            order: `"input"`, the order of `specs`, or `"completion"`.

        Yields:
            One outcome per spec; a step that failed yields a failed outcome, never an exception.

        Raises:
            InputError: As in `run`; steps that were started are finished and yielded first.
            OptionError: `order` is neither.
            ExecutorNotPicklable: As in `run`.
            JournalError, JournalConflict: As in `run`; but unless `specs` is a list or tuple, a conflict is found only
                when its spec is read.
            FanoutInterrupted: Ctrl-C while it waits for an outcome; its `.run` has those that were not yielded yet.
        """
        one_of("order", order, ("input", "completion"))
        is_at_hand = type(specs) in (list, tuple)
        source = specs if is_at_hand else an_iterator(specs)
        stream = self._stream(specs, source, order == "input")
        self._streams.add(stream)
        return stream

    def pipeline(self, items: Iterable[Any], stages: Sequence[Stage]) -> list[StepOutcome | None]:
        """Take each item through the stages on its own: no item waits for another one's stage.

        Args:
            items: Any iterable, consumed lazily, in this thread.
            stages: Functions `stage(outcome, item) -> AgentStepSpec | None`: each makes an item's next step of the
                outcome of the one before (`None` for the first stage) and the item. They are called in this thread.
                `None` ends the item's chain, and so does a step that fails.

        Returns:
            Each item's last outcome, in the order of `items`; `None` if its first stage gave no spec. A stage that
            raises ends its own chain only, with a failed outcome that names stage and error.

        Raises:
            OptionError: `stages` is no list of functions.
            InputError: `items` is not iterable or its iterator raised. What was under way is finished first.
            ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in `run`; a conflict is found
                only when its spec is made.
        """
        chains = Pipeline(items, stages)
        with self._journalled() as journalling:
            run, dispatch = self._run(chains, journalling, on_report=chains.take)
        self._raise_late_interrupt(journalling, run)
        if dispatch.is_interrupted:
            chains.give_up()
        return chains.outcomes

    def loop(self, initial: Iterable[AgentStepSpec], max_iterations: int, next_round: NextRound) -> list[StepOutcome]:
        """Run rounds of steps, each when the one before is done, until `next_round` says stop.

        Args:
            initial: The specs of the first round.
            max_iterations: How many rounds there are at the most, at least 1.
            next_round: Called, in this thread, with the outcomes of a round; returns `Continue(specs)` or `Stop()`.
                `Continue` with no specs ends the loop, too. With a journal all rounds together are one run: each step
                needs a `task_id` of its own.

        Returns:
            The outcomes of the last round, in the order of its specs. It is the last one also if the budget is
            exhausted or `max_failures` steps have failed by then.

        Raises:
            OptionError: `max_iterations` is no int of at least 1, or `next_round` no function.
            InputError: As in `run`; or `next_round` raised, or returned neither: `.run` is the round before.
            ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in `run`.
        """
        positive_int("max_iterations", max_iterations)
        if not callable(next_round):
            raise OptionError(f"next_round must be a function of a list of outcomes, got {describe(next_round)}")
        specs, failures = initial, 0
        before: Run | None = None
        with self._journalled() as journalling, self._warm():
            for iteration in range(1, max_iterations + 1):
                run, dispatch = self._run(specs, journalling, failures=failures, before=before)
                if not run or iteration == max_iterations or dispatch.is_halted or dispatch.is_interrupted:
                    break
                try:
                    specs = specs_of_next_round(next_round, run)
                except KeyboardInterrupt:
                    self._raise_interrupted(run)
                    break
                if not specs:
                    break
                before, failures = run, dispatch.failures
        self._raise_late_interrupt(journalling, run)
        return list(run)

    def __enter__(self) -> Runner:
        if isinstance(self._backend, Backend):
            self._backend.keep_warm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for stream in list(self._streams):
            with suppress(ValueError):  # another thread is just reading it: it is that one's to end
                stream.close()
        if isinstance(self._backend, Backend):
            self._backend.cool_down(is_urgent=isinstance(error, KeyboardInterrupt))

    @contextmanager
    def _warm(self) -> Iterator[None]:
        """Keep workers from one round to the next."""
        if not isinstance(self._backend, Backend):
            yield
            return
        self._backend.keep_warm()
        is_urgent = True
        try:
            yield
            is_urgent = False
        finally:
            self._backend.cool_down(is_urgent=is_urgent)

    @contextmanager
    def _journalled(self) -> Iterator[Journalling | None]:
        """Permit the workflow, if there is a journal."""
        if self._workflow is None:
            yield None
            return
        from ..journal.resuming import Journalling  # few need it, and importing it is dear

        with Guard() as guard, closing(Journalling(self._workflow, guard)) as journalling, guard.outside():
            yield journalling

    def _run(
        self,
        specs: Iterable[AgentStepSpec],
        journalling: Journalling | None,
        on_report: Callable[[Report], None] | None = None,
        failures: int = 0,
        before: Run | None = None,
    ) -> tuple[Run, Dispatch]:
        """Run specs to their end, with a barrier.

        Args:
            specs: As in `run`.
            journalling: The hold on the workflow, if there is a journal.
            on_report: Called with each step's last report, before more of `specs` is read.
            failures: How many steps have failed in the rounds before.
            before: The last of those rounds.

        Raises:
            Exception: As in `run`.
        """
        began = time.monotonic()
        reports: dict[int, Report] = {}
        total = length_of(specs)
        if journalling is not None and on_report is None:
            specs = read_and_checked(specs, journalling, before)
        with self._dispatching(specs, total, journalling, unattended=False, failures=failures) as dispatch:
            try:
                for report in dispatch.reports():
                    reports[report.index] = report
                    if on_report is not None:
                        on_report(report)
            except KeyboardInterrupt:  # one that was raised rather than noted, by whatever means
                dispatch.interrupt()
            for report in dispatch.rest():
                reports[report.index] = report
                if on_report is not None:
                    on_report(report)
            if dispatch.is_interrupted:
                self._raise_interrupt(reports, began)
        if dispatch.is_interrupted:  # at the very end, perhaps
            self._raise_interrupt(reports, began)
        run = self._run_of(reports, began)
        if not dispatch.is_interrupted:
            _raise_what_ended(dispatch, run)
        return run, dispatch

    def _stream(
        self, given: Iterable[AgentStepSpec], source: Iterable[AgentStepSpec], in_input_order: bool
    ) -> Generator[StepOutcome, None, None]:
        began = time.monotonic()
        unread: dict[int, Report] = {}
        with self._journalled() as journalling:
            if journalling is not None and isinstance(given, (list, tuple, Rereadable)):
                source = checked(given, source, journalling)
            with self._dispatching(source, length_of(given), journalling, unattended=True) as dispatch:
                reports = _in_input_order(dispatch, unread) if in_input_order else dispatch.reports()
                yield from _handed_out(dispatch, reports)
                unread.update((report.index, report) for report in dispatch.rest())
                if dispatch.is_interrupted:
                    self._raise_interrupt(unread, began)
                    yield from _handed_out(dispatch, [unread.pop(index) for index in sorted(unread)])
        if dispatch.is_interrupted:
            self._raise_interrupt(unread, began)
        else:
            _raise_what_ended(dispatch, self._run_of(unread, began))
            self._raise_late_interrupt(journalling, self._run_of({}, began))

    def _raise_interrupt(self, reports: dict[int, Report], began: float) -> None:
        """Raise what an interrupted run ends with, unless it is to return.

        It is raised while interrupts are still taken note of: one more must not put itself in its place.
        """
        self._raise_interrupted(self._run_of(reports, began))

    def _raise_interrupted(self, run: Run) -> None:
        if self._raises_interrupts:
            end_as_if_killed()
            raise FanoutInterrupted(run)

    def _raise_late_interrupt(self, journalling: Journalling | None, run: Run) -> None:
        """Raise what came while the journal was being closed."""
        if journalling is not None and journalling.guard.is_interrupted:
            self._raise_interrupted(run)

    def _run_of(self, reports: dict[int, Report], began: float) -> Run:
        notes = () if self._budget is None else (self._budget.summary_line(time.monotonic()),)
        return Run([reports[index] for index in sorted(reports)], time.monotonic() - began, notes)

    def _dispatching(
        self,
        specs: Iterable[AgentStepSpec],
        total: int | None,
        journalling: Journalling | None,
        *,
        unattended: bool,
        failures: int = 0,
    ) -> AbstractContextManager[Dispatch]:
        """Return what opens and ends the backend's session around a call."""
        is_at_hand = type(specs) in (list, tuple)
        source = cast("Sequence[Any]", specs) if is_at_hand else an_iterator(specs)
        return self._session(
            source,
            total,
            journalling,
            may_look_ahead=is_at_hand and not unattended,
            # Whoever reads them from elsewhere may be away for long, too, while the next spec is being made.
            unattended=unattended or not is_at_hand,
            failures=failures,
        )

    @contextmanager
    def _session(
        self,
        specs: Iterator[Any] | Sequence[Any],
        total: int | None,
        journalling: Journalling | None,
        *,
        may_look_ahead: bool,
        unattended: bool,
        failures: int,
    ) -> Iterator[Dispatch]:
        bound = self._bound()
        outer = None if running_step.get() is None else current_step()
        stop, meter = StopSignal(), RunMeter()
        rule = None if self._policies.retry is None else self._policies.retry.rule
        with Guard() as guard, self._governed(meter) as waiting_line:
            if outer is not None and waiting_line is not None:
                outer.meter.nest(outer.index, waiting_line.limiter)
            on_end = None if waiting_line is None or not unattended else waiting_line.ended
            events = self._step_events()
            context = RunContext(self._executor, bound, meter, events, rule, stop, unattended, on_end)
            session = self._open(context)
            announcer = None
            try:
                # With events, a step is handed over no sooner than it starts, so that its start can be told.
                if self._event_tx is not None:
                    announcer = Announcer(self._event_tx, total)
                dispatch = Dispatch(
                    specs,
                    session,
                    bound,
                    session.lookahead if may_look_ahead and announcer is None else 0,
                    self._policies,
                    announcer,
                    guard,
                    math.inf if outer is None or outer.deadline is None else outer.deadline,
                    waiting_line=waiting_line,
                    journalling=journalling,
                    meter=meter,
                    failures=failures,
                )
                with _interrupting(dispatch, guard, outer):
                    yield dispatch
                    guard.is_attended = True
                    if dispatch.is_interrupted:
                        session.abort()
                    else:
                        session.close()
            except BaseException:
                guard.is_attended = True
                session.abort()
                raise
            finally:
                if announcer is not None:
                    announcer.close(FLUSH_S if not guard.is_interrupted else INTERRUPTED_FLUSH_S)

    @contextmanager
    def _governed(self, meter: RunMeter) -> Iterator[WaitingLine | None]:
        """Have the limits and the budget know of a run as long as it lasts."""
        if not self._limits and self._budget is None:
            yield None
            return
        from ..limits.limiter import Limiter
        from ..limits.waiting_line import WaitingLine  # few need it, and importing it is dear

        limiter = Limiter(self._limits, self._budget)
        waiting_line = WaitingLine(limiter)
        meter.on_usage, meter.on_nest = waiting_line.spend, waiting_line.nest
        limiter.begin_run(time.monotonic())
        try:
            yield waiting_line
        finally:
            now = time.monotonic()
            waiting_line.close(now)
            limiter.end_run(now)

    def _step_events(self) -> StepEvents | None:
        """Return the `event_tx` of steps: there is one if anybody listens, be it to their usage alone."""
        counts_usage = self._limits or self._budget is not None
        return StepEvents(self._event_tx) if self._event_tx is not None or counts_usage else None

    def _open(self, context: RunContext) -> Session:
        if isinstance(self._backend, Backend):
            return self._backend.open(context)
        from ..backends.foreign import ForeignSession  # few need it, and importing it is dear

        return ForeignSession(self._backend, context)

    def _bound(self) -> int:
        if self._max_concurrency is not None:
            return self._max_concurrency
        hint: object = self._executor.concurrency_hint()
        if not isinstance(hint, int) or isinstance(hint, bool):
            raise OptionError(f"concurrency_hint() of the executor must return an int, got {describe(hint)}")
        return max(1, hint)


@contextmanager
def _interrupting(dispatch: Dispatch, guard: Guard, outer: CurrentStep | None) -> Iterator[None]:
    """Have a run given up when the user interrupts it, or when the step is cancelled that it is part of."""
    guard.on_interrupt = dispatch.interrupt
    if guard.is_interrupted:
        dispatch.interrupt()
    if outer is None:
        yield
        return
    outer.stop.listen(dispatch.interrupt)
    try:
        yield
    finally:
        outer.stop.unlisten(dispatch.interrupt)


def _raise_what_ended(dispatch: Dispatch, run: Run) -> None:
    """Raise what ended a run before its time, with the steps that were done."""
    if (failed := dispatch.journal_error) is not None:
        raise JournalError(failed.reason, run) from failed.__cause__
    error = dispatch.intake.error
    if isinstance(error, JournalConflict):
        raise JournalConflict(error.reason, error.conflicts, run) from error.__cause__
    if error is not None:
        raise InputError(dispatch.intake.reason, run) from error


def _handed_out(dispatch: Dispatch, reports: Iterable[Report]) -> Iterator[StepOutcome]:
    for report in reports:
        dispatch.guard.is_inside = False
        try:
            yield report.outcome
        except KeyboardInterrupt:  # thrown in by a consumer that was interrupted and wants what is left
            dispatch.interrupt()
        finally:
            dispatch.guard.is_inside = True


def _in_input_order(dispatch: Dispatch, unread: dict[int, Report]) -> Iterator[Report]:
    """Yield reports in the order of the input.

    Args:
        dispatch: Where they come from.
        unread: Holds those that are not yielded yet.
    """
    widest = dispatch.window
    due = 0
    for report in dispatch.reports():
        unread[report.index] = report
        while due in unread:
            yield unread.pop(due)
            due += 1
        dispatch.window = min(widest, MAX_UNREAD + widest - len(unread))


def _level_of_the_caller() -> int:
    """Return the `stacklevel` at which, for `warnings.warn` where this is called, the first frame of others is."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals is globals():
        level, frame = level + 1, frame.f_back
    return level
