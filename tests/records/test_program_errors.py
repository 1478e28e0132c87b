"""The messages of programs that failed: with the end of what they wrote to stderr."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from fanout_sync import AgentStepSpec, FunctionExecutor, RetryAfter, Runner, StepError
from fanout_sync.formatting import MAX_TAIL_CHARS, MAX_TAIL_LINES

MakeRunner = Callable[..., Runner]

PROGRAM = "import sys, time; print('out'); sys.stderr.write({!r}); sys.stderr.flush(); {}"


def call(spec: AgentStepSpec) -> Any:
    """Run a program that writes the prompt to stderr and fails."""
    subprocess.run([sys.executable, "-c", PROGRAM.format(spec.prompt, "sys.exit(3)")], check=True, capture_output=True)


def call_as_text(spec: AgentStepSpec) -> Any:
    program = PROGRAM.format(spec.prompt, "sys.exit(3)")
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)


def check_output(spec: AgentStepSpec) -> Any:
    subprocess.check_output([sys.executable, "-c", "print('only this'); raise SystemExit(3)"])


def call_and_ask_again(spec: AgentStepSpec) -> Any:
    try:
        call(spec)
    except subprocess.CalledProcessError as error:
        raise RetryAfter(0.001) from error


AGENTS = {"bytes": call, "text": call_as_text, "stdout": check_output, "again": call_and_ask_again}
EXECUTOR = FunctionExecutor(AGENTS)
TOLD = [
    ("bytes", "no such key\n", "returned non-zero exit status 3; stderr: no such key"),
    ("text", "Ünicode\n\n", "returned non-zero exit status 3; stderr: Ünicode"),
    ("stdout", "", "returned non-zero exit status 3; stdout: only this"),
    ("again", "busy", "returned non-zero exit status 3; stderr: busy"),
    ("bytes", "", "returned non-zero exit status 3; stdout: out"),
    ("bytes", "one\ntwo\n", "returned non-zero exit status 3; stderr: two\none\ntwo"),
]


@pytest.mark.parametrize(("agent", "prompt", "told"), TOLD)
def test_a_failed_program_is_told_with_its_stderr(make_runner: MakeRunner, agent: str, prompt: str, told: str) -> None:
    """In the message of the error and in the outcome, whether it was captured as bytes or as text."""
    run = make_runner(EXECUTOR).run([AgentStepSpec("t", agent, "", prompt)])
    error = run.records[0].error
    assert error is not None
    assert error.type == "subprocess.CalledProcessError"
    assert error.message.endswith(told)
    assert run[0].output == f"{error.type}: {error.message}"


def test_a_failed_program_is_told_with_its_stderr_in_a_pool_of_processes() -> None:
    """As on the package's own backends."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        run = Runner(EXECUTOR, backend=pool).run([AgentStepSpec("t", "bytes", "", "no such key")])
    assert run[0].output.endswith("; stderr: no such key")


def failed(stderr: Any, output: Any = None) -> str:
    return StepError.of(subprocess.CalledProcessError(3, "program", output, stderr)).message


def test_only_the_end_of_a_long_output_is_told() -> None:
    """The last lines, and so many characters at most."""
    message = failed("".join(f"line {number}\n" for number in range(1000)))
    assert message.splitlines()[1:] == [f"line {number}" for number in range(1000 - MAX_TAIL_LINES, 1000)]
    assert len(failed("é" * 100_000).partition("stderr: ")[2]) == MAX_TAIL_CHARS
    assert len(failed(("é" * 100_000).encode()).partition("stderr: ")[2]) == MAX_TAIL_CHARS


@pytest.mark.parametrize("stderr", [None, "", b"", " \n \n", object(), 3])
def test_without_output_the_message_is_pythons(stderr: Any) -> None:
    """Also if what is in its place is no output at all."""
    assert failed(stderr) == "Command 'program' returned non-zero exit status 3."


@pytest.mark.parametrize("stderr", [b"\xff\xfe half", "half \udcff", bytearray(b"half"), memoryview(b"half")])
def test_output_that_is_no_utf_8_can_be_told(stderr: Any) -> None:
    """It can be encoded, so that an outcome can carry it."""
    assert "half" in failed(stderr)
    failed(stderr).encode()


def test_a_program_that_took_too_long_is_told_with_its_stderr() -> None:
    """`TimeoutExpired` has the output up to then."""
    error = subprocess.TimeoutExpired("program", 5, output=b"out", stderr=b"still waiting\n")
    told = "Command 'program' timed out after 5 seconds; stderr: still waiting"
    assert StepError.of(error).message == told
    program = PROGRAM.format("still waiting", "time.sleep(3600)")
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=5, check=True)
    assert StepError.of(caught.value).message.endswith("; stderr: still waiting")
