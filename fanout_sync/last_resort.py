"""Errors and warnings that nobody else sees are shown on standard error, each once, as `warnings` does.

The package logs an error that has no other way to its user, such as one in the callback of a listener or in
`teardown`. A program that has configured logging finds it there. For all other programs there is a handler on the
logger of the package that shows it, like `logging.lastResort`. Workers forward their records to the caller, so only the
process of the caller decides.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from typing import Any

from .tracebacks import traceback_of

MOST_PLACES = 1000
"""How many places are remembered as shown. When there are more, all are forgotten, so that memory stays bounded."""

_LIBRARIES = (os.path.dirname(__file__), os.path.dirname(os.__file__), "<frozen ")  # noqa: PTH120 - compared as text
# Compiled when they are used: every process imports this module, and few ever show anything.
_SITE_PACKAGES = r"[\\/](site|dist)-packages[\\/]"
_FRAME = r'(?m)^[ |]*File "(.*)", line (\d+)'
_ERROR = r"(?m)^([^\W\d][\w.]*)"


class LastResort(logging.Handler):
    """Shows the records of the package that no other handler takes: an error once for each place that raised it.

    The place is the innermost line of the traceback that is the user's, together with the type of the exception. A
    record without a traceback is shown once for each text.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: set[object] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Show `record` on `sys.stderr`, unless another handler takes it or its place has been shown."""
        if _is_taken(record):
            return
        # Standard error may be anything here, and closed: what cannot be shown must not cost a step or a thread.
        with contextlib.suppress(Exception, SystemExit):
            message, traceback = record.getMessage(), _traceback_of(record)
            if self._is_new((_cell(), _place(traceback) or message)):
                if traceback:
                    message = f"{message} (shown once for each place; logging has all)\n{traceback}"
                _write(f"{__package__}: {message}\n")

    def _is_new(self, place: object) -> bool:
        if place in self._shown:
            return False
        if len(self._shown) >= MOST_PLACES:
            self._shown.clear()
        self._shown.add(place)
        return True


def install() -> None:
    """Have the records of the package shown that no handler of the program takes."""
    logger = logging.getLogger(__package__)
    if not any(isinstance(handler, LastResort) for handler in logger.handlers):
        logger.addHandler(LastResort())


def _is_taken(record: logging.LogRecord) -> bool:
    """Return whether a handler of the program gets the record, or would get it but for its filters."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None:
        for handler in logger.handlers:
            if record.levelno >= handler.level and not isinstance(handler, (LastResort, logging.NullHandler)):
                return True
        logger = logger.parent if logger.propagate else None
    return False


def _traceback_of(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[1] is not None:
        return traceback_of(record.exc_info[1]).rstrip("\n")
    return record.exc_text or ""  # of a worker process, which sends no exception objects


def _place(traceback: str) -> tuple[str, ...] | None:
    """Return file and line of the innermost frame that is the user's, and the type of the exception."""
    frames = list(re.finditer(_FRAME, traceback))
    if not frames:
        return None
    own = [frame for frame in frames if not _is_library(frame[1])]
    error = re.search(_ERROR, traceback[frames[-1].end() :])
    return (*(own or frames)[-1].groups(), "" if error is None else error[1])


def _is_library(path: str) -> bool:
    return path.startswith(_LIBRARIES) or re.search(_SITE_PACKAGES, path) is not None


def _cell() -> Any:
    """Return the number of the notebook's cell: one that is run again is to show its errors again; 0 elsewhere."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return 0 if get_shell is None else getattr(get_shell(), "execution_count", 0)


def _write(text: str) -> None:
    stream = sys.stderr  # looked up each time: notebooks and test frameworks replace it
    if stream is not None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
