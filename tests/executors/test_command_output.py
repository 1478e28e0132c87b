"""What programs write: text, JSON, broken and endless output; live events; secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from programs import each_backend, one, own_backends, python, run_command, shell, spec_for
from scripts import run_python

from fanout_sync import (
    Command,
    Event,
    MemoryJournal,
    StepOutcome,
    TextDelta,
)

pytestmark = pytest.mark.usefixtures("no_program_left")

SECRET = "s3cr3t-value-of-a-key"


def printed(text: str) -> list[str]:
    """Return the command line of a program that prints a text as it is."""
    return ["printf", "%s", text]


# Text -----------------------------------------------------------------------------------------------------------------


@each_backend
def test_invalid_utf8_is_replaced(backend: str) -> None:
    """Bytes that are no UTF-8 do not make a step fail; valid characters are whole, wherever a read has cut them."""
    source = "import os, time\nfor byte in 'aé中🙂'.encode() + b'\\xff\\xfeb': os.write(1, bytes([byte]))"
    assert one(run_command(Command(python(source)), backend=backend)) == ("succeeded", "aé中🙂\ufffd\ufffdb")


def test_invalid_utf8_on_stderr() -> None:
    """The end of stderr in a message is text as well."""
    assert "stderr: a\ufffdb" in one(run_command(Command(shell("printf 'a\\377b' >&2; exit 1"))))[1]


PRINTS_A_GIGABYTE = """
import os, sys
block = (b"x" * 1023 + sys.argv[1].encode()) * 1024
os.write(1, b"BEGIN")
for _ in range(1024):
    sys.stdout.buffer.write(block)
