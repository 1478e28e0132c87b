"""Presets in a run, with programs that print what the real ones have printed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from preset_samples import FOLDER, NAMES, exit_status_of
from programs import own_backends, run_command, spec_for

from fanout_sync import Command, CommandExecutor, InputError, OptionError, Retry, Run, Runner

ANSWERS = {"claude": "claude-stream-tool", "codex": "codex-tool", "gemini": "gemini-stream-tool"}
ANSWERS |= {"opencode": "opencode-tool", "copilot": "copilot-tool"}

REFUSALS = {"claude": "claude-stream-429", "codex": "codex-429", "gemini": "gemini-stream-429"}
REFUSALS |= {"opencode": "opencode-429", "copilot": "copilot-429"}

KEYS = {"claude": "claude-401", "codex": "codex-401", "gemini": "gemini-stream-401"}
KEYS |= {"opencode": "opencode-401", "copilot": "copilot-401.tail"}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of the `PATH` for programs, which get a home without settings."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CLAUDE_CONFIG_DIR", "GEMINI_CLI_HOME", "OPENCODE_DB", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return folder


def prints(programs: Path, name: str, *samples: str) -> None:
    """Make a program that prints one sample after the other, one at each start, and the last from then on."""
    counter = programs.parent / f"{name}.starts"
    lines = ["#!/bin/sh", "cat > /dev/null", f"echo >> {counter}", f"case $(wc -l < {counter}) in"]
    for number, sample in enumerate(samples, 1):
        pattern = "*" if number == len(samples) else str(number)
        lines.append(f"{pattern}) cat '{FOLDER}/{sample}.txt'; exit {exit_status_of(sample)} ;;")
    write(programs, name, "\n".join([*lines, "esac"]))


def write(programs: Path, name: str, source: str) -> None:
    """Make a program of a shell script."""
    path = programs / name
    path.write_text(source)
    path.chmod(0o755)


def run(name: str, **options: Any) -> Run:
    """Run one step with a preset."""
    return run_command(getattr(Command, name)(), **options)


@own_backends
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_has_session_and_usage(name: str, backend: str, programs: Path) -> None:
    """What the program tells of them is in the outcome and in the record."""
    prints(programs, name, ANSWERS[name])
    done = run(name, backend=backend)
    assert (done[0].success, done[0].output) == (True, "hello world")
    assert done[0].session_id != "task-run-t"
    if name != "copilot":
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (200, 10)
    assert (done.usage.cost_usd > 0) == (name == "claude")


@own_backends
@pytest.mark.parametrize("name", NAMES)
def test_a_rate_limit_is_tried_again(name: str, backend: str, programs: Path) -> None:
    """The runner sees the 429, and the next attempt has the answer."""
    prints(programs, name, REFUSALS[name], ANSWERS[name])
    done = run(name, backend=backend, retry=Retry(attempts=1))
    assert (done.records[0].status, len(done.records[0].attempts)) == ("raised", 1)
    assert "the server limits the rate of requests" in done[0].output
    assert "{" not in done[0].output  # what the program has printed is read, not quoted
    done = run(name, backend=backend)
    assert done[0].output == "hello world"


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_key_is_not_tried_again(name: str, programs: Path) -> None:
    """It fails in the same way until somebody changes it; the outcome says what to check."""
    prints(programs, name, KEYS[name], ANSWERS[name])
    done = run(name, retry=Retry(attempts=3, wait=0, on_failure=True))
    assert (done.records[0].status, len(done.records[0].attempts)) == ("failed", 1)
    assert "the login or key is refused" in done[0].output


@pytest.mark.parametrize("name", NAMES)
def test_a_program_that_prints_nothing_is_tried_again(name: str, programs: Path) -> None:
    """Exit status 0 without an answer is a failure as any other."""
    prints(programs, name, ANSWERS[name])
    silent = f"[ $(wc -l < {programs.parent}/{name}.starts) = 1 ] && exit 0"
    write(programs, name, (programs / name).read_text().replace("case ", f"{silent}\ncase "))
    done = run(name, retry=Retry(attempts=2, wait=0))
    assert (done[0].output, len(done.records[0].attempts)) == ("hello world", 2)


@own_backends
def test_each_of_the_programs_that_run_at_once_has_a_folder_of_its_own(
    backend: str, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits until all have written where theirs is; after the run the folders are gone."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    seen = programs.parent / "seen"
    seen.mkdir()
    write(
        programs,
        "claude",
        f'#!/bin/sh\ncat > /dev/null\necho "$CLAUDE_CONFIG_DIR" > {seen}/$$\n'
        f"until [ $(ls {seen} | wc -l) -ge 4 ]; do sleep 0.01; done\ncat '{FOLDER}/claude-ok.txt'",
    )
    specs = [spec_for(task_id=f"t{number}") for number in range(4)]
    done = run_command(Command.claude(), *specs, backend=backend, max_concurrency=4, timeout=60)
    assert [outcome.output for outcome in done] == ["hello world"] * 4
    folders = [path.read_text().strip() for path in seen.iterdir()]
    assert len(set(folders)) == 4
    assert not any(Path(folder).exists() for folder in folders)


@pytest.mark.parametrize("name", ["codex", "opencode", "copilot"])
def test_a_step_that_asks_for_a_cap_is_refused(name: str, programs: Path) -> None:
    """A list of steps is refused before the first one; from any other input the step is invalid."""
    prints(programs, name, ANSWERS[name])
    runner = Runner(CommandExecutor({"a": getattr(Command, name)()}))
    told = rf"{name} has no cap on turns \(max_steps=3\)"
    with pytest.raises(InputError, match=told):
        runner.run([spec_for(max_steps=3)])
    done = runner.run(iter([spec_for(max_steps=3)]))
    assert done.records[0].status == "invalid"
    assert re.match(told, done[0].output)
    assert not (programs.parent / f"{name}.starts").exists()


def test_a_schema_reaches_each_program(programs: Path) -> None:
    """As an argument, in a file that is there, or below the prompt; the value is structured in the end."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    prints(programs, "claude", "claude-schema")
    done = run_command(Command.claude(), spec_for(output_schema=schema))
    assert done[0].structured == {"name": "Ada"}
    # The answer of this program is the file.
    text = json.dumps(json.dumps({"name": "Ada"}))
    write(
        programs,
        "codex",
        "#!/bin/sh\ncat > /dev/null\n"
        'while [ "$1" != --output-schema ]; do shift; done\ngrep -q required "$2" || exit 3\n'
        f"""echo '{{"type":"item.completed","item":{{"type":"agent_message","text":{text}}}}}'\n"""
        """echo '{"type":"turn.completed"}'\n""",
    )
    done = run_command(Command.codex(), spec_for(output_schema=schema))
    assert done[0].output == '{"name": "Ada"}', done[0].output
    write(
        programs,
        "copilot",
        '#!/bin/sh\ngrep -q \'"required": \\["name"\\]\' || exit 3\n'
        f"""echo '{{"type":"assistant.message","data":{{"content":{text}}}}}'\n"""
        """echo '{"type":"result","exitCode":0}'\n""",
    )
    done = run_command(Command.copilot(), spec_for(output_schema=schema))
    assert done[0].output == '{"name": "Ada"}', done[0].output


