"""Events that come from another process as JSON, handed on to the caller's channel."""

from __future__ import annotations

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
