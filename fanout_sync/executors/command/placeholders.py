"""Arguments with placeholders, filled in for a step."""

from __future__ import annotations

import re

from ...records.steps import AgentStepSpec

NAMES = ("task_id", "agent", "description", "prompt", "max_steps", "parent_session_id", "schema_file")
"""What may stand in braces; any other brace stays as it is."""

_PLACEHOLDER = re.compile(r"\{(" + "|".join(NAMES) + r")\}")


class MissingValue(Exception):
    """A step lacks what an argument asks for; the message says what."""


def placeholders_in(argument: str) -> set[str]:
    """Return the names of the placeholders that an argument has."""
    return set(_PLACEHOLDER.findall(argument))


def filled(argument: str, spec: AgentStepSpec, schema_file: str | None) -> str:
    """Return an argument with the values of a step in the place of its placeholders.

    Raises:
        MissingValue: The step has no such value.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        value = schema_file if name == "schema_file" else getattr(spec, name)
        if value is None:
            field = "output_schema" if name == "schema_file" else name
            raise MissingValue(f"the command has {{{name}}} in its arguments, but the step has no {field}")
        return str(value)

    return _PLACEHOLDER.sub(value, argument)