sys.stdout.buffer.write(b"END")
"""

RUNS_IT_IN_BOUNDED_MEMORY = """
import json, resource, sys
from fanout_sync import AgentStepSpec, Command, CommandExecutor, Runner
command = Command(json.loads(sys.argv[1]), max_output_bytes=1_000_000)
executor = CommandExecutor({"a": command})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(outcome,) = Runner(executor).run([AgentStepSpec("t", "a", "", "")])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(outcome.output.replace("x", ""))
"""


@pytest.mark.parametrize("line_end", ["\n", "x"])
def test_a_gigabyte_in_bounded_memory(line_end: str) -> None:
    """Of endless output the beginning and the end are kept, with a mark between; a line without end is no exception."""
    argv = json.dumps(python(PRINTS_A_GIGABYTE, line_end))
    done = run_python("-c", RUNS_IT_IN_BOUNDED_MEMORY, argv)
    kilobytes, *output = done.stdout.splitlines()
    assert int(kilobytes) < 30_000, done.stderr
    left_out = 2**30 + 8 - 1_000_000
    assert [line for line in output if line] == [
        "BEGIN",
        f"[... {left_out} bytes left out, ma_output_bytes=1000000 ...]",
        "END",
    ]


def test_output_as_long_as_it_may_be_is_whole() -> None:
    """Output of exactly `max_output_bytes` has no mark; one byte more has."""
    assert one(run_command(Command(printed("x" * 1000), max_output_bytes=1000)))[1] == "x" * 1000
    output = one(run_command(Command(printed("x" * 1001), max_output_bytes=1000)))[1]
    assert "[... 1 bytes left out, max_output_bytes=1000 ...]" in output


def test_a_flood_on_stderr() -> None:
    """What is written to stderr does not fill a pipe or the memory; its end is in the message."""
    source = "import sys\nfor i in range(200_000): print('x' * 100, i, file=sys.stderr)\nraise SystemExit(1)"
    _, output = one(run_command(Command(python(source))))
    assert "199999" in output
    assert len(output) < 5000


# JSON and functions ---------------------------------------------------------------------------------------------------

DOCUMENT = json.dumps({"result": {"text": "yes", "items": [1, {"a": "b"}]}, "n": 0, "none": None, "empty": ""})
LINES = '{"type": "begun"}\nnoise\n{"text": "first"}\n{"text": "last"}\n{"type": "ended"}\n'


@pytest.mark.parametrize(
    ("printing", "answer", "output", "structured"),
    [
        (DOCUMENT, "result.text", "yes", None),
        (DOCUMENT, "result.items[1].a", "b", None),
        (DOCUMENT, "result.items.0", "1", 1),
        (DOCUMENT, "result.items[-1]", '{"a":"b"}', {"a": "b"}),
        (DOCUMENT, "n", "0", 0),
        ('{"a": 1}', None, '{"a":1}', {"a": 1}),
        ('"text"', None, "text", None),
        ("[]", None, "[]", []),
        (LINES, "text", "last", None),
        (LINES, None, '{"type":"ended"}', {"type": "ended"}),
        ('{\n  "text": "over several lines"\n}\n', "text", "over several lines", None),
    ],
)
def test_the_answer_in_json(printing: str, answer: str | None, output: str, structured: Any) -> None:
    """The answer is at its place in the JSON, or in the last line that has it; a string becomes the text."""
    (outcome,) = run_command(Command(printed(printing), output="json", answer=answer))
    assert (outcome.success, outcome.output, outcome.structured) == (True, output, structured)


@own_backends
@pytest.mark.parametrize(
    ("printing", "answer", "expected"),
    [
        ('{"result": {"te', None, "the output is no JSON: Unterminated string"),
        ('{"result": {"te', "result.text", "the output is no JSON"),
        ("plain text", None, "the output is no JSON: Expecting value"),
        (
            DOCUMENT,
            "result.message",
            "the JSON has nothing at 'result.message', where the answer was expected; its keys are",
        ),
        (DOCUMENT, "result.text.more", "the JSON has nothing at 'result.text.more'"),
        (DOCUMENT, "result.items[7]", "the JSON has nothing at 'result.items[7]'"),
        (LINES, "message", "no line of the JSON lines has anything at 'message'"),
        ('{"x": NaN}', None, "a finite number, got nan"),
        ("[" * 100_000, None, "nested too deeply"),
    ],
)
def test_json_without_the_answer(printing: str, answer: str | None, expected: str, backend: str) -> None:
    """Output that is not what the command promises is invalid; the message says why, and what came is kept."""
    command = Command(["cat"], output="json", answer=answer)
    status, output = one(run_command(command, spec_for(printing), backend=backend))
    assert status == "invalid"
    assert expected in output
    assert printing[:10] in output


@pytest.mark.parametrize("answer", ["none", "empty"])
def test_json_with_an_empty_answer(answer: str) -> None:
    """A place that holds nothing is no answer."""
    status, output = one(run_command(Command(printed(DOCUMENT), output="json", answer=answer)))
    assert (status, "without an answer" in output) == ("raised", True)


def test_json_that_was_cut() -> None:
    """JSON that is longer than `max_output_bytes` is invalid, and the message says why."""
    printing = json.dumps({"text": "x" * 2000})
    _, output = one(run_command(Command(printed(printing), output="json", max_output_bytes=1000)))
    assert "(it was longer than max_output_bytes=1000)" in output


def count_lines(text: str) -> dict[str, int]:
    return {"lines": len(text.splitlines())}


def broken(text: str) -> str:
    raise ValueError(f"cannot read {text!r}")


def an_outcome(text: str) -> StepOutcome:
    return StepOutcome("t", "session-7", "a", text.strip(), False)


@each_backend
def test_a_function_reads_the_output(backend: str) -> None:
    """A function of the text returns the answer, as an agent of `FunctionExecutor` may."""
    ((outcome,)) = run_command(Command(printed("a\nb\n"), output=count_lines), backend=backend)
    assert (outcome.success, outcome.structured) == (True, {"lines": 2})
    assert one(run_command(Command(printed("x"), output=broken), backend=backend)) == (
        "raised",
        "ValueError: cannot read 'x'",
    )
    ((outcome,)) = run_command(Command(printed("no"), output=an_outcome), backend=backend)
    assert outcome == StepOutcome("t", "session-7", "a", "no", False)


def test_a_function_of_empty_output() -> None:
    """A program that writes nothing may have an answer, if a function makes one of it."""
    assert run_command(Command(["true"], output=count_lines))[0].structured == {"lines": 0}
    assert one(run_command(Command(["true"], output=str.strip)))[0] == "raised"
    assert one(run_command(Command(["true"], output=lambda text: None)))[0] == "invalid"


# Events ---------------------------------------------------------------------------------------------------------------


def texts_of(command: Command, backend: str = "thread", prompt: str = "hello") -> list[str]:
    """Run one step and return the texts of its `text_delta` events."""
    texts: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, TextDelta):
            assert event.task_id == "t"
            texts.append(event.text)

    run_command(command, spec_for(prompt), backend=backend, event_tx=note)
    return texts


@each_backend
def test_text_comes_as_events(backend: str) -> None:
    """Each line is an event, and so is the rest without a newline."""
    assert texts_of(Command(printed("one\ntwo\nthree")), backend) == ["one\n", "two\n", "three"]


@own_backends
def test_events_are_live(backend: str, tmp_path: Path) -> None:
    """A line arrives while the program is running, and so does the beginning of one."""
    go = tmp_path / "go"
    command = Command(shell(f"printf 'begun\\nhalf'; while [ ! -e '{go}' ]; do sleep 0.01; done; echo ' a line'"))
    texts = []

    def note(event: Event) -> None:
        if isinstance(event, TextDelta):
            texts.append(event.text)
            if "half" in "".join(texts):
                go.touch()

    assert one(run_command(command, backend=backend, event_tx=note, timeout=HANG_BOUND_S))[0] == "succeeded"
    assert "".join(texts) == "begun\nhalf a line\n"


def test_characters_across_reads_are_whole_in_events() -> None:
    """A character that is cut by a read comes whole, in a later event."""
    source = "import os, time\nfor byte in 'é🙂'.encode(): os.write(1, bytes([byte])); time.sleep(0.01)"
    assert "".join(texts_of(Command(python(source)))) == "é🙂"


def test_json_is_no_text_of_the_agent() -> None:
    """JSON is not told as text."""
    assert texts_of(Command(printed('{"a": 1}'), output="json")) == []


# Secrets --------------------------------------------------------------------------------------------------------------


@each_backend
def test_secrets_are_masked_everywhere(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No output, error, traceback or journalled outcome has the value of a variable that holds a secret."""
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    told = texts_of(Command(shell("echo the key is $SOME_API_KEY")), backend)
    assert told == ["the key is ***\n"]
    for command in (
        Command(shell("echo the key is $SOME_API_KEY")),
        Command(shell("echo the key is $SOME_API_KEY >&2; exit 1")),
        Command(shell("echo the key is $SOME_API_KEY; exit 1")),
        Command(shell("echo the key is $SOME_API_KEY"), output="json"),
        Command(shell('echo "{\\"the key is\\": \\"$SOME_API_KEY\\"}"'), output="json"),
        Command(shell("echo the key is $SOME_API_KEY"), output=broken),
        Command(shell("echo the key is $SOME_API_KEY; sleep 60"), idle_timeout=0.3),
    ):
        journal = MemoryJournal()
        run = run_command(command, backend=backend, journal=journal.workflow("w"))
        everything = f"{list(run)!r} {run.records!r} {journal.workflow('w')!r} {vars(journal)!r}"
        assert SECRET not in everything
        assert "key is" in everything
        assert "***" in everything


