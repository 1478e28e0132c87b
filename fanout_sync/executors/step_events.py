"""The `event_tx` of a step: where its events and its usage go."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..events.senders import EventSender, EventSink
from .current_step import current_step

if TYPE_CHECKING:
    from ..events.types import Event

logger = logging.getLogger(__name__)


class StepSender:
    """What every `event_tx` of a step has in common: it reports usage for the step that is running."""

    def usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Report what the running step has used up; see `CurrentStep.add_usage`."""
        current_step().add_usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost_usd=cost_usd)


class DirectSender(StepSender):
    """The `event_tx` of the steps of one run that run in the caller's process.

    Args:
        event_tx: What the runner was given; `None` when only usage counts.
    """

    def __init__(self, event_tx: EventSink | None) -> None:
        self._event_tx = event_tx

    def send(self, event: Event) -> None:
        """Send `event` to whoever listens."""
        if self._event_tx is not None:
            self._event_tx.send(event)


class RevocableSender(StepSender):
    """The `event_tx` of a step that may be given up: what it sends after that is dropped. Usage counts all the same.

    Args:
        event_tx: Where events go.
        is_wanted: Whether the step has not been given up.
    """

    def __init__(self, event_tx: EventSender, is_wanted: Callable[[], bool]) -> None:
        self._event_tx = event_tx
        self._is_wanted = is_wanted

    def send(self, event: Event) -> None:
        """Send `event`, unless the step has been given up."""
        if self._is_wanted():
            self._event_tx.send(event)


class EventForwarder:
    """Hands on the events that workers send as JSON; one that cannot be read or sent costs no step its outcome."""

    def __init__(self, event_tx: EventSink) -> None:
        self._event_tx = event_tx

    def __call__(self, text: str) -> None:
        from ..events.types import Event  # imported lazily: slow, and most steps send no events

        try:
            self._event_tx.send(Event.from_json(text))
        except (Exception, SystemExit):
            logger.exception("an event of a step was lost")
