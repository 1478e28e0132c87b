"""`fanout-sync watch`: what is seen of a run in another process, and how its end is told."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, LIMIT_S, Folder, NamedPipe, command
from journalled import HOLDS, edit, record, says, script
from scripts import EXIT_BOUND_S, Launcher
from terminals import Window

from fanout_sync import SqliteJournal
from fanout_sync.journal.watching import WatchedRun, look_at

AGENTS = """
import os

def ok(spec):
    return spec.prompt

def bad(spec):
    raise ValueError(spec.prompt)

def wait(spec):
    gate = os.open(spec.prompt, os.O_RDONLY)
    os.read(gate, len("opened by the test\\n"))
    os.close(gate)
    return "waited"

executor = {"ok": ok, "bad": bad, "wait": wait}
"""

STEPS = [("ok", "a"), ("bad", "no"), ("wait", "gate")]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "agents.py").write_text(AGENTS)
    return Folder(tmp_path)


@pytest.fixture
def gate(folder: Folder) -> Iterator[NamedPipe]:
    gate = NamedPipe(folder / "gate")
    yield gate
    gate.close()


@contextmanager
def watching(folder: Folder, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Watch `run.db`, off a terminal."""
    with subprocess.Popen(
        command("watch", "run.db", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder.path,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def await_status(folder: Folder, text: str, workflow: str = "default") -> None:
    """Wait until the run in the folder has said how far it is, and that has this text in it."""
    deadline = time.monotonic() + LIMIT_S
    while text not in (look_at(folder / "run.db", workflow).text or ""):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # another process writes it


def rest_of(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=LIMIT_S)
    return said


def test_a_run_is_watched_to_its_end(folder: Folder, gate: NamedPipe) -> None:
    """Off a terminal there is a line at once and one at the end, and then how the run has ended."""
    folder.steps(*STEPS)
    with folder.running("--journal", "run.db", "-o", "out.jsonl") as run:
        await_status(folder, '"done":2')
        with watching(folder) as watch:
            assert watch.stdout is not None
            assert watch.stdout.readline().startswith(
                "2/3 steps (66 %): 1 ok, 1 failed, 0 retried, 0 reused, 1 running"
            )
            gate.open()
            said = rest_of(watch).splitlines()
        assert run.wait(LIMIT_S) == 1
    assert said[0].startswith("3/3 steps (100 %): 2 ok, 1 failed")
    assert said[1:] == ["the run has ended: 2 succeeded, 1 failed"]
    assert watch.returncode == 0


def test_on_a_terminal_there_is_the_live_view(folder: Folder, gate: NamedPipe, launch: Launcher) -> None:
    """It shows what the live view of the run itself shows: counts, what runs, and why steps failed."""
    folder.steps(*STEPS)
    with folder.running("--journal", "run.db", "-o", "out.jsonl") as run:
        await_status(folder, '"done":2')
        arguments = ["-m", "fanout_sync", "watch", "run.db"]
        window = Window.of(launch.program(*arguments, TERM="xterm-256color", NO_COLOR=""))
        window.until_text("2/3 steps (66 %)", "1 ok · 1 failed", "running longest", "t2 (wait)", "1 × ValueError: no")
        gate.open()
        ended = window.end()
        assert run.wait(LIMIT_S) == 1
    assert "3/3 steps (100 %)" in ended[0]
    assert ended[-1] == "the run has ended: 2 succeeded, 1 failed"
    assert "running longest" not in ended


def test_a_run_that_has_not_begun_is_waited_for(folder: Folder, gate: NamedPipe) -> None:
    """If there is no journal yet, watch waits for it, and then shows the run."""
    folder.steps(*STEPS)
    with watching(folder) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "waiting for a run in run.db\n"
        with folder.running("--journal", "run.db", "-o", "out.jsonl") as run:
            assert "/3 steps" in watch.stdout.readline()
            gate.open()
            assert run.wait(LIMIT_S) == 1
        assert rest_of(watch).splitlines()[-1] == "the run has ended: 2 succeeded, 1 failed"


def test_a_holder_that_is_killed_is_told_of(folder: Folder, gate: NamedPipe) -> None:
    """Watch ends when the process of the run has died, and says so, also if it is started after that."""
    folder.steps(*STEPS)
    with folder.running("--journal", "run.db", "-o", "out.jsonl") as run:
        await_status(folder, '"done":2')
        with watching(folder) as watch:
            assert watch.stdout is not None
            watch.stdout.readline()
            run.kill()
            said = rest_of(watch)
    died = "the process of the run has died when 2 of 3 were done; the same command resumes it\n"
    assert said.endswith(died)
    assert watch.returncode == 1
    with watching(folder) as later:
        assert rest_of(later) == f"no run of workflow 'default' in run.db is running\nthe last one: {died}"
    assert later.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_holder_that_is_interrupted_is_told_of(number: signal.Signals, folder: Folder, gate: NamedPipe) -> None:
    """A run that Ctrl-C ends is over, and was cut short."""
    folder.steps(*STEPS, ("ok", "z"))
    with folder.running("--journal", "run.db", "-o", "out.jsonl", "-j", "1") as run:
        await_status(folder, '"task_id":"t2"')
        with watching(folder) as watch:
            assert watch.stdout is not None
            watch.stdout.readline()
            run.send_signal(number)
            said = rest_of(watch)
        assert run.wait(LIMIT_S) == 130
    assert said.endswith("\nthe run was cut short: 1 succeeded, 1 failed\n")
    assert watch.returncode == 0


def test_ctrl_c_ends_the_watch_alone(folder: Folder, gate: NamedPipe, launch: Launcher) -> None:
    """Who stops watching leaves the run alone, and has a clean terminal."""
    folder.steps(*STEPS)
    with folder.running("--journal", "run.db", "-o", "out.jsonl") as run:
        await_status(folder, '"done":2')
        window = Window.of(launch.program("-m", "fanout_sync", "watch", "run.db", TERM="xterm-256color"))
        window.until_text("2/3 steps (66 %)")
        window.script.press_ctrl_c()
        assert "Traceback" not in "\n".join(window.end())
        assert window.script.process.returncode == 130
        assert window.cursor_is_visible
        assert run.poll() is None
        gate.open()
        assert run.wait(LIMIT_S) == 1


def test_ctrl_c_ends_a_watch_whose_terminal_is_stuck(folder: Folder, gate: NamedPipe, launch: Launcher) -> None:
    """Nobody waits for a terminal that takes nothing to show the last view."""
    folder.steps(*STEPS)
    with folder.running("--journal", "run.db", "-o", "out.jsonl") as run:
        await_status(folder, '"done":2')
        window = Window.of(launch.program("-m", "fanout_sync", "watch", "run.db", TERM="xterm-256color"))
        window.until_text("2/3 steps (66 %)")
        window.fill()
        window.script.process.send_signal(signal.SIGINT)
        assert window.script.process.wait(EXIT_BOUND_S) == 130
        gate.open()
        assert run.wait(LIMIT_S) == 1


def test_nothing_of_the_journal_changes(folder: Folder, gate: NamedPipe) -> None:
    """Watch neither writes to the journal nor takes its lock: the run that holds it goes on writing."""
    folder.steps(*STEPS, *[("ok", "z")] * 50)
    with folder.running("--journal", "run.db", "-o", "out.jsonl", "-j", "1") as run:
        await_status(folder, '"task_id":"t2"')
        before = (folder / "run.db").read_bytes(), (folder / "run.db-wal").stat().st_size
        with watching(folder) as watch:
            assert watch.stdout is not None
            watch.stdout.readline()
            gate.open()
            said = rest_of(watch)
        assert run.wait(LIMIT_S) == 1
        assert before[1] > 0
    assert "52 succeeded, 1 failed" in said
    assert len(SqliteJournal(folder / "run.db").records("default")) == 53


def test_the_workflow_that_runs_is_chosen(folder: Folder, gate: NamedPipe) -> None:
    """Of several workflows the one that is running is watched; if none is, they are named."""
    folder.steps(("ok", "a"))
    for name in ("one", "two"):
        assert folder.run("--journal", "run.db", "--workflow", name).returncode == 0
    refused = folder.call("watch", "run.db")
    assert refused.returncode == 2
    assert "several workflows in run.db, name one of them: 'one', 'two'" in refused.stderr
    named = folder.call("watch", "run.db", "--workflow", "one")
    assert named.stdout.startswith("no run of workflow 'one' in run.db is running\n")
    folder.steps(*STEPS)
    with folder.running("--journal", "run.db", "--workflow", "three", "-o", "out.jsonl") as run:
        await_status(folder, '"done":2', "three")
        with watching(folder) as watch:
            assert watch.stdout is not None
            assert watch.stdout.readline().startswith("2/3 steps")
            gate.open()
            assert "has ended" in rest_of(watch)
        assert run.wait(LIMIT_S) == 1


def test_a_journal_without_status(folder: Folder) -> None:
    """A journal that an earlier version has written can be watched; it has nothing to show but that it is held."""
    path = folder / "run.db"
    journal = SqliteJournal(path)
    opened = journal.open("default")
    opened.write([record("a")])
    opened.close()
    edit(path, "DROP TABLE status")
    assert look_at(path, "default") == WatchedRun(is_held=False)
    assert folder.call("watch", "run.db").stdout == "no run of workflow 'default' in run.db is running\n"
    with script(HOLDS, path, "default") as holder:
        says(holder)
        with watching(folder) as watch:
            assert watch.stdout is not None
            assert watch.stdout.readline().startswith("a run holds workflow 'default' in run.db, and does not say")
            holder.kill()
            assert rest_of(watch) == "the run has ended, and has not said how far it came\n"


def test_what_cannot_be_watched_is_refused(folder: Folder) -> None:
    """A file that is no journal, or a status that nobody can read, gives one line and exit status 2."""
    (folder / "run.db").write_text("this is not a database, and too long to be the beginning of one" * 100)
    refused = folder.call("watch", "run.db")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is not an SQLite database" in refused.stderr
    (folder / "run.db").unlink()
    folder.steps(("ok", "a"))
    assert folder.run("--journal", "run.db").returncode == 0
    edit(folder / "run.db", "UPDATE status SET text = '{\"unit\":3}'")
    refused = folder.call("watch", "run.db")
    assert refused.returncode == 2
    assert "the status of its run cannot be read" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_any_run_with_a_journal_can_be_watched(folder: Folder) -> None:
    """Not only those of the command line: a pipeline counts its items, a loop its rounds."""
    program = """
from fanout_sync import AgentStepSpec, Continue, FunctionExecutor, Runner
executor = FunctionExecutor({"a": lambda spec: "x"})
spec = lambda name: AgentStepSpec(name, "a", "d", "p")
Runner(executor, journal=SqliteJournal("run.db").workflow("items")).pipeline(
    [1, 2], [lambda outcome, item: spec(f"{item} one"), lambda outcome, item: spec(f"{item} two")]
)
rounds = iter(range(9))
Runner(executor, journal=SqliteJournal("run.db").workflow("rounds")).loop(
    [spec("first")], 3, lambda outcomes: Continue([spec(f"next {next(rounds)}")])
)
"""
    done = subprocess.run(
        [*command()[:1], "-c", "from fanout_sync.journal import SqliteJournal\n" + program],
        cwd=folder.path,
        env=ENVIRONMENT,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0
    said = {name: look_at(folder / "run.db", name).text or "" for name in ("items", "rounds")}
    assert '"total":2,"done":2,"succeeded":4' in said["items"]
    assert '"unit":"item"' in said["items"]
    assert '"done":3,"succeeded":3' in said["rounds"]
    assert '"unit":"round"' in said["rounds"]
