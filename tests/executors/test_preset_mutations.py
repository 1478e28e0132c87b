"""The readers of the presets, on output that is cut, shuffled or garbled."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preset_samples import FOLDER, NAMES, read, sample

SAMPLES = sorted(path.name.removesuffix(".txt") for path in FOLDER.glob("*.txt"))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def check(program: str, lines: list[str], status: int | None, stderr: str = "") -> None:
    """Check that the reader raises nothing, and never succeeds without an answer."""
    answer, events = read(program, lines, status, stderr)
    for event in events:
        event.to_json()
    if answer.failure is None:
        assert answer.text.strip() or answer.structured is not None
        assert not status
    else:
        assert (answer.text, answer.structured) == ("", None)
        answer.failure.message.encode()
        assert answer.failure.wait_s is None or answer.failure.wait_s >= 0
    assert min(answer.prompt_tokens, answer.completion_tokens, answer.cost_usd) >= 0


@pytest.mark.parametrize("name", SAMPLES)
def test_output_that_is_cut_anywhere(name: str) -> None:
    """A prefix or a suffix of what a program prints is an answer only if that is in it."""
    text, program = sample(name), name.partition("-")[0]
    for cut in range(0, len(text), 97):
        for part in (text[:cut], text[cut:]):
            check(program, part.splitlines(), 0)
            check(program, [], 1, part)


@pytest.mark.parametrize("name", SAMPLES)
def test_lines_dropped_repeated_and_shuffled(name: str) -> None:
    """No order of the lines, and no choice of them, makes a reader raise."""
    lines, program, randomness = sample(name).splitlines(), name.partition("-")[0], random.Random(name)
    for _ in range(60):
        chosen = randomness.choices(lines, k=randomness.randrange(2 * len(lines) + 1))
        check(program, chosen, randomness.choice([0, 0, None, 1, -9]))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.lists(st.text(alphabet=st.characters(), max_size=60), max_size=6), st.text())
def test_garbage(program: str, lines: list[str], stderr: str) -> None:
    """Text that has nothing to do with the program is no answer."""
    check(program, lines, 0, stderr)
    check(program, lines, 1, stderr)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_values_of_other_types_and_sizes(name: str, data: st.DataObject) -> None:
    """Any value may stand at any place of the JSON."""
    lines = [json.loads(line) for line in sample(name).splitlines() if _is_json(line)]
    for value in lines[-4:]:
        _replace_one(value, data)
    check(name.partition("-")[0], [json.dumps(value) for value in lines], data.draw(st.sampled_from([0, 1, None])))


@pytest.mark.parametrize("program", NAMES)
def test_monstrous_lines(program: str) -> None:
    """Deep nesting, numbers without an end and lone surrogates are passed over or replaced."""
    monsters = [
        '{"type":' * 100_000,
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"type":"result","total_cost_usd":' + "9" * 5000 + "}",
        '{"type":"result","total_cost_usd":' + "9" * 4000 + ',"is_error":false,"result":"x"}',
        '{"type":"result","result":"\\ud800 x","subtype":"success","is_error":false,"exitCode":0,"status":"success"}',
        '{"type":"text","part":{"text":"\\udfff"},"data":{"content":"\\udfff"}}',
        '{"type":"result","usage":NaN,"stats":Infinity}',
        "{" * 100_000,
        "[]",
        "null",
        '"text"',
    ]
    for monster in monsters:
        check(program, [monster], 0)
        check(program, [], 1, monster)
    check(program, monsters, 0)


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _replace_one(value: Any, data: st.DataObject) -> None:
    """Replace one value somewhere in a JSON object."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(value[key], (dict, list)) and value[key] and data.draw(st.booleans()):
            value = value[key]
            continue
        value[key] = data.draw(json_values)
        return
