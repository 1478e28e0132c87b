"""Warnings that point to the line of the caller's code that called the package."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..formatting import level_of_the_caller

logger = logging.getLogger(__name__)


_show: ContextVar[Callable[[str], object] | None] = ContextVar("fanout_sync.show_warning", default=None)


def warn_caller(message: str) -> None:
    """Give a `UserWarning` whose place is the first frame outside of the package."""
    show = _show.get()
    if show is None:
        warnings.warn(message, stacklevel=level_of_the_caller())
    else:
        show(message)


def warn_at_the_end(message: str) -> None:
    """Do the same at the end of a run; a program that turns warnings into errors must not lose the run by it.

    Then the message is logged.
    """
    try:
        warn_caller(message)
    except UserWarning:
        logger.warning("%s", message)


@contextmanager
def warnings_shown_by(show: Callable[[str], object]) -> Iterator[None]:
    """Have `show` called with each message instead: on the command line, no line of code has called the package."""
    token = _show.set(show)
    try:
        yield
    finally:
        _show.reset(token)
