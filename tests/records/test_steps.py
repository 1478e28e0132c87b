"""Specs and outcomes: which values their fields accept, equality, copies, pickling and JSON."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import attrs
import pytest

from fanout_sync.records.steps import MAX_STEPS_LIMIT, AgentStepSpec, StepOutcome, session_id_of

SPEC = AgentStepSpec("t1", "reviewer", "Review a file", "Review a.py")
OUTCOME = StepOutcome("t1", "s1", "reviewer", "fine", True)


# --- construction -----------------------------------------------------------------------------------------------------


def test_only_the_first_four_fields_of_a_spec_are_required() -> None:
    """The other fields are `None` by default."""
    assert (
        AgentStepSpec(
            task_id="t1",
            agent="reviewer",
            description="Review a file",
            prompt="Review a.py",
            max_steps=None,
            parent_session_id=None,
            output_schema=None,
        )
        == SPEC
    )


def test_fields_stand_in_the_order_of_the_reference() -> None:
    """Fields, and so positional arguments, have the same order as on the wire."""
    assert [field.name for field in attrs.fields(AgentStepSpec)] == [
        "task_id",
        "agent",
        "description",
        "prompt",
        "max_steps",
        "parent_session_id",
        "output_schema",
    ]
    assert [field.name for field in attrs.fields(StepOutcome)] == [
        "task_id",
        "session_id",
        "agent",
        "output",
        "success",
        "structured",
    ]


@pytest.mark.parametrize("field", ["task_id", "agent", "description", "prompt", "parent_session_id"])
@pytest.mark.parametrize("value", [1, b"bytes", ["x"], True])
def test_texts_of_a_spec_are_strings(field: str, value: Any) -> None:
    """Anything else is refused at construction, and the field is named."""
    with pytest.raises(TypeError, match=f"^{field} must be a str"):
        attrs.evolve(SPEC, **{field: value})


@pytest.mark.parametrize("field", ["task_id", "agent", "description", "prompt"])
def test_required_texts_of_a_spec_are_not_none(field: str) -> None:
    """`None` is refused in a required field."""
    with pytest.raises(TypeError, match=f"^{field} must be a str, got None"):
        attrs.evolve(SPEC, **{field: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("max_steps", [0, 1, MAX_STEPS_LIMIT, None])
def test_max_steps_is_any_unsigned_64_bit_number(max_steps: int | None) -> None:
    """All values that the reference can hold are accepted, including 0 and `None`."""
    assert attrs.evolve(SPEC, max_steps=max_steps).max_steps == max_steps


@pytest.mark.parametrize("max_steps", [True, False, 3.0, "3", b"3"])
def test_max_steps_is_an_int(max_steps: Any) -> None:
    """Nothing is coerced, and a bool is refused."""
    with pytest.raises(TypeError, match=r"^max_steps must be an int or None"):
        attrs.evolve(SPEC, max_steps=max_steps)


@pytest.mark.parametrize("max_steps", [-1, MAX_STEPS_LIMIT + 1])
def test_max_steps_is_within_64_bits(max_steps: int) -> None:
    """A number that the reference cannot hold is refused at construction, not when the spec is sent."""
    with pytest.raises(ValueError, match=r"^max_steps must be between 0 and 2\*\*64 - 1"):
        attrs.evolve(SPEC, max_steps=max_steps)


@pytest.mark.parametrize("field", ["task_id", "session_id", "agent", "output"])
@pytest.mark.parametrize("value", [None, 1, b"bytes"])
def test_texts_of_an_outcome_are_strings(field: str, value: Any) -> None:
    """Anything else is refused at construction, and the field is named."""
    with pytest.raises(TypeError, match=f"^{field} must be a str"):
        attrs.evolve(OUTCOME, **{field: value})


@pytest.mark.parametrize("value", [None, 0, 1, "true", ""])
def test_success_is_a_bool(value: Any) -> None:
    """Other values are refused, be they true or false."""
    with pytest.raises(TypeError, match=r"^success must be True or False"):
        attrs.evolve(OUTCOME, success=value)


# --- copies and constructors ------------------------------------------------------------------------------------------


def test_with_methods_return_changed_copies() -> None:
    """Each `with_` method returns a new spec with one field changed, and leaves the old spec unchanged."""
    schema = {"type": "object"}
    changed = SPEC.with_max_steps(3).with_parent_session_id("p").with_output_schema(schema)
    assert changed == AgentStepSpec("t1", "reviewer", "Review a file", "Review a.py", 3, "p", schema)
    assert AgentStepSpec("t1", "reviewer", "Review a file", "Review a.py") == SPEC


def test_with_methods_can_remove_a_value() -> None:
    """A field that is set can be set to `None` again."""
    full = AgentStepSpec("t1", "reviewer", "Review a file", "Review a.py", 3, "p", {})
    assert full.with_max_steps(None).with_parent_session_id(None).with_output_schema(None) == SPEC


def test_with_methods_validate() -> None:
    """A copy is checked like any other spec."""
    with pytest.raises(ValueError, match=r"^max_steps"):
        SPEC.with_max_steps(-1)
    with pytest.raises(TypeError, match=r"^parent_session_id"):
        SPEC.with_parent_session_id(5)  # type: ignore[arg-type]


def test_failed_uses_the_default_session_id() -> None:
    """A failed outcome has the reference's session id and its message as output."""
    assert StepOutcome.failed("t1", "reviewer", "no key") == StepOutcome(
        "t1", "task-run-t1", "reviewer", "no key", False, None
    )


