"""Properties of the wire format: every record can be written, and is read back equal."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fanout_sync.errors import WireError
from fanout_sync.events.types import (
    EVENT_CLASSES,
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
from fanout_sync.records.steps import MAX_STEPS_LIMIT, AgentStepSpec, StepOutcome, WireRecord
from fanout_sync.wire.strict_json import parse_json, write_json

# The first example imports cattrs, and a deadline would fail on a slow machine.
relaxed = settings(deadline=None)

text = st.text()
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
counts = st.integers()

specs = st.builds(
    AgentStepSpec,
    text,
    text,
    text,
    text,
    max_steps=st.none() | st.integers(0, MAX_STEPS_LIMIT),
    parent_session_id=st.none() | text,
    output_schema=json_values,
)
outcomes = st.builds(StepOutcome, text, text, text, text, st.booleans(), structured=json_values)
events = st.one_of(
    st.builds(SubagentStart, text, text, text, text, text, counts),
    st.builds(SubagentProgress, text, text, text, json_values),
    st.builds(SubagentEnd, text, text, text, text, st.booleans(), counts),
    st.builds(TextDelta, text, text),
    st.builds(ToolStart, text, text, text),
    st.builds(ToolEnd, text, text, text, text, st.none() | counts),
    st.builds(StepRetry, text, counts, numbers, text),
    st.builds(RunStart, text, st.none() | counts),
    st.builds(RunEnd, text, counts, counts, numbers, counts, counts),
    st.builds(StepReused, text, text, text, st.booleans()),
    st.builds(
        UnknownEvent,
        text.filter(lambda tag: tag not in EVENT_CLASSES),
        st.dictionaries(text.filter(lambda key: key != "type"), json_values, max_size=4),
    ),
)
records = specs | outcomes | events


def refusal_of(read: Callable[[], object]) -> str:
    try:
        read()
    except WireError as error:
        return str(error)
    return ""


@relaxed
@given(records)
def test_records_are_read_back_equal_from_json(record: WireRecord) -> None:
    """Reading what was written gives an equal record of the same class, and writing that gives the same text."""
    written = record.to_json()
    again = type(record).from_json(written)
    assert again == record
    assert type(again) is type(record)
    assert again.to_json() == written
    assert type(record).from_json(written.encode()) == record


@relaxed
@given(records)
def test_records_are_read_back_equal_from_dicts(record: WireRecord) -> None:
    """Reading the dict of a record gives an equal record."""
    assert type(record).from_dict(record.to_dict()) == record


@relaxed
@given(records)
def test_dict_and_json_have_the_same_content(record: WireRecord) -> None:
    """The text is the JSON of the dict, in the same order, for the standard library's parser as well."""
    assert json.loads(record.to_json()) == record.to_dict()
    assert list(json.loads(record.to_json())) == list(record.to_dict())


@relaxed
@given(records)
def test_records_survive_pickle(record: WireRecord) -> None:
    """A record comes back equal from pickle."""
    assert pickle.loads(pickle.dumps(record)) == record


@relaxed
@given(events)
def test_events_are_read_without_knowing_their_class(event: Event) -> None:
    """`Event.from_json` finds the class by the type."""
    assert Event.from_json(event.to_json()) == event
    assert Event.from_dict(event.to_dict()) == event


@relaxed
@given(json_values)
def test_values_come_back_with_their_types(value: Any) -> None:
    """An int stays an int, and a float stays a float with the sign of zero: `repr` shows the difference."""
    assert repr(parse_json(write_json(value))) == repr(value)


@relaxed
@given(json_values)
def test_json_of_the_standard_library_is_read(value: Any) -> None:
    """JSON that the standard library wrote is read as the same value."""
    assert repr(parse_json(json.dumps(value))) == repr(value)
    assert repr(parse_json(json.dumps(value, indent=1, ensure_ascii=False))) == repr(value)


@relaxed
@given(text | st.text('[]{}",:\\tfn0123456789eE+-. \n\ud800'))
def test_any_text_is_read_or_raises_a_wire_error(garbage: str) -> None:
    """Any text is either read, and can be written again, or refused with a short `WireError`."""

    def read_and_write() -> None:
        value = parse_json(garbage)
        assert repr(parse_json(write_json(value))) == repr(value)

    assert len(refusal_of(read_and_write)) < 400


@relaxed
@given(st.binary())
def test_invalid_bytes_raise_a_wire_error(garbage: bytes) -> None:
    """Bytes that are no record are refused with a short `WireError`."""
    assert 0 < len(refusal_of(lambda: StepOutcome.from_json(garbage))) < 400
