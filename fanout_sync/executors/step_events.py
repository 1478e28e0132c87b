"""Events on their way from a step to the caller's channel."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..events.senders import EventSender, EventSink
from ..events.types import Event
from .current_step import current_step

logger = logging.getLogger(__name__)


class StepEvents:
    """The `event_tx` of the steps of one run, in this process.

    Args:
        event_tx: What the runner was given; `None` when only usage counts.
    """

    def __init__(self, event_tx: EventSink | None) -> None:
        self._event_tx = event_tx

    def send(self, event: Event) -> None:
        """Send `event` to whoever listens."""
        if self._event_tx is not None:
            self._event_tx.send(event)

    def usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Report what the running step has used up."""
        current_step().add_usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost_usd=cost_usd)


class EventForwarder:
    """Hands on the events that workers send as JSON; one that goes wrong costs no step anything."""

    def __init__(self, event_tx: EventSink) -> None:
        self._event_tx = event_tx

    def __call__(self, text: str) -> None:
        try:
            self._event_tx.send(Event.from_json(text))
        except (Exception, SystemExit):
            logger.exception("an event of a step was lost")


class Gate:
    """The `event_tx` of a step that may be given up: what it sends after that has no place among the events any more.

    Args:
        event_tx: Where events go.
        is_open: Whether the step still counts.
    """

    def __init__(self, event_tx: EventSender, is_open: Callable[[], bool]) -> None:
        self._event_tx = event_tx
        self._is_open = is_open

    def send(self, event: Event) -> None:
        """Send `event`, if the step still counts."""
        if self._is_open():
            self._event_tx.send(event)

    def usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Report usage, also of a step that no longer counts: it is used up all the same."""
        self._event_tx.usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost_usd=cost_usd)
