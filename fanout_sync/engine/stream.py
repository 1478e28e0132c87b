"""Outcomes one by one, as they become available."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress

from ..interrupts import interrupt_again
from ..records.report import Report
from ..records.steps import AgentStepSpec, StepOutcome
from .call import Call, raise_what_ended, warn_of_uncounted
from .dispatch import Dispatch
from .input import Rereadable, an_iterator, check, is_at_hand, length_of
from .plan import RunPlan

MAX_UNREAD = 256
"""How many outcomes a stream in the order of the input holds back behind a slow step before it stops feeding."""


def stream(
    plan: RunPlan, specs: Iterable[AgentStepSpec], *, in_input_order: bool
) -> Generator[StepOutcome, None, None]:
    """Yield outcomes as they become available; see `Runner.stream`.

    Raises:
        InputError: At once: the specs are not iterable. For the rest see `Runner.stream`.
    """
    source = specs if is_at_hand(specs) else an_iterator(specs)
    return _until_left(plan, specs, source, in_input_order)


def _until_left(
    plan: RunPlan, given: Iterable[AgentStepSpec], source: Iterable[AgentStepSpec], in_input_order: bool
) -> Generator[StepOutcome, None, None]:
    call = Call(plan)
    try:
        yield from _outcomes(call, given, source, in_input_order)
    except GeneratorExit:
        if call.scope.is_interrupted and plan.raises_interrupts and not call.is_inherited:
            interrupt_again()  # it came while the stream was wound down, which nobody reads any more
        raise


def _outcomes(
    call: Call, given: Iterable[AgentStepSpec], source: Iterable[AgentStepSpec], in_input_order: bool
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
