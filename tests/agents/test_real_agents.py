"""The presets with the real programs, which ask a provider on this machine and reach nothing else."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bounds import HANG_BOUND_S
from fake_provider import COMPLETION_TOKENS, PROMPT_TOKENS, FakeProvider
from loopback_only import why_not
from real_agents import ALLOWS_THE_SHELL, MODELS, NAMES, Agent, prepare
from scripts import SEARCHED

from fanout_sync import AgentStepSpec, EventChannel, InputError, Retry
from fanout_sync.events.types import TextDelta, ToolEnd, ToolStart

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(600),
]

backends = pytest.mark.parametrize("backend", ["thread", "process"])

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}

INTERRUPTED = """
import sys
from fanout_sync import AgentStepSpec, Command, CommandExecutor, FanoutInterrupted, Runner

if __name__ == "__main__":
    name, model, cwd, backend = sys.argv[1:]
    executor = CommandExecutor({"a": getattr(Command, name)(model=model, cwd=cwd)})
    specs = [AgentStepSpec(f"t{number}", "a", "a step", "[[hang]] please") for number in range(3)]
    try:
        Runner(executor, backend=backend).run(specs)
    except FanoutInterrupted as interrupted:
        print(*(record.status for record in interrupted.run.records))
"""


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """A server that answers as the prompts say."""
    with FakeProvider() as server:
        yield server


@pytest.fixture(params=NAMES)
def agent(
    request: pytest.FixtureRequest,
    provider: FakeProvider,
    tmp_path: Path,
    no_program_left: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Agent:
    """Each program in turn."""
    name: str = request.param
    return prepare(name, provider, tmp_path, monkeypatch)


@backends
def test_an_answer(agent: Agent, backend: str) -> None:
    """Text, session and usage; a prompt that begins with dashes and has several lines is none of its options."""
    run = agent.run('--help "[[say world]]" $(id)\nsecond line', backend=backend)
    assert (run[0].success, run[0].output) == (True, "hello world")
    assert run[0].session_id != "task-run-t0"
    if agent.name != "copilot":  # it tells no tokens
        assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (PROMPT_TOKENS, COMPLETION_TOKENS)


@backends
def test_text_and_tools_as_events(agent: Agent, backend: str) -> None:
    """A call of the shell is told with its output, and the text as it comes."""
    events, channel = list[object](), EventChannel()
    extra_args = ALLOWS_THE_SHELL.get(agent.name, [])
    with channel.listen(events.append):
        run = agent.run("[[tool]] please", backend=backend, extra_args=extra_args, event_tx=channel)
    assert run[0].output == "hello world"
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "hello world"
    (start,) = [event for event in events if isinstance(event, ToolStart)]
    (end,) = [event for event in events if isinstance(event, ToolEnd)]
    assert start.id == end.id
    assert "hi" in end.output


@backends
def test_a_429_reaches_the_runner(agent: Agent, backend: str) -> None:
    """It is a rate limit, and is not retried by the program itself where that can be switched off."""
    run = agent.run("[[status 429]] please", backend=backend, retry=Retry(attempts=1))
    assert run.records[0].status == "raised"
    assert "the server limits the rate of requests" in run[0].output
    if agent.name in ("claude", "codex", "gemini"):
        assert agent.provider.asked["status"] == 1


def test_the_attempt_after_a_429_has_the_answer(agent: Agent) -> None:
    """The runner waits and tries again."""
    run = agent.run("[[busy world]] please", retry=Retry(attempts=2))
    assert run[0].output == "hello world"


@backends
def test_a_401_is_not_tried_again(agent: Agent, backend: str) -> None:
    """It says which key to check."""
    run = agent.run("[[status 401]] please", backend=backend, retry=Retry(attempts=3, on_failure=True))
    assert (run.records[0].status, len(run.records[0].attempts)) == ("failed", 1)
    assert re.search(r"the login or key is refused.*401.*To do: ", run[0].output)


def test_an_unknown_model_is_not_tried_again(agent: Agent) -> None:
    """It says where the model is named."""
    run = agent.run("[[status 404]] please", retry=Retry(attempts=3, on_failure=True))
    assert (run.records[0].status, len(run.records[0].attempts)) == ("failed", 1)
    assert f"check model= of Command.{agent.name}()" in run[0].output


def test_an_overloaded_server_is_tried_again(agent: Agent) -> None:
    """It is an error that `retry` covers."""
    if agent.name == "opencode":
        pytest.skip("opencode retries 503 by itself for longer than a minute")
    run = agent.run("[[status 503]] please", retry=Retry(attempts=2, wait=0))
    assert len(run.records[0].attempts) == 2
    assert "the server is overloaded" in run[0].output


def test_an_empty_answer_is_a_failure(agent: Agent) -> None:
    """Exit status 0 does not make it an answer."""
    run = agent.run("[[empty]] please", retry=Retry(attempts=1))
    assert run.records[0].status == "raised"
    assert not run[0].success


@backends
def test_a_schema(agent: Agent, backend: str) -> None:
    """The answer is structured, by an option of the program or by its prompt."""
    spec = AgentStepSpec("t0", "a", "a step", "[[say Ada]] please", output_schema=SCHEMA)
    run = agent.run_specs([spec], backend=backend)
    assert run[0].success, run[0].output
    if agent.name == "claude":
        assert run[0].structured == {"name": "Ada"}
    assert "Ada" in run[0].output


@backends
def test_a_cap_on_turns(agent: Agent, backend: str) -> None:
    """A program that has one stops there, and any other is not started."""
    spec = AgentStepSpec("t0", "a", "a step", "[[loop]] please", max_steps=2)
    options = {"extra_args": ALLOWS_THE_SHELL.get(agent.name, []), "retry": Retry(attempts=2, on_failure=True)}
    if agent.name not in ("claude", "gemini"):
        with pytest.raises(InputError, match=rf"{agent.name} has no cap on turns \(max_steps=2\)"):
            agent.run_specs([spec], backend=backend, **options)
        assert not agent.provider.asked
        return
    run = agent.run_specs([spec], backend=backend, **options)
    assert (run.records[0].status, len(run.records[0].attempts)) == ("failed", 1)
    assert "a cap is reached" in run[0].output
    assert agent.provider.asked["loop"] == 2


@backends
def test_a_kill_in_the_middle(agent: Agent, backend: str) -> None:
    """When its timeout is over, the program that waits for its provider is killed with all that it has started."""
    run = agent.run("[[hang]] please", backend=backend, timeout=15)
    assert run.records[0].status == "timed_out"
    assert agent.provider.hanging.is_set()


@backends
def test_sixteen_in_parallel(agent: Agent, backend: str) -> None:
    """Each gets its own answer; the last four come where others have been before."""
    prompts = [f"[[say w{number}]] please" for number in range(20)]
    run = agent.run(*prompts, backend=backend, max_concurrency=16, timeout=300)
    assert [outcome.output for outcome in run] == [f"hello w{number}" for number in range(20)]
    assert len({outcome.session_id for outcome in run}) == 20


@backends
def test_ctrl_c_leaves_nothing_behind(agent: Agent, backend: str) -> None:
    """The run ends at once, and no program of it is left."""
    script = agent.home / "script.py"
    script.write_text(INTERRUPTED)
    command = [sys.executable, str(script), agent.name, MODELS[agent.name], str(agent.home), backend]
    environment = {"PYTHONPATH": ":".join(SEARCHED)} if SEARCHED else {}
    with subprocess.Popen(
        ["env", *(f"{name}={value}" for name, value in environment.items()), *command],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert agent.provider.hanging.wait(HANG_BOUND_S)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=HANG_BOUND_S)
        finally:
            process.kill()
    assert output.split() == ["cancelled"] * 3
