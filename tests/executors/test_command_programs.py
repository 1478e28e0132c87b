"""Programs as agents: what they are called with, what they read, and what makes them fail."""

from __future__ import annotations

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from programs import each_backend, one, own_backends, python, run_command, shell, spec_for

from fanout_sync import AgentStepSpec, Command, CommandExecutor, OptionError, Retry, Runner
from fanout_sync.executors.command.program_errors import ProgramFailed, ProgramIdle
from fanout_sync.executors.command.start_interval import StartTimes

pytestmark = pytest.mark.usefixtures("no_program_left")

ARGUMENTS = "import json, sys; print(json.dumps(sys.argv[1:]))"

AWKWARD = [
    *("two words", 'it\'s "quoted"', "a\nnew\nline", "$(touch hacked)", "`touch hacked`", "; touch hacked", "*", "~"),
    *("-n", "--help", "--", "\\", "é 中 🙂", "{task_id}", "{unknown}", "%s", "", "\ttab", "&&", "> file"),
]


@each_backend
def test_the_prompt_comes_on_stdin(backend: str) -> None:
    """A program gets the prompt on its standard input, which then ends, and what it writes is the answer."""
    assert one(run_command(Command(["cat"]), backend=backend)) == ("succeeded", "hello")


def test_the_answer_ends_without_newlines() -> None:
    """Newlines at the end of the output are no part of the answer, as for `$(…)` of a shell; others are."""
    assert one(run_command(Command(["printf", " a\\n\\nb \\n\\n"]))) == ("succeeded", " a\n\nb ")


@pytest.mark.parametrize("value", AWKWARD)
def test_a_value_is_one_argument(value: str, tmp_path: Path) -> None:
    """Whatever a value contains, it is one argument or a part of one; there is no shell."""
    command = Command(python(ARGUMENTS, "{prompt}", "x{prompt}y", "--p={prompt}"), cwd=tmp_path, output="json")
    ((outcome,)) = run_command(command, spec_for(value))
    assert outcome.structured == [value, f"x{value}y", f"--p={value}"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [value for value in AWKWARD if value])
def test_the_prompt_as_the_last_argument(value: str) -> None:
    """With prompt='argument' the prompt is the last argument, after `extra_args`, and stdin is empty."""
    source = "import json, sys; print(json.dumps([sys.argv[1:], sys.stdin.read()]))"
    command = Command(python(source, "first"), prompt="argument", extra_args=["extra"], output="json")
    assert run_command(command, spec_for(value))[0].structured == [["first", "extra", value], ""]


def test_placeholders() -> None:
    """All fields of a step can stand in arguments, in `extra_args` as well; any other brace stays."""
    names = ["task_id", "agent", "description", "prompt", "max_steps", "parent_session_id"]
    arguments = [f"{{{name}}}" for name in names]
    command = Command(
        python(ARGUMENTS, *arguments), extra_args=["{task_id}-{agent}", "{}", "{x}", "{{task_id}}"], output="json"
    )
    spec = AgentStepSpec("t", "a", "a step", "say {agent}", max_steps=7, parent_session_id="s-1")
    assert run_command(command, spec)[0].structured == [
        *("t", "a", "a step", "say {agent}", "7", "s-1"),
        *("t-a", "{}", "{x}", "{t}"),
    ]


def test_a_prompt_among_the_arguments_comes_only_there() -> None:
    """If `{prompt}` stands in an argument, the prompt is neither appended nor written to stdin."""
    source = "import json, sys; print(json.dumps([sys.argv[1:], sys.stdin.read()]))"
    for prompt in ("stdin", "argument"):
        command = Command(python(source, "-p", "{prompt}"), prompt=prompt, extra_args=["x"], output="json")
        assert run_command(command)[0].structured == [["-p", "hello", "x"], ""]


