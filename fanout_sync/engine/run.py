"""A run with a barrier: all outcomes, when all steps are done."""

from __future__ import annotations

from collections.abc import Iterable

from ..interrupts import InterruptScope
from ..records.steps import AgentStepSpec
from ..results.run import Run
from .call import opened
from .plan import RunPlan


def run(plan: RunPlan, specs: Iterable[AgentStepSpec]) -> Run:
    """Run every spec and return when all are done; see `Runner.run`."""
    with InterruptScope() as scope:
        with opened(plan, scope) as call:
            run, _ = call.run(specs)
        return call.end(run)
