"""`fanout-sync export` and `fanout-sync import`: write a checkpoint of a journal, and read one into a journal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import click

from ..errors import JournalError, OptionError, WireError
from ..wire.strict_json import parse_json
from .lines_file import lines_to
from .output import write_line
from .same_file import JournalFile, refuse_same_file
from .show import chosen_workflow


@click.command("export")
@click.argument("journal", metavar="RUN.db")
@click.argument("workflow", metavar="[WORKFLOW]", required=False)
@click.option(
    "-o", "--output", default="-", metavar="FILE.json", help="Where the JSON goes.  [default: standard output]"
)
def export_checkpoint(journal: str, workflow: str | None, output: str) -> None:
    """Write the steps of a workflow that succeeded as JSON, for other programs and for "import".

    The workflow need not be named if it is the only one. Steps that failed are left out, because a reader takes all
    steps in a checkpoint for done.

    Exits with 0, or with 2 if there is no such journal or workflow.
    """
    from ..journal import SqliteJournal  # imported lazily: slow, and few need it

    store = SqliteJournal(journal)
    checkpoint = store.export_checkpoint(chosen_workflow(store, journal, workflow))
    with lines_to(output) as lines:
        refuse_same_file({"the journal": JournalFile(journal), "the checkpoint": lines})
        write_line(lines, checkpoint, "checkpoints")


@click.command("import")
@click.argument("journal", metavar="RUN.db")
@click.argument("checkpoint", metavar="FILE.json")
def import_checkpoint(journal: str, checkpoint: str) -> None:
    """Journal the steps of a checkpoint, all or none; "-" is the standard input.

    The journal is created if there is none. A step that is journalled as succeeded already stays as it is.

    Exits with 0, or with 2 if the file is not a checkpoint or the journal cannot be used.
    """
    from ..journal import SqliteJournal  # imported lazily: slow, and few need it

    name, data = _read(checkpoint)
    try:
        workflow = SqliteJournal(journal).import_checkpoint(data)
    except WireError as error:
        raise WireError(error.reason, error.field, name, error.line) from None
    except JournalError as error:
        raise JournalError(f"cannot import {name}: {error}") from None
    steps = cast("dict[str, list[object]]", parse_json(data))["steps"]  # present, or the import would have failed
    click.echo(f"{len(steps)} step{'' if len(steps) == 1 else 's'} of workflow {workflow!r} imported")


def _read(path: str) -> tuple[str, bytes]:
    """Return the name of the file, for messages, and its content."""
    name = "<stdin>" if path == "-" else path
    try:
        if path != "-":
            return name, Path(path).read_bytes()
        if sys.stdin is not None:
            return name, sys.stdin.buffer.read()
    except OSError as error:
        raise OptionError(f"cannot read {name}: {error.strerror or error}") from None
    raise OptionError(f"cannot read {name}: it is closed")
