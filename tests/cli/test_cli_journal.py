"""Journals on the command line: runs that resume, what limits them, and the commands that look into a journal."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner
from command_line import ENVIRONMENT, LIMIT_S, Folder, NamedPipe, outcomes_in, outputs_in, summary_in
from journalled import HOLDS, record, says, script

from fanout_sync import OptionError
from fanout_sync.cli import executor_choice
from fanout_sync.cli import run as run_command
from fanout_sync.cli.group import main
from fanout_sync.journal import SqliteJournal

AGENTS = """
import sqlite3
from pathlib import Path

from fanout_sync import FunctionExecutor, current_step

HERE = Path(__file__).parent

def mark(spec):
    with (HERE / "marks").open("a") as marks:
        marks.write(spec.task_id + "\\n")
    return spec.prompt.upper()

def mark_and_wait(spec):
    mark(spec)
    (HERE / "begun").write_text("begun\\n")
    with (HERE / "gate").open() as gate:
        return gate.readline()

def fail(spec):
    raise ValueError(spec.prompt)

def flaky(spec):
    if current_step().attempt == 1:
        raise ValueError("not yet")
    return mark(spec)

def dawdle(spec):
    current_step().cancelled.wait()
    return "never"

def spend(spec):
    current_step().add_usage(cost_usd=float(spec.prompt))
    return mark(spec)

