"""`fanout-sync validate`: check steps without running them."""

from __future__ import annotations

import click

from ..errors import WireError
from ..records.steps import AgentStepSpec
from ..wire.schema_text import NotASchema
from .inputs import Inputs, input_options
from .output import say


@click.command()
@input_options
def validate(**inputs: str | None) -> None:
    """Check that every line of a file is a step, and its output_schema a JSON Schema; "-" is the standard input.

    The steps are JSON Lines, or prompts, one a line, if the name of the file ends in .txt.

    Exits with 0 if so; otherwise with 2, and says what is wrong with the first line that is not.
    """
    with Inputs(**inputs).open() as source:
        count = source.count(_check_schema)
    say(f"{count} step{' is' if count == 1 else 's are'} valid")


def _check_schema(spec: AgentStepSpec) -> None:
    if spec.output_schema is None:
        return
    from ..executors.structured.validation import compiled  # imported lazily: slow, and few specs have a schema

    try:
        compiled(spec.output_schema)
    except NotASchema as fault:
        raise WireError(f"no JSON Schema: {fault}", "output_schema") from None
