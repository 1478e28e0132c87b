"""The wire format: what is written, what is read, what is refused, and which field the error names."""

from __future__ import annotations

import enum
import json
import math
import struct
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import attrs
import pytest
from naming import without_address

from fanout_sync.errors import WireError
from fanout_sync.records.steps import AgentStepSpec, StepOutcome
from fanout_sync.wire.strict_json import MAX_DEPTH, check_json, check_text, parse_json, write_json

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "wire_vectors.json").read_text(encoding="utf-8"),
)["vectors"]
ACCEPTED = [vector for vector in VECTORS if vector["accepted"]]
REJECTED = [vector for vector in VECTORS if not vector["accepted"]]

# The field at fault in each rejected vector, in the same order; "" if the text is no JSON or no object.
REJECTED_FIELDS = [
    *["max_steps"] * 3,
    "parent_session_id",
    *["task_id"] * 3,
    "agent",
    "description",
    *["prompt"] * 3,
    "description",
    "prompt",
    "prompt",
    "output_schema.x",
    *[""] * 6,
    *["success"] * 2,
    *["output"] * 2,
    "task_id",
    "session_id",
    "success",
]

Record = type[AgentStepSpec] | type[StepOutcome]
RECORDS: dict[str, Record] = {"AgentStepSpec": AgentStepSpec, "StepOutcome": StepOutcome}

OUTCOME: dict[str, Any] = {"task_id": "t", "session_id": "s", "agent": "a", "output": "o", "success": True}
OUTCOME_JSON = '{"task_id":"t","session_id":"s","agent":"a","output":"o","success":true'


def with_structured(value: Any) -> StepOutcome:
    return StepOutcome("t", "s", "a", "o", True, value)


def read_structured(text: str) -> Any:
    return StepOutcome.from_json(f'{OUTCOME_JSON},"structured":{text}}}').structured


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def nested_keys_sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: nested_keys_sorted(value[key]) for key in sorted(value)}
    return [nested_keys_sorted(item) for item in value] if isinstance(value, list) else value


# --- the reference's verdicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", ACCEPTED, ids=lambda vector: vector["input"])
def test_records_that_the_reference_accepts_are_written_as_it_writes_them(vector: dict[str, Any]) -> None:
    """They are read, and written byte for byte the same, except for the order of keys inside JSON fields."""
    record = RECORDS[vector["type"]].from_json(vector["input"])
    json_field = "output_schema" if isinstance(record, AgentStepSpec) else "structured"
    canonical = attrs.evolve(record, **{json_field: nested_keys_sorted(getattr(record, json_field))})
    assert canonical.to_json() == vector["canonical"]
    assert record.to_dict() == json.loads(vector["canonical"])
    assert list(record.to_dict()) == list(json.loads(vector["canonical"]))


