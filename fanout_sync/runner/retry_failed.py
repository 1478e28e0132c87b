"""Running the failed steps of a run again, on the runner that has made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve

from ..checks import one_of, positive_int, refuse_unknown
from ..engine.plan import RunPlan
from ..engine.run import run as run_steps
from ..records.steps import AgentStepSpec
from ..results.run import Run
from .arguments import (
    a_backend,
    a_budget,
    a_progress,
    a_retry,
    a_timeout,
    a_workflow,
    an_event_sink,
    rate_limits,
    warn_of_soft_timeout,
)
from .options import OPTIONS


def retry_failed(plan: RunPlan, run: Run, specs: Sequence[AgentStepSpec], options: Mapping[str, Any]) -> Run:
    """Run the failed steps of a run again; see `Run.retry_failed`.

    Args:
        plan: What the caller wanted of that run.
        run: The run.
        specs: Those of its failed steps, in order.
        options: Keyword arguments of `Runner`, which go before the plan.
    """
    plan = with_options(plan, options)
    return run_steps(plan, list(specs), run) if specs else run


def with_options(plan: RunPlan, options: Mapping[str, Any]) -> RunPlan:
    """Return a plan that some options replace parts of.

    Raises:
        OptionError: An option that nobody can mean or that does not exist; it is named.
    """
    refuse_unknown("retry_failed", options, OPTIONS)
    policies = {field: check(options[name]) for name, (field, check) in _POLICIES.items() if name in options}
    fields = {field: check(options[name]) for name, (field, check) in _FIELDS.items() if name in options}
    changed = evolve(plan, **fields, policies=evolve(plan.policies, **policies))
    if "journal" in options or "on_conflict" in options:
        changed = evolve(changed, workflow=_workflow(plan, options))
    if "backend" in options or "timeout" in options:
        warn_of_soft_timeout(changed)
    return changed


def _workflow(plan: RunPlan, options: Mapping[str, Any]) -> Any:
    """Return the workflow of `journal=`, or that of the plan, with the `on_conflict` that was given last."""
    workflow = a_workflow(options.get("journal", plan.workflow), "refuse")
    if workflow is None:
        return a_workflow(None, options.get("on_conflict", "refuse"))
    if "on_conflict" in options:
        on_conflict: Any = one_of("on_conflict", options["on_conflict"], ("refuse", "rerun"))
        return evolve(workflow, on_conflict=on_conflict)
    return workflow if plan.workflow is None else a_workflow(workflow, plan.workflow.on_conflict)


def _positive_int_or_none(name: str) -> Callable[[Any], int | None]:
    return lambda value: None if value is None else positive_int(name, value)


_POLICIES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "timeout": ("timeout_s", a_timeout),
    "retry": ("retry", a_retry),
    "max_failures": ("max_failures", _positive_int_or_none("max_failures")),
}
"""The field of `Policies` that an option goes to, and its check."""

_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "backend": ("backend", a_backend),
    "max_concurrency": ("max_concurrency", _positive_int_or_none("max_concurrency")),
    "rate_limit": ("limits", rate_limits),
    "budget": ("budget", a_budget),
    "event_tx": ("event_tx", an_event_sink),
    "progress": ("make_sink", a_progress),
    "on_interrupt": (
        "raises_interrupts",
        lambda value: one_of("on_interrupt", value, ("raise", "return")) == "raise",
    ),
}
"""The field of `RunPlan` that an option goes to, and its check; the two of the journal are one field."""
