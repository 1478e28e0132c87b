"""What a run that goes on in the background looks like, and an output of a notebook cell that follows it."""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from attrs import frozen

from .progress import Progress

logger = logging.getLogger(__name__)

INTERVAL_S = 0.3
"""The output is replaced at most once in so many seconds."""

_COUNTS = ("failed", "cancelled", "retried", "reused", "running", "waiting")


@frozen
class HandleStatus:
    """How far a run in the background is, for people.

    Attributes:
        state: `"running"`, or how it has ended, in a few words.
        progress: Its numbers.
    """

    state: str
    progress: Progress

    def __str__(self) -> str:
        return f"{self.state}: {', '.join([self._steps(), *(f'{name}={count}' for name, count in self._counts())])}"

    def html(self) -> str:
        """Return the same as HTML, with times."""
        progress = self.progress
        parts = [self._steps(), *(f"{count} {name}" for name, count in self._counts()), f"{progress.elapsed_s:.0f} s"]
        if progress.eta_s:
            parts.append(f"about {progress.eta_s:.0f} s left")
        from html import escape  # imported lazily: slow, and only notebooks need it

        return f"<div><b>{escape(self.state)}</b>: {' · '.join(map(escape, parts))}</div>"

    def _steps(self) -> str:
        total = "" if self.progress.total is None else f" of {self.progress.total}"
        return f"{self.progress.done}{total} steps done"

    def _counts(self) -> list[tuple[str, int]]:
        return [(name, count) for name in _COUNTS if (count := getattr(self.progress, name))]


class LiveOutput:
    """An output of a notebook cell that is replaced while a run goes on. Replacing it never raises.

    Args:
        render: Returns what it shows now, by MIME type.
    """

    def __init__(self, render: Callable[[], dict[str, str]]) -> None:
        self._render = render
        self._id = os.urandom(16).hex()
        # What publishes the output; `None` as long as it is not shown, and when it cannot be replaced any more.
        self._publisher: Any = None
        self._next_at = 0.0
        self._lock = threading.Lock()  # so that nothing older is published after the last update

    def show(self) -> None:
        """Show it in the cell that is running.

        Raises:
            NotImplementedError: This is no notebook, or it fails; IPython shows the `repr` then.
        """
        publisher = _publisher_of_kernel()
        if publisher is None:
            raise NotImplementedError
        try:
            with self._lock:
                publisher.publish(self._render(), {}, transient={"display_id": self._id})
                self._publisher = publisher
        except Exception as error:  # a publisher of somebody else's
            logger.debug("the output of a run cannot be shown", exc_info=True)
            raise NotImplementedError from error

    def update(self) -> None:
        """Replace what is shown, if it is time and it is shown anywhere."""
        if self._publisher is not None and monotonic() >= self._next_at:
            self._replace()
            self._next_at = monotonic() + INTERVAL_S

    def end(self) -> None:
        """Replace what is shown for the last time."""
        self._replace()
        self._publisher = None

    def _replace(self) -> None:
        with self._lock:
            if (publisher := self._publisher) is None:
                return
            try:
                # Not in the context in which the run was started: there, ipykernel says that the message is of that
                # cell, and a program that executes a notebook, such as nbclient, listens only to the running cell.
                contextvars.Context().run(
                    publisher.publish, self._render(), {}, transient={"display_id": self._id}, update=True
                )
            except Exception:  # the kernel is ending, or a publisher of somebody else's
                logger.debug("the output of a run cannot be replaced any more", exc_info=True)
                self._publisher = None


def _publisher_of_kernel() -> Any:
    """Return what publishes outputs in the kernel of a notebook; `None` elsewhere, as in IPython on a terminal."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    return getattr(shell, "display_pub", None) if hasattr(shell, "kernel") else None
