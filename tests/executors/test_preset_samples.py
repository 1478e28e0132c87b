"""The readers of the presets, on what real programs have printed."""

from __future__ import annotations

import pytest
from preset_samples import FOLDER, NAMES, SPEC, preset_named, read, read_sample, sample

from fanout_sync.events.types import TextDelta, ToolEnd, ToolStart

ANSWERS = {
    "claude-ok": ("hello world", 120, 7, 0.000465),
    "claude-stream": ("hello world", 120, 7, 0.000465),
    "claude-stream-tool": ("hello world", 200, 10, 0.0005),
    "claude-schema": ('{"name":"Ada"}', 120, 7, 0.000465),
    "codex-ok": ("hello world", 100, 5, 0.0),
    "codex-tool": ("hello world", 200, 10, 0.0),
    "gemini-ok": ("hello world", 100, 5, 0.0),
    "gemini-stream-ok": ("hello world", 100, 5, 0.0),
    "gemini-stream-tool": ("hello world", 200, 10, 0.0),
    "opencode-ok": ("hello world", 100, 5, 0.0),
    "opencode-tool": ("hello world", 200, 10, 0.0),
    "copilot-ok": ("hello world", 0, 0, 0.0),
    "copilot-tool": ("hello world", 0, 0, 0.0),
}
"""Text, prompt tokens, completion tokens and cost of each answer."""

FAILURES = {
    "claude-401": ("key", "ANTHROPIC_API_KEY"),
    "claude-429": ("rate_limited", "429"),
    "claude-maxturns": ("cap", "raise max_steps"),
    "claude-stream-429": ("rate_limited", "refused with 429"),
    "claude-stream-529": ("overloaded", "529"),
    "claude-stream-404": ("model", "check model= of Command.claude()"),
    "claude-stream-empty": ("program", "its result is empty"),
    "claude-stream-refused-connection": ("network", "ECONNREFUSED"),
    "claude-stream-no-login": ("key", "/login"),
    "codex-401": ("key", "codex login"),
    "codex-429": ("rate_limited", "429"),
    "codex-404": ("model", "check model= of Command.codex()"),
    "codex-500": ("overloaded", "high demand"),
    "codex-503": ("overloaded", "503"),
    "codex-empty": ("program", "its answer is empty"),
    "codex-no-key": ("key", "FAKE_KEY"),
    "gemini-401.stderr": ("key", "GEMINI_API_KEY"),
    "gemini-no-key.stderr": ("key", "GEMINI_API_KEY"),
    "gemini-stream-401": ("key", "refused with 401"),
    "gemini-stream-429": ("rate_limited", "refused with 429"),
    "gemini-stream-503": ("overloaded", "refused with 503"),
    "gemini-stream-empty": ("program", "empty response"),
    "opencode-401": ("key", "opencode auth login"),
    "opencode-429": ("rate_limited", "refused with 429"),
    "opencode-empty": ("program", "its answer is empty"),
    "copilot-401.tail": ("key", "COPILOT_PROVIDER_API_KEY"),
    "copilot-404": ("model", "check model= of Command.copilot()"),
    "copilot-429": ("rate_limited", "429"),
}
"""Kind of each failure, and what its message has."""


def test_every_sample_is_read_here() -> None:
    """No recorded sample is left out of the two tables."""
    assert {path.name.removesuffix(".txt") for path in FOLDER.glob("*.txt")} == {*ANSWERS, *FAILURES}
    assert {name.partition("-")[0] for name in ANSWERS} == set(NAMES)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_with_its_usage(name: str) -> None:
    """Text, tokens and cost are what the program has told."""
    answer, _ = read_sample(name)
    assert answer.failure is None
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.cost_usd) == ANSWERS[name]
    assert answer.session_id


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_classified_and_says_what_to_do(name: str) -> None:
    """Each failure has its kind, and a message with what the program says or what to check; and no answer."""
    answer, _ = read_sample(name)
    kind, part = FAILURES[name]
    assert answer.failure is not None
    assert (answer.failure.kind, answer.text, answer.structured) == (kind, "", None)
    assert part in answer.failure.message
    assert answer.failure.message.startswith(name.partition("-")[0])


def test_the_structured_output_of_claude_is_taken() -> None:
    """With a schema the value comes beside its text."""
    answer, _ = read_sample("claude-schema")
    assert answer.structured == {"name": "Ada"}


def test_the_wait_of_a_rate_limit_is_told_where_it_is_known() -> None:
    """OpenCode hands on the headers of the server; the others say no more than the status."""
    for name, wait_s in (("opencode-429", 7.0), ("claude-429", None), ("codex-429", None), ("gemini-stream-429", None)):
        answer, _ = read_sample(name)
        assert answer.failure is not None
        assert answer.failure.wait_s == wait_s


def test_a_failed_program_has_used_tokens_too() -> None:
    """The usage of a run that reached a cap counts."""
    answer, _ = read_sample("claude-maxturns")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cost_usd) == (240, 14, 0.00093)


@pytest.mark.parametrize("name", ["claude-stream-tool", "codex-tool", "gemini-stream-tool", "copilot-tool"])
def test_text_and_tools_are_told_as_events(name: str) -> None:
    """Each tool call has one start and one end with its output, and the deltas make up the text."""
    _, events = read_sample(name)
    assert {event.to_dict()["task_id"] for event in events} == {SPEC.task_id}
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "hello world"
    started, ended = ([event for event in events if isinstance(event, kind)] for kind in (ToolStart, ToolEnd))
    assert len(started) == len(ended) == 1
    assert isinstance(started[0], ToolStart)
    assert isinstance(ended[0], ToolEnd)
    assert (started[0].id, started[0].name) == (ended[0].id, ended[0].name)
    assert "hi" in ended[0].output


