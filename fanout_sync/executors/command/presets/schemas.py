"""How a program without an option for a schema is asked for JSON."""

from __future__ import annotations

import json

from ....records.steps import AgentStepSpec


def prompt_with_schema(spec: AgentStepSpec) -> str:
    """Return the prompt of a step, and below it the schema that its answer must be valid under, if it has one."""
    if spec.output_schema is None:
        return spec.prompt
    schema = json.dumps(spec.output_schema, ensure_ascii=False)
    return (
        f"{spec.prompt}\n\nThe answer must be one JSON value, and nothing else, that is valid under this JSON Schema:\n"
        f"{schema}"
    )
