"""Events on their way from a step to the caller's channel."""

from __future__ import annotations

from collections.abc import Callable

from ..events import Event
from ..executor import EventSender
from ..logs import logger_for

logger = logger_for(__name__)


class EventForwarder:
    """Hands on the events that workers send as JSON; one that goes wrong costs no step anything."""

    def __init__(self, event_tx: EventSender) -> None:
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