@pytest.mark.parametrize(
    ("vector", "field"),
    list(zip(REJECTED, REJECTED_FIELDS, strict=True)),
    ids=[vector["input"] for vector in REJECTED],
)
def test_records_that_the_reference_rejects_are_refused_naming_the_field(vector: dict[str, Any], field: str) -> None:
    """They are refused, and the error names the field that the reference refuses."""
    with pytest.raises(WireError) as caught:
        RECORDS[vector["type"]].from_json(vector["input"])
    assert caught.value.field == field
    assert caught.value.reason


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["input"])
def test_bytes_are_read_like_text(vector: dict[str, Any]) -> None:
    """UTF-8 bytes are accepted or refused exactly like the text they encode."""
    record_class = RECORDS[vector["type"]]
    if vector["accepted"]:
        assert record_class.from_json(vector["input"].encode()) == record_class.from_json(vector["input"])
    else:
        with pytest.raises(WireError):
            record_class.from_json(vector["input"].encode())


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (-2.5, "-2.5"),
        (0.1, "0.1"),
        (123456.789, "123456.789"),
        (1e15, "1000000000000000.0"),
        (123456789012345.6, "123456789012345.6"),
        (9007199254740992.0, "9007199254740992.0"),
        (1e16, "1e16"),
        (12345678901234567.0, "1.2345678901234568e16"),
        (-1e16, "-1e16"),
        (1e21, "1e21"),
        (1e300, "1e300"),
        (1.5e300, "1.5e300"),
        (0.001, "0.001"),
        (0.0001, "0.0001"),
        (0.00001, "0.00001"),
        (-0.00001, "-0.00001"),
        (0.00001234, "0.00001234"),
        (-0.00001234, "-0.00001234"),
        (0.000012345678901234567, "0.000012345678901234568"),
        (0.000001, "1e-6"),
        (1.234e-6, "1.234e-6"),
        (-1.234e-7, "-1.234e-7"),
        (5e-324, "5e-324"),
        (2.2250738585072014e-308, "2.2250738585072014e-308"),
        (1.7976931348623157e308, "1.7976931348623157e308"),
    ],
)
def test_floats_are_written_as_ryu_writes_them(value: float, text: str) -> None:
    """A float is written as serde_json does (`1e300`, `0.00001`), not as Python does (`1e+300`, `1e-05`)."""
    assert write_json(value) == text
    assert struct.pack("d", parse_json(text)) == struct.pack("d", value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('"\\/', r'"\"\\/"'),
        ("\b\t\n\f\r", r'"\b\t\n\f\r"'),
        ("\x00\x01\x1f", r'"\u0000\u0001\u001f"'),
        ("\x7f\x80\u2028\u2029", '"\x7f\x80\u2028\u2029"'),
        ("é 漢 😀", '"é 漢 😀"'),
        ("", '""'),
    ],
)
def test_strings_are_escaped_as_serde_json_escapes_them(value: str, text: str) -> None:
    """Only quotes, backslashes and control characters are escaped; everything else is UTF-8."""
    assert write_json(value) == text
    assert parse_json(text) == value


def test_json_is_compact_and_keeps_the_order_of_keys() -> None:
    """There is no white space, and keys inside a JSON field keep their order."""
    value = {"b": [1, {"z": None, "a": True}], "a": {}, "": [], "c": False}
    assert write_json(value) == '{"b":[1,{"z":null,"a":true}],"a":{},"":[],"c":false}'


@pytest.mark.parametrize(
    "value", [0, -1, 2**63, -(2**63) - 1, 2**64, 10**400, -(10**400)], ids=lambda n: n.bit_length()
)
def test_integers_are_exact_whatever_their_size(value: int) -> None:
    """An integer beyond 64 bits does not become a float."""
    assert with_structured(value).to_json() == f'{OUTCOME_JSON},"structured":{value}}}'
    assert read_structured(str(value)) == value


def test_integers_too_long_for_int_are_refused() -> None:
    """An integer of more digits than `int()` accepts is a `WireError`, both when written and when read."""
    too_long = sys.get_int_max_str_digits() + 1
    with pytest.raises(WireError, match="shorter integer") as caught:
        with_structured({"n": 10**too_long}).to_json()
    assert caught.value.field == "structured.n"
    with pytest.raises(WireError, match="expected a finite number, got inf") as caught:
        read_structured(f'{{"n":{"9" * too_long}}}')
    assert caught.value.field == "structured.n"


class Colour(enum.IntEnum):
    """An int that prints as a name."""

    RED = 3


class Mood(str, enum.Enum):
    """A str that prints as a name."""

    GLAD = "glad"


class Weight(float):
    """A float that prints as something else."""

    def __repr__(self) -> str:
        return "heavy"