@pytest.mark.parametrize("name", NAMES)
def test_a_program_that_is_not_there_is_refused_with_how_to_get_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything runs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionError, match=rf"'{name}' was not found on the PATH: install it \(npm install -g "):
        CommandExecutor({"a": getattr(Command, name)()})


@pytest.mark.parametrize("name", NAMES)
def test_the_program_and_its_options_are_those_of_the_command(name: str, programs: Path) -> None:
    """extra_args come after the preset's; variables of the command win over the preset's."""
    write(
        programs,
        name,
        f'#!/bin/sh\ncat > {programs.parent}/prompt\nfor last; do :; done\necho "$last" > {programs.parent}/last\n'
        f"echo $CLAUDE_CODE_MAX_RETRIES > {programs.parent}/retries\ncat '{FOLDER}/{ANSWERS[name]}.txt'",
    )
    command = getattr(Command, name)(model="M", extra_args=["--more=x y"], env={"CLAUDE_CODE_MAX_RETRIES": "4"})
    run = Runner(CommandExecutor({"a": command})).run([spec_for("--help\nme")])
    assert run[0].output == "hello world"
    assert (programs.parent / "last").read_text() == "--more=x y\n"
    assert (programs.parent / "retries").read_text() == "4\n"
    assert (programs.parent / "prompt").read_text() == "--help\nme"


@own_backends
@pytest.mark.parametrize("name", NAMES)
def test_a_program_that_does_not_exit_after_its_answer_is_killed(
    name: str, backend: str, programs: Path, no_program_left: str
) -> None:
    """The answer counts, and is there when `exit_grace` is over."""
    write(programs, name, f"#!/bin/sh\ncat > /dev/null\ncat '{FOLDER}/{ANSWERS[name]}.txt'\nsleep 3600")
    done = run_command(getattr(Command, name)(exit_grace=0.1), backend=backend, timeout=60)
    assert done[0].output == "hello world"


