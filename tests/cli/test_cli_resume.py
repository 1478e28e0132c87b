"""The command that the summary of the command line names: it resumes the run, wherever its parts come from."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, LIMIT_S, Folder, NamedPipe, command, outcomes_in
from scripts import Launcher

AGENTS = """
from pathlib import Path

def once(spec):
    # Fails the first time.
    with open("ran", "a") as ran:
        ran.write(spec.task_id + "\\n")
    mark = Path("tried " + spec.task_id)
    if spec.prompt == "bad" and not mark.exists():
        mark.touch()
        raise ValueError("not yet")
    return "done"

def wait(spec):
    with open(spec.prompt) as gate:
        gate.readline()
    return once(spec)

agents = {"once": once, "wait": wait}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "the agents.py").write_text(AGENTS)
    return Folder(tmp_path)


TARGET = "the agents.py:agents"


def resume_command(said: str) -> str:
    """Return the command in the last line of a summary."""
    last = said.splitlines()[-1]
    assert last.startswith("  resume: "), said
    return last.removeprefix("  resume: ")


def in_shell(folder: Folder, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        cwd=folder.path,
        env=ENVIRONMENT,
        encoding="utf-8",
        timeout=LIMIT_S,
        check=False,
    )


def ran(folder: Folder) -> list[str]:
    """Return the task ids of the steps that have run, those of each run in any order."""
    return sorted((folder / "ran").read_text().split())


@pytest.mark.parametrize(
    "options",
    [
        ["-o", "out.jsonl", "--journal", "run.db"],
        ["--output=the 'out'.jsonl", "--journal", "my $HOME run.db", "--workflow", "night; ly", "-j", "1"],
        ["-o", "zurück\t1.jsonl", "--journal", "run.db", "--backend", "process", "--retry=1", "--timeout", "50"],
    ],
)
def test_the_command_runs_what_failed(options: list[str], folder: Folder) -> None:
    """After a run with failures, the command runs these alone, with the options that the run had."""
    folder.steps(("once", "a"), ("once", "bad"), ("once", "c"))
    first = folder.run(*options, target=TARGET)
    assert first.returncode == 1
    command = resume_command(first.stderr)
    (folder / "ran").unlink()
    # In bash, because a name with a tab in it is written in a way that not all shells know.
    again = in_shell(folder, f"bash -c {shlex.quote(command)}")
    assert again.returncode == 0, again.stderr
    assert ran(folder) == ["t1"]
    assert "from the journal: 2" in again.stderr
    assert "resume" not in again.stderr
    (place,) = [option.removeprefix("--output=") for option in options if option.endswith(".jsonl")]
    assert [outcome.success for outcome in outcomes_in((folder / place).read_text())] == [True] * 3


def test_without_a_journal_there_is_no_such_command(folder: Folder) -> None:
    """Only a journal makes a run resumable, and only what is left to do needs it."""
    folder.steps(("once", "a"), ("once", "bad"))
    assert "resume" not in folder.run(target=TARGET).stderr
    assert "resume" not in folder.run("--journal", "run.db", target=TARGET).stderr


def test_redirections_are_part_of_the_command(folder: Folder) -> None:
    """Where steps come from a file by `<`, and outcomes go to one by `>`, so they do when the run is resumed."""
    folder.steps(("once", "a"), ("once", "bad"), name="the steps.jsonl")
    run = f"$FANOUT run - --executor {shlex.quote(TARGET)} --journal run.db"
    first = folder.shell(f"{run} < 'the steps.jsonl' > 'the outcomes.jsonl'")
    assert first.returncode == 1
    before = (folder / "the outcomes.jsonl").read_text()
    again = in_shell(folder, resume_command(first.stderr))
    assert (again.returncode, again.stdout) == (0, ""), again.stderr
    assert [outcome.success for outcome in outcomes_in(before)] == [True, False]
    assert [outcome.success for outcome in outcomes_in((folder / "the outcomes.jsonl").read_text())] == [True, True]
    assert ran(folder) == ["t0", "t1", "t1"]


def test_steps_from_a_pipe_have_to_be_given_again(folder: Folder) -> None:
    """What came through a pipe is gone; the summary says so."""
    steps = folder / folder.steps(("once", "bad"))
    run = f"cat steps.jsonl | $FANOUT run - --executor {shlex.quote(TARGET)} --journal run.db"
    first = folder.shell(f"{run} -o out.jsonl")
    said, _, command = first.stderr.splitlines()[-1].partition(": ")
    assert said == "  resume, with the same steps on the standard input"
    again = in_shell(folder, f"cat {steps} | {command}")
    assert again.returncode == 0


def test_the_command_after_ctrl_c(folder: Folder, launch: Launcher) -> None:
    """An interrupted run is resumed by the command, also one that was seen on a terminal."""
    folder.steps(("once", "a"), ("wait", "gate"), ("once", "c"))
    gate = NamedPipe(folder / "gate")
    options = ["-j", "1", "-o", "out.jsonl", "--journal", "run.db", "--no-progress"]
    with folder.running(*options, target=TARGET) as process:
        while not (folder / "out.jsonl").exists() or not (folder / "out.jsonl").read_text():
            assert process.poll() is None
        process.send_signal(2)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(LIMIT_S) == 130
    gate.open()
    again = in_shell(folder, resume_command(said))
    gate.close()
    assert again.returncode == 0, again.stderr
    assert ran(folder) == ["t0", "t1", "t2"]


def test_the_command_after_outcomes_could_not_be_written(folder: Folder) -> None:
    """A run that a full disk has cut short says how to resume it, too."""
    folder.steps(("once", "a"), ("once", "b"))
    first = folder.run("-o", "/dev/full", "--journal", "run.db", target=TARGET)
    assert first.returncode == 1
    assert first.stderr.startswith("Error: cannot write outcomes to /dev/full")
    assert "-o /dev/full" in resume_command(first.stderr)


def test_the_command_of_the_installed_program(folder: Folder) -> None:
    """A program on the PATH is named as it was called."""
    program = folder / "bin" / "fanout-sync"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom fanout_sync.cli import main\nmain()\n")
    program.chmod(0o755)
    folder.steps(("once", "bad"))
    path = f"PATH={shlex.quote(str(program.parent))}:$PATH"
    run = f"fanout-sync run steps.jsonl --executor {shlex.quote(TARGET)} -o out.jsonl --journal run.db"
    first = in_shell(folder, f"{path} {run}")
    assert resume_command(first.stderr) == run
    again = in_shell(folder, f"{path} {resume_command(first.stderr)}")
    assert again.returncode == 0


def test_a_module_is_named_with_its_python(folder: Folder) -> None:
    """Started as `python -m fanout_sync`, it is resumed by the same Python."""
    folder.steps(("once", "bad"))
    first = folder.run("-o", "out.jsonl", "--journal", "run.db", target=TARGET)
    assert shlex.split(resume_command(first.stderr))[:3] == [command()[0], "-m", "fanout_sync"]
