"""Events: their JSON, and how strictly it is read."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any, ClassVar

import attrs
import pytest
from attrs import field, frozen
from naming import without_address

from fanout_sync.errors import WireError
from fanout_sync.events.types import (
    EVENT_CLASSES,
    BudgetExhausted,
    Event,
    RunEnd,
    RunStart,
    StepRetry,
    StepReused,
    SubagentEnd,
    SubagentProgress,
    SubagentStart,
    TextDelta,
    ToolEnd,
    ToolStart,
    UnknownEvent,
)

WRITTEN: list[tuple[Event, str]] = [
    (
        SubagentStart("t", "s", "", "a", "d", 1700000000000),
        '{"type":"subagent_start","task_id":"t","session_id":"s","parent_session_id":"","agent":"a",'
        '"description":"d","started_ms":1700000000000}',
    ),
    (
        SubagentProgress("t", "s", "thinking", {"step": 1, "of": None}),
        '{"type":"subagent_progress","task_id":"t","session_id":"s","status":"thinking",'
        '"metadata":{"step":1,"of":null}}',
    ),
    (
        SubagentProgress("t", "s", "thinking", None),
        '{"type":"subagent_progress","task_id":"t","session_id":"s","status":"thinking","metadata":null}',
    ),
    (
        SubagentEnd("t", "s", "a", "o", False, 1700000000001),
        '{"type":"subagent_end","task_id":"t","session_id":"s","agent":"a","output":"o","success":false,'
        '"finished_ms":1700000000001}',
    ),
    (TextDelta("t", "é\n"), '{"type":"text_delta","task_id":"t","text":"é\\n"}'),
    (ToolStart("t", "call-1", "grep"), '{"type":"tool_start","task_id":"t","id":"call-1","name":"grep"}'),
    (
        ToolEnd("t", "call-1", "grep", "3 hits", 0),
        '{"type":"tool_end","task_id":"t","id":"call-1","name":"grep","output":"3 hits","exit_code":0}',
    ),
    (
        ToolEnd("t", "call-1", "grep", "3 hits"),
        '{"type":"tool_end","task_id":"t","id":"call-1","name":"grep","output":"3 hits"}',
    ),
    (
        StepRetry("t", 1, 0.5, "TimeoutError: slow"),
        '{"type":"step_retry","task_id":"t","attempt":1,"wait_s":0.5,"reason":"TimeoutError: slow"}',
    ),
    (RunStart("r", 1000), '{"type":"run_start","run_id":"r","total":1000}'),
    (RunStart("r"), '{"type":"run_start","run_id":"r"}'),
    (
        StepReused("t", "task-run-t", "coder", True),
        '{"type":"step_reused","task_id":"t","session_id":"task-run-t","agent":"coder","success":true}',
    ),
    (
        RunEnd("r", 999, 1, 12.0),
        '{"type":"run_end","run_id":"r","succeeded":999,"failed":1,"elapsed_s":12.0,"reused":0,"cancelled":0}',
    ),
    (
        RunEnd("r", 9, 1, 12, reused=4, cancelled=2),
        '{"type":"run_end","run_id":"r","succeeded":9,"failed":1,"elapsed_s":12.0,"reused":4,"cancelled":2}',
    ),
    (
        BudgetExhausted("cost_usd", 5, 4.75),
        '{"type":"budget_exhausted","resource":"cost_usd","limit":5.0,"used":4.75}',
    ),
    (
        UnknownEvent("brain_wave", {"z": [1, {"b": None}], "a": 1e300, "task_id": 7}),
        '{"type":"brain_wave","z":[1,{"b":null}],"a":1e300,"task_id":7}',
    ),
]
EVENTS = [event for event, _ in WRITTEN]
KNOWN = [event for event in EVENTS if not isinstance(event, UnknownEvent)]


@pytest.mark.parametrize(("event", "text"), WRITTEN)
def test_an_event_is_a_flat_object_with_its_type_first(event: Event, text: str) -> None:
    """The type comes first, then the fields in declared order; an optional field that is `None` is left out."""
    assert event.to_json() == text
    assert event.to_dict() == json.loads(text)
    assert list(event.to_dict()) == list(json.loads(text))


@pytest.mark.parametrize(("event", "text"), WRITTEN)
def test_events_are_read_by_their_type(event: Event, text: str) -> None:
    """Both `Event` and the class of the event read it, from text, bytes and dicts."""
    for event_class in (Event, type(event)):
        assert event_class.from_json(text) == event
        assert event_class.from_json(text.encode()) == event
        assert event_class.from_dict(json.loads(text)) == event
        assert type(event_class.from_json(text)) is type(event)


def test_every_known_type_is_tested_here() -> None:
    """The table above has every event class."""
    assert {type(event) for event in KNOWN} == set(EVENT_CLASSES.values())
    assert {event.type for event in KNOWN} == set(EVENT_CLASSES)


@pytest.mark.parametrize("event", EVENTS, ids=without_address)
def test_events_are_values(event: Event) -> None:
    """An event is frozen, equal by value, hashable and survives pickle."""
    again = pickle.loads(pickle.dumps(event))
    assert again == event
    assert hash(again) == hash(event)
    assert isinstance(event, Event)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.task_id = "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize("event", KNOWN, ids=without_address)
def test_missing_fields_are_named(event: Event) -> None:
    """If a required field is missing, the error names it."""
    for name in event.to_dict():
        fields = event.to_dict()
        del fields[name]
        if name in ("exit_code", "total"):
            assert getattr(Event.from_dict(fields), name) is None
            continue
        if name in ("reused", "cancelled"):  # an earlier version did not write them
            assert getattr(Event.from_dict(fields), name) == 0
            continue
        with pytest.raises(WireError, match="missing") as caught:
            Event.from_dict(fields)
        assert caught.value.field == name


@pytest.mark.parametrize("event", KNOWN, ids=without_address)
def test_null_is_refused_in_a_required_field(event: Event) -> None:
    """`null` is allowed only in an optional field and in a field that holds any JSON."""
    for name in event.to_dict():
        fields = event.to_dict() | {name: None}
        if name in ("exit_code", "total", "metadata"):
            assert getattr(Event.from_dict(fields), name) is None
            continue
        with pytest.raises(WireError, match="got null") as caught:
            Event.from_dict(fields)
        assert caught.value.field == name


@pytest.mark.parametrize("event", KNOWN, ids=without_address)
def test_nothing_is_coerced(event: Any) -> None:
    """A field of the wrong type is refused, both when read and at construction; the error names it."""
    for attribute in attrs.fields(type(event)):
        if attribute.name == "metadata":
            continue
        wrong = 1 if isinstance(getattr(event, attribute.name), (str, bool)) else "1"
        with pytest.raises(WireError, match="expected") as caught:
            Event.from_dict(event.to_dict() | {attribute.name: wrong})
        assert caught.value.field == attribute.name
        with pytest.raises(TypeError, match=f"^{attribute.name} must be"):
            attrs.evolve(event, **{attribute.name: wrong})


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (SubagentStart("t", "s", "", "a", "d", 1), "started_ms"),
        (ToolEnd("t", "i", "n", "o", 1), "exit_code"),
        (StepRetry("t", 1, 1.0, "r"), "attempt"),
        (StepRetry("t", 1, 1.0, "r"), "wait_s"),
        (RunStart("r", 1), "total"),
    ],
)
def test_a_bool_is_no_number(event: Any, name: str) -> None:
    """`true` is refused in a field that holds an integer or a number."""
    with pytest.raises(WireError, match="got true") as caught:
        Event.from_dict(event.to_dict() | {name: True})
    assert caught.value.field == name
    with pytest.raises(TypeError, match=f"^{name} must be .*, got True"):
        attrs.evolve(event, **{name: True})


def test_an_integer_is_a_number_of_seconds() -> None:
    """As in serde, a field that holds a float accepts an integer, and turns it into a float."""
    event = Event.from_json('{"type":"step_retry","task_id":"t","attempt":1,"wait_s":2,"reason":"r"}')
    assert isinstance(event, StepRetry)
    assert isinstance(event.wait_s, float)
    assert event == StepRetry("t", 1, 2, "r")
    assert '"wait_s":2.0' in StepRetry("t", 1, 2, "r").to_json()


@pytest.mark.parametrize("wait_s", ["1e400", str(10**400)])
def test_infinite_seconds_are_refused_when_read(wait_s: str) -> None:
    """A number too large for a float is refused; the error names the field."""
    with pytest.raises(WireError, match="finite number") as caught:
        Event.from_json(f'{{"type":"step_retry","task_id":"t","attempt":1,"wait_s":{wait_s},"reason":"r"}}')
    assert caught.value.field == "wait_s"


def test_values_that_json_cannot_carry_are_refused_when_written() -> None:
    """The error names the field, and the path within it."""
    for event, name in (
        (StepRetry("t", 1, math.inf, "r"), "wait_s"),
        (SubagentProgress("t", "s", "x", {"a": [set()]}), "metadata.a[0]"),
        (TextDelta("t", "\ud800"), "text"),
        (UnknownEvent("x", {"a": {"b": (1,)}}), "a.b"),
        (UnknownEvent("\ud800", {}), "type"),
    ):
        for write in (event.to_json, event.to_dict):
            with pytest.raises(WireError) as caught:
                write()
            assert caught.value.field == name


def test_unknown_fields_of_known_types_are_ignored() -> None:
    """A newer peer may send more fields."""
    assert Event.from_json('{"type":"text_delta","task_id":"t","text":"x","later":[1]}') == TextDelta("t", "x")


def test_the_type_may_stand_anywhere() -> None:
    """The order of JSON fields has no meaning, so `type` need not come first."""
    assert Event.from_json('{"text":"x","task_id":"t","type":"text_delta"}') == TextDelta("t", "x")


@pytest.mark.parametrize(
    ("text", "field_name", "reason"),
    [
        ("[]", "", "expected an object, got an array"),
        ("{}", "type", "missing"),
        ('{"type":null}', "type", "expected a string, got null"),
        ('{"type":["text_delta"]}', "type", "expected a string, got an array"),
        (r'{"type":"\ud800"}', "type", "surrogate"),
        ('{"type":"text_delta","type":"text_delta"}', "type", "duplicate key"),
        ('{"type":"brain_wave","a":[NaN]}', "a[0]", "got nan"),
        (r'{"type":"brain_wave","a":["\ud800"]}', "a[0]", "surrogate"),
        (
            '{"type":"subagent_progress","task_id":"t","session_id":"s","status":"x","metadata":["a\n"]}',
            "",
            "control character",
        ),
    ],
)
def test_malformed_events_are_refused(text: str, field_name: str, reason: str) -> None:
    """Events are read as strictly as specs and outcomes are."""
    with pytest.raises(WireError) as caught:
        Event.from_json(text)
    assert caught.value.field == field_name
    assert reason in caught.value.reason


def test_a_class_reads_its_own_type_only() -> None:
    """The JSON of another class is refused; the error names the field `type`."""
    for event_class, text in (
        (TextDelta, '{"type":"tool_start","task_id":"t","id":"i","name":"n"}'),
        (TextDelta, '{"type":"brain_wave"}'),
        (UnknownEvent, '{"type":"text_delta","task_id":"t","text":"x"}'),
    ):
        with pytest.raises(WireError, match=r"^type: expected ") as caught:
            event_class.from_json(text)
        assert caught.value.field == "type"


def test_an_unknown_event_cannot_have_a_known_type() -> None:
    """It is refused, because it would be read back as another class."""
    with pytest.raises(ValueError, match="use TextDelta"):
        UnknownEvent("text_delta", {})
    with pytest.raises(ValueError, match="must not contain 'type'"):
        UnknownEvent("brain_wave", {"type": "text_delta"})


@pytest.mark.parametrize(("arguments", "name"), [((1, {}), "type"), (("x", None), "fields"), (("x", [1]), "fields")])
def test_unknown_events_are_checked_too(arguments: Any, name: str) -> None:
    """The type of an `UnknownEvent` must be a string, and its fields a dict."""
    with pytest.raises(TypeError, match=f"^{name} must be"):
        UnknownEvent(*arguments)


def test_errors_are_short_however_large_the_value() -> None:
    """The error for a wrong field shortens its value."""
    with pytest.raises(TypeError) as caught:
        SubagentEnd("t", "s", "a", b"x" * 10**6, True, 1)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


@frozen
class BrainWave(Event):
    """An event class of a user."""

    tag: ClassVar[str] = "brain_wave"
    task_id: str = field()
    hertz: float = field()

    def __attrs_post_init__(self) -> None:
        if self.hertz > 100:
            raise ValueError("no brain does that")


def test_event_classes_of_a_user_go_over_the_wire() -> None:
    """A subclass with a `tag` writes and reads its own JSON; `Event` reads it as an `UnknownEvent`."""
    event = BrainWave("t", 10.5)
    assert event.to_json() == '{"type":"brain_wave","task_id":"t","hertz":10.5}'
    assert BrainWave.from_json(event.to_json()) == event
    assert Event.from_json(event.to_json()) == UnknownEvent("brain_wave", {"task_id": "t", "hertz": 10.5})


def test_a_value_that_a_users_event_class_refuses_is_a_wire_error() -> None:
    """The error of a check that belongs to no field names no field."""
    with pytest.raises(WireError, match="no brain does that") as caught:
        BrainWave.from_json('{"type":"brain_wave","task_id":"t","hertz":1e9}')
    assert caught.value.field == ""
