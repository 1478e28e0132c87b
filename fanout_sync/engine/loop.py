"""What a loop's `next_round` returns: another round, or the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import define, frozen

from .. import forks
from ..checks import positive_int, refuse_signature
from ..errors import InputError, OptionError
from ..formatting import describe
from ..records.status import StepError
from ..records.steps import AgentStepSpec, StepOutcome
from ..results.progress import Unit
from ..results.run import Run
from .call import Call
from .input import ONE_SPEC, ONE_TEXT
from .plan import RunPlan

__all__ = ["Continue", "Stop"]


@frozen
class Continue:
    """Run another round.

    Attributes:
        specs: What to run in it; none ends the loop.
    """

    specs: Iterable[AgentStepSpec]


@frozen
class Stop:
    """End the loop: the outcomes of the round before are its result."""


@define(eq=False)
class _Rounds:
    """The rounds of a loop, for its progress.

    Attributes:
        unit: What `total` and `done` count.
        total: How many there are at the most; when there is no other one, how many there were.
        done: How many are done.
    """

    total: int | None
    done: int = 0
    unit: Unit = "round"


NextRound = Callable[[Sequence[StepOutcome]], "Continue | Stop"]
"""Decides, from the outcomes of a round, whether there is another one."""


def run_loop(
    plan: RunPlan, initial: Iterable[AgentStepSpec], max_iterations: int, next_round: NextRound
) -> list[StepOutcome]:
    """Run rounds of steps until `next_round` says stop; see `Runner.loop`."""
    positive_int("max_iterations", max_iterations)
    if not callable(next_round):
        raise OptionError(f"next_round must be a function of a list of outcomes, got {describe(next_round)}")
    refuse_signature("next_round", next_round, "(outcomes)", None)
    specs: Iterable[AgentStepSpec] = initial
    before: Run | None = None
    run, call = Run([], 0.0), Call(plan)
    with call.scope:
        with call.opened(rounds := _Rounds(max_iterations)), call.warm():
            for iteration in range(1, max_iterations + 1):
                run = call.run(specs, failures=call.failures, before=before)
                rounds.done = iteration
                if not run or iteration == max_iterations or call.is_interrupted or call.is_halted:
                    if not call.is_interrupted:
                        rounds.total = iteration
                    break
                specs, before = _asked(next_round, run, call), run
                if not specs:
                    if not call.is_interrupted:
                        rounds.total = iteration
                    break
        return list(call.end(run))


def _asked(next_round: NextRound, run: Run, call: Call) -> list[Any]:
    """Return the specs of the next round; none if the user interrupts the question."""
    nothing: list[Any] = []
    return call.ask(lambda: _specs_of_next_round(next_round, run), nothing)


def _specs_of_next_round(next_round: NextRound, run: Run) -> list[Any]:
    """Ask for another round; return its specs, none if the loop is over.

    Raises:
        InputError: `next_round` raised (`__cause__`) or returned neither; `.run` is the round before.
    """
    forks_before = forks.count
    try:
        answer: Any = next_round(list(run))
        if isinstance(answer, Continue) and (fault := _fault_of(answer.specs)) is None:
            return list(answer.specs)
    except (Exception, SystemExit) as error:
        forks.pass_on_in_child(forks_before)
        raise InputError(f"next_round raised {StepError.of(error)}", run) from error
    if isinstance(answer, Stop):
        return []
    if isinstance(answer, Continue):
        raise InputError(f"next_round must return Continue with an iterable of specs, {fault}", run)
    hint = f"; call it: {answer.__name__}(…)" if answer in (Continue, Stop) else ""
    raise InputError(f"next_round must return Continue(specs) or Stop(), got {describe(answer)}{hint}", run)


def _fault_of(specs: Any) -> str | None:
    """Return what is wrong with the specs of another round as a whole; `None` if they can be read."""
    if isinstance(specs, AgentStepSpec):
        return ONE_SPEC
    if specs is None:
        return "got None; to end the loop, return Stop()"
    return f"got {describe(specs)}; {ONE_TEXT}" if isinstance(specs, (str, bytes)) else None