def spoil(spec):
    journal = sqlite3.connect(HERE / "run.db", isolation_level=None)
    journal.execute("CREATE TRIGGER full BEFORE INSERT ON steps BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    journal.close()
    return mark(spec)

functions = {name: value for name, value in list(globals().items()) if callable(value) and value.__module__ == __name__}
executor = FunctionExecutor(functions, concurrency=4)
"""

KEPT = ["--journal", "run.db", "-o", "out.jsonl"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "agents.py").write_text(AGENTS, encoding="utf-8")
    return Folder(tmp_path)


@pytest.fixture
def journal(folder: Folder) -> SqliteJournal:
    return SqliteJournal(folder / "run.db")


@pytest.fixture
def begun(folder: Folder) -> Iterator[NamedPipe]:
    """The gate that `mark_and_wait` opens before it waits at another one, which nobody opens."""
    begun, gate = NamedPipe(folder / "begun"), NamedPipe(folder / "gate")
    yield begun
    begun.close()
    gate.close()


def marks(folder: Folder) -> Counter[str]:
    return Counter((folder / "marks").read_text().split())


def fill(journal: SqliteJournal, workflow: str, *task_ids: str, **fields: Any) -> None:
    opened = journal.open(workflow)
    opened.write([record(task_id, index, **fields) for index, task_id in enumerate(task_ids)])
    opened.close()


def table_in(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in text.splitlines()]


# Runs that resume -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "backend"),
    [(signal.SIGKILL, "process"), (signal.SIGINT, "process"), (signal.SIGTERM, "thread")],
)
def test_the_same_command_resumes(
    number: signal.Signals, backend: str, folder: Folder, begun: NamedPipe, journal: SqliteJournal
) -> None:
    """Whatever ended a run, what was journalled does not run again, and the output has each step once, in order."""
    folder.steps(*[("mark", f"a{n}") for n in range(40)], ("mark_and_wait", ""), *[("mark", "z")] * 19)
    with folder.running("--backend", backend, *KEPT) as process:
        begun.wait()
        process.send_signal(number)
        assert process.wait(LIMIT_S) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        assert process.stderr is not None
        if number != signal.SIGKILL:
            assert re.search(r"\n  outcomes: out\.jsonl\n  resume: .*--journal run\.db.*\n$", process.stderr.read())
    kept = [record.task_id for record in journal.records("default") if record.outcome.success]
    assert len(kept) >= 36
    # Another gate, which is open: at the first one a worker may still wait whose parent was killed.
    (folder / "gate").unlink()
    (folder / "gate").write_text("open\n")
    done = folder.run("--backend", backend, *KEPT)
    assert done.returncode == 0, done.stderr
    assert f"\n  from the journal: {len(kept)}\n" in done.stderr
    outcomes = outcomes_in((folder / "out.jsonl").read_text())
    assert [outcome.task_id for outcome in outcomes] == [f"t{n}" for n in range(60)]
    assert [outcome.output for outcome in outcomes] == [*(f"A{n}" for n in range(40)), "open\n", *["Z"] * 19]
    ran = marks(folder)
    assert set(ran) == {f"t{n}" for n in range(60)}
    assert all(ran[task_id] == 1 for task_id in kept)


def test_nothing_runs_twice(folder: Folder) -> None:
    """After a complete run only failed steps run again, also if the outcomes go to the standard output."""
    folder.steps(("mark", "a"), ("fail", "no"), ("mark", "c"))
    first = folder.run("--journal", "run.db")
    again = folder.run("--journal", "run.db")
    assert (first.returncode, again.returncode) == (1, 1)
    assert again.stdout == first.stdout
    assert marks(folder) == {"t0": 1, "t2": 1}
    assert "from the journal" not in first.stderr
    assert summary_in(again.stderr).splitlines()[1:-2] == [
        "  from the journal: 2",
        "  t1 (fail) raised: ValueError: no",
    ]


UNLOADABLE = """

class Unloadable(FunctionExecutor):
    def __setstate__(self, state):
        raise ValueError("no licence")

unloadable = Unloadable(functions, concurrency=2)
"""


def test_executor_that_no_worker_can_unpickle(folder: Folder) -> None:
    """The error says what has failed in the worker; outcomes that the journal has are written all the same."""
    (folder / "agents.py").write_text(AGENTS + UNLOADABLE, encoding="utf-8")
    folder.steps(("fail", "no"), ("mark", "b"))
    assert folder.run("--journal", "run.db").returncode == 1
    done = folder.run("--journal", "run.db", "--backend", "process", target="agents.py:unloadable")
    assert done.returncode == 1
    assert outputs_in(done.stdout) == ["B"]
    assert "unpickling it in a worker raised ValueError: no licence" in done.stderr
    assert "Traceback" not in done.stderr


def test_workflows_are_kept_apart(folder: Folder, journal: SqliteJournal) -> None:
    """What is done in one workflow is not in another."""
    folder.steps(("mark", "a"))
    for options in [[], ["--workflow", "nightly"], ["--workflow", "nightly"]]:
        assert folder.run("--journal", "run.db", *options).returncode == 0
    assert journal.workflows() == ["default", "nightly"]
    assert marks(folder) == {"t0": 2}


@pytest.mark.parametrize("place", [1, 1500])
def test_conflict_leaves_the_output_as_it_is(place: int, folder: Folder) -> None:
    """A step that has changed, also far down, is found before anything runs and before the old outcomes are lost."""
    steps = [("mark", "a")] * 2000
    folder.steps(*steps)
    assert folder.run(*KEPT).returncode == 0
    old, ran = (folder / "out.jsonl").read_text(), marks(folder)
    steps[place] = ("mark", "changed")
    folder.steps(*steps, ("mark", "new"))
    done = folder.run(*KEPT, "--events", "events.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"what differs: 't{place}' (prompt). Give the steps new task_ids" in done.stderr
    assert done.stderr.endswith("or run them again with --on-conflict rerun\n")
    assert (folder / "out.jsonl").read_text() == old
    assert not (folder / "events.jsonl").exists()
    assert marks(folder) == ran
    done = folder.run(*KEPT, "--on-conflict", "rerun")
    assert done.returncode == 0, done.stderr
    assert outputs_in((folder / "out.jsonl").read_text())[place] == "CHANGED"
    assert marks(folder) - ran == {f"t{place}": 1, "t2000": 1}


@pytest.mark.parametrize("place", [1, 1500])
def test_task_id_that_is_there_twice_is_refused(place: int, folder: Folder) -> None:
    """Before anything runs, wherever the two stand; without a journal they may."""
    folder.steps(*[("mark", "a")] * 2000)
    lines = (folder / "steps.jsonl").read_text().splitlines()
    (folder / "steps.jsonl").write_text("\n".join([*lines, lines[place]]))
    (folder / "out.jsonl").write_text("precious\n")
    done = folder.run(*KEPT)
    assert done.returncode == 2
    assert f"have the same task_id: 't{place}'; " in done.stderr
    assert (folder / "out.jsonl").read_text() == "precious\n"
    assert folder.nothing_ran()
    assert folder.run("-o", "out.jsonl").returncode == 0


def test_workflow_that_another_run_holds(folder: Folder) -> None:
    """Of two runs the second is refused; its output is as it was."""
    folder.steps(("mark", "a"))
    (folder / "out.jsonl").write_text("precious\n")
    with script(HOLDS, folder / "run.db", "default") as process:
        assert says(process) == "held"
        done = folder.run(*KEPT)
        shown = folder.call("show", "run.db", "default")
    assert done.returncode == 2
    assert f"process {process.pid}" in done.stderr
    assert (folder / "out.jsonl").read_text() == "precious\n"
    assert folder.nothing_ran()
    assert table_in(shown.stdout)[1] == ["a", "coder", "succeeded", "-", "-"]


def test_journal_that_fails_in_the_middle(folder: Folder) -> None:
    """No more steps are started; what was done is written, and a message says how far it came."""
    folder.steps(("mark", "a"), ("spoil", "b"), ("mark", "c"))
    done = folder.run("-j", "1", *KEPT)
    assert done.returncode == 1
    assert re.fullmatch(r"Error: .*run\.db: .*; 2 of 3 outcomes were written\n  resume: .*\n", done.stderr)
    assert outputs_in((folder / "out.jsonl").read_text()) == ["A", "B"]
    assert marks(folder) == {"t0": 1, "t1": 1}


# What limits a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "options", "said"),
    [
        ([("flaky", "a")], ["--retry", "2"], "1 succeeded\n"),
        ([("flaky", "a")], [], "1 failed\n  t0 (flaky) raised: ValueError: not yet\n"),
        ([("dawdle", "")], ["--timeout", "0.1"], "1 failed\n  t0 (dawdle) timed_out: timed out after 0.1 s"),
        (
            [("fail", "no"), ("mark", "b")],
            ["--max-failures", "1"],
            "1 failed, 1 cancelled\n  t0 (fail) raised: ValueError: no\n  t1 (mark) cancelled: "
            "no more steps are started: 1 step had failed by then, which is max_failures\n",
        ),
        (
            [("spend", "0.75"), ("spend", "0.75"), ("mark", "")],
            ["--max-cost", "1"],
            "1 succeeded, 2 cancelled\n  budget: $0.75 of $1\n  2 cancelled: budget exhausted: ",
        ),
    ],
)
def test_limits_are_applied(steps: list[tuple[str, str]], options: list[str], said: str, folder: Folder) -> None:
    """Each option does to the steps what it does in a `Runner`."""
    folder.steps(*steps)
    done = folder.run("-j", "1", *options)
    assert re.sub(r"^\d+ steps? in \d+\.\d s: ", "", summary_in(done.stderr)).startswith(said)
    assert done.returncode == ("failed" in said or "cancelled" in said)


def test_options_reach_the_runner(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as the argument that it stands for."""
    given: dict[str, Any] = {}

    def runner(executor: object, **options: Any) -> NoReturn:
        given.update(options)
        raise OptionError("that is all")

    monkeypatch.setattr(run_command, "Runner", runner)
    monkeypatch.setattr(executor_choice, "resolve_target", str)  # which would load modules into this process
    folder.steps(("mark", "a"))
    monkeypatch.chdir(folder.path)
    line = (
        "run steps.jsonl --executor agents.py:executor -o out.jsonl --journal run.db --workflow w --on-conflict rerun "
        "--retry 3 --timeout 1.5 --rpm 0.5 --tpm 7 --max-cost 2.5 --max-failures 9"
    )
    CliRunner().invoke(main, line.split())
    workflow, limit, budget = given["journal"], given["rate_limit"], given["budget"]
    assert (workflow.journal, workflow.workflow_id) == (SqliteJournal(folder / "run.db"), "w")
    assert workflow.on_conflict == "rerun"
    assert (limit.requests_per_minute, limit.tokens_per_minute) == (0.5, 7)
    assert budget.max_cost_usd == 2.5
    assert (given["retry"], given["timeout"], given["max_failures"]) == (3, 1.5, 9)
    CliRunner().invoke(main, line.split()[:6])
    asked = ("journal", "rate_limit", "budget", "retry", "timeout", "max_failures")
    assert [given[name] for name in asked] == [None] * 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workflow", "w"], "Error: --workflow needs a journal; name its file with --journal\n"),
        (["--on-conflict", "rerun"], "Error: --on-conflict needs a journal; name its file with --journal\n"),
        (["--on-conflict", "skip"], "Invalid value for '--on-conflict': 'skip' is not one of 'refuse', 'rerun'."),
        (["--journal", ""], "Error: --journal must not be empty\n"),
        (["--journal", "run.db", "--workflow", ""], "Error: --workflow must not be empty\n"),
        (["--journal", "agents.py"], "agents.py: is not an SQLite database, so not a journal; give another path\n"),
        (["--journal", "."], ": is a directory; give the path of a file\n"),
        (["--journal", "nope/run.db"], "nope; make it, or give another path\n"),
        (["--retry", "0"], "Invalid value for '--retry': 0 is not in the range x>=1."),
        (["--retry", "often"], "Invalid value for '--retry': 'often' is not a valid integer"),
        (["--timeout", "0"], "Error: --timeout must be a number of seconds greater than 0, got float 0.0\n"),
        (["--timeout", "nan"], "Error: --timeout must be a number of seconds greater than 0, got float nan\n"),
        (["--timeout", "soon"], "Invalid value for '--timeout': 'soon' is not a valid float"),
        (["--rpm", "-1"], "Error: --rpm must be a number greater than 0, got float -1.0\n"),
        (["--rpm", "inf"], "Error: --rpm must be a number greater than 0, got float inf\n"),
        (["--tpm", "0"], "Invalid value for '--tpm': 0 is not in the range x>=1."),
        (["--max-cost", "0"], "Error: --max-cost must be a number greater than 0, got float 0.0\n"),
        (["--max-failures", "0"], "Invalid value for '--max-failures': 0 is not in the range x>=1."),
    ],
)
def test_bad_option_is_refused(options: list[str], said: str, folder: Folder) -> None:
    """It is named as it was typed; nothing is run, and no file is touched."""
    folder.steps(("mark", "a"))
    (folder / "out.jsonl").write_text("precious\n")
    before = {path: path.read_bytes() for path in folder.path.glob("*.*")}
    done = folder.run("-o", "out.jsonl", *options)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert folder.nothing_ran()
    assert {path: path.read_bytes() for path in folder.path.glob("*.*")} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--journal", "steps.jsonl"],
            "cannot use steps.jsonl for the journal: it is the file of the steps; give another one\n",
        ),
        (
            ["--journal", "x.db", "-o", "x.db-wal"],
            "cannot write the outcomes to x.db-wal: the journal uses that file",
        ),
        (
            ["--journal", "x.db", "--events", "./x.db-shm"],
            "cannot write the events to ./x.db-shm: the journal uses that file; give another one",
        ),
        (
            ["--journal", "x.db", "-o", "x.db-lock"],
            "cannot write the outcomes to x.db-lock: the journal uses that file",
        ),
        (
            ["--journal", "loose", "-o", "new.db-lock"],
            "cannot write the outcomes to new.db-lock: the journal uses that file",
        ),
        (["--journal", "link"], "cannot use link for the journal: it is the file of the steps; give another one\n"),
        (
            ["--journal", "new.db", "-o", "new.db"],
            "cannot use new.db for the journal: it is the file of the outcomes; give another one\n",
        ),
        (
            ["--journal", "./old.db", "-o", "old.db"],
            "cannot use ./old.db for the journal: it is the file of the outcomes; give another one\n",
        ),
        (
            ["--journal", "new.db", "--events", "new.db"],
            "cannot use new.db for the journal: it is the file of the events; give another one\n",
        ),
        (
            ["--journal", "loose", "-o", "new.db"],
            "cannot use loose for the journal: it is the file of the outcomes; give another one\n",
        ),
    ],
)
def test_journal_needs_a_file_of_its_own(options: list[str], said: str, folder: Folder) -> None:
    """Whether it is there already or not, and however it is called."""
    folder.steps(("mark", "a"))
    (folder / "link").symlink_to("steps.jsonl")
    (folder / "loose").symlink_to("new.db")
    fill(SqliteJournal(folder / "old.db"), "default", "a")
    before = {path: path.read_bytes() for path in folder.path.glob("*.*")}
    done = folder.run(*options)
    assert done.returncode == 2
    assert said in done.stderr
    assert folder.nothing_ran()
    assert {path: path.read_bytes() for path in folder.path.glob("*.*")} == before


