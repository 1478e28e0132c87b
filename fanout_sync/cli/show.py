"""`fanout-sync show`: list what is in a journal."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from ..errors import OptionError
from ..formatting import did_you_mean
from ..records.report import reason_in
from .lines_file import lines_to
from .output import print_table, shown, write_line
from .same_file import JournalFile, refuse_same_file

if TYPE_CHECKING:
    from ..journal import Journal
    from ..records.step_record import JournalRecord

OF_WORKFLOWS = ("WORKFLOW", "STEPS", "SUCCEEDED", "FAILED", "LAST FINISHED")
OF_STEPS = ("TASK", "AGENT", "STATUS", "DURATION", "ATTEMPTS", "ERROR")
MAX_NAME_CHARS = 60
UNKNOWN = "-"
MAX_WORKFLOWS_NAMED = 10


@click.command()
@click.argument("journal", metavar="RUN.db")
@click.argument("workflow", metavar="[WORKFLOW]", required=False)
@click.option("--jsonl", is_flag=True, help="Write the outcomes of the workflow instead, one a line.")
def show(journal: str, workflow: str | None, jsonl: bool) -> None:
    """List the workflows of a journal, or the steps of one of them, also while a run uses the journal.

    With --jsonl, the outcomes of a workflow are written as "run" writes them; the workflow need not be named if it is
    the only one.

    Exits with 0, or with 2 if there is no such journal or workflow.
    """
    from ..journal import SqliteJournal  # imported lazily: slow, and few need it

    store = SqliteJournal(journal)
    if jsonl:
        _write_outcomes(store, journal, chosen_workflow(store, journal, workflow))
    elif workflow is None:
        rows = [_workflow_row(store, name) for name in store.workflows()]
        print_table(OF_WORKFLOWS, lambda: rows)
    else:
        name = chosen_workflow(store, journal, workflow)
        print_table(OF_STEPS, lambda: map(_step_row, store.records(name)))


def _write_outcomes(store: Journal, path: str, workflow: str) -> None:
    with lines_to("-") as lines:
        refuse_same_file({"the journal": JournalFile(path), "the outcomes": lines})
        for record in store.records(workflow):
            write_line(lines, record.outcome.to_json(), "outcomes")


def _workflow_row(store: Journal, name: str) -> tuple[str, ...]:
    steps = succeeded = 0
    last: datetime | None = None
    for record in store.records(name):
        steps += 1
        succeeded += record.outcome.success
        if record.finished is not None:
            last = record.finished if last is None else max(last, record.finished)
    finished = UNKNOWN if last is None else f"{last:%Y-%m-%d %H:%M:%S} UTC"
    return shown(name, MAX_NAME_CHARS), str(steps), str(succeeded), str(steps - succeeded), finished


def _step_row(record: JournalRecord) -> tuple[str, ...]:
    outcome = record.outcome
    return (
        shown(record.task_id, MAX_NAME_CHARS),
        shown(outcome.agent, MAX_NAME_CHARS),
        record.status,
        UNKNOWN if record.duration_s is None else f"{record.duration_s:.1f} s",
        str(len(record.attempts)) if record.attempts else UNKNOWN,
        "" if outcome.success else shown(reason_in(outcome.output)),
    )


def chosen_workflow(journal: Journal, path: str, name: str | None) -> str:
    """Return the id of the workflow with this name, or of the only workflow if there is no name.

    Raises:
        OptionError: There is no such workflow, or there are several and no name; the existing ones are named.
        JournalError: The journal cannot be read.
    """
    known = journal.workflows()
    if name in known:
        return name
    if name is None and len(known) == 1:
        return known[0]
    if not known:
        raise OptionError(f"there is no workflow in {path}")
    named = ", ".join(map(repr, known[:MAX_WORKFLOWS_NAMED])) + (", …" if len(known) > MAX_WORKFLOWS_NAMED else "")
    if name is None:
        raise OptionError(f"there are several workflows in {path}, name one of them: {named}")
    hint = did_you_mean(name, known)
    raise OptionError(f"there is no workflow {name!r} in {path}{hint}; there {_are(known)} {named}")


def _are(known: list[str]) -> str:
    return "is" if len(known) == 1 else "are"
