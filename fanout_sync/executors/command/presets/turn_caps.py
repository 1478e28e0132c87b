"""Whether a program can keep to the `max_steps` of a spec."""

from __future__ import annotations

from ....records.steps import AgentStepSpec


def at_least_one_step(program: str, spec: AgentStepSpec) -> str | None:
    """Return why a program with a cap on turns cannot keep to that of `spec`; `None` if it can."""
    if spec.max_steps == 0:
        return f"{program} takes a cap of one turn or more: max_steps=0 leaves it none"
    return None


def no_cap(program: str, spec: AgentStepSpec) -> str | None:
    """Return why a program without a cap on turns cannot run `spec`; `None` if it can."""
    if spec.max_steps is None:
        return None
    return f"{program} has no cap on turns (max_steps={spec.max_steps}): leave max_steps out, or use a timeout"
