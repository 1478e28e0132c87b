"""`fanout-sync run` with `--command` and `--preset`, on prompts and rows: no Python is needed for it."""

from __future__ import annotations

import json
import signal
import stat
from pathlib import Path

import pytest
from command_line import LIMIT_S, Folder, outcomes_in, outputs_in, summary_in
from processes import eventually, is_alive

BACKENDS = ["thread", "process"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def program(folder: Folder, name: str, script: str) -> str:
    """Write a shell script, and return how it is called."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"./{name}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_command_answers_each_prompt(backend: str, folder: Folder) -> None:
    """It gets the prompt on its standard input, and what it prints is the output."""
    (folder / "prompts.txt").write_text("hello\n\nwörld\n", encoding="utf-8")
    done = folder.call("run", "prompts.txt", "--command", "tr a-z A-Z", "--backend", backend)
    assert done.returncode == 0, done.stderr
    first, second = outcomes_in(done.stdout)
    assert (first.task_id, first.agent, first.output) == ("line-1", "command", "HELLO")
    assert (second.task_id, second.output) == ("line-3", "WöRLD")


def test_a_command_runs_the_steps_of_all_agents(folder: Folder) -> None:
    """The steps of a file name agents of their own; their other fields are placeholders in the command."""
    folder.steps(("one", "a"), ("two", "b"))
    done = folder.call("run", "steps.jsonl", "--command", "echo {task_id} {agent} '{description} / {x}' {prompt}")
    assert outputs_in(done.stdout) == ["t0 one step 0 / {x} a", "t1 two step 1 / {x} b"], done.stderr


def test_a_command_is_split_as_by_a_shell_and_run_without_one(folder: Folder) -> None:
    """Quotes hold an argument together; `$`, `;` and `*` are characters like any other."""
    (folder / "prompts.txt").write_text("x\n")
    said = program(folder, "show args", 'for word in "$@"; do echo "[$word]"; done')
    words = r"""'./show args' 'a b' "c'd" e\ f $HOME ; * '$(id)' ''"""
    assert said == "./show args"
    done = folder.call("run", "prompts.txt", "--command", words)
    shown = ["a b", "c'd", "e f", "$HOME", ";", "*", "$(id)", ""]
    assert outputs_in(done.stdout) == ["\n".join(f"[{word}]" for word in shown)], done.stderr


def test_rows_fill_a_template(folder: Folder) -> None:
    """Each row is a step."""
    (folder / "prompt.txt").write_text("Dear {name},\nyou are {age}.\n")
    (folder / "rows.csv").write_text('name,age\n"Doe, Jo",7\nBo,8\n')
    done = folder.call("run", "--template", "prompt.txt", "--rows", "rows.csv", "--command", "cat")
    assert done.returncode == 0, done.stderr
    assert [outcome.task_id for outcome in outcomes_in(done.stdout)] == ["row-1", "row-2"]
    assert outputs_in(done.stdout) == ["Dear Doe, Jo,\nyou are 7.", "Dear Bo,\nyou are 8."]


def test_prompts_from_the_standard_input(folder: Folder) -> None:
    """`--prompts -` reads them there."""
    done = folder.call("run", "--prompts", "-", "--command", "cat", input="a\nb\n")
    assert outputs_in(done.stdout) == ["a", "b"], done.stderr


def test_prompts_for_an_executor(folder: Folder) -> None:
    """An executor may run them, too, as the agent `command`."""
    (folder / "agents.py").write_text("agents = {'command': lambda spec: spec.prompt[::-1]}")
    (folder / "prompts.txt").write_text("abc\n")
    done = folder.call("run", "prompts.txt", "--executor", "agents.py:agents")
    assert outputs_in(done.stdout) == ["cba"], done.stderr


def test_a_program_that_fails(folder: Folder) -> None:
    """Its step fails with the exit status and the end of what it wrote; the others are not touched."""
    (folder / "prompts.txt").write_text("good\nbad\n")
    said = program(folder, "pick", 'read word; [ "$word" = good ] && echo fine || { echo "no $word" >&2; exit 3; }')
    done = folder.call("run", "prompts.txt", "--command", said, "--retry", "2", "--events", "events.jsonl")
    assert done.returncode == 1
    good, bad = outcomes_in(done.stdout)
    assert (good.output, bad.success) == ("fine", False)
    assert "3" in bad.output
    assert "no bad" in bad.output
    assert "line-2 (command)" in summary_in(done.stderr)
    events = [json.loads(line)["type"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events.count("step_retry") == 1


def test_a_run_of_programs_resumes(folder: Folder) -> None:
    """What has succeeded does not run again."""
    (folder / "prompts.txt").write_text("a\nb\n")
    said = program(folder, "once", 'read word; echo "$word" >> ran; [ -e ready ] || [ "$word" = a ] && echo "$word"')
    call = ("run", "prompts.txt", "--command", said, "--journal", "run.db", "-j", "1")
    first = folder.call(*call)
    assert first.returncode == 1
    (folder / "ready").touch()
    again = folder.call(*call)
    assert (again.returncode, outputs_in(again.stdout)) == (0, ["a", "b"])
    assert (folder / "ran").read_text().split() == ["a", "b", "b"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_ends_the_programs(backend: str, folder: Folder) -> None:
    """Nothing of them is left."""
    (folder / "prompts.txt").write_text("a\nb\n")
    said = program(folder, "wait", "read word; echo $$ > pid-$word; sleep 600")
    pids = [folder / "pid-a", folder / "pid-b"]
    with folder.started("run", "prompts.txt", "--command", said, "--backend", backend, "-j", "2") as process:
        assert eventually(lambda: all(pid.exists() and pid.read_text().strip() for pid in pids))
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 130
    assert eventually(lambda: not any(is_alive(int(pid.read_text())) for pid in pids))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prompts.txt"], "nothing to run the steps with: give --executor, --command or --preset"),
        (["prompts.txt", "--command", "cat", "--preset", "claude"], "--command and --preset cannot be given together"),
        (["prompts.txt", "--command", "cat", "--executor", "a:b"], "--executor and --command cannot be given together"),
        (["prompts.txt", "--command", "cat", "--model", "m"], "--model needs --preset"),
        (["prompts.txt", "--command", ""], "--command must name a program, and is empty"),
        (["prompts.txt", "--command", "cat 'a"], "--command cannot be split into words: No closing quotation"),
        (["prompts.txt", "--command", "no-such-program -x"], "no-such-program"),
        (["prompts.txt", "--preset", "gpt"], "'gpt' is not one of 'claude'"),
        (["--command", "cat"], "nothing to run: give STEPS.jsonl"),
        (
            ["prompts.txt", "--prompts", "prompts.txt", "--command", "cat"],
            "STEPS and --prompts cannot be given together",
        ),
        (["broken.jsonl", "--command", "cat"], "broken.jsonl:1: "),
        (["prompts.txt", "--command", "cat", "-o", "prompts.txt"], "for the outcomes: it is the file of the steps"),
        (
            ["--template", "prompts.txt", "--rows", "rows.csv", "--command", "cat", "-o", "prompts.txt"],
            "for the outcomes: it is the file of the template",
        ),
        (["--template", "prompts.txt", "--rows", "rows.csv", "--command", "cat"], "names no column of the rows"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments: list[str], said: str, folder: Folder) -> None:
    """The message names the options, and nothing is run or written."""
    (folder / "prompts.txt").write_text("hello\n")
    (folder / "rows.csv").write_text("a\n1\n")
    (folder / "broken.jsonl").write_text("hello\n")
    before = sorted(path.name for path in folder.path.iterdir())
    done = folder.call("run", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert (folder / "prompts.txt").read_text() == "hello\n"
    assert sorted(path.name for path in folder.path.iterdir()) == before


def test_validate_counts_prompts_and_rows(folder: Folder) -> None:
    """It takes the same input as `run`."""
    (folder / "prompts.txt").write_text("a\nb\n")
    (folder / "t.txt").write_text("{a}")
    (folder / "rows.jsonl").write_text('{"a": 1}\n')
    assert folder.call("validate", "prompts.txt").stdout == "2 steps are valid\n"
    assert folder.call("validate", "--template", "t.txt", "--rows", "rows.jsonl").stdout == "1 step is valid\n"
    (folder / "rows.jsonl").write_text('{"a": 1}\n{"b": 1}\n')
    done = folder.call("validate", "--template", "t.txt", "--rows", "rows.jsonl")
    assert (done.returncode, done.stderr.startswith("rows.jsonl:2: ")) == (2, True)
