"""The `event_tx` of a step, which sends its events and reports its usage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import WireError
from ..events.senders import EventSender, EventSink, check_event
from .current_step import current_step

if TYPE_CHECKING:
    from ..events.types import Event

logger = logging.getLogger(__name__)


class StepSender:
    """The common part of every `event_tx` of a step: reports usage for the running step."""

    def usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Report usage of the running step; see `CurrentStep.add_usage`."""
        current_step().add_usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost_usd=cost_usd)


class DirectSender(StepSender):
    """The `event_tx` of steps that run in the caller's process.

    Args:
        event_tx: The runner's own `event_tx`; `None` if only usage is needed.
    """

    def __init__(self, event_tx: EventSink | None) -> None:
        self._event_tx = event_tx

    def send(self, event: Event) -> None:
        """Send `event` to the runner's own `event_tx`, whose errors are logged, as for steps in worker processes.

        Raises:
            TypeError: `event` is no `Event`.
            WireError: JSON cannot carry one of its fields.
        """
        check_event(event)
        if self._event_tx is None:
            return
        try:
            self._event_tx.send(event)
        except WireError:
            raise
        except (Exception, SystemExit):
            logger.exception("an event of a step was lost")


class RevocableSender(StepSender):
    """The `event_tx` of a step that may be abandoned: events that it sends after that are dropped; usage still counts.

    Args:
        event_tx: Takes the events.
        is_wanted: Returns whether the step is not abandoned.
    """

    def __init__(self, event_tx: EventSender, is_wanted: Callable[[], bool]) -> None:
        self._event_tx = event_tx
        self._is_wanted = is_wanted

    def send(self, event: Event) -> None:
        """Send `event`, unless the step is abandoned."""
        if self._is_wanted():
            self._event_tx.send(event)


class EventForwarder:
    """Passes on events that workers send as JSON; one that cannot be read or sent is logged, and changes no outcome."""

    def __init__(self, event_tx: EventSink) -> None:
        self._event_tx = event_tx

    def __call__(self, text: str) -> None:
        from ..events.types import Event  # imported lazily: slow, and most steps send no events

        try:
            self._event_tx.send(Event.from_json(text))
        except (Exception, SystemExit):
            logger.exception("an event of a step was lost")
