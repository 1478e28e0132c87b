"""Repeated keys and unknown fields are refused, read or ignored exactly as in serde_json."""

from __future__ import annotations

import io
import json
from typing import Any

import attrs
import pytest

from fanout_sync.errors import WireError
from fanout_sync.events.types import Event, SubagentProgress, TextDelta, UnknownEvent
from fanout_sync.journal import MemoryJournal
from fanout_sync.records.steps import AgentStepSpec, StepOutcome
from fanout_sync.wire.jsonl import read_specs
from fanout_sync.wire.strict_json import MAX_DEPTH

SPEC = AgentStepSpec("t", "a", "d", "p")
OUTCOME = StepOutcome("t", "s", "a", "o", True)

REPEATING = [
    ('{"a":1,"a":2}', {"a": 2}),
    ('{"a":1,"b":3,"a":2}', {"a": 2, "b": 3}),
    (r'{"a":1,"\u0061":null}', {"a": None}),
    ('{"":1,"":[]}', {"": []}),
    ('{"a":{"x":1},"a":{"y":2}}', {"a": {"y": 2}}),
    ('[0,{"a":{"b":1,"b":"ü","b":[{"c":1,"c":-0}]}}]', [0, {"a": {"b": [{"c": -0.0}]}}]),
]
"""JSON with repeated keys, and the value that is read: it has the last value of each key."""


def with_field(record: AgentStepSpec | StepOutcome, text: str) -> str:
    """Return the record as JSON with one more field: `text`."""
    return f"{record.to_json()[:-1]},{text}}}"


def types_in(value: Any) -> set[type]:
    """Return the types of all containers in it."""
    if not isinstance(value, (dict, list)):
        return set()
    return {type(value)}.union(*map(types_in, value.values() if isinstance(value, dict) else value))


@pytest.mark.parametrize(("text", "value"), REPEATING, ids=[text for text, _ in REPEATING])
def test_the_last_value_of_a_key_counts_inside_a_json_field(text: str, value: Any) -> None:
    """`output_schema`, `structured` and `metadata` are any JSON: they become plain data with the last value of each."""
    progress = f'{{"type":"subagent_progress","task_id":"t","session_id":"s","status":"x","metadata":{text}}}'
    spec_text = with_field(SPEC, f'"output_schema":{text}')
    read = [
        AgentStepSpec.from_json(spec_text).output_schema,
        AgentStepSpec.from_json(spec_text.encode()).output_schema,
        next(read_specs(io.StringIO(spec_text))).output_schema,
        StepOutcome.from_json(with_field(OUTCOME, f'"structured":{text}')).structured,
        SubagentProgress.from_json(progress).metadata,
    ]
    assert read == [value] * 5
    assert types_in(read) <= {dict, list}


@pytest.mark.parametrize(("text", "value"), REPEATING, ids=[text for text, _ in REPEATING])
def test_the_last_value_of_a_key_counts_in_an_unknown_event(text: str, value: Any) -> None:
    """All fields of an unknown event are any JSON, the event's own object included; it survives a round trip."""
    event = Event.from_json(f'{{"type":"brain_wave","x":1,"x":{text}}}')
    assert event == UnknownEvent("brain_wave", {"x": value})
    assert isinstance(event, UnknownEvent)
    assert types_in(event.fields) <= {dict, list}
    assert Event.from_json(event.to_json()) == event


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a":1e999,"a":1}', "structured.a"),
        (r'{"a":1,"b":{"a":["\ud800"],"a":1}}', "structured.b.a[0]"),
        (r'{"\ud800":2,"\ud800":1}', r"structured['\ud800']"),
        ('{"a":NaN,"a":1}', "structured.a"),
        ('{"a":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + ',"a":1}', "structured"),
    ],
)
def test_a_replaced_value_must_be_json_too(text: str, place: str) -> None:
    """An earlier value of a repeated key is read before it is replaced, and refused if it is no JSON value."""
    with pytest.raises(WireError) as caught:
        StepOutcome.from_json(with_field(OUTCOME, f'"structured":{text}'))
    assert caught.value.field == place


@pytest.mark.parametrize("record", [SPEC, OUTCOME], ids=["spec", "outcome"])
def test_a_repeated_field_of_a_record_is_refused(record: AgentStepSpec | StepOutcome) -> None:
    """Each known field may occur once, even if it says the same twice, or `null`, or is spelt with an escape."""
    for field in attrs.fields(type(record)):
        value = json.dumps(getattr(record, field.name))
        escaped = f"\\u{ord(field.name[0]):04x}{field.name[1:]}"
        for text in (
            with_field(record, f'"{field.name}":{value},"{field.name}":{value}'),
            with_field(record, f'"later":1,"{field.name}":null,"later":2,"{escaped}":{value}'),
        ):
            with pytest.raises(WireError, match="duplicate key") as caught:
                type(record).from_json(text)
            assert caught.value.field == field.name