@own_backends
def test_the_schema_comes_in_a_file(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`{schema_file}` is the path of a file with the schema, which is gone after the step, also after a failure."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    spec = spec_for(output_schema=schema)
    command = Command(["cat", "{schema_file}"], output="json")
    assert run_command(command, spec, backend=backend)[0].structured == schema
    failing = Command(shell("cat {schema_file}; exit 3"))
    assert one(run_command(failing, spec, backend=backend))[0] == "raised"
    assert list(tmp_path.glob("fanout-sync*")) == []


@own_backends
@pytest.mark.parametrize(
    ("argument", "spec", "expected"),
    [
        ("{max_steps}", spec_for(), "{max_steps} in its arguments, but the step has no max_steps"),
        ("--resume={parent_session_id}", spec_for(), "the step has no parent_session_id"),
        ("{schema_file}", spec_for(), "the step has no output_schema"),
        ("{prompt}", spec_for("a\0b"), "NUL character"),
        ("{prompt}", spec_for("x" * 200_000), "use prompt='stdin'"),
        ("{prompt}", spec_for("\ud800"), "lone surrogate"),
        ("x", spec_for("\ud800"), "lone surrogate"),
    ],
)
def test_a_step_that_the_command_cannot_run(argument: str, spec: AgentStepSpec, expected: str, backend: str) -> None:
    """A step without a value for a placeholder, or with one that no argument can hold, is invalid; nothing starts."""
    command = Command(shell("echo started >&2; echo answer", argument))
    run = run_command(command, spec, backend=backend, retry=Retry(3, wait=0, on_failure=True))
    status, output = one(run)
    assert status == "invalid"
    assert expected in output
    assert run.records[0].attempts == ()


def test_arguments_that_are_too_long_together() -> None:
    """If the system refuses all arguments together, the error says to use stdin."""
    argument = "x" * 130_000
    _, output = one(run_command(Command(["echo", *[argument] * 60])))
    assert "use prompt='stdin'" in output


@each_backend
def test_ten_megabytes_on_stdin(backend: str) -> None:
    """A long prompt is fed while the output is read, though the program writes before it has read everything."""
    prompt = "0123456789abcdef" * (10 * 2**20 // 16)
    command = Command(["cat"], max_output_bytes=11 * 2**20)
    status, output = one(run_command(command, spec_for(prompt), backend=backend))
    assert status == "succeeded"
    assert output == prompt


@pytest.mark.parametrize("size", [10, 65_536, 10 * 2**20])
def test_a_program_that_reads_no_stdin(size: int) -> None:
    """A program that ends without reading its standard input, or closes it, has its answer all the same."""
    assert one(run_command(Command(["echo", "done"]), spec_for("x" * size))) == ("succeeded", "done")
    closing = Command(shell("exec <&-; echo done"))
    assert one(run_command(closing, spec_for("x" * size))) == ("succeeded", "done")


def test_an_empty_prompt_is_an_empty_stdin() -> None:
    """A program that reads its standard input finds its end at once, without a prompt as well."""
    source = "import sys; print(repr(sys.stdin.read()))"
    assert one(run_command(Command(python(source)), spec_for(""))) == ("succeeded", "''")
    assert one(run_command(Command(python(source), prompt="argument"))) == ("succeeded", "''")


@each_backend
def test_an_exit_status(backend: str) -> None:
    """A program that ends with another status than 0 fails, with the end of its stderr, and is tried again."""
    command = Command(shell("echo half an answer; echo 'no such model' >&2; exit 3"))
    run = run_command(command, backend=backend, retry=Retry(2, wait=0))
    status, output = one(run)
    assert status == "raised"
    assert (
        output
        == "fanout_sync.ProgramFailed: sh has ended with exit status 3; stderr: no such model; gave up after 2 attempts"
    )
    assert len(run.records[0].attempts) == 2


def test_a_failure_that_writes_to_stdout() -> None:
    """If there is nothing on stderr, the end of stdout says why; of many lines the last ten are shown."""
    source = "for i in range(30): print('line', i)\nraise SystemExit(2)"
    _, output = one(run_command(Command(python(source))))
    assert "exit status 2; stdout: line 29\nline 20\n" in output
    assert "line 19" not in output


@own_backends
def test_a_signal(backend: str) -> None:
    """A program that a signal ends fails, and the signal is named."""
    assert "sh was ended by SIGSEGV" in one(run_command(Command(shell("kill -SEGV $$")), backend=backend))[1]


@each_backend
@pytest.mark.parametrize("source", ["exit 0", "echo; echo '  '", "echo thinking >&2"])
def test_no_answer_with_exit_status_0(source: str, backend: str) -> None:
    """A program that ends with status 0 and has written nothing, or white space, has failed."""
    status, output = one(run_command(Command(shell(source)), backend=backend))
    assert status == "raised"
    assert "sh has ended with exit status 0, but without an answer" in output
    assert ("stderr: thinking" in output) == ("thinking" in source)


def test_the_environment() -> None:
    """`env` adds to the variables of this process, and `None` removes one."""
    command = Command(shell("echo $ADDED-$HOME-${PATH:+path}"), env={"ADDED": "yes", "HOME": None})
    assert one(run_command(command))[1] == "yes--path"


@own_backends
def test_the_folder(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program starts in `cwd`, by default in the current folder; a relative program is searched for from there."""
    script = tmp_path / "bin" / "agent"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\npwd\n")
    script.chmod(0o755)
    monkeypatch.chdir("/")
    assert one(run_command(Command(["pwd"]), backend=backend))[1] == "/"
    assert one(run_command(Command(["bin/agent"], cwd=tmp_path), backend=backend))[1] == str(tmp_path)


def test_a_program_on_a_path_of_its_own(tmp_path: Path) -> None:
    """A program is searched for on the PATH that it will have."""
    script = tmp_path / "agent"
    script.write_text("#!/bin/sh\necho found\n")
    script.chmod(0o755)
    command = Command(["agent"], env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    assert one(run_command(command)) == ("succeeded", "found")


@pytest.mark.parametrize(
    ("argv", "cwd", "expected"),
    [
        (["no-such-program"], None, r"agent 'a': 'no-such-program' was not found on the PATH: give its path"),
        (["./no-such"], "/", r"'./no-such' is no program"),
        (["/etc"], None, r"'/etc' is no program"),
        (["cat"], "/no/such/folder", r"cwd of Command must be a folder that exists, got '/no/such/folder'"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_runs(argv: list[str], cwd: str | None, expected: str) -> None:
    """A program or folder that does not exist is an `OptionError` when the executor is made."""
    with pytest.raises(OptionError, match=expected):
        CommandExecutor({"a": Command(argv, cwd=cwd)})


@own_backends
def test_what_vanishes_later_fails_its_step(backend: Any, tmp_path: Path) -> None:
    """A program or folder that is gone when a step begins fails that step."""
    folder = tmp_path / "folder"
    folder.mkdir()
    script = tmp_path / "agent"
    script.write_text("#!/bin/sh\necho found\n")
    script.chmod(0o755)
    executor = CommandExecutor({"a": Command([str(script)]), "b": Command(["pwd"], cwd=folder)})
    script.unlink()
    folder.rmdir()
    specs = [AgentStepSpec(name, name, "", "") for name in ("a", "b")]
    first, second = Runner(executor, backend=backend).run(specs)
    assert "is no program" in first.output
    assert "does not exist any more" in second.output


def test_a_program_that_the_task_names(tmp_path: Path) -> None:
    """The program itself may have a placeholder; whether it exists is seen when its step begins."""
    executor = CommandExecutor({"a": Command(["{task_id}"])})
    first, second = Runner(executor).run([spec_for(task_id="cat"), spec_for(task_id="no-such-program")])
    assert first.output == "hello"
    assert "'no-such-program' was not found" in second.output


def test_an_unknown_agent() -> None:
    """A step of an agent that is not registered fails, and the known ones are named."""
    run = Runner(CommandExecutor({"a": Command(["cat"])})).run([AgentStepSpec("t", "b", "", "")])
    assert run[0].output == "no agent 'b' is registered; known agents: a"


@each_backend
def test_no_terminal(backend: str) -> None:
    """A program has a session of its own and no terminal: opening it fails at once."""
    source = (
        "import json, os\n"
        "try: os.open('/dev/tty', os.O_RDWR)\n"
        "except OSError as error: why = error.strerror\n"
        "print(json.dumps([os.getsid(0) == os.getpid(), why]))"
    )
    (outcome,) = run_command(Command(python(source), output="json"), backend=backend)
    assert outcome.structured == [True, "No such device or address"]


def test_many_at_once_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 500 programs, 16 at once, there is no descriptor, no zombie and no temporary file more than before."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    executor = CommandExecutor({"a": Command(["cat", "{schema_file}"])})
    specs = [spec_for(task_id=f"t{i}", output_schema={"const": i}) for i in range(500)]

    def left() -> tuple[set[str], list[str]]:
        children = Path("/proc/self/task").glob("*/children")
        return {path.name for path in Path("/proc/self/fd").iterdir()}, [
            pid for path in children for pid in path.read_text().split()
        ]

    Runner(executor, max_concurrency=16).run(specs[:16])
    before = left()
    run = Runner(executor, max_concurrency=16).run(specs)
    assert [outcome.output for outcome in run] == [json.dumps({"const": i}) for i in range(500)]
    assert left() == before
    assert list(tmp_path.iterdir()) == []


def test_without_a_runner() -> None:
    """`execute_step` may be called directly, from several threads at once."""
    executor = CommandExecutor({"a": Command(["cat"])})
    with ThreadPoolExecutor(4) as pool:
        outcomes = pool.map(executor.execute_step, [spec_for(str(i)) for i in range(20)])
        assert [outcome.output for outcome in outcomes] == [str(i) for i in range(20)]


def test_two_runs_share_an_executor(tmp_path: Path) -> None:
    """The end of one run does not kill the programs of another one."""
    os.mkfifo(tmp_path / "gate")
    executor = CommandExecutor({"a": Command(shell("cat gate"), cwd=tmp_path), "b": Command(["cat"])})
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(Runner(executor).run, [spec_for()])
        with (tmp_path / "gate").open("w") as gate:  # it is open when the program has opened it, too
            assert Runner(executor).run([AgentStepSpec("t", "b", "", "x")])[0].output == "x"
            gate.write("released")
        assert slow.result(HANG_BOUND_S)[0].output == "released"


def test_the_least_time_between_two_starts() -> None:
    """`start_interval` keeps the starts of one command apart, in all executors of this process; others do not wait."""
    times = StartTimes()
    command, same, other = Command(["cat"]), Command(["cat"]), Command(["cat", "-"])
    assert times.reserve(command, 100.0) == 0.0
    assert 90.0 < times.reserve(same, 100.0) <= 100.0
    assert 190.0 < times.reserve(command, 100.0) <= 200.0
    assert times.reserve(other, 100.0) == 0.0


@own_backends
def test_starts_wait_for_their_turn(backend: str) -> None:
    """Steps of one command that begin together all have their answers."""
    command = Command(["cat"], start_interval=0.05)
    run = run_command(command, *[spec_for(str(i), f"t{i}") for i in range(4)], backend=backend, max_concurrency=4)
    assert [outcome.output for outcome in run] == ["0", "1", "2", "3"]


@own_backends
def test_a_wait_for_the_start_ends_with_the_timeout(backend: str) -> None:
    """A step that waits for its turn to start is overdue like any other."""
    command = Command(["cat"], start_interval=HANG_BOUND_S)
    specs = [spec_for(task_id="1"), spec_for(task_id="2")]
    run = run_command(command, *specs, backend=backend, timeout=2, max_concurrency=1)
    assert [record.status for record in run.records] == ["succeeded", "timed_out"]


def test_errors_survive_pickle() -> None:
    """The exceptions about programs come back from pickle with all they know."""
    failed = pickle.loads(pickle.dumps(ProgramFailed("why", 3, "llm", "out", "err")))
    assert (str(failed), failed.returncode, failed.cmd, failed.output, failed.stderr) == ("why", 3, "llm", "out", "err")
    idle = pickle.loads(pickle.dumps(ProgramIdle("llm", 1.5, "out", "err")))
    assert (idle.cmd, idle.timeout, idle.output, idle.stderr) == ("llm", 1.5, "out", "err")
    assert "nothing for 1.5 s" in str(idle)