def test_subclasses_of_json_types_are_written_as_their_plain_value() -> None:
    """An enum, a float with a `repr` of its own, or a subclass of dict is written as a plain value."""
    value = OrderedDict(colour=Colour.RED, mood=Mood.GLAD, weight=Weight(1.5), counts=defaultdict(list, a=[1]))
    assert write_json(value) == '{"colour":3,"mood":"glad","weight":1.5,"counts":{"a":[1]}}'


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        (math.nan, "structured", "expected a finite number, got nan"),
        ([1, -math.inf], "structured[1]", "expected a finite number, got -inf"),
        ((1, 2), "structured", "expected a JSON value, got an instance of tuple"),
        ({"a": [{"b": {1}}]}, "structured.a[0].b", "expected a JSON value, got an instance of set"),
        ({"a": {1: 2}}, "structured.a", "expected a string as key, got the integer 1"),
        ({"two words": object()}, "structured['two words']", "expected a JSON value, got an instance of object"),
        (b"bytes", "structured", "expected a JSON value, got an instance of bytes"),
        (Path("p"), "structured", f"expected a JSON value, got an instance of {type(Path()).__module__}."),
        (
            StepOutcome("t", "s", "a", "o", True),
            "structured",
            "got an instance of fanout_sync.records.steps.StepOutcome",
        ),
        ("\ud800", "structured", "a lone surrogate (U+D800) at character 0 is no text"),
        (["ok", "ab\udfff"], "structured[1]", "a lone surrogate (U+DFFF) at character 2 is no text"),
        ({"\udc80": 1}, r"structured['\udc80']", "a lone surrogate (U+DC80) at character 0 is no text"),
    ],
    ids=without_address,
)
def test_values_that_json_cannot_carry_are_refused_naming_their_path(value: Any, field: str, reason: str) -> None:
    """`to_json` and `to_dict` refuse them; the error has the path to the value and its type."""
    for write in (with_structured(value).to_json, with_structured(value).to_dict):
        with pytest.raises(WireError) as caught:
            write()
        assert caught.value.field == field
        assert reason in caught.value.reason


@pytest.mark.parametrize("field", ["task_id", "session_id", "agent", "output"])
def test_lone_surrogates_in_text_fields_are_neither_written_nor_read(field: str) -> None:
    """A string that UTF-8 cannot carry is refused in both directions; the error names the field."""
    broken = OUTCOME | {field: "x\udce9"}
    for refuse in (
        StepOutcome(**broken).to_json,
        StepOutcome(**broken).to_dict,
        lambda: StepOutcome.from_dict(broken),
        lambda: StepOutcome.from_json(json.dumps(broken)),
        lambda: StepOutcome.from_json(json.dumps(broken, ensure_ascii=False)),
    ):
        with pytest.raises(WireError, match="surrogate") as caught:
            refuse()
        assert caught.value.field == field


def test_surrogate_pairs_are_one_character() -> None:
    """Two escapes that make one character are read as that character and written as UTF-8."""
    assert read_structured(r'"\ud83d\ude00"') == "😀"
    assert write_json("😀").encode() == b'"\xf0\x9f\x98\x80"'


def test_cycles_are_refused() -> None:
    """A list that contains itself is refused as nested too deep, without a RecursionError."""
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(WireError, match="deeper than 127") as caught:
        with_structured(cycle).to_json()
    assert caught.value.field == "structured"


