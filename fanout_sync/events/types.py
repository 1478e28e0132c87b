"""What happens while steps run: a flat record for each event, told apart on the wire by its `type`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from attrs import Attribute, field, frozen

from ..errors import WireError
from ..records.steps import Json, WireRecord
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
    """Any event: what `EventChannel` carries, and where reading starts when the type is not known beforehand.

    `Event.from_dict` and `Event.from_json` return the class that `type` names, an `UnknownEvent` if none does;
    the same methods of one event class accept only its own `type`. Unknown fields of a known type are ignored.
    """

    __slots__ = ()
    tag: ClassVar[str]

    @property
    def type(self) -> str:
        """The wire tag, such as `"text_delta"`."""
        return self.tag

    def to_dict(self) -> dict[str, Json]:
        """Return the event as plain JSON data, `type` first.

        Raises:
            WireError: A field holds what JSON cannot carry; it is named.
        """
        value = self._on_wire()
        check_json(value)
        return value

    def to_json(self) -> str:
        """Return the event as compact JSON, `type` first.

        Raises:
            WireError: A field holds what JSON cannot carry; it is named.
        """
        return write_json(self._on_wire())

    @classmethod
    def from_dict(cls, mapping: Any) -> Self:
        """Build the event that `type` names from plain JSON data; nothing is coerced.

        Raises:
            WireError: `type` or a field is missing or wrong; it is named.
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
            WireError: The text is no JSON, repeats a field, or is no such event; the field is named.
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
    # A class of the user's own is none of the known ones, and yet reads back what it writes.
    event_class = cls if getattr(cls, "tag", None) == tag else EVENT_CLASSES.get(tag, UnknownEvent)
    if not issubclass(event_class, cls):
        expected = "the type of no known event" if cls is UnknownEvent else repr(cls.tag)
        raise WireError(f"expected {expected}, got {described(tag)}", "type")
    return event_class


def _only(*types: type) -> Validator:
    expected = " or ".join("None" if cls is type(None) else cls.__name__ for cls in types)

    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(f"{attribute.name} must be {expected}, got {value!r:.60}")

    return validate


_a_str = _only(str)
_an_int = _only(int)
_an_int_or_none = _only(int, type(None))
_a_float = _only(float)
_a_bool = _only(bool)


def _as_float(value: float) -> float:
    # An int is a number of seconds too; everything else is left for the validator to refuse.
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@frozen
class SubagentStart(Event):
    """A step begins; exactly one `SubagentEnd` with the same `task_id` follows.

    Attributes:
        task_id: The `task_id` of the step's spec, as in every event of a step.
        session_id: The session it runs in.
        parent_session_id: The session that asked for it; `""` when there is none.
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
    """A step tells how far it is.

    Attributes:
        task_id: The step.
        session_id: The session it runs in.
        status: A word or a sentence for people.
        metadata: Any JSON value; always on the wire, `null` included.
    """

    tag: ClassVar[str] = "subagent_progress"
    task_id: str = field(validator=_a_str)
    session_id: str = field(validator=_a_str)
    status: str = field(validator=_a_str)
    metadata: Json = field(hash=False)


@frozen
class SubagentEnd(Event):
    """A step is over, however it ended.

    Attributes:
        task_id: The step.
        session_id: The session it ran in.
        agent: The agent that ran it.
        output: The outcome's text; for a failed step the reason.
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
    """The agent wrote some more text.

    Attributes:
        task_id: The step.
        text: What was added.
    """

    tag: ClassVar[str] = "text_delta"
    task_id: str = field(validator=_a_str)
    text: str = field(validator=_a_str)


@frozen
class ToolStart(Event):
    """The agent calls a tool.

    Attributes:
        task_id: The step.
        id: Names the call within the step.
        name: The tool.
    """

    tag: ClassVar[str] = "tool_start"
    task_id: str = field(validator=_a_str)
    id: str = field(validator=_a_str)
    name: str = field(validator=_a_str)


@frozen
class ToolEnd(Event):
    """A tool has answered.

    Attributes:
        task_id: The step.
        id: The `id` of the `ToolStart`.
        name: The tool.
        output: What it said.
        exit_code: Its exit code, if it has one.
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
        wait_s: How long until the next one, in seconds.
        reason: Why it failed.
    """

    tag: ClassVar[str] = "step_retry"
    task_id: str = field(validator=_a_str)
    attempt: int = field(validator=_an_int)
    wait_s: float = field(converter=_as_float, validator=_a_float)
    reason: str = field(validator=_a_str)


@frozen
class RunStart(Event):
    """A run begins.

    Attributes:
        run_id: Names the run.
        total: How many steps there are; `None` when the input has no known length.
    """

    tag: ClassVar[str] = "run_start"
    run_id: str = field(validator=_a_str)
    total: int | None = field(default=None, validator=_an_int_or_none)


@frozen
class RunEnd(Event):
    """A run is over.

    Attributes:
        run_id: The run.
        succeeded: How many steps succeeded.
        failed: How many did not.
        elapsed_s: How long it took, in seconds.
    """

    tag: ClassVar[str] = "run_end"
    run_id: str = field(validator=_a_str)
    succeeded: int = field(validator=_an_int)
    failed: int = field(validator=_an_int)
    elapsed_s: float = field(converter=_as_float, validator=_a_float)


@frozen
class BudgetExhausted(Event):
    """The budget of a run is used up: no more steps are started, and this is sent once.

    Attributes:
        resource: Which limit it is: `"tokens"`, `"cost_usd"`, `"seconds"` or `"steps"`.
        limit: How much there was of it.
        used: How much is used up.
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
        RunStart,
        RunEnd,
        BudgetExhausted,
    )
}
"""The class of every known `type`."""


def _an_unknown_type(event: Any, attribute: Attribute[Any], value: Any) -> None:
    _a_str(event, attribute, value)
    if value in EVENT_CLASSES:
        raise ValueError(f"type must be none of the known ones, got {value!r}: use {EVENT_CLASSES[value].__name__}")


def _fields_but_type(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"fields must be dict, got {value!r:.60}")
    if "type" in value:
        raise ValueError("fields must not contain 'type': it is an argument of its own")


@frozen
class UnknownEvent(Event):
    """An event that a newer or another peer sent; it goes on as it came.

    Attributes:
        type: Its wire tag.
        fields: All its other fields, as they came.
    """

    type: str = field(validator=_an_unknown_type)
    fields: dict[str, Json] = field(validator=_fields_but_type, hash=False)

    def _on_wire(self) -> dict[str, Json]:
        return {"type": self.type, **self.fields}
