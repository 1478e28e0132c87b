"""What the command line makes steps of: a file of steps, of prompts, or of rows for a template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import click
from attrs import define, field

from ..errors import OptionError
from .prompts import read_prompts
from .steps_file import StepsFile
from .templates import RowReader, Template

_EXPECTED = "give STEPS.jsonl, a file of prompts, or --template and --rows"


@define
class Inputs:
    """The files that the user has named; `None` for those that were not.

    Attributes:
        steps: The argument: steps, one JSON object a line, or prompts if its name ends in .txt.
        prompts: One prompt a line, whatever the name.
        template: The text of a prompt with placeholders.
        rows: A row of values for each step.
    """

    steps: str | None
    prompts: str | None = None
    template: str | None = None
    rows: str | None = None
    _template_read: Template | None = field(default=None, init=False)

    @property
    def paths(self) -> list[str]:
        """All files that are named, as the user gave them."""
        return [path for path in (self.steps, self.prompts, self.template, self.rows) if path is not None]

    def open(self) -> StepsFile:
        """Open the file of the steps.

        Raises:
            OptionError: None, or more than one, of the kinds of input is named, or a file cannot be read.
        """
        if (self.template is None) != (self.rows is None):
            given, missing = ("--template", "--rows") if self.rows is None else ("--rows", "--template")
            raise OptionError(f"{given} needs {missing}: the template is filled with the values of each row")
        named = {"STEPS": self.steps, "--prompts": self.prompts, "--rows": self.rows}
        given_names = [name for name, path in named.items() if path is not None]
        if not given_names:
            raise OptionError(f"nothing to run: {_EXPECTED}")
        if len(given_names) > 1:
            raise OptionError(f"{' and '.join(given_names)} cannot be given together: {_EXPECTED}")
        if self.rows is not None and (template := self.template_file()) is not None:
            return StepsFile(self.rows, RowReader(template, self.rows))
        if self.prompts is not None:
            return StepsFile(self.prompts, read_prompts)
        assert self.steps is not None
        is_text = PurePath(self.steps).suffix.lower() == ".txt"
        return StepsFile(self.steps, read_prompts) if is_text else StepsFile(self.steps)

    def template_file(self) -> Template | None:
        """Return the template, which is read once; `None` if there is none.

        Raises:
            OptionError: It cannot be read.
        """
        if self.template is not None and self._template_read is None:
            self._template_read = Template.of_file(self.template)
        return self._template_read


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the parameters that name its input: `steps`, `prompts`, `template` and `rows`."""
    for parameter in (
        click.option("--rows", metavar="FILE", help="A row of values for each step, as .csv, .tsv or .jsonl."),
        click.option(
            "--template", metavar="FILE", help="A prompt in which {column} is a value of --rows; instead of STEPS."
        ),
        click.option("--prompts", metavar="FILE", help="A prompt in each line; instead of STEPS."),
        click.argument("steps", metavar="[STEPS.jsonl|PROMPTS.txt]", required=False),
    ):
        command = parameter(command)
    return command