def test_to_dict_has_the_content_of_to_json() -> None:
    """`to_dict` has the same fields in the same order, without the optional ones that are `None`."""
    outcome = with_structured({"a": [1, None]})
    assert outcome.to_dict() == {**OUTCOME, "structured": {"a": [1, None]}}
    assert json.dumps(outcome.to_dict(), separators=(",", ":")) == outcome.to_json()
    assert StepOutcome(**OUTCOME).to_dict() == OUTCOME
    assert list(with_structured(None).to_dict()) == list(OUTCOME)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("NaN", "structured", "got NaN"),
        ("[1,Infinity]", "structured[1]", "got inf"),
        ('{"a":-Infinity}', "structured.a", "got -inf"),
        ("1e400", "structured", "expected a finite number, got inf"),
        ("[-1e400]", "structured[0]", "expected a finite number, got -inf"),
        (r'"\ud800"', "structured", "surrogate"),
        (r'{"k":["\udc00\ud800"]}', "structured.k[0]", "surrogate"),
        ('{"items":["a",{"text":"line\nbreak"}]}', "", "control character at column"),
        ('["tab\there"]', "", "control character"),
        (r'{"a":"\x"}', "", "escape"),
        ("[1,,2]", "", "no valid JSON"),
        ('{"a":}', "", "no valid JSON"),
        ("01", "", "no valid JSON"),
        ("1.", "", "no valid JSON"),
        (".5", "", "no valid JSON"),
        ("+1", "", "no valid JSON"),
        ("'a'", "", "no valid JSON"),
        ("tru", "", "no valid JSON"),
    ],
)
def test_malformed_values_are_refused_naming_path_or_column(text: str, field: str, reason: str) -> None:
    """The error for a value that no field can hold has its path; the error for invalid JSON has the column."""
    with pytest.raises(WireError) as caught:
        read_structured(text)
    assert caught.value.field == field
    assert reason.lower() in caught.value.reason.lower()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no valid JSON: Expecting value at column 1"),
        ("   ", "no valid JSON"),
        ("{", "no valid JSON"),
        ("}", "no valid JSON"),
        (",", "no valid JSON"),
        (":", "no valid JSON"),
        ("{,}", "no valid JSON"),
        (OUTCOME_JSON + "} {}", "no valid JSON: Extra data at column 74"),
        (OUTCOME_JSON + "}\n\n}", "no valid JSON: Extra data at line 3 column 1"),
        (OUTCOME_JSON + "}\x0b", "no valid JSON"),
        (OUTCOME_JSON + "}\x00", "no valid JSON"),
        (OUTCOME_JSON, "no valid JSON"),
        (OUTCOME_JSON + ",}", "no valid JSON"),
        ("\ufeff" + OUTCOME_JSON + "}", "byte order mark"),
        ("[]", "expected an object, got an array"),
        ("3", "expected an object, got the integer 3"),
        ("1.5", "expected an object, got the number 1.5"),
        ("true", "expected an object, got true"),
        ('"x"', "expected an object, got the string 'x'"),
        ("NaN", "expected a finite number, got nan"),
    ],
)
def test_texts_that_are_no_record_are_refused(text: str, reason: str) -> None:
    """The error says what is wrong with the whole text, and names no field."""
    with pytest.raises(WireError) as caught:
        StepOutcome.from_json(text)
    assert caught.value.field == ""
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\xff", "expected UTF-8, got the byte 0xff at byte 0"),
        (OUTCOME_JSON.encode() + b',"x":"\xed\xa0\x80"}', "expected UTF-8, got the byte 0xed at byte 77"),
        (f"{OUTCOME_JSON}}}".encode("utf-8-sig"), "byte order mark"),
        (f"{OUTCOME_JSON}}}".encode("utf-16-le"), "no valid JSON"),
        (f"{OUTCOME_JSON}}}".encode("utf-16"), "expected UTF-8"),
        (f"{OUTCOME_JSON}}}".encode("utf-32"), "expected UTF-8"),
    ],
)
def test_bytes_must_be_utf8(text: bytes, reason: str) -> None:
    """Other encodings, encoded surrogates and a byte order mark are refused."""
    with pytest.raises(WireError) as caught:
        StepOutcome.from_json(text)
    assert reason in caught.value.reason


@pytest.mark.parametrize("text", [None, 3, bytearray(b"{}"), {}, ["{}"]])
def test_json_is_read_from_str_or_bytes_only(text: Any) -> None:
    """Another type is a mistake in the program, not in the data: a TypeError."""
    with pytest.raises(TypeError, match=f"from str or bytes, got {type(text).__name__}"):
        StepOutcome.from_json(text)


def test_white_space_around_tokens_is_accepted() -> None:
    """JSON's four white space characters may stand between tokens."""
    assert StepOutcome.from_json(f' \t\r\n{OUTCOME_JSON} \n,\t"structured" : [ 1 , 2 ]\r\n}} ').structured == [1, 2]


def test_minus_zero_is_a_float() -> None:
    """`-0` is read as `-0.0`, as in serde_json, so it is refused as `max_steps`."""
    value = read_structured("-0")
    assert isinstance(value, float)
    assert math.copysign(1, value) == -1
    with pytest.raises(WireError, match="expected an integer") as caught:
        AgentStepSpec.from_json('{"task_id":"t","agent":"a","description":"d","prompt":"p","max_steps":-0}')
    assert caught.value.field == "max_steps"


@pytest.mark.parametrize("max_steps", [-1, 2**64, 10**30, 10**4000, 10**5000], ids=lambda n: n.bit_length())
def test_max_steps_outside_64_bits_is_a_wire_error(max_steps: int) -> None:
    """A value that the class refuses is a short `WireError` that names the field."""
    fields = {"task_id": "t", "agent": "a", "description": "d", "prompt": "p", "max_steps": max_steps}
    with pytest.raises(WireError) as caught:
        AgentStepSpec.from_dict(fields)
    assert caught.value.field == "max_steps"
    assert len(str(caught.value)) < 300


