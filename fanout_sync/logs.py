"""The loggers of the package, silent until the program configures logging."""

from __future__ import annotations

import logging

logging.getLogger("fanout_sync").addHandler(logging.NullHandler())


def logger_for(module: str) -> logging.Logger:
    """Return the logger of a module, given its `__name__`."""
    return logging.getLogger(module)
