"""The events of running steps: flat records, which on the wire have a field `type` that names their class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from attrs import Attribute, field, frozen

from ..errors import WireError
from ..records.steps import Json, WireRecord
from ..tracebacks import ShortTypeError, ShortValueError
from ..wire.codec import as_mapping, fields_of, refuse_repeated
from ..wire.strict_json import check_json, check_text, described, parse_json, plain, write_json

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BudgetExhausted",
    "Event",
    "RunEnd",
    "RunStart",
    "StepRetry",
    "StepReused",
    "SubagentEnd",
    "SubagentProgress",
    "SubagentStart",
    "TextDelta",
    "ToolEnd",
    "ToolStart",
    "UnknownEvent",
]

Validator = Callable[[Any, "Attribute[Any]", Any], None]


class Event(WireRecord):
    """The base class of all events; `EventChannel` carries them.

    `Event.from_dict` and `Event.from_json` return an object of the class that `type` names, or an `UnknownEvent` if
    `type` is not known. The same methods of an event class accept only the `type` of that class. Unknown fields of a
    known type are ignored.
    """

    __slots__ = ()
    tag: ClassVar[str]

    @property
    def type(self) -> str:
        """The name of the event's type on the wire, such as `"text_delta"`."""
        return self.tag

    def to_dict(self) -> dict[str, Json]:
        """Return the event as plain JSON data, `type` first.

        Raises:
            WireError: A field holds what JSON cannot carry; the error names the field.
        """
        value = self._on_wire()
        check_json(value)
        return value

    def to_json(self) -> str:
        """Return the event as compact JSON, `type` first.

        Raises:
            WireError: A field holds what JSON cannot carry; the error names the field.
        """
        return write_json(self._on_wire())

    @classmethod
    def from_dict(cls, mapping: Any) -> Self:
        """Build the event that `type` names from plain JSON data; nothing is coerced.

        Raises:
            WireError: `type` or a field is missing or wrong; the error names it.
        """
        fields = as_mapping(mapping)
        refuse_repeated(fields, ("type",))
        tag = _tag_of(fields)
        event_class = _class_for(cls, tag)
        if event_class is not UnknownEvent:
            return cast("Self", cls.codec.from_dict(event_class, fields))
        check_json(fields if isinstance(fields, dict) else dict(fields))
        return cast("Self", UnknownEvent(tag, {name: plain(value) for name, value in fields.items() if name != "type"}))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read the event that `type` names from one JSON object.

        Raises:
            WireError: The text is no JSON, repeats a field, or is no such event; the error names the field.
        """
        return cls.from_dict(parse_json(text))

    def _on_wire(self) -> dict[str, Json]:
        return {"type": self.tag, **fields_of(self)}


def _tag_of(fields: Mapping[str, Json]) -> str:
    if "type" not in fields:
        raise WireError("missing; every event has one", "type")
    tag = fields["type"]
    if not isinstance(tag, str):
        raise WireError(f"expected a string, got {described(tag)}", "type")
    check_text(tag, "type")
    return tag


def _class_for(cls: type[Event], tag: str) -> type[Event]:
    # A class of the user's own is not in EVENT_CLASSES, but it reads its own type.
    event_class = cls if getattr(cls, "tag", None) == tag else EVENT_CLASSES.get(tag, UnknownEvent)
    if not issubclass(event_class, cls):
        expected = "the type of no known event" if cls is UnknownEvent else repr(cls.tag)
        raise WireError(f"expected {expected}, got {described(tag)}", "type")
    return event_class


def _only(*types: type) -> Validator:
    expected = " or ".join("None" if cls is type(None) else cls.__name__ for cls in types)

    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ShortTypeError(f"{attribute.name} must be {expected}, got {value!r:.60}")

    return validate


_a_str = _only(str)
_an_int = _only(int)
_an_int_or_none = _only(int, type(None))
_a_float = _only(float)
_a_bool = _only(bool)


def _as_float(value: float) -> float:
    # An int is a valid number of seconds; the validator refuses all other types.
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@frozen
class SubagentStart(Event):
    """A step begins. Exactly one `SubagentEnd` with the same `task_id` follows.

    Attributes:
        task_id: The `task_id` of the step's spec, as in every event of a step.
        session_id: The session id that a step has by default. The outcome, and so the `SubagentEnd`, may have another.
        parent_session_id: The session that asked for this step; `""` if there is none.
        agent: The agent that runs it.
        description: The spec's short label.
        started_ms: When, in milliseconds since the Unix epoch.
    """

    tag: ClassVar[str] = "subagent_start"
    task_id: str = field(validator=_a_str)
    session_id: str = field(validator=_a_str)
    parent_session_id: str = field(validator=_a_str)
    agent: str = field(validator=_a_str)
    description: str = field(validator=_a_str)
    started_ms: int = field(validator=_an_int)


@frozen
class SubagentProgress(Event):
    """A step reports its progress.

    Attributes:
        task_id: The step.
        session_id: The session it runs in.
        status: A word or a sentence for people.
        metadata: Any JSON value; always on the wire, even if it is `null`.
    """

    tag: ClassVar[str] = "subagent_progress"
    task_id: str = field(validator=_a_str)
    session_id: str = field(validator=_a_str)
    status: str = field(validator=_a_str)
    metadata: Json = field(hash=False)


@frozen
class SubagentEnd(Event):
    """A step has ended, successfully or not.

    Attributes:
        task_id: The step.
        session_id: The session id of its outcome.
        agent: The agent that ran it.
        output: The `output` of its outcome; for a failed step the reason.
        success: Whether it succeeded.
        finished_ms: When, in milliseconds since the Unix epoch.
    """

    tag: ClassVar[str] = "subagent_end"
    task_id: str = field(validator=_a_str)
    session_id: str = field(validator=_a_str)
    agent: str = field(validator=_a_str)
    output: str = field(validator=_a_str)
    success: bool = field(validator=_a_bool)
    finished_ms: int = field(validator=_an_int)


@frozen
class TextDelta(Event):
    """The agent wrote more text.

    Attributes:
        task_id: The step.
        text: The new text.
    """

    tag: ClassVar[str] = "text_delta"
    task_id: str = field(validator=_a_str)
    text: str = field(validator=_a_str)


@frozen
class ToolStart(Event):
    """The agent calls a tool.

    Attributes:
        task_id: The step.
        id: Identifies the call within the step.
        name: The tool.
    """

    tag: ClassVar[str] = "tool_start"
    task_id: str = field(validator=_a_str)
    id: str = field(validator=_a_str)
    name: str = field(validator=_a_str)


@frozen
class ToolEnd(Event):
    """A tool call has ended.

    Attributes:
        task_id: The step.
        id: The `id` of the `ToolStart`.
        name: The tool.
        output: The output of the tool.
        exit_code: The exit code of the tool; `None` if it has none.
    """

    tag: ClassVar[str] = "tool_end"
    task_id: str = field(validator=_a_str)
    id: str = field(validator=_a_str)
    name: str = field(validator=_a_str)
    output: str = field(validator=_a_str)
    exit_code: int | None = field(default=None, validator=_an_int_or_none)


@frozen
class StepRetry(Event):
    """An attempt failed, and the step will be tried again.

    Attributes:
        task_id: The step.
        attempt: The number of the attempt that failed, from 1.
        wait_s: Seconds until the next attempt.
        reason: Why it failed.
    """

    tag: ClassVar[str] = "step_retry"
    task_id: str = field(validator=_a_str)
    attempt: int = field(validator=_an_int)
    wait_s: float = field(converter=_as_float, validator=_a_float)
    reason: str = field(validator=_a_str)


@frozen
class StepReused(Event):
    """A step was not run, because the journal had its outcome. It has neither a `SubagentStart` nor a `SubagentEnd`.

    Attributes:
        task_id: The step.
        session_id: The session id of its outcome.
        agent: The agent that ran it.
        success: Whether it succeeded.
    """

    tag: ClassVar[str] = "step_reused"
    task_id: str = field(validator=_a_str)
    session_id: str = field(validator=_a_str)
    agent: str = field(validator=_a_str)
    success: bool = field(validator=_a_bool)


@frozen
class RunStart(Event):
    """A run begins.

    Attributes:
        run_id: Identifies the run.
        total: How many steps there are; `None` if the length of the input is not known.
    """

    tag: ClassVar[str] = "run_start"
    run_id: str = field(validator=_a_str)
    total: int | None = field(default=None, validator=_an_int_or_none)


@frozen
class RunEnd(Event):
    """A run has ended. `succeeded`, `failed` and `cancelled` together are all its steps.

    Attributes:
        run_id: The run.
        succeeded: How many steps succeeded, those whose outcome came from the journal included.
        failed: How many steps failed.
        elapsed_s: Seconds from the start of the run to its end.
        reused: How many of the steps were not run, because the journal had their outcome.
        cancelled: How many steps were cancelled, before they began or while they ran.
    """

    tag: ClassVar[str] = "run_end"
    run_id: str = field(validator=_a_str)
    succeeded: int = field(validator=_an_int)
    failed: int = field(validator=_an_int)
    elapsed_s: float = field(converter=_as_float, validator=_a_float)
    reused: int = field(default=0, validator=_an_int)
    cancelled: int = field(default=0, validator=_an_int)


@frozen
class BudgetExhausted(Event):
    """The budget of a run is used up, and no more steps are started. Sent once.

    Attributes:
        resource: The limit that was reached: `"tokens"`, `"cost_usd"`, `"seconds"` or `"steps"`.
        limit: The value of that limit.
        used: How much of the resource is used up.
    """

    tag: ClassVar[str] = "budget_exhausted"
    resource: str = field(validator=_a_str)
    limit: float = field(converter=_as_float, validator=_a_float)
    used: float = field(converter=_as_float, validator=_a_float)


EVENT_CLASSES: dict[str, type[Event]] = {
    cls.tag: cls
    for cls in (
        SubagentStart,
        SubagentProgress,
        SubagentEnd,
        TextDelta,
        ToolStart,
        ToolEnd,
        StepRetry,
        StepReused,
        RunStart,
        RunEnd,
        BudgetExhausted,
    )
}
"""The event classes by their `type`."""


def _an_unknown_type(event: Any, attribute: Attribute[Any], value: Any) -> None:
    _a_str(event, attribute, value)
    if value in EVENT_CLASSES:
        raise ShortValueError(
            f"type must be none of the known types, got {value!r}: use {EVENT_CLASSES[value].__name__}"
        )


def _fields_but_type(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, dict):
        raise ShortTypeError(f"fields must be a dict, got {value!r:.60}")
    if "type" in value:
        raise ShortValueError("fields must not contain 'type': pass it as the argument type")


@frozen
class UnknownEvent(Event):
    """An event of a type that this version does not know, such as one that a newer peer sent. It is kept unchanged.

    Attributes:
        type: The name of its type on the wire.
        fields: All other fields, unchanged.
    """

    type: str = field(validator=_an_unknown_type)
    fields: dict[str, Json] = field(validator=_fields_but_type, hash=False)

    def _on_wire(self) -> dict[str, Json]:
        return {"type": self.type, **self.fields}
