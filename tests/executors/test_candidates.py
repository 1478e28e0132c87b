"""Finding JSON in what an agent has written: which values are found, and in how much time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from hypothesis import given
from hypothesis import strategies as st

from fanout_sync.executors.structured.candidates import candidates, why_no_json

FOUND: list[tuple[str, list[Any]]] = [
    ('{"a": 1}', [{"a": 1}]),
    (" \n [1, 2]\n", [[1, 2]]),
    ("42", [42]),
    ("-0.5e3", [-500.0]),
    ('"text"', ["text"]),
    ("null", [None]),
    ("true", [True]),
    ('\ufeff{"a": 1}', [{"a": 1}]),
    ('{"a": 1, "a": 2}', [{"a": 2}]),
    ('{"outer": {"a": 1}}', [{"outer": {"a": 1}}]),
    # fenced blocks
    ('```json\n{"a": 1}\n```', [{"a": 1}]),
    ('```\n{"a": 1}\n```', [{"a": 1}]),
    ('~~~ JSON\n{"a": 1}\n~~~', [{"a": 1}]),
    ('```json\r\n{"a": 1}\r\n```\r\n', [{"a": 1}]),
    ("The answer:\n\n```json\n42\n```\n\nI hope that helps.", [42]),
    ('1. This:\n   ```json\n   {"a": 1}\n   ```', [{"a": 1}]),
    ('```json\n{"a": 1}', [{"a": 1}]),
    ('```json\n{"code": "```py\\nx\\n```"}\n```', [{"code": "```py\nx\n```"}]),
    ('````md\n```json\n{"a": 1}\n```\n````', [{"a": 1}]),
    ("```py\nx = {}\n```\n```json\n[1]\n```", [[1], {}]),
    ('Before [0] ```json {"a": 1} ``` after', [[0], {"a": 1}]),
    ('```json\n{"a": 1}\n```\nor\n```json\n{"a": 2}\n```', [{"a": 1}, {"a": 2}]),
    # objects and arrays in prose
    ('Sure! {"a": 1} Anything else?', [{"a": 1}]),
    ('As [1] says, {"a": [{"b": "]}"}]}.', [[1], {"a": [{"b": "]}"}]}]),
    ('{"a": 1} {"b": 2}\n[3]', [{"a": 1}, {"b": 2}, [3]]),
    (r'x {"a": "\"}{\\"} y', [{"a": '"}{\\'}]),
    ('She said "a {" and then {"a": 1}', [{"a": 1}]),
    ("It's {\"a\": 1}, isn't it?", [{"a": 1}]),
    ('Fill in {name} and {{other}}: {"a": 1}', [{"a": 1}]),
    ('{broken: {"a": [1, 2]}}', [{"a": [1, 2]}]),
    # the parts of a value that is broken or cut off are none
    ('{"open": {"a": 1}, "cut', []),
    ('{"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3,', []),
    ('```json\n{"v": 1, "kids": [{"v": 2, "kids": []},]}\n```', []),
    ('{"result": {"x": 1}, "stars": "five",}', []),
    ('{"a": {"mood": "bad"}, "mood": "good" // or not\n}', []),
    ('{"x": {"a": 1}, "y": NaN}', []),
    ('{"y": NaN, "x": {"a": 1}} {"b": 2}', [{"b": 2}]),
    ('[{"a": 1}, ...]', []),
    ('see [ {"v": 1, "kids": [{"v": 2}, {', []),
    ('{"name": "A\nAgain: {"name": "Ada"}', [{"name": "Ada"}]),
    ('[note: {"a": 1}]', [{"a": 1}]),
    ('[[{"a": 1}', [{"a": 1}]),
    ("[1, 2", []),
    ("{}[]", [{}, []]),
    # what is no JSON
    ("", []),
    ("no JSON here", []),
    ("NaN", []),
    ('{"a": NaN}', []),
    ("[Infinity]", []),
    ("[1e999]", []),
    ('["\\ud800"]', []),
    ("{'a': 1}", []),
    ('{"a": 1,}', []),
    ("[01]", []),
    ('{"a": "\n"}', []),
]


@pytest.mark.parametrize(("text", "values"), FOUND)
def test_what_is_found_in_a_text(text: str, values: list[Any]) -> None:
    """The whole text if that is JSON, else fenced blocks, then objects and arrays anywhere; never a part of one."""
    assert [candidate.value for candidate in candidates(text)] == values


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "$: the output is empty"),
        (" \n", "$: the output is empty"),
        ("I cannot do that.", "$: the output has no JSON"),
        ('{"a": 1,}', "$: no valid JSON: "),
        ("Here:\n```json\n{'a': 1}\n```", "$: no valid JSON: Expecting property name"),
        ("[NaN]", "$[0]: expected a finite number, got nan"),
        ('{"a b": [1, NaN]}', "$.a b[1]: expected a finite number, got nan"),
        ("[1e999]", "$[0]: expected a finite number, got inf"),
        ("[" * 500 + "]" * 500, "$: nested deeper than 127 levels"),
    ],
)
def test_a_text_without_json_says_why(text: str, reason: str) -> None:
    """The reason helps whoever is to write the text again."""
    assert why_no_json(text).startswith(reason)


JSON: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('ab"\\{}[]\n,:'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('ab"\\{}[]', max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(
    value=JSON.filter(lambda value: isinstance(value, (dict, list))),
    before=st.text("ab {[\"'\\\n1"),
    after=st.text("ab }]\"'\n"),
)
def test_an_object_is_found_whatever_stands_before_it(value: Any, before: str, after: str) -> None:
    """Brackets and quotes in the prose around it do not hide an object or array that begins on a line of its own."""
    text = f"{before}\n{json.dumps(value)}\n{after}"
    found = [candidate.value for candidate in candidates(text)]
    assert any(_has(candidate, value) for candidate in found)


def _has(candidate: Any, value: Any) -> bool:
    """Return whether a candidate is the value, or has it in it: the prose before it may have made it a part."""
    if candidate == value:
        return True
    parts = candidate.values() if isinstance(candidate, dict) else candidate if isinstance(candidate, list) else ()
    return any(_has(part, value) for part in parts)


@given(
    st.lists(
        st.sampled_from(["{", "}", "[", "]", '"', "1", "\\", "a", " ", "\n", '{"a":1}', '"{"']),
        max_size=14,
    )
)
def test_what_is_found_is_what_begins_at_each_bracket(parts: list[str]) -> None:
    """It is what a decoder reads at each bracket from left to right, going on behind whatever it has read.

    Without a comma or a colon no bracket is the beginning of a broken value.
    """
    text = "a" + "".join(parts)  # so that the whole is no JSON
    decoder, expected, place = json.JSONDecoder(), [], 0
    while place < len(text):
        try:
            assert text[place] in "[{"
            value, place = decoder.raw_decode(text, place)
            expected.append(value)
        except (AssertionError, ValueError):
            place += 1
    found = [candidate.value for candidate in candidates(text)]
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, expected))


BIG = json.dumps([{"name": "x" * 50, "number": number, "tags": [1, 2.5, None]} for number in range(50_000)])

LARGE = {
    "the whole text": (BIG, 1),
    "in prose": (f"Here it is: {BIG} Bye.", 1),
    "cut off": (f"Here it is: {BIG[:-1]}", 0),
    "broken in the middle": ('{"a": 1,} ' * 100_000, 0),
    "broken and never closed": ('{"a": x ' * 100_000, 0),
    "opening braces": ("{" * 200_000 + '{"a": 1}', 1),
    "opening brackets": ("[" * 200_000 + '{"a": 1}', 1),
    "objects and arrays in turn": ('[{"a":' * 200_000, 0),
    "nested deeply": ("[" * 200_000 + "]" * 200_000, 0),
    "nested deeply in prose": ("a " + "[" * 200_000 + "]" * 200_000, 0),
    "braces in strings": ('{"' * 1_000_000, 0),
    "braces between quotes": ('"{' * 1_000_000, 0),
    "escaped quotes": ('{"\\"' * 1_000_000, 0),
    "a string that does not end": ('{"' + "a" * 5_000_000, 0),
    "escapes in a string that does not end": ('{"' + "\\n" * 2_500_000, 0),
    "many strings that do not end": ('{"aaaa\n' * 700_000, 0),
    "white space": ("{ " * 200_000 + " " * 5_000_000, 0),
    "lines of white space": ((" " * 1000 + "\n") * 5000, 0),
    "a number without end": ("[" + "1" * 5_000_000, 0),
    "items without commas": ("[1 " * 1_000_000, 0),
    "backticks": ("`" * 5_000_000, 0),
    "fences": ("```\n" * 200_000, 0),
    "small objects": ("{} " * 200_000, 200_000),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_texts_take_linear_time(name: str) -> None:
    """Texts of up to 5 MB take seconds at most, whatever is in them; a quadratic search would take hours."""
    text, count = LARGE[name]
    began = time.monotonic()
    assert sum(1 for _ in candidates(text)) == count
    if not count:
        assert why_no_json(text)
    assert time.monotonic() - began < HANG_BOUND_S
