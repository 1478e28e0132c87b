"""The command line: `fanout-sync`, also started as `python -m fanout_sync`."""

from __future__ import annotations

from typing import Any

import click

from .. import last_resort
from ..errors import FanoutError, WireError
from .checkpoints import export_checkpoint, import_checkpoint
from .output import INTERRUPTED, NOTHING_WAS_RUN
from .resume import note_arguments
from .run import run
from .show import show
from .validate import validate
from .watch import watch


class _Commands(click.Group):
    """A group of commands that turns the errors of this package into a message and an exit status."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        note_arguments(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None
        except FanoutError as error:
            # A message about a line starts with the file and the line, so that editors can jump there.
            has_place = isinstance(error, WireError) and error.line is not None
            click.echo(f"{error}" if has_place else f"Error: {error}", err=True)
            raise click.exceptions.Exit(NOTHING_WAS_RUN) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fanout_sync", prog_name="fanout-sync")
def main() -> None:
    """Run many agent steps at once, and get every outcome back in order.

    Steps and outcomes are JSON Lines: one step, or one outcome, a line.
    """


last_resort.install()

for command in (run, validate, watch, show, export_checkpoint, import_checkpoint):
    main.add_command(command)
