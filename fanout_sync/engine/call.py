"""One call of a runner: from before its journal is opened until after its last worker is gone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from attrs import define, field

from .. import forks
from ..backends.backend import Backend, RunContext, Session, refuse_inherited_run
from ..errors import ExecutorNotPicklable, FanoutInterrupted, InputError, JournalConflict, JournalError
from ..events.announcer import Announcer
from ..executors.current_step import CurrentStep, StopSignal, current_step, running_step
from ..executors.step_events import DirectSender
from ..interrupts import InterruptScope, end_as_if_killed
from ..limits.usage_meter import RunMeter
from ..records.report import Report
from ..records.steps import AgentStepSpec
from ..results.retrying import failed_places
from ..results.run import Run, with_retried
from .dispatch import Dispatch, Setting
from .input import an_iterator, check, is_at_hand, length_of, listed, raising_after, read_all, refuse_unsupported
from .plan import RunPlan
from .tracking import Counted, Tracker
from .warn import warn_at_the_end

T = TypeVar("T")

if TYPE_CHECKING:
    from ..journal.run_journal import RunJournal
    from ..limits.waiting_line import WaitingLine
    from ..results.progress import ProgressSink


@define(eq=False)
class Call:
    """One call of a runner, in which there may be several runs in a row.

    Attributes:
        plan: What the caller wants.
        scope: Notes interrupts as long as the call lasts.
        journal: The hold on the workflow; `None` without a journal.
        total: How many steps it or its latest round has; `None` if nobody can tell.
        began: When it or its latest round began, on the clock of `time.monotonic()`.
        dispatch: The latest run; `None` if there was none yet.
        retried: The run whose failed steps run again in this call; `None` if it is no such call.
        make_sink: Makes what shows the progress, besides what the plan says; `None` if nothing does.
        tracker: Counts steps and has the progress shown; `None` when nobody looks.
        reports: The last reports of the steps of its latest run with a barrier, by index. Other threads may copy it.
        is_inherited: Whether this is a forked child of the process that made the call: it only unwinds here, and
            touches nothing.
    """

    plan: RunPlan
    scope: InterruptScope = field(factory=InterruptScope)
    journal: RunJournal | None = None
    total: int | None = None
    began: float = field(factory=time.monotonic)
    dispatch: Dispatch | None = None
    retried: Run | None = None
    make_sink: Callable[[], ProgressSink | None] | None = None
    tracker: Tracker | None = None
    reports: dict[int, Report] = field(factory=dict)
    is_inherited: bool = False
    _raised: BaseException | None = None
    _forks: int = field(factory=lambda: forks.count)

    def __attrs_post_init__(self) -> None:
        forks.disown_in_child(self)

    def disown(self) -> None:
        self.is_inherited = True

    def refuse_if_inherited(self) -> None:
        """Refuse to go on in a forked child.

        Raises:
            RuntimeError: This is one.
        """
        if self.is_inherited:
            refuse_inherited_run()

    def note_raised_interrupt(self) -> None:
        """Note an interrupt that was raised, to be called where it was caught; in a forked child raise it again."""
        forks.pass_on_in_child(self._forks)
        self.scope.note()

    @property
    def failures(self) -> int:
        """How many steps have failed so far."""
        return 0 if self.dispatch is None else self.dispatch.state.failures

    @property
    def is_halted(self) -> bool:
        """Whether no more steps are started, because the budget is exhausted or too many have failed."""
        return self.dispatch is not None and self.dispatch.state.halt is not None

    @contextmanager
    def opened(self, counted: Counted | None = None) -> Iterator[None]:
        """Hold the workflow of the plan, if it has one; note an interrupt that was raised because something hung.

        Args:
            counted: What progress counts as done, if that is not steps.

        Raises:
            JournalError: The journal cannot be used, or another run holds the workflow.
        """
        try:
            with self._journalled(), self._tracked(counted):
                yield
        except KeyboardInterrupt:
            self.note_raised_interrupt()

    @contextmanager
    def _journalled(self) -> Iterator[None]:
        if self.plan.workflow is None:
            yield
            return
        from ..journal.run_journal import RunJournal  # imported lazily: slow, and most runs have no journal

        places = None if self.retried is None else failed_places(self.retried._reports)
        self.journal = RunJournal(self.plan.workflow, places)
        try:
            yield
        finally:
            if not self.is_inherited:
                self.journal.close()

    @contextmanager
    def _tracked(self, counted: Counted | None) -> Iterator[None]:
        make_sinks = [each for each in (self.plan.make_sink, self.make_sink) if each is not None]
        if self.journal is not None and self.journal.keeps_status:
            from .status_sink import StatusSink  # imported lazily: most runs have no journal

            make_sinks.append(partial(StatusSink, self.journal, self._ending))
        if not make_sinks:
            yield
            return
        self.tracker = Tracker(make_sinks, self.ask, self.undisturbed, counted)
        try:
            yield
        except BaseException as error:
            self._raised = error
            raise
        finally:
            if not self.is_inherited:
                self.tracker.end()
            self._raised = None

    def _ending(self) -> BaseException | None:
        """Return what has kept the call from coming to its end, raised yet or not; `None` if nothing has."""
        if self.is_interrupted:
            return KeyboardInterrupt()
        if self._raised is not None or self.dispatch is None:
            return self._raised
        state, read = self.dispatch.state, self.dispatch.input
        if read.error is not None and not isinstance(read.error, JournalConflict):
            return state.journal_error or state.refusal or InputError(read.reason, Run([], 0.0))
        return state.journal_error or state.refusal or read.error

    # Runs with a barrier ----------------------------------------------------------------------------------------------

    def run(
        self,
        specs: Iterable[AgentStepSpec],
        *,
        on_report: Callable[[Report], None] | None = None,
        failures: int = 0,
        before: Run | None = None,
    ) -> Run:
        """Run specs to their end.

        Args:
            specs: As in `Runner.run`.
            on_report: Called with each step's last report, before more of `specs` is read.
            failures: How many steps have failed in the rounds before.
            before: The last of those rounds.

        Returns:
            The run, complete or interrupted.

        Raises:
            Exception: As in `Runner.run`, but for an interrupt: that is for `end` to raise.
        """
        self.began = time.monotonic()
        specs = listed(specs)
        total = self.total = self.ask(lambda: length_of(specs), None)
        if self.journal is not None and on_report is None:
            specs = self._checked(specs, self.journal, before)
        reports = self.reports = {}
        try:
            with self.dispatching(specs, total, failures=failures) as dispatch:
                for report in _all_reports(dispatch):
                    reports[report.index] = report
                    if on_report is not None:
                        on_report(report)
        except KeyboardInterrupt:  # raised and not noted, because something of the caller's did not return
            self.note_raised_interrupt()
        except ExecutorNotPicklable as refusal:
            raise refusal.with_run(before) from refusal.__cause__
        run = self.run_of(reports.values())
        if not self.is_interrupted:
            raise_what_ended(dispatch, run, before)
            warn_of_uncounted(dispatch)
        return run

    def _checked(
        self, specs: Iterable[AgentStepSpec], journal: RunJournal, before: Run | None
    ) -> Iterable[AgentStepSpec]:
        """Return specs that can be journalled, all of them read; nothing of an input that the user interrupts."""
        try:
            read, error = (specs, None) if is_at_hand(specs) else read_all(specs, self.scope)
        except KeyboardInterrupt:
            self.note_raised_interrupt()
            return []
        try:
            check(read, journal)
        except JournalConflict as conflict:
            raise JournalConflict(conflict.reason, conflict.conflicts, before) from None
        except InputError as refusal:
            raise (refusal if before is None else InputError(refusal.reason, before)) from refusal.__cause__
        return read if error is None else raising_after(read, error)

    def ask(self, question: Callable[[], T], default: T) -> T:
        """Return what code of the caller's answers, or the default if the user interrupts it, which is noted."""
        try:
            with self.scope.callers_code():
                answer = question()
        except KeyboardInterrupt:
            self.note_raised_interrupt()
            answer = default
        self.refuse_if_inherited()
        return answer

    def undisturbed(self, action: Callable[[], object]) -> None:
        """Do something that an interrupt is not to end halfway; one that is raised, because it hangs, is noted."""
        try:
            action()
        except KeyboardInterrupt:
            self.note_raised_interrupt()
        self.refuse_if_inherited()

    def run_of(self, reports: Iterable[Report]) -> Run:
        """Return the run that came to these reports, with what was used of the budget.

        If failed steps of an earlier run are run again, it is that one, with them in their places.
        """
        retry = None if self.plan.retry_failed is None else partial(self.plan.retry_failed, self.plan)
        run = Run(sorted(reports, key=lambda report: report.index), *self.told(), retry)
        return run if self.retried is None else with_retried(self.retried, run)

    def told(self) -> tuple[float, tuple[str, ...]]:
        """Return how many seconds have passed, and what the summary of the run has to say besides."""
        now, budget = time.monotonic(), self.plan.budget
        return now - self.began, () if budget is None else (budget.summary_line(now),)

    def end(self, run: Run) -> Run:
        """Return the run, or raise the interrupt. The last act of a call, while interrupts are still noted.

        Raises:
            FanoutInterrupted: The call was interrupted, and the caller wants it raised.
        """
        if self.is_interrupted and self.plan.raises_interrupts:
            self.raise_interrupt(run, total=self.total)
        return run

    @property
    def is_interrupted(self) -> bool:
        """Whether there was an interrupt, noted or raised in the caller's code, or the outer step was cancelled."""
        return self.scope.is_interrupted or (self.dispatch is not None and self.dispatch.state.is_interrupted)

    def raise_interrupt(
        self, run: Run, yielded: int = 0, total: int | None = None, yielded_cancelled: int = 0
    ) -> NoReturn:
        """Raise what an interrupted run ends with.

        Args:
            run: What there is of it.
            yielded: How many outcomes a stream had yielded before.
            total: How many steps there are; `None` if nobody can tell.
            yielded_cancelled: How many of the yielded outcomes said that their step was cancelled.
        """
        end_as_if_killed()
        raise FanoutInterrupted(run, yielded, total, yielded_cancelled)

    # One run ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def dispatching(
        self, specs: Iterable[AgentStepSpec], total: int | None, *, is_stream: bool = False, failures: int = 0
    ) -> Iterator[Dispatch]:
        """Open a session of the backend for one run, and end it: in order, or at once if the run ends early.

        Args:
            specs: What to run.
            total: How many there are, as far as that is known.
            is_stream: Whether the caller may be away between two outcomes.
            failures: How many steps have failed in the rounds before.
        """
        plan, scope = self.plan, self.scope
        if self.dispatch is None and is_at_hand(specs):  # what a later round of a loop asks for fails its step
            refuse_unsupported(cast("Sequence[Any]", specs), plan.executor)
        nothing: Iterator[Any] = iter(())
        source = cast("Sequence[Any]", specs) if is_at_hand(specs) else self.ask(lambda: an_iterator(specs), nothing)
        # Whoever reads them from elsewhere may be away for long, too, while the next spec is being made.
        is_unattended = is_stream or not is_at_hand(specs)
        bound, meter, outer = self.ask(plan.bound, 1), RunMeter(), _outer_step()
        if not scope.is_interrupted:  # one of an earlier round of a loop was handled
            scope.is_handled = False
        with ExitStack() as stack:
            waiting_line = stack.enter_context(_limited(plan, meter, outer))
            on_end = waiting_line.ended if waiting_line is not None and is_unattended else None
            session = self._open_session(bound, meter, total or 0, on_end, is_unattended)
            announcer = None
            try:
                if plan.event_tx is not None:
                    announcer = Announcer(plan.event_tx, total)
                setting = Setting(
                    bound=bound,
                    # With events, a step is handed over no sooner than it starts, so that its start can be told.
                    lookahead=0 if is_unattended or announcer is not None else session.lookahead,
                    policies=plan.policies,
                    scope=scope,
                    announcer=announcer,
                    tracker=self.tracker,
                    waiting_line=waiting_line,
                    journal=self.journal,
                    meter=meter,
                    expires_at=math.inf if outer is None or outer.deadline is None else outer.deadline,
                    failures=failures,
                    total=total,
                )
                dispatch = self.dispatch = Dispatch(source, session, setting)
                with scope.calling(dispatch.interrupt), _stopped_with(outer, dispatch):
                    yield dispatch
                    _end_session(session, dispatch, scope)
            except BaseException:
                scope.is_handled = True
                session.abort()
                raise
            finally:
                if announcer is not None and not self.is_inherited:
                    announcer.close(lambda: self.is_interrupted)
                if not self.is_inherited and (left := session.left_programs()) is not None:
                    warn_at_the_end(left)

    def _open_session(
        self, bound: int, meter: RunMeter, total: int, on_end: Callable[[Report], None] | None, is_unattended: bool
    ) -> Session:
        plan = self.plan
        context = RunContext(
            executor=plan.executor,
            bound=bound,
            meter=meter,
            # With a journal, all may be done already.
            expected=total if self.journal is None else 0,
            # There is one if anybody listens, be it to the usage of steps alone.
            event_tx=DirectSender(plan.event_tx) if plan.event_tx is not None or plan.is_limited else None,
            retry_rule=None if plan.policies.retry is None else plan.policies.retry.rule,
            stop=StopSignal(),
            unattended=is_unattended,
            on_end=on_end,
            ask=self.ask,
        )
        if isinstance(plan.backend, Backend):
            session = plan.backend.open(context)
        else:
            from ..backends.foreign import ForeignSession  # imported lazily: few use the pools of others

            session = ForeignSession(plan.backend, context)
        forks.disown_in_child(session)
        return session

    @contextmanager
    def warm(self) -> Iterator[None]:
        """Keep workers from one run of the call to the next."""
        backend = self.plan.backend
        if not isinstance(backend, Backend):
            yield
            return
        backend.keep_warm()
        is_urgent = True
        try:
            yield
            is_urgent = False
        finally:
            backend.cool_down(self.scope, is_urgent=is_urgent)