@pytest.mark.parametrize("field", ["type", "task_id", "text"])
def test_a_repeated_field_of_an_event_is_refused(field: str) -> None:
    """Each known field of an event may occur once, whichever class is asked to read it."""
    text = '{"type":"text_delta","task_id":"t","text":"x","' + field + '":"text_delta"}'
    for event_class in (Event, TextDelta):
        with pytest.raises(WireError, match="duplicate key") as caught:
            event_class.from_json(text)
        assert caught.value.field == field


def test_the_type_of_an_unknown_event_occurs_once() -> None:
    """An event whose type is given twice is refused, whatever the types are."""
    with pytest.raises(WireError, match="duplicate key") as caught:
        Event.from_json('{"type":"brain_wave","type":"brain_wave"}')
    assert caught.value.field == "type"


@pytest.mark.parametrize(
    "value",
    [
        "1e999",
        "[-1e999,{}]",
        "9" * 5000,
        "-" + "9" * 5000,
        r'"\ud800"',
        r'{"\udc00":["\ud800x"]}',
        '{"a":1,"a":{"b":1,"b":2}}',
        "[" * 200 + "]" * 200,
    ],
    ids=lambda value: value[:20],
)
def test_an_unknown_field_may_hold_any_syntactically_valid_json(value: str) -> None:
    """An unknown field may hold any JSON text and occur twice; it is not kept."""
    later = f'"later":{value},"later":{value}'
    assert AgentStepSpec.from_json(with_field(SPEC, later)) == SPEC
    assert StepOutcome.from_json(with_field(OUTCOME, later)) == OUTCOME
    assert Event.from_json(f'{{"type":"text_delta",{later},"task_id":"t","text":"x"}}') == TextDelta("t", "x")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("NaN", "later"),
        ('{"a":[-Infinity],"a":1}', "later.a[0]"),
        ("[NaN,]", ""),
        ("01", ""),
        ("1.", ""),
        ("1e", ""),
        (r'"\x"', ""),
        (r'"\uZZZZ"', ""),
        ('"a\nb"', ""),
        ("{1:2}", ""),
        ("[1 2]", ""),
        ("tru", ""),
    ],
)
def test_an_unknown_field_with_invalid_syntax_is_refused(value: str, place: str) -> None:
    """Invalid JSON in an unknown field makes the whole text invalid."""
    with pytest.raises(WireError) as caught:
        StepOutcome.from_json(with_field(OUTCOME, f'"later":{value}'))
    assert caught.value.field == place


def test_the_name_of_an_unknown_field_must_be_valid_text() -> None:
    """A lone surrogate is refused in the name of a field, even if the field is unknown."""
    for text in (r'"\ud800":1', r'"\ud800":1,"\ud800":2'):
        with pytest.raises(WireError, match="surrogate") as caught:
            StepOutcome.from_json(with_field(OUTCOME, text))
        assert caught.value.field == r"['\ud800']"
    assert StepOutcome.from_json(with_field(OUTCOME, '"später":1')) == OUTCOME


def checkpoint(outcome: str, step: str = "", whole: str = "") -> str:
    """Return a checkpoint of one step with more fields in each of its objects."""
    return f'{{"workflow_id":"w","steps":[{{"task_id":"t","outcome":{with_field(OUTCOME, outcome)}{step}}}]{whole}}}'


def test_checkpoints_are_read_like_records() -> None:
    """In a checkpoint the last value counts inside `structured`, and unknown fields are ignored everywhere."""
    journal = MemoryJournal()
    later = r',"later":1e999,"later":{"a":"\ud800","a":2}'
    journal.import_checkpoint(checkpoint(f'"structured":{{"a":1,"a":[2]}}{later}', later, later))
    (record,) = journal.records("w")
    assert record.outcome == attrs.evolve(OUTCOME, structured={"a": [2]})
    assert types_in(record.outcome.structured) == {dict, list}


@pytest.mark.parametrize(
    ("more", "place"),
    [
        (('"later":1', "", ',"workflow_id":"w"'), "workflow_id"),
        (('"later":1', "", ',"steps":[]'), "steps"),
        (('"later":1', "", ',"checkpoint_ms":1,"checkpoint_ms":1'), "checkpoint_ms"),
        (('"later":1', "", ',"schema_version":1,"schema_version":1'), "schema_version"),
        (('"later":1', ',"task_id":"t"', ""), "steps[0].task_id"),
        (('"later":1', ',"outcome":null', ""), "steps[0].outcome"),
        (('"success":true', "", ""), "steps[0].outcome.success"),
        (('"structured":1e999', "", ""), "steps[0].outcome.structured"),
    ],
)
def test_a_repeated_field_of_a_checkpoint_is_refused(more: tuple[str, str, str], place: str) -> None:
    """Each known field of a checkpoint, of its steps and of their outcomes may occur once; its place is named."""
    journal = MemoryJournal()
    with pytest.raises(WireError) as caught:
        journal.import_checkpoint(checkpoint(*more))
    assert caught.value.field == place
    assert journal.workflows() == []
