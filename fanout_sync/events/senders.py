"""Who takes events: what a runner is given as `event_tx`, and what an executor gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .types import Event

__all__ = ["EventSender", "EventSink"]


class EventSink(Protocol):
    """What a runner takes as `event_tx`: an `EventChannel`, or anything else with a `send` method."""

    def send(self, event: Event) -> None:
        """Take `event`, from any thread."""


class EventSender(Protocol):
    """What an executor gets as `event_tx`, in a thread or in a worker process."""

    def send(self, event: Event) -> None:
        """Send `event` to whoever listens; never blocks on a listener."""

    def usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Report what the running step has used up; as `CurrentStep.add_usage`, in the same thread."""


def check_event(event: object) -> None:
    """Refuse to send what is no event.

    Raises:
        TypeError: It is something else; its type is named.
    """
    from .types import Event  # imported lazily: slow, and most workers send no events

    if not isinstance(event, Event):
        raise TypeError(f"event must be an Event, got {type(event).__name__}")