def raise_what_ended(dispatch: Dispatch, run: Run, before: Run | None = None) -> None:
    """Raise what ended a run before its time, if anything did, with the steps that were done.

    Args:
        dispatch: The run.
        run: Its steps so far.
        before: The round before in a loop, whose outcomes are lost otherwise if no step of this one could run.

    Raises:
        JournalError: The journal failed.
        ExecutorNotPicklable: No worker could unpickle the executor.
        JournalConflict: A spec is not the one that was journalled.
        InputError: The input raised, or an item was no spec.
    """
    if (failed := dispatch.state.journal_error) is not None:
        raise JournalError(failed.reason, run) from failed.__cause__
    if (refusal := dispatch.state.refusal) is not None:
        has_run = any(record.status != "cancelled" for record in run.records)
        so_far = run if has_run else None
        raise refusal.with_run(so_far if before is None else before) from refusal.__cause__
    error = dispatch.input.error
    if isinstance(error, JournalConflict):
        raise JournalConflict(error.reason, error.conflicts, run) from error.__cause__
    if error is not None:
        raise InputError(dispatch.input.reason, run) from error


def warn_of_uncounted(dispatch: Dispatch) -> None:
    """Warn if steps have succeeded under a limit on tokens or money, and none has reported what it used."""
    waiting_line = dispatch.state.waiting_line
    if waiting_line is not None and waiting_line.has_succeeded:
        for text in waiting_line.limiter.tell_uncounted():
            warn_at_the_end(text)