# Looking into a journal -----------------------------------------------------------------------------------------------


def test_workflows_are_listed(folder: Folder, journal: SqliteJournal) -> None:
    """Each with its counts, in the order in which they were begun."""
    folder.steps(("mark", "a"), ("fail", "b"), ("mark", "c"))
    folder.run("--journal", "run.db", "--workflow", "nightly")
    fill(journal, "a b")
    done = folder.call("show", "run.db")
    assert (done.returncode, done.stderr) == (0, "")
    heads, *rows = table_in(done.stdout)
    assert heads == ["WORKFLOW", "STEPS", "SUCCEEDED", "FAILED", "LAST FINISHED"]
    assert [row[:4] for row in rows] == [["nightly", "3", "2", "1"], ["a b", "0", "0", "0"]]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", rows[0][4])
    assert rows[1][4] == "-"


def test_steps_are_listed(folder: Folder) -> None:
    """Each with what is known of it, in columns."""
    folder.steps(("flaky", "a"), ("fail", "first\nsecond"), ("mark", "c"))
    folder.run("--journal", "run.db", "--retry", "2")
    done = folder.call("show", "run.db", "default")
    assert done.returncode == 0, done.stderr
    assert re.sub(r"\d+\.\d s", "0.0 s", done.stdout) == (
        "TASK  AGENT  STATUS     DURATION  ATTEMPTS  ERROR\n"
        "t0    flaky  succeeded  0.0 s     2\n"
        "t1    fail   raised     0.0 s     2         ValueError: first …\n"
        "t2    mark   succeeded  0.0 s     1\n"
    )