def test_completed_takes_task_and_agent_from_the_spec() -> None:
    """A completed outcome has the `task_id` and the agent of its spec, and the default session id."""
    assert StepOutcome.completed(SPEC, "fine") == StepOutcome("t1", "task-run-t1", "reviewer", "fine", True, None)
    assert StepOutcome.completed(SPEC, "fine", structured=[1]).structured == [1]
    assert session_id_of("t1") == "task-run-t1"


# --- values -----------------------------------------------------------------------------------------------------------


def test_records_are_equal_by_value() -> None:
    """Two records with equal fields are equal; a spec never equals an outcome."""
    assert AgentStepSpec("t1", "a", "d", "p", output_schema={"x": [1]}) == AgentStepSpec(
        "t1", "a", "d", "p", output_schema={"x": [1]}
    )
    assert SPEC.with_max_steps(1) != SPEC
    assert StepOutcome("t1", "s1", "reviewer", "fine", True, {}) != OUTCOME
    specs: set[object] = {SPEC}
    assert OUTCOME not in specs


def test_records_with_a_dict_are_hashable() -> None:
    """Equal records have equal hashes, even if a field holds a dict."""
    first = SPEC.with_output_schema({"x": [1]})
    second = SPEC.with_output_schema({"x": [1]})
    assert hash(first) == hash(second)
    assert len({first, second, SPEC}) == 2
    assert len({OUTCOME, StepOutcome("t1", "s1", "reviewer", "fine", True, {"a": []})}) == 2


def test_repr_shows_the_fields() -> None:
    """The `repr` of a record is the call that creates it."""
    assert repr(OUTCOME) == (
        "StepOutcome(task_id='t1', session_id='s1', agent='reviewer', output='fine', success=True, structured=None)"
    )
    assert repr(SPEC).startswith("AgentStepSpec(task_id='t1', agent='reviewer', description='Review a file', ")


@pytest.mark.parametrize("record", [SPEC, OUTCOME], ids=["spec", "outcome"])
def test_records_are_frozen(record: Any) -> None:
    """No field can be changed, deleted or added."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        record.task_id = "t2"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del record.agent
    with pytest.raises(AttributeError):
        record.no_such_field = 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_records_survive_pickle(protocol: int) -> None:
    """A record comes back equal from every pickle protocol."""
    for record in (SPEC.with_output_schema({"x": [1]}), OUTCOME):
        assert pickle.loads(pickle.dumps(record, protocol)) == record


def test_records_can_be_copied() -> None:
    """Copies are equal, and a deep copy shares no mutable object."""
    spec = SPEC.with_output_schema({"x": [1]})
    assert copy.copy(spec) == spec
    deep = copy.deepcopy(spec)
    assert deep == spec
    assert deep.output_schema is not spec.output_schema


# --- the reference's own round trips ----------------------------------------------------------------------------------


def test_a_full_spec_survives_the_wire() -> None:
    """Every field comes back from JSON as it was."""
    spec = (
        AgentStepSpec("t1", "explore", "Find auth code", "Locate the auth module")
        .with_max_steps(5)
        .with_parent_session_id("parent-123")
        .with_output_schema({"type": "object", "required": ["path"]})
    )
    assert AgentStepSpec.from_json(spec.to_json()) == spec
    assert AgentStepSpec.from_dict(spec.to_dict()) == spec


def test_optional_fields_of_a_spec_are_left_out() -> None:
    """The JSON of a minimal spec has only the four required fields."""
    assert SPEC.to_json() == (
        '{"task_id":"t1","agent":"reviewer","description":"Review a file","prompt":"Review a.py"}'
    )


def test_an_old_payload_without_optional_fields_is_read() -> None:
    """JSON from before the optional fields existed can still be read."""
    spec = AgentStepSpec.from_json('{"task_id":"t","agent":"a","description":"d","prompt":"p"}')
    assert (spec.max_steps, spec.parent_session_id, spec.output_schema) == (None, None, None)
    outcome = StepOutcome.from_json('{"task_id":"t","session_id":"s","agent":"a","output":"o","success":true}')
    assert outcome.structured is None


def test_an_outcome_survives_the_wire() -> None:
    """Success, failure and structured data come back as they were; `structured` is left out if it is `None`."""
    for outcome in (OUTCOME, StepOutcome.failed("t", "a", "no"), StepOutcome("t", "s", "a", "o", True, {"v": [0.5]})):
        assert StepOutcome.from_json(outcome.to_json()) == outcome
    assert "structured" not in OUTCOME.to_dict()


@pytest.mark.parametrize("structured", [False, 0, "", [], {}, 0.0])
def test_falsy_structured_data_is_not_left_out(structured: Any) -> None:
    """Only `None` is left out."""
    outcome = StepOutcome("t", "s", "a", "o", True, structured)
    assert outcome.to_dict()["structured"] == structured
    assert StepOutcome.from_json(outcome.to_json()) == outcome
