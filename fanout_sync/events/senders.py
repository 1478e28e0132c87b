"""The protocols of `event_tx`: of the object that a runner takes, and of the one that an executor gets."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from ..tracebacks import ShortTypeError

if TYPE_CHECKING:
    from .types import Event

__all__ = ["EventSender", "EventSink"]


class EventSink(Protocol):
    """The `event_tx` of a runner: an `EventChannel`, or any other object with a `send` method."""

    def send(self, event: Event) -> None:
        """Take `event`; called from any thread."""


@frozen
class FunctionSink:
    """The `EventSink` of a plain function."""

    function: Callable[[Event], object]

    def send(self, event: Event) -> None:
        """Call the function with `event`."""
        self.function(event)


class EventSender(Protocol):
    """The `event_tx` that an executor gets, in a thread or in a worker process."""

    def send(self, event: Event) -> None:
        """Send `event` to the `event_tx` of the runner; never waits for a listener."""

    def usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Report usage of the running step, as `CurrentStep.add_usage` does; call it in the thread of the step."""


def is_async(function: Any) -> bool:
    """Return whether calling `function`, which is callable, only makes a coroutine, which nobody would await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def check_event(event: object) -> None:
    """Refuse to send an object that is no event.

    Raises:
        TypeError: `event` is no `Event`; the error names its type.
    """
    if not isinstance(event, _event_class()):
        raise ShortTypeError(f"event must be an Event, got {type(event).__name__}")


@functools.cache  # an import statement costs more than all else that is done to send an event
def _event_class() -> type:
    from .types import Event  # imported lazily: slow, and most workers send no events

    return Event