def test_max_steps_reaches_the_limit() -> None:
    """The largest 64-bit number is a `max_steps`."""
    spec = AgentStepSpec("t", "a", "d", "p", max_steps=2**64 - 1)
    assert AgentStepSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("depth", [1, MAX_DEPTH - 1])
def test_nesting_up_to_the_limit_is_carried(depth: int) -> None:
    """The record's own object is level 1; level 127 is the last that is allowed."""
    outcome = with_structured(nested(depth))
    assert StepOutcome.from_json(outcome.to_json()) == outcome
    assert StepOutcome.from_dict(outcome.to_dict()) == outcome


@pytest.mark.parametrize("depth", [MAX_DEPTH, 500])
def test_nesting_beyond_the_limit_is_neither_written_nor_read(depth: int) -> None:
    """A value that is too deep for serde_json is refused in both directions."""
    text = "[" * depth + "]" * depth
    for refuse in (
        lambda: with_structured(nested(depth)).to_json(),
        lambda: with_structured(nested(depth)).to_dict(),
        lambda: StepOutcome.from_dict({**OUTCOME, "structured": nested(depth)}),
        lambda: read_structured(text),
        lambda: read_structured(text.replace("[", '{"a":').replace("]", "}").replace(":}", ":{}}", 1)),
    ):
        with pytest.raises(WireError, match="nested deeper than 127 levels") as caught:
            refuse()
        assert caught.value.field == "structured"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[" * 100_000, ""),
        ('{"x":' * 100_000, ""),
        (OUTCOME_JSON + ',"structured":' + "[" * 100_000 + "]" * 100_000 + "}", ""),
        (OUTCOME_JSON + ',"unknown":' + "[" * 100_000 + "]" * 100_000 + "}", ""),
        (OUTCOME_JSON + ',"structured":{"a":' + "[" * 500 + "NaN" + "]" * 500 + "}}", "structured"),
    ],
    ids=["arrays", "objects", "known field", "unknown field", "with NaN inside"],
)
def test_extreme_nesting_is_no_recursion_error(text: str, field: str) -> None:
    """A hundred thousand brackets are refused with a `WireError`, like other malformed text."""
    with pytest.raises(WireError, match="nested deeper") as caught:
        StepOutcome.from_json(text)
    assert caught.value.field == field


def test_unknown_fields_are_ignored_whatever_they_hold() -> None:
    """A newer peer may send more fields; as in serde_json they may even nest deeper than a record may."""
    deep = "[" * 200 + "]" * 200
    assert StepOutcome.from_json(f'{OUTCOME_JSON},"later":{{"a":[1]}},"deep":{deep}}}') == StepOutcome(**OUTCOME)
    assert StepOutcome.from_dict({**OUTCOME, "later": object(), 7: None}) == StepOutcome(**OUTCOME)


