"""A run with a barrier: all outcomes, when all steps are done."""

from __future__ import annotations

from collections.abc import Iterable

from ..records.steps import AgentStepSpec
from ..results.run import Run
from .call import Call
from .plan import RunPlan


def run(plan: RunPlan, specs: Iterable[AgentStepSpec]) -> Run:
    """Run every spec and return when all are done; see `Runner.run`."""
    return run_in(Call(plan), specs)


def run_in(call: Call, specs: Iterable[AgentStepSpec]) -> Run:
    """Do the same in a call, which is made for it."""
    run = Run([], 0.0)
    with call.scope:
        with call.opened():
            run = call.run(specs)
        return call.end(run)