def test_a_tool_of_opencode_is_told_when_it_has_ended() -> None:
    """Its one line makes both events."""
    _, events = read_sample("opencode-tool")
    assert [type(event) for event in events] == [ToolStart, ToolEnd, TextDelta]
    assert isinstance(events[1], ToolEnd)
    assert (events[1].name, events[1].output, events[1].exit_code) == ("bash", "hi\n", 0)


@pytest.mark.parametrize("name", [name for name in ANSWERS if name not in ("gemini-ok",)])
def test_the_last_line_says_that_nothing_follows(name: str) -> None:
    """Until the last line the program is working; after it, it need not be waited for."""
    reader = preset_named(name.partition("-")[0]).reader(SPEC)
    *lines, last = sample(name).splitlines()
    for line in lines:
        list(reader.line(line))
        assert not reader.is_complete()
    list(reader.line(last))
    assert reader.is_complete()
    assert reader.answer(None, "").failure is None


def test_codex_without_a_network_is_given_up_if_it_has_done_nothing() -> None:
    """It would wait for ever; once it has worked it may wait."""
    waiting = '{"type":"error","message":"Reconnecting... waiting for network (Connection failed: error)"}'
    begun, _, *worked = sample("codex-tool").splitlines()[:5]
    for lines, is_over in (([begun, waiting], True), ([begun, *worked, waiting], False)):
        reader = preset_named("codex").reader(SPEC)
        for line in lines:
            list(reader.line(line))
        assert reader.is_complete() is is_over
        failure = reader.answer(None, "").failure
        assert failure is not None
        assert failure.kind == "network"


def test_copilot_is_given_up_while_it_waits_to_ask_again() -> None:
    """After a 429 it is over until a message comes."""
    reader = preset_named("copilot").reader(SPEC)
    lines = iter(sample("copilot-429").splitlines())
    for line in lines:
        list(reader.line(line))
        if "model.call_failure" in line:
            break
    list(reader.line(next(lines)))
    assert reader.is_complete()
    failure = reader.answer(None, "").failure
    assert failure is not None
    assert failure.kind == "rate_limited"
    for line in sample("copilot-ok").splitlines()[:-1]:
        list(reader.line(line))
    assert not reader.is_complete()


def test_what_subagents_say_is_not_the_answer() -> None:
    """Only the text of the agent itself is told and answered."""
    nested = '{"type":"assistant","parent_tool_use_id":"x","message":{"content":[{"type":"text","text":"nested"}]}}'
    answer, events = read("claude", [nested, *sample("claude-ok").splitlines()], 0)
    assert (answer.text, events) == ("hello world", [])
    message = '{"type":"assistant.message","agentId":"x","data":{"content":"nested","messageId":"m"}}'
    *lines, result = sample("copilot-ok").splitlines()
    answer, events = read("copilot", [*lines, message, result], 0)
    assert answer.text == "hello world"
    assert "nested" not in str(events)


def test_claude_without_an_answer_names_the_tools_that_it_was_refused() -> None:
    """An empty result after a refused tool is a matter of permissions."""
    result = (
        '{"type":"result","subtype":"success","is_error":false,"result":"","permission_denials":[{"tool_name":"Edit"}]}'
    )
    answer, _ = read("claude", [result], 0)
    assert answer.failure is not None
    assert answer.failure.kind == "permission"
    assert "Edit" in answer.failure.message


def test_the_reset_of_a_limit_of_claude_is_the_wait() -> None:
    """A limit of the subscription says when it ends."""
    line = '{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":99999999999}}'
    answer, _ = read("claude", [line, *sample("claude-429").splitlines()], 1)
    assert answer.failure is not None
    assert answer.failure.wait_s is not None
    assert answer.failure.wait_s > 1e9


@pytest.mark.parametrize("name", NAMES)
def test_a_program_that_says_nothing_has_failed(name: str) -> None:
    """Exit status, signal and the words of stderr about the login are told."""
    for status, part in ((0, "without an answer"), (3, "exit status 3"), (-9, "signal 9"), (None, "without an answer")):
        answer, _ = read(name, [], status)
        assert answer.failure is not None
        assert answer.failure.kind == "program"
        assert part in answer.failure.message
    answer, _ = read(name, [], 1, "Error: No authentication information found.\n")
    assert answer.failure is not None
    assert answer.failure.kind == "key"


@pytest.mark.parametrize("name", NAMES)
def test_lines_that_are_no_json_are_told(name: str) -> None:
    """A line that is cut is in the message of a failure."""
    answer, _ = read(name, ['{"type":"resu', "", "warning: \ud800"], 1)
    assert answer.failure is not None
    assert '2 lines of its output are no JSON, the first: \'{"type":"resu\'' in answer.failure.message


def test_lines_that_are_no_json_beside_an_answer_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The answer counts, and a warning tells of them."""
    answer, _ = read("codex", ["garbage", *sample("codex-ok").splitlines()], 0)
    assert answer.text == "hello world"
    assert "1 line of its output is no JSON" in caplog.text


def test_an_answer_with_another_exit_status_is_a_failure() -> None:
    """A program that exits with an error has failed, whatever it has said before."""
    for name in ("claude-ok", "codex-ok", "gemini-stream-ok", "opencode-ok", "copilot-ok"):
        answer, _ = read(name.partition("-")[0], sample(name).splitlines(), 3)
        assert answer.failure is not None
        assert "exit status 3" in answer.failure.message
