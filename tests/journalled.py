"""Helpers for the tests of journals: records, and processes that use a journal."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bounds import HANG_BOUND_S

from fanout_sync.records.step_record import JournalRecord
from fanout_sync.records.steps import AgentStepSpec, StepOutcome

TESTS = Path(__file__).parent


def record(task_id: str, index: int = 0, *, success: bool = True, output: str = "done") -> JournalRecord:
    """Return a record as a journal gives it back."""
    spec = AgentStepSpec(task_id, "coder", "a step", f"do {task_id}")
    outcome = StepOutcome.completed(spec, output) if success else StepOutcome.failed(task_id, "coder", output)
    return JournalRecord(
        index=index,
        status="succeeded" if success else "failed",
        error=None,
        attempts=(),
        started=None,
        finished=None,
        duration_s=None,
        worker=None,
        from_journal=True,
        task_id=task_id,
        outcome=outcome,
        spec=spec,
        identity=f"id of {task_id}",
    )


def edit(path: Path, sql: str, *values: Any) -> None:
    """Change the file of a journal directly."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(sql, values)


@contextmanager
def script(text: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run Python with these modules importable, and kill it at the end; `tell` lets it go on."""
    preamble = f"import sys; sys.path.insert(0, {str(TESTS)!r})\nfrom journalled import record\n"
    command = [sys.executable, "-c", preamble + text, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=HANG_BOUND_S)


def says(process: subprocess.Popen[str]) -> str:
    """Return the next line that a script prints; the bound on the wait is that of the whole test."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    """Let a script that reads a line go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


HOLDS = """
from fanout_sync.journal import SqliteJournal
opened = SqliteJournal(sys.argv[1]).open(sys.argv[2])
opened.write([record("a")])
print("held", flush=True)
input()
"""
"""A script that holds a workflow and has written a step; when told to, it ends without closing the workflow."""
