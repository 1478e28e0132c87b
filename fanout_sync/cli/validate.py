"""`fanout-sync validate`: check steps without running them."""

from __future__ import annotations

import click

from .output import say
from .steps_file import StepsFile


@click.command()
@click.argument("steps", metavar="STEPS.jsonl")
def validate(steps: str) -> None:
    """Check that every line of a file is a step; "-" is the standard input.

    Exits with 0 if so; otherwise with 2, and says what is wrong with the first line that is not a step.
    """
    with StepsFile(steps) as source:
        count = source.count()
    say(f"{count} step{' is' if count == 1 else 's are'} valid")