@pytest.mark.parametrize("optional", ["max_steps", "parent_session_id", "output_schema"])
def test_optional_fields_may_be_missing_or_null(optional: str) -> None:
    """A missing optional field and a `null` one are both `None`."""
    required = {"task_id": "t", "agent": "a", "description": "d", "prompt": "p"}
    assert AgentStepSpec.from_dict(required) == AgentStepSpec.from_dict({**required, optional: None})


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("task_id", None, "expected a string, got null"),
        ("agent", 1, "expected a string, got the integer 1"),
        ("output", b"bytes", "expected a string, got an instance of bytes"),
        ("session_id", True, "expected a string, got true"),
        ("success", 1, "expected true or false, got the integer 1"),
        ("success", 0.0, "expected true or false, got the number 0.0"),
        ("success", {}, "expected true or false, got an object"),
        ("success", None, "expected true or false, got null"),
        ("output", Path("p"), "expected a string, got an instance of pathlib"),
        ("output", 10**1000, "expected a string, got an integer of 3322 bits"),
        ("structured", (1,), "expected a JSON value, got an instance of tuple"),
        ("structured", math.inf, "expected a finite number, got inf"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_from_dict_coerces_nothing(field: str, value: Any, reason: str) -> None:
    """A field of the wrong type is refused; the error describes the value in the terms of JSON."""
    with pytest.raises(WireError) as caught:
        StepOutcome.from_dict({**OUTCOME, field: value})
    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize("max_steps", [True, 3.0, "3", [3]])
def test_max_steps_is_an_integer_only(max_steps: Any) -> None:
    """`true`, `3.0` and `"3"` are refused as `max_steps`."""
    with pytest.raises(WireError, match="expected an integer") as caught:
        AgentStepSpec.from_dict(
            {"task_id": "t", "agent": "a", "description": "d", "prompt": "p", "max_steps": max_steps}
        )
    assert caught.value.field == "max_steps"


@pytest.mark.parametrize("mapping", [None, [], "{}", 3, [("task_id", "t")], StepOutcome(**OUTCOME)])
def test_from_dict_takes_mappings_only(mapping: Any) -> None:
    """Any other type is a WireError, not an AttributeError."""
    with pytest.raises(WireError, match="expected an object, got"):
        StepOutcome.from_dict(mapping)


def test_from_dict_does_not_create_missing_fields_of_a_defaultdict() -> None:
    """A missing field of a `defaultdict` is reported as missing, and the dict is unchanged."""
    mapping = defaultdict(str, {"session_id": "s"})
    with pytest.raises(WireError, match="missing") as caught:
        StepOutcome.from_dict(mapping)
    assert caught.value.field == "task_id"
    assert dict(mapping) == {"session_id": "s"}


def test_the_first_wrong_field_is_the_one_named() -> None:
    """With several wrong fields the error names the first in declared order."""
    with pytest.raises(WireError) as caught:
        StepOutcome.from_dict({"success": "yes", "output": 1})
    assert caught.value.field == "task_id"


@pytest.mark.parametrize(
    "refuse",
    [
        lambda: StepOutcome.from_dict({**OUTCOME, "success": "x" * 10**6}),
        lambda: StepOutcome.from_dict({**OUTCOME, "output": 10**1000}),
        lambda: StepOutcome.from_dict({**OUTCOME, "success": ["x" * 10**6]}),
        lambda: read_structured("1" + "0" * 10**6 + ".0"),
        lambda: read_structured('{"' + "k" * 10**6 + '":NaN}'),
        lambda: read_structured('{"' + "k k" * 10**6 + '":NaN}'),
        lambda: read_structured('["' + "x" * 10**6 + "\n"),
        lambda: with_structured({"k" * 100: {"k" * 100: {"k" * 100: {"k" * 100: object()}}}}).to_json(),
        lambda: with_structured({b"k" * 10**6: 1}).to_json(),
    ],
)
def test_errors_are_short_however_large_the_value(refuse: Any) -> None:
    """An error shortens a long value and a long path."""
    with pytest.raises(WireError) as caught:
        refuse()
    assert len(str(caught.value)) < 400


def test_errors_can_be_printed() -> None:
    """A key that UTF-8 cannot carry is escaped in the error that names it."""
    with pytest.raises(WireError) as caught:
        read_structured(r'{"\ud800":NaN}')
    assert str(caught.value).encode()


# --- checks that the runner uses --------------------------------------------------------------------------------------


def test_check_json_names_the_path_below_the_given_one() -> None:
    """`check_json` accepts values that the wire can carry, and its error has the whole path to any other."""
    check_json({"a": [1, 2.5, "x", None, True]}, "structured")
    with pytest.raises(WireError, match="an instance of set") as caught:
        check_json({"a": [set()]}, "structured")
    assert caught.value.field == "structured.a[0]"


def test_check_json_counts_the_record_as_a_level() -> None:
    """A value that `check_json` accepts for a field can be written in that field."""
    check_json(nested(MAX_DEPTH - 1), "structured")
    with pytest.raises(WireError, match="deeper"):
        check_json(nested(MAX_DEPTH), "structured")


def test_check_text_refuses_lone_surrogates_only() -> None:
    """`check_text` accepts all text that UTF-8 can carry."""
    check_text("plain", "output")
    check_text("\x00 é 😀 \uffff", "output")
    with pytest.raises(WireError, match=r"U\+DC00\) at character 1") as caught:
        check_text("é\udc00", "output")
    assert caught.value.field == "output"


def test_cattrs_is_loaded_on_first_use_only() -> None:
    """Importing the package and writing JSON do not import cattrs."""
    program = (
        "import sys; from fanout_sync.records.steps import StepOutcome; import fanout_sync.wire.codec;"
        "StepOutcome.failed('t', 'a', 'm').to_json(); assert 'cattrs' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
