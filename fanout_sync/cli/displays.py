"""Where the progress of a run is shown: live on a terminal, or as plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO, Protocol

from ..results.run_status import RunStatus
from .background_writer import LineWriter
from .run_text import plain_line, rendered
from .screen import Screen, draws_on

DRAW_S = 0.25
"""A terminal is drawn at most once in so many seconds."""

LINE_S = 10.0
"""Plain lines are written once in so many seconds."""


class Display(Protocol):
    """Shows how a run stands.

    Attributes:
        interval_s: `show` need not be called more often than once in so many seconds.
    """

    interval_s: float

    def show(self, status: RunStatus) -> None:
        """Show how the run stands."""

    def finish(self, status: RunStatus | None, error: BaseException | None = None) -> None:
        """Show it for the last time.

        Args:
            status: How the run stands; `None` if it has not begun.
            error: What has ended it, if it did not end by itself.
        """


class LiveDisplay:
    """A live view.

    Args:
        stream: The terminal.
    """

    interval_s = DRAW_S

    def __init__(self, stream: IO[str]) -> None:
        self.screen = Screen(stream)

    def show(self, status: RunStatus) -> None:
        self.screen.draw(rendered(status, self._width()))

    def finish(self, status: RunStatus | None, error: BaseException | None = None) -> None:
        content = None if status is None else rendered(status, self._width(), is_over=True)
        self.screen.finish(content, is_urgent=isinstance(error, KeyboardInterrupt))

    def _width(self) -> int:
        return max(1, self.screen.size()[0] - 1)


class PlainLines:
    """A line now and then, and one at the end.

    Args:
        stream: Where they go.
        shows_at_once: Whether the first line is written at once.
        clock: Returns seconds; monotonic.
    """

    interval_s = 1.0

    def __init__(
        self,
        stream: IO[str],
        *,
        shows_at_once: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = LineWriter(stream)
        self._clock = clock
        self._next_at = clock() + (0.0 if shows_at_once else LINE_S)

    def show(self, status: RunStatus) -> None:
        self._lines.check()
        if (now := self._clock()) >= self._next_at:
            self._next_at = now + LINE_S
            self._lines.offer(plain_line(status))

    def finish(self, status: RunStatus | None, error: BaseException | None = None) -> None:
        is_urgent = isinstance(error, KeyboardInterrupt)
        # The message of an error says how far the run came; and there is none if a reader such as `head` has left.
        if status is not None and not isinstance(error, Exception):
            self._lines.write(plain_line(status, is_over=True), is_urgent=is_urgent)
        self._lines.close(is_urgent=is_urgent)


def display_on(stream: IO[str], *, shows_at_once: bool = False) -> LiveDisplay | PlainLines:
    """Return a live view if the stream is a terminal that can show one, else plain lines.

    Args:
        stream: Where it is shown.
        shows_at_once: As for `PlainLines`.
    """
    if draws_on(stream):
        return LiveDisplay(stream)
    return PlainLines(stream, shows_at_once=shows_at_once)