def test_control_characters_are_escaped(folder: Folder, journal: SqliteJournal) -> None:
    """Escape sequences are spelled out, and what is long is cut."""
    name = "\x1b[31mred" + "x" * 1000
    fill(journal, name, f"{name} task", success=False, output="\x1b]0;title\x07" + "y" * 1000)
    for arguments in [["show", "run.db"], ["show", "run.db", name]]:
        done = folder.call(*arguments)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert r"\x1b[31mredxxx" in done.stdout
        assert max(map(len, done.stdout.splitlines())) < 350
    assert "\x1b" not in folder.call("show", "run.db", "nope").stderr


def test_outcomes_are_written_as_a_run_writes_them(folder: Folder) -> None:
    """`show --jsonl` writes the same lines as the run."""
    folder.steps(("mark", "größe"), ("fail", "b"), ("mark", "c"))
    folder.run(*KEPT)
    done = folder.call("show", "run.db", "--jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (folder / "out.jsonl").read_text(encoding="utf-8")
    assert folder.call("show", "run.db", "default", "--jsonl").stdout == done.stdout


@pytest.mark.parametrize("command", ["show run.db w", "show run.db --jsonl", "export run.db"])
def test_reader_that_leaves_early(command: str, folder: Folder, journal: SqliteJournal) -> None:
    """`| head` gets its part and no complaint."""
    fill(journal, "w", *[f"t{n}" for n in range(2000)], output="x" * 1000)
    done = folder.shell(f"$FANOUT {command} | head -c 100")
    assert (len(done.stdout), done.stderr) == (100, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("show run.db --jsonl > /dev/full", "cannot write outcomes to <stdout>: No space left on device"),
        ("export run.db -o /dev/full", "cannot write checkpoints to /dev/full: No space left on device"),
    ],
)
def test_full_disk(command: str, said: str, folder: Folder, journal: SqliteJournal) -> None:
    """A message says what could not be written."""
    fill(journal, "w", "a")
    done = folder.shell(f"$FANOUT {command}")
    assert (done.returncode, done.stderr) == (1, f"Error: {said}; 0 were written\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "run.db", "nihgtly"], "no workflow 'nihgtly' in run.db (did you mean 'nightly'?); there are 'night"),
        (["show", "run.db", "x", "--jsonl"], "no workflow 'x' in run.db; there are 'nightly', 'weekly'\n"),
        (["show", "run.db", "--jsonl"], "several workflows in run.db, name one of them: 'nightly', 'weekly'\n"),
        (["export", "run.db"], "several workflows in run.db, name one of them: 'nightly', 'weekly'\n"),
        (["export", "run.db", "x"], "no workflow 'x' in run.db; there are 'nightly', 'weekly'\n"),
        (["export", "empty.db"], "there is no workflow in empty.db\n"),
        (["show", "nope.db"], "nope.db: there is no such file; check the path, or run with it as journal first\n"),
        (["export", "nope.db"], "nope.db: there is no such file; check the path, or run with it as journal first\n"),
        (["show", "agents.py"], "agents.py: is not an SQLite database, so not a journal; give another path\n"),
        (
            ["show", "other.db"],
            "other.db: is an SQLite database, but not a journal of fanout_sync; give another path\n",
        ),
        (["export", "."], ": is a directory; give the path of a file\n"),
        (
            ["export", "run.db", "weekly", "-o", "run.db"],
            "cannot use run.db for the checkpoint: it is the file of the j",
        ),
        (["import", "run.db", "nope.json"], "Error: cannot read nope.json: No such file or directory\n"),
        (["import", "run.db", "agents.py"], "Error: agents.py: no valid JSON: "),
        (["import", "run.db", "bad.json"], "Error: bad.json: steps[0].task_id: missing; a checkpoint requires it\n"),
        (["import", "run.db", "newer.json"], "Error: cannot import newer.json: the checkpoint was written by a newer"),
        (
            ["import", "agents.py", "good.json"],
            "agents.py: is not an SQLite database, so not a journal; give another path\n",
        ),
    ],
)
def test_missing_and_unusable_files_are_named(
    arguments: list[str], said: str, folder: Folder, journal: SqliteJournal
) -> None:
    """The status is 2, and no file is made or changed."""
    fill(journal, "nightly", "a")
    fill(journal, "weekly", "a")
    (folder / "empty.db").write_bytes(b"")
    with closing(sqlite3.connect(folder / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    outcome = {"task_id": "a", "session_id": "s", "agent": "x", "output": "", "success": True}
    checkpoint = {"workflow_id": "w", "steps": [{"task_id": "a", "outcome": outcome}]}
    (folder / "good.json").write_text(json.dumps(checkpoint))
    (folder / "newer.json").write_text(json.dumps({**checkpoint, "schema_version": 99}))
    (folder / "bad.json").write_text(json.dumps({**checkpoint, "steps": [{"outcome": outcome}]}))
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    done = folder.call(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


def test_journal_without_workflows(folder: Folder) -> None:
    """Nothing to list is a table without rows."""
    (folder / "run.db").write_bytes(b"")
    done = folder.call("show", "run.db")
    assert (done.returncode, done.stdout) == (0, "WORKFLOW  STEPS  SUCCEEDED  FAILED  LAST FINISHED\n")


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_successes_move_to_another_journal(way: str, folder: Folder) -> None:
    """A run with the other journal resumes there."""
    folder.steps(("mark", "a"), ("fail", "b"), ("mark", "c"))
    folder.run("--journal", "run.db", "--workflow", "nightly")
    script = (
        "$FANOUT export run.db nightly -o done.json && $FANOUT import other.db done.json"
        if way == "file"
        else "$FANOUT export run.db | $FANOUT import other.db -"
    )
    moved = folder.shell(script)
    assert (moved.returncode, moved.stdout) == (0, "2 steps of workflow 'nightly' imported\n"), moved.stderr
    done = folder.run("--journal", "other.db", "--workflow", "nightly")
    assert "  from the journal: 2\n" in done.stderr
    assert [outcome.success for outcome in outcomes_in(done.stdout)] == [True, False, True]
    assert marks(folder) == {"t0": 1, "t2": 1}


def test_export_replaces_what_was_there(folder: Folder, journal: SqliteJournal) -> None:
    """A checkpoint is one line, and nothing of a longer one is left."""
    fill(journal, "w", "a")
    (folder / "done.json").write_text("x" * 10_000)
    assert folder.call("export", "run.db", "-o", "done.json").returncode == 0
    text = (folder / "done.json").read_text()
    assert text.count("\n") == 1
    assert json.loads(text)["workflow_id"] == "w"
    assert folder.call("import", "run.db", "done.json").stdout == "1 step of workflow 'w' imported\n"


def test_import_without_a_standard_input(folder: Folder) -> None:
    """There is nothing to read from it."""
    done = folder.shell("$FANOUT import run.db - <&-")
    assert (done.returncode, done.stderr) == (2, "Error: cannot read <stdin>: it is closed\n")
    assert not (folder / "run.db").exists()


# The rest -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["show", "export", "import"])
def test_help(name: str, folder: Folder) -> None:
    """Each command explains itself."""
    done = folder.call(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")


def test_nothing_is_loaded_that_is_not_used(folder: Folder) -> None:
    """Without a journal, SQLite is not imported."""
    folder.steps(("mark", "a"))
    program = (
        "import sys\n"
        "from fanout_sync.cli.group import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "sys.exit('sqlite3' in sys.modules or 'fanout_sync.limits.budget' in sys.modules)\n"
    )
    (folder / "agents.py").write_text("agents = {'mark': lambda spec: 'done'}")
    for arguments in [["validate", "steps.jsonl"], ["run", "steps.jsonl", "--executor", "agents.py:agents"]]:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=folder.path,
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            encoding="utf-8",
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
