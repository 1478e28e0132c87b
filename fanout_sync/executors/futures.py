"""Ending futures whose callbacks may raise."""

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
    except BaseException:  # from a callback of the caller; the future itself catches only `Exception`
        logger.exception("a callback of a future raised; the future has ended all the same")


def cancel_future(future: Future[Any]) -> None:
    """Cancel `future`, which will not be run any more, and notify those who wait for it."""
    try:
        future.cancel()
    except BaseException:  # as above
        logger.exception("a callback of a future raised; the future is cancelled all the same")
    if future.cancelled():
        future.set_running_or_notify_cancel()
