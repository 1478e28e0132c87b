"""`fanout-sync validate`: check steps without running them."""

from __future__ import annotations

import click

from .inputs import Inputs, input_options
from .output import say


@click.command()
@input_options
def validate(**inputs: str | None) -> None:
    """Check that every line of a file is a step; "-" is the standard input.

    The steps are JSON Lines, or prompts, one a line, if the name of the file ends in .txt.

    Exits with 0 if so; otherwise with 2, and says what is wrong with the first line that is not a step.
    """
    with Inputs(**inputs).open() as source:
        count = source.count()
    say(f"{count} step{' is' if count == 1 else 's are'} valid")
