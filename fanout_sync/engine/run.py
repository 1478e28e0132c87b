"""A run with a barrier: all outcomes, when all steps are done."""

from __future__ import annotations

from collections.abc import Iterable

from ..records.steps import AgentStepSpec
from ..results.run import Run
from .call import Call
from .plan import RunPlan


def run(plan: RunPlan, specs: Iterable[AgentStepSpec], retried: Run | None = None) -> Run:
    """Run every spec and return when all are done; see `Runner.run`.

    Args:
        plan: What the caller wants.
        specs: What to run.
        retried: The run whose failed steps these are, in order; then the result is that run with them in their places.
    """
    return run_in(Call(plan, retried=retried), specs)


def run_in(call: Call, specs: Iterable[AgentStepSpec]) -> Run:
    """Do the same in a call, which is made for it."""
    run = Run([], 0.0) if call.retried is None else call.retried
    with call.scope:
        with call.opened():
            run = call.run(specs, before=call.retried)
        return call.end(run)
