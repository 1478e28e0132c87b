"""`fanout-sync watch`: show how far a run in another process is."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import JournalError, OptionError
from ..results.run_status import RunStatus
from .displays import display_on
from .output import SOME_FAILED, shown
from .show import chosen_workflow

if TYPE_CHECKING:
    from ..journal import SqliteJournal
    from ..journal.watching import WatchedRun

LOOK_S = 0.25
"""The journal is read once in so many seconds."""

SILENT_S = 5.0
"""A run that has said nothing for so many seconds is told of: it may be one that never says anything."""

MAX_ERROR_CHARS = 500
"""How many characters of the error are shown that has ended a run."""


@click.command()
@click.argument("journal", metavar="RUN.db")
@click.option("--workflow", metavar="NAME", help="Which one.  [default: the one that is running, or the only one]")
def watch(journal: str, workflow: str | None) -> None:
    """Show how far the run is that another process keeps in a journal; nothing in the journal changes.

    Waits if there is no such journal or workflow yet. Ends when the run does, and at once if none is running; Ctrl-C
    ends it earlier, and leaves the run alone.

    Exits with 0, or with 1 if the process of the run has died, be it before.
    """
    from ..journal import SqliteJournal  # imported lazily: slow, and few need it

    store = SqliteJournal(journal)
    had_to_wait = False
    while (name := _workflow_in(store, journal, workflow)) is None:
        if not had_to_wait:
            click.echo(f"waiting for a run in {shown(journal)}", err=True)
            had_to_wait = True
        time.sleep(LOOK_S)
    what = f"workflow {shown(name)!r} in {shown(journal)}"
    run = _look_at(store.path, name)
    if run.is_held or had_to_wait:
        text, exit_status = _end_of(_follow(store.path, name, what, run), store.path, name)
        click.echo(text)
    else:
        click.echo(f"no run of {what} is running")
        if run.text is None:
            return
        text, exit_status = _end_of(run, store.path, name)
        click.echo(f"the last one: {text}")
    if exit_status:
        raise click.exceptions.Exit(exit_status)


def _workflow_in(store: SqliteJournal, path: str, name: str | None) -> str | None:
    """Return the workflow to watch; `None` if there is none yet.

    Raises:
        OptionError: There are several, and it cannot be known which one is meant; they are named.
        JournalError: The journal cannot be read.
    """
    if not store.path.exists():
        return None
    known = store.workflows()
    if name is not None:
        return name if name in known else None
    if not known:
        return None
    running = [each for each in known if len(known) > 1 and _look_at(store.path, each).is_held]
    return running[0] if len(running) == 1 else chosen_workflow(store, path, None)


def _follow(path: Path, name: str, what: str, run: WatchedRun) -> WatchedRun:
    """Show a run until it has ended or its process has died; return how it stood last."""
    if sys.stdout is None:
        raise OptionError("cannot show anything, the standard output is closed")
    display = display_on(sys.stdout, shows_at_once=True)
    status: RunStatus | None = None
    ended_by: BaseException | None = None
    tell_at = time.monotonic() + SILENT_S
    try:
        while True:
            if run.text is not None:
                status = _status_of(run, path)
                if run.is_held and not run.has_ended:
                    display.show(status)
            elif time.monotonic() >= tell_at:
                click.echo(f"a run holds {what}, and does not say how far it is; waiting for its end", err=True)
                tell_at = math.inf
            if not run.is_held:
                again = _look_at(path, name)
                if not again.is_held and again == run:
                    return run
            time.sleep(LOOK_S)
            run = _look_at(path, name)
    except BaseException as error:
        ended_by = error
        raise
    finally:
        display.finish(status, ended_by)


def _look_at(path: Path, name: str) -> WatchedRun:
    from ..journal.watching import look_at  # imported lazily, as all of the journal

    return look_at(path, name)


def _status_of(run: WatchedRun, path: Path) -> RunStatus:
    """Return how a run stands now.

    Raises:
        JournalError: It has written what is no status.
    """
    try:
        status = RunStatus.from_json(run.text or "")
    except ValueError as error:
        raise JournalError(f"{path}: the status of its run cannot be read: {error}") from error
    # It is written at most once a second, and not at all while the caller of a stream is away.
    return status if run.has_ended else status.later(max(0.0, time.time() - run.written))


def _end_of(run: WatchedRun, path: Path, name: str) -> tuple[str, int]:
    """Return what is to be said of a run that goes on no more, and the exit status."""
    if run.text is None:
        return "the run has ended, and has not said how far it came", 0
    status = _status_of(run, path)
    progress = status.progress
    if not run.has_ended:
        done = progress.done
        if status.unit == "step":  # the journal has what the run had no time to tell
            done = max(done, _count_done(path, name))
        so_far = str(done) if progress.total is None else f"{min(done, progress.total)} of {progress.total}"
        return f"the process of the run has died when {so_far} were done; the same command resumes it", SOME_FAILED
    counts = f"{progress.succeeded} succeeded, {progress.failed} failed"
    if status.error is not None:
        return f"the run was ended by an error: {counts}; {shown(status.error, MAX_ERROR_CHARS)}", 0
    is_short = progress.cancelled or (progress.total is not None and progress.done < progress.total)
    if status.was_cut_short or is_short:
        return f"the run was cut short: {counts}", 0
    return f"the run has ended: {counts}", 0


def _count_done(path: Path, name: str) -> int:
    from ..journal.watching import count_done  # imported lazily, as all of the journal

    return count_done(path, name)
