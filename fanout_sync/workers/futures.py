"""Futures, ended whatever their callbacks do."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger(__name__)


def end_future(future: Future[Any], result: Any, error: BaseException | None = None) -> None:
    """Give `future` its exception, or its result if there is none."""
    try:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    except BaseException:  # a callback of the caller's: only an Exception of it is held up by the future itself
        logger.exception("a future has ended, but a callback of it raised")


def cancel_future(future: Future[Any]) -> None:
    """Cancel `future`, which nobody is to run any more, so that those who wait for it hear of it."""
    try:
        future.cancel()
    except BaseException:  # as above
        logger.exception("a future is cancelled, but a callback of it raised")
    if future.cancelled():
        future.set_running_or_notify_cancel()