@own_backends
def test_secrets_in_the_message_of_a_timeout(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program had written before its timeout is masked in the message."""
    monkeypatch.setenv("some_token", SECRET)
    command = Command(shell("echo the token is $some_token >&2; exec sleep 60"))
    status, output = one(run_command(command, backend=backend, timeout=0.7))
    assert (status, SECRET in output) == ("timed_out", False)
    assert "the token is ***" in output


@pytest.mark.parametrize("name", ["A_KEY", "a_secret", "My_Token"])
def test_secrets_of_the_command_itself(name: str) -> None:
    """Variables that only the command sets are masked, too; their values are in no `repr`."""
    command = Command(shell(f"echo ${name}"), env={name: SECRET})
    assert SECRET not in repr(command)
    assert one(run_command(command))[1] == "***"


@pytest.mark.parametrize(
    ("name", "value", "is_masked"),
    [
        ("X_KEY", "hunter2", True),
        ("X_KEY", "true", False),
        ("X_KEY", "default", False),
        ("X_KEY", "1", False),
        ("X_KEY", "password", True),
        ("KEYS", SECRET, False),
        ("X_KEY_FILE", SECRET, False),
    ],
)
def test_what_is_a_secret(name: str, value: str, is_masked: bool) -> None:
    """The name decides, and the value unless it is a short word or number, which would spoil other text."""
    command = Command(printed(f"<{value}>"), env={name: value})
    assert one(run_command(command))[1] == ("<***>" if is_masked else f"<{value}>")


def test_a_secret_across_reads_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that comes in pieces, or over several lines, is masked in events as well."""
    monkeypatch.setenv("LONG_KEY", "first line\nsecond line")
    source = (
        "import os, time\n"
        "for c in '<first line\\nsecond line> <first line\\nsec>':\n"
        "    os.write(1, c.encode())\n"
        "    time.sleep(0.003)"
    )
    assert "".join(texts_of(Command(python(source)))) == "<***> <first line\nsec>"
    assert one(run_command(Command(python(source))))[1] == "<***> <first line\nsec>"


def test_a_secret_in_json_with_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret with characters that JSON escapes is masked in the values, and in JSON that is shown as text."""
    monkeypatch.setenv("QUOTED_KEY", 'a"quoted"\nkey')
    document = json.dumps({"text": 'it is a"quoted"\nkey!'})
    assert run_command(Command(printed(document), output="json", answer="text"))[0].output == "it is ***!"
    assert one(run_command(Command(printed(document))))[1] == '{"text": "it is ***!"}'


def test_a_secret_that_the_cut_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where output is cut, no part of a secret is left over."""
    monkeypatch.setenv("CUT_KEY", SECRET)
    for shift in range(len(SECRET)):
        text = "a" * (500 - shift) + SECRET + "b" * 2000 + SECRET + "c" * (500 - shift)
        output = one(run_command(Command(printed(text), max_output_bytes=1000)))[1]
        rest = output.replace("***", "").replace("bytes left out, max_output_bytes=1000", "")
        assert set(rest) <= set("abc[]. 0123456789\n"), rest
        assert not set(rest.partition("\n")[0]) - set("a"), rest
        assert not set(rest.rpartition("\n")[2]) - set("c"), rest