def _all_reports(dispatch: Dispatch) -> Iterator[Report]:
    try:
        yield from dispatch.reports()
    except KeyboardInterrupt:  # one that was raised rather than noted, by whatever means
        dispatch.interrupt()
    yield from dispatch.rest()


def _end_session(session: Session, dispatch: Dispatch, scope: InterruptScope) -> None:
    scope.is_handled = True
    if dispatch.state.is_cut_short:
        session.abort()
    else:
        session.close()


def _outer_step() -> CurrentStep | None:
    """Return the step that this run is part of."""
    return None if running_step.get() is None else current_step()


@contextmanager
def _stopped_with(outer: CurrentStep | None, dispatch: Dispatch) -> Iterator[None]:
    """Give the run up when the step is cancelled that it is part of."""
    if outer is None:
        yield
        return
    outer.stop.listen(dispatch.interrupt)
    try:
        yield
    finally:
        outer.stop.unlisten(dispatch.interrupt)


@contextmanager
def _limited(plan: RunPlan, meter: RunMeter, outer: CurrentStep | None) -> Iterator[WaitingLine | None]:
    """Have the limits and the budget know of a run as long as it lasts."""
    if not plan.is_limited:
        yield None
        return
    from ..limits.limiter import Limiter
    from ..limits.waiting_line import WaitingLine  # imported lazily: slow, and few runs are limited

    limiter = Limiter(plan.limits, plan.budget)
    waiting_line = WaitingLine(limiter)
    meter.on_usage, meter.on_nest = waiting_line.spend, waiting_line.nest
    waiting_line.begin(time.monotonic())
    try:
        if outer is not None:
            outer.meter.nest(outer.index, limiter)
        yield waiting_line
    finally:
        waiting_line.close(time.monotonic())
