"""Outcomes one by one, as they become available."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any

from attrs import define, field

from ..interrupts import InterruptScope, interrupt_again
from ..records.report import Report
from ..records.status import Status
from ..records.steps import AgentStepSpec, StepOutcome
from ..results.run import Run
from ..results.step_log import StepLog
from .call import Call, raise_what_ended, warn_of_uncounted
from .dispatch import Dispatch
from .input import Rereadable, an_iterator, check, is_at_hand, length_of, listed
from .plan import RunPlan

__all__ = ["OutcomeStream"]

MAX_UNREAD = 256
"""How many outcomes a stream in the order of the input holds back behind a slow step before it stops feeding."""


@define(eq=False)
class _Kept:
    """What is left of a stream when its generator is gone.

    Attributes:
        log: Its steps.
        scope: Notes interrupts as long as it lasts.
        call: The call that it makes, from its first step until its end.
        elapsed: Seconds from its first step to its end.
        notes: What the summary has from the call.
        is_over: Whether it has ended.
    """

    log: StepLog = field(factory=StepLog)
    scope: InterruptScope = field(factory=InterruptScope)
    call: Call | None = None
    elapsed: float = 0.0
    notes: tuple[str, ...] = ()
    is_over: bool = False

    def end(self, call: Call) -> None:
        if not call.is_inherited:
            self.elapsed, self.notes = call.told()
        self.call = None  # which holds much more
        self.is_over = True


class OutcomeStream(Generator[StepOutcome, None, None]):
    """What `Runner.stream` returns: an iterator of outcomes that has a `run` after its end.

    It is closed as a generator is: by `close()`, `contextlib.closing`, or when nobody refers to it any more.
    """

    def __init__(self, outcomes: Generator[StepOutcome, None, None], kept: _Kept) -> None:
        self._outcomes = outcomes
        self._kept = kept
        self._scope = kept.scope
        self._run: Run | None = None

    @property
    def run(self) -> Run:
        """All steps of the stream, once it has ended in whatever way; before, those whose outcomes it has yielded.

        Its records, usage and summary are complete, but outputs are not kept, so that a long stream needs little
        memory: forty bytes and the task id for each step that succeeds at once, 24 more if steps report usage, and less
        than a thousand for most others. The outcome of a step that succeeded has an empty `output` and no
        `structured`. That of a failed step has its reason, up to 2000 characters, and the records of the first 1000 of
        them have tracebacks. After `close()` or an interrupt it also has the steps that were cancelled.
        """
        if self._run is None:
            kept, is_over, call = self._kept, self._kept.is_over, self._kept.call
            elapsed, notes = (kept.elapsed, kept.notes) if call is None else call.told()
            run = Run(kept.log.in_order(), elapsed, notes)
            if not is_over:
                return run
            self._run, self._kept = run, _Kept()
        return self._run

    def _repr_html_(self) -> str:
        run = self.run
        before = "" if self._run is not None else "<div>A stream that has not ended; so far:</div>"
        after = '<div style="opacity:.7">A stream does not keep outputs.</div>' if run else ""
        return f"{before}{run._repr_html_()}{after}"

    # An interrupt that strikes one of these methods would lose the outcome that it is about to return.

    def __next__(self) -> StepOutcome:
        interrupts_noted_by = self._scope  # noqa: F841 - see `NOTED_BY` of `interrupts`
        return next(self._outcomes)

    def send(self, value: None) -> StepOutcome:
        interrupts_noted_by = self._scope  # noqa: F841 - as in `__next__`
        return self._outcomes.send(value)

    def throw(self, *error: Any) -> StepOutcome:
        interrupts_noted_by = self._scope  # noqa: F841 - as in `__next__`
        return self._outcomes.throw(*error)

    def close(self) -> None:
        """End the stream now: steps that are running are cut short, and no more are started."""
        self._outcomes.close()


def latest_status(outcomes: OutcomeStream) -> Status:
    """Return how the step ended whose outcome a stream that goes on has yielded last."""
    return outcomes._kept.log[-1].status


def stream(plan: RunPlan, specs: Iterable[AgentStepSpec], *, in_input_order: bool) -> OutcomeStream:
    """Yield outcomes as they become available; see `Runner.stream`.

    Raises:
        InputError: At once: the specs are not iterable. For the rest see `Runner.stream`.
    """
    specs = listed(specs)
    source, kept = specs if is_at_hand(specs) else an_iterator(specs), _Kept()
    return OutcomeStream(_until_left(plan, kept, specs, source, in_input_order), kept)


def _until_left(
    plan: RunPlan, kept: _Kept, given: Iterable[AgentStepSpec], source: Iterable[AgentStepSpec], in_input_order: bool
) -> Generator[StepOutcome, None, None]:
    call = kept.call = Call(plan, kept.scope)
    try:
        yield from _outcomes(call, kept.log, given, source, in_input_order)
    except GeneratorExit:
        if call.scope.is_interrupted and plan.raises_interrupts and not call.is_inherited:
            interrupt_again()  # it came while the stream was wound down, which nobody reads any more
        raise
    finally:
        kept.end(call)


def _outcomes(
    call: Call, log: StepLog, given: Iterable[AgentStepSpec], source: Iterable[AgentStepSpec], in_input_order: bool
) -> Generator[StepOutcome, None, None]:
    scope, total = call.scope, None
    unread: dict[int, Report] = {}
    yielded = cancelled = 0
    scope.own(sys._getframe())
    with scope:
        with call.opened():
            total = call.ask(lambda: length_of(given), None)
            if call.journal is not None and (is_at_hand(given) or isinstance(given, Rereadable)):
                check(given, call.journal)
            with call.dispatching(source, total, is_stream=True) as dispatch:
                try:
                    for report in _in_input_order(dispatch, unread) if in_input_order else dispatch.reports():
                        yielded += 1
                        cancelled += report.status == "cancelled"
                        log.add(report)
                        scope.in_package_code = False
                        yield report.outcome
                        scope.in_package_code = True
                        if call.is_inherited:
                            call.refuse_if_inherited()
                except KeyboardInterrupt:  # thrown in by a consumer that was interrupted and wants what is left
                    scope.in_package_code = True
                    call.refuse_if_inherited()
                    dispatch.interrupt()
                except BaseException:  # the consumer has closed the stream, or dropped it, or thrown an error into it
                    scope.in_package_code = True
                    dispatch.leave()
                    raise
                finally:
                    scope.in_package_code = True
                    if not call.is_inherited:
                        unread.update((report.index, report) for report in dispatch.rest())
                        log.extend(unread.values())
        run = call.run_of(unread.values())
        if not call.is_interrupted:
            raise_what_ended(dispatch, run)
            warn_of_uncounted(dispatch)
        elif call.plan.raises_interrupts:
            call.raise_interrupt(run, yielded, total, cancelled)
        for outcome in run:
            with suppress(KeyboardInterrupt), scope.callers_code():
                yield outcome


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
