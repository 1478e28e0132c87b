"""The spec of a step that calls a function with an item: the item itself is no part of the wire format."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from ..errors import WireError
from ..formatting import describe, printable
from ..records.steps import AgentStepSpec
from .strict_json import write_json


@frozen
class PackedItem:
    """An item as it was sent to the process that runs its step, which has not unpickled it yet."""

    data: bytes


class ItemSpec(AgentStepSpec):
    """A spec that carries an item, of which the prompt is made when somebody asks for it.

    Most steps need no prompt, and to make the JSON of a large item takes long. Make one with `of`; a copy with other
    fields is a plain spec, without the item.

    Attributes:
        item: The item, or a `PackedItem` in a process that it was sent to.
    """

    __slots__ = ("_prompt", "item")
    item: Any
    _prompt: str

    description: str = ""
    max_steps: int | None = None
    parent_session_id: str | None = None
    output_schema: Any = None

    def __new__(cls, *args: Any, **fields: Any) -> AgentStepSpec:  # type: ignore[misc]  # what `attrs.evolve` gets
        return AgentStepSpec(*args, **fields)

    @classmethod
    def of(cls, task_id: str, agent: str, item: Any) -> ItemSpec:
        """Return the spec of a step that is called `task_id` and gets `item`."""
        spec: ItemSpec = object.__new__(cls)
        _set(spec, "task_id", task_id)
        _set(spec, "agent", agent)
        _set(spec, "item", item)
        return spec

    @property
    def prompt(self) -> str:
        """The item if it is a `str`, else its JSON, else its `repr`."""
        try:
            return self._prompt
        except AttributeError:
            prompt = prompt_of(self.item)
            _set(self, "_prompt", prompt)
            return prompt

    def set_item(self, item: Any) -> None:
        """Put the item in the place of its `PackedItem`, before anybody has seen the spec."""
        _set(self, "item", item)

    def __reduce__(self) -> tuple[Any, ...]:
        return ItemSpec.of, (self.task_id, self.agent, self.item)


_MOST_BYTES_SHOWN = 10_000
"""The `repr` of more bytes, such as those of a picture, is shortened."""

_set = object.__setattr__


def prompt_of(item: Any) -> str:
    """Return the text that stands for an item in a prompt."""
    if isinstance(item, str):
        return str.__str__(item)
    text = json_of(item)
    if text is not None:
        return text
    if isinstance(item, (bytes, bytearray)) and len(item) > _MOST_BYTES_SHOWN:
        return describe(bytes(item[:_MOST_BYTES_SHOWN])) + f" … ({len(item)} bytes)"
    try:
        return printable(str.__str__(repr(item)))
    except Exception:  # the class is the caller's
        return describe(item)


def json_of(item: Any) -> str | None:
    """Return an item as JSON, as strictly as the fields of records; `None` if it has none."""
    try:
        return write_json(item)
    except WireError:
        return None
    except Exception:  # a subclass of `dict` or `list` whose methods raise
        return None