@pytest.mark.parametrize("name", NAMES)
def test_lines_after_the_answer_do_not_prolong_the_grace(name: str, programs: Path, no_program_left: str) -> None:
    """`exit_grace` counts from the last line of the answer, whatever comes after it, and however often."""
    heartbeat = """for _ in $(seq 100); do echo '{"type":"heartbeat"}'; sleep 0.2; done; exit 3"""
    write(programs, name, f"#!/bin/sh\ncat > /dev/null\ncat '{FOLDER}/{ANSWERS[name]}.txt'\n{heartbeat}")
    done = run_command(getattr(Command, name)(exit_grace=0.5), retry=Retry(attempts=1))
    assert (done.records[0].status, done[0].output) == ("succeeded", "hello world")


@pytest.mark.parametrize(
    ("name", "printing"),
    [
        ("gemini", "cat {}/gemini-ok.txt"),
        ("gemini", "printf '%s' \"$(cat {}/gemini-ok.txt)\""),
        ("gemini", "cat {}/gemini-ok.txt | tr -d '\\n'"),
        ("claude", "printf '%s' \"$(cat {}/claude-ok.txt)\""),
        ("claude", "printf '%s' \"$(cat {}/claude-stream.txt)\""),
    ],
)
def test_an_answer_without_a_last_line(name: str, printing: str, programs: Path, no_program_left: str) -> None:
    """An object over many lines, or without a newline after it, is complete when nothing follows for `exit_grace`."""
    write(programs, name, f"#!/bin/sh\ncat > /dev/null\n{printing.format(FOLDER)}\nexec sleep 3600")
    done = run_command(getattr(Command, name)(exit_grace=0.1), retry=Retry(attempts=1))
    assert (done.records[0].status, done[0].output) == ("succeeded", "hello world")


def test_an_answer_that_is_written_slowly(programs: Path) -> None:
    """The beginning of an object is none, also in the middle of a line: the program is left alone."""
    source = f"""#!/bin/sh
        cat > /dev/null
        head -n 9 '{FOLDER}/gemini-ok.txt'
        sleep 0.5
        tail -n +10 '{FOLDER}/gemini-ok.txt' | head -c 100
        sleep 0.5
        tail -n +10 '{FOLDER}/gemini-ok.txt' | tail -c +101
        """
    write(programs, "gemini", source)
    done = run_command(Command.gemini(exit_grace=0.1), retry=Retry(attempts=1))
    assert (done.records[0].status, done[0].output) == ("succeeded", "hello world")


def test_an_answer_that_is_taken_back_begins_the_grace_anew(programs: Path, no_program_left: str) -> None:
    """A program that goes on with its work after all is not killed for the answer that it had before."""
    lines = (FOLDER / "opencode-ok.txt").read_text().splitlines()
    begun = next(line for line in lines if '"step_start"' in line)
    source = f"""#!/bin/sh
        cat > /dev/null
        cat '{FOLDER}/opencode-ok.txt'
        printf '%s\\n' '{begun}'
        sleep 1.2
        cat '{FOLDER}/{ANSWERS["opencode"]}.txt'
        """
    write(programs, "opencode", source)
    done = run_command(Command.opencode(exit_grace=0.5), timeout=HANG_BOUND_S)
    assert done[0].output == "hello world"
    assert done.usage.prompt_tokens > 200


def test_copilot_is_killed_when_it_goes_on_retrying(programs: Path, no_program_left: str) -> None:
    """It has no switch for that; the runner sees the 429 in place of its retries."""
    lines = (FOLDER / "copilot-429.txt").read_text().splitlines()
    begun = next(number for number, line in enumerate(lines) if "assistant.turn_retry" in line)
    (programs.parent / "begun").write_text("\n".join(lines[: begun + 1]) + "\n")
    write(programs, "copilot", f"#!/bin/sh\ncat > /dev/null\ncat {programs.parent}/begun\nsleep 3600")
    done = run_command(Command.copilot(exit_grace=0.1), timeout=60, retry=Retry(attempts=1))
    assert done.records[0].status == "raised"
    assert "the server limits the rate of requests (429)" in done[0].output


def test_codex_is_killed_when_it_waits_for_a_network(programs: Path, no_program_left: str) -> None:
    """It would wait for ever; the error is one that `retry` covers."""
    waiting = '{"type":"error","message":"Reconnecting... waiting for network (Connection failed: error)"}'
    write(programs, "codex", f"#!/bin/sh\ncat > /dev/null\necho '{waiting}'\nsleep 3600")
    done = run_command(Command.codex(exit_grace=0.1), timeout=60, retry=Retry(attempts=2, wait=0))
    assert len(done.records[0].attempts) == 2
    assert "the server cannot be reached" in done[0].output
