"""How `fanout-sync watch` tells of the end of a run: by itself, cut short, by an error, or with its process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, LIMIT_S, Folder

from fanout_sync import SqliteJournal
from fanout_sync.journal.watching import look_at

PROGRAM = """
import os, sys
from fanout_sync import AgentStepSpec, Continue, FunctionExecutor, Retry, Runner

def answer(spec):
    if spec.prompt == "bad":
        raise ValueError("no")
    if spec.prompt == "die":
        while len(runner_journal.records("default")) < DONE:
            pass
        os._exit(1)
    return spec.prompt

def spec(name, prompt="x"):
    return AgentStepSpec(name, "a", "d", prompt)

def failing(count):
    for number in range(count):
        yield spec(f"t{number}")
    raise OSError("the input is gone\\nand more")

def runner(**options):
    return Runner(FunctionExecutor({"a": answer}), journal="run.db", max_concurrency=2, **options)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def run(folder: Folder, source: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(source)],
        cwd=folder.path,
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode


def last_line(folder: Folder) -> tuple[str, int]:
    done = folder.call("watch", "run.db")
    assert not done.stderr
    return done.stdout.splitlines()[-1].removeprefix("the last one: "), done.returncode


INPUT_GONE = "fanout_sync.InputError: the input raised after 5 specs: OSError: the input is gone"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("runner().run(failing(5))", "5 succeeded, 0 failed; " + INPUT_GONE),
        ("list(runner().stream(failing(5)))", "5 succeeded, 0 failed; " + INPUT_GONE),
        ("list(runner().stream(failing(5), 'completion'))", "5 succeeded, 0 failed; " + INPUT_GONE),
        ("runner().start(failing(5)).result()", "5 succeeded, 0 failed; " + INPUT_GONE),
        ("runner().run([spec('a'), 3])", "InputError: "),
        (
            "runner().pipeline(failing(2), [lambda outcome, item: spec('one ' + item.task_id)])",
            "2 succeeded, 0 failed; fanout_sync.InputError: ",
        ),
        (
            "runner().loop([spec('first')], 9, lambda outcomes: 1 / 0)",
            "1 succeeded, 0 failed; fanout_sync.InputError: next_round raised ZeroDivisionError: division by zero",
        ),
    ],
)
def test_an_error_that_ended_a_run_is_told(source: str, said: str, folder: Folder) -> None:
    """Whatever was run, its end names the error, in one line, beside what was done."""
    assert run(folder, source) == 1
    line, status = last_line(folder)
    assert line.startswith("the run was ended by an error: ")
    assert said in line
    assert status == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "outcomes = runner().stream(iter([spec(f't{n}') for n in range(9)])); next(outcomes); outcomes.close()",
            "cut",
        ),
        ("outcomes = runner().stream([spec(f't{n}') for n in range(9)]); next(outcomes); outcomes.close()", "cut"),
        ("list(runner().stream(iter([spec('a'), spec('b', 'bad')])))", "has ended: 1 succeeded, 1 failed"),
        ("runner().run([spec('a')])", "has ended: 1 succeeded, 0 failed"),
    ],
)
def test_other_ends_are_told(source: str, said: str, folder: Folder) -> None:
    """A stream that its reader has left was cut short, also one of unknown length; failed steps are no error."""
    assert run(folder, source) == 0
    line, status = last_line(folder)
    assert said in line
    assert "error" not in line
    assert status == 0


def test_what_the_journal_has_of_a_run_that_died_is_counted(folder: Folder) -> None:
    """Not what the run had told last, which was before: succeeded and failed steps, and those of earlier runs."""
    steps = ["a", "b", "t0", "t1", "t2", "d"]
    source = """
    from fanout_sync import SqliteJournal
    runner_journal, DONE = SqliteJournal("run.db"), {done}
    runner().run([spec(name, {{"b": "bad", "d": "die"}}.get(name, "x")) for name in {steps}])
    """
    died = "the process of the run has died when {} were done; the same command resumes it"
    assert run(folder, source.format(done=5, steps=steps)) == 1
    assert len(SqliteJournal(folder / "run.db").records("default")) == 5
    assert not look_at(folder / "run.db", "default").has_ended
    assert last_line(folder) == (died.format("5 of 6"), 1)
    # In the next run, the step that had failed runs again, and another one after it.
    assert run(folder, source.format(done=6, steps=[*steps, "z"])) == 1
    assert last_line(folder) == (died.format("6 of 7"), 1)
