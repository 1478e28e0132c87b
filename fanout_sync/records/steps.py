"""The two records that go over the wire: the spec of a step and its outcome."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypeVar, get_origin

from attrs import Attribute, evolve, field, frozen

from ..formatting import describe
from ..tracebacks import ShortTypeError, ShortValueError
from .display import DisplayedRecord, print_record

__all__ = ["AgentStepSpec", "StepOutcome"]

Json = Any
"""A JSON value: `dict` with `str` keys, `list`, `str`, `int`, finite `float`, `bool` or `None`."""

MAX_STEPS_LIMIT = 2**64 - 1
"""The largest `max_steps`: the reference stores it in a 64-bit `usize`."""

R = TypeVar("R", bound="WireRecord")
T = TypeVar("T")


class WireCodec(Protocol):
    """Converts records to JSON and back; implemented by `fanout_sync.wire.codec`."""

    def to_dict(self, record: Any) -> dict[str, Json]: ...
    def from_dict(self, cls: type[R], mapping: Any) -> R: ...
    def to_json(self, record: Any) -> str: ...
    def from_json(self, cls: type[R], text: str | bytes) -> R: ...


class ClassCodec(Protocol):
    """Converts JSON to objects of the caller's classes; implemented by `fanout_sync.wire.classes`."""

    def schema_of(self, cls: Any) -> Json: ...
    def structure(self, outcome: StepOutcome, cls: type[T]) -> T: ...


class WireRecord:
    """The four methods that convert a record to JSON and back."""

    __slots__ = ()
    codec: ClassVar[WireCodec]
    classes: ClassVar[ClassCodec]

    def to_dict(self) -> dict[str, Json]:
        """Return the record as plain JSON data.

        Returns:
            The fields in declared order; an optional field that is `None` is left out.

        Raises:
            WireError: A field holds what JSON cannot carry (`NaN`, a lone surrogate, an object); the error names it.
        """
        return self.codec.to_dict(self)

    @classmethod
    def from_dict(cls: type[R], mapping: Any) -> R:
        """Build the record from plain JSON data; nothing is coerced, unknown fields are ignored.

        Raises:
            WireError: A field is missing or has the wrong type; the error names it.
        """
        return cls.codec.from_dict(cls, mapping)

    def to_json(self) -> str:
        """Return the record as compact JSON, byte for byte as serde_json writes it.

        Raises:
            WireError: A field holds what JSON cannot carry; the error names the field.
        """
        return self.codec.to_json(self)

    @classmethod
    def from_json(cls: type[R], text: str | bytes) -> R:
        """Read the record from one JSON object (`bytes` are UTF-8), as strictly as serde_json does.

        Raises:
            WireError: The text is no JSON, repeats a field, or is no such record; the error names the field.
        """
        return cls.codec.from_json(cls, text)


def _a_string(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, str):
        raise ShortTypeError(f"{attribute.name} must be a str, got {describe(value)}")


def _a_string_or_none(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ShortTypeError(f"{attribute.name} must be a str or None, got {describe(value)}")


def _a_bool(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not True and value is not False:
        raise ShortTypeError(f"{attribute.name} must be True or False, got {describe(value)}")


def _a_step_count_or_none(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise ShortTypeError(f"{attribute.name} must be an int or None, got {describe(value)}")
    if not 0 <= value <= MAX_STEPS_LIMIT:
        raise ShortValueError(f"{attribute.name} must be between 0 and 2**64 - 1, got {describe(value)}")


@frozen
class AgentStepSpec(WireRecord):
    """What to run; it does not depend on the backend.

    Attributes:
        task_id: The name of the step; give each step of a run its own, to tell the outcomes apart.
        agent: The name of the agent that runs it.
        description: A short label for people.
        prompt: The prompt for the agent.
        max_steps: The agent's own limit on its inner steps, 0 to 2**64 - 1.
        parent_session_id: The session that asked for this step.
        output_schema: A JSON Schema for `StepOutcome.structured`: the step succeeds only with a value that fits. Use
            `with_output_schema` to have it made of a class.

    Raises:
        TypeError: A field has the wrong type; nothing is coerced, so `True` is no `max_steps`.
        ValueError: `max_steps` is out of range.
    """

    task_id: str = field(validator=_a_string)
    agent: str = field(validator=_a_string)
    description: str = field(validator=_a_string)
    prompt: str = field(validator=_a_string)
    max_steps: int | None = field(default=None, validator=_a_step_count_or_none)
    parent_session_id: str | None = field(default=None, validator=_a_string_or_none)
    output_schema: Json | None = field(default=None, hash=False)

    def with_max_steps(self, max_steps: int | None) -> AgentStepSpec:
        """Return a copy with this `max_steps`."""
        return evolve(self, max_steps=max_steps)

    def with_parent_session_id(self, parent_session_id: str | None) -> AgentStepSpec:
        """Return a copy with this `parent_session_id`."""
        return evolve(self, parent_session_id=parent_session_id)

    def with_output_schema(self, output_schema: Json | type[Any] | None) -> AgentStepSpec:
        """Return a copy with this `output_schema`: a JSON Schema, or a class of which `schema_of` makes one.

        Raises:
            OptionError: There is no schema of the class; the error names the field at fault.
        """
        if isinstance(output_schema, type) or get_origin(output_schema) is not None:
            output_schema = self.classes.schema_of(output_schema)
        return evolve(self, output_schema=output_schema)


@frozen
class StepOutcome(WireRecord, DisplayedRecord):
    """The result of a step: the caller gets it, and it goes over the wire.

    Attributes:
        task_id: The `task_id` of the spec.
        session_id: The session that the step ran in.
        agent: The agent that ran it.
        output: The agent's text; for a failed step the reason.
        success: Whether it succeeded.
        structured: A JSON value, in addition to the text. If the spec has an `output_schema` and the step has
            succeeded, it fits that.

    Raises:
        TypeError: A field has the wrong type.
    """

    task_id: str = field(validator=_a_string)
    session_id: str = field(validator=_a_string)
    agent: str = field(validator=_a_string)
    output: str = field(validator=_a_string)
    success: bool = field(validator=_a_bool)
    structured: Json | None = field(default=None, hash=False)

    _repr_pretty_ = print_record

    @classmethod
    def failed(cls, task_id: str, agent: str, message: str) -> StepOutcome:
        """Return a failed outcome with `message` as its `output` and the default session id."""
        return cls(task_id, session_id_of(task_id), agent, message, False)

    @classmethod
    def completed(cls, spec: AgentStepSpec, output: str, structured: Json | None = None) -> StepOutcome:
        """Return a successful outcome of `spec`, with the default session id."""
        return cls(spec.task_id, session_id_of(spec.task_id), spec.agent, output, True, structured)

    def structured_as(self, cls: type[T]) -> T:
        """Return `structured` as an object of a class.

        Args:
            cls: A class that `schema_of` takes. A pydantic model validates the value itself; of other classes each
                field must have a value of its type, nothing is coerced, and unknown fields are ignored.

        Raises:
            WireError: The value does not fit, or there is none; the error names the field, as in
                `"structured.items[0].price"`.
            OptionError: `cls` is no such class; the error names the field at fault.
        """
        return self.classes.structure(self, cls)


def session_id_of(task_id: str) -> str:
    """Return the session id that a step has by default: `"task-run-{task_id}"`."""
    return f"task-run-{task_id}"
