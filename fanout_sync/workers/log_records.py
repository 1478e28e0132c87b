"""Log records of workers, on their way to the caller's logging tree."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

Levels = tuple[int, dict[str, int]]
"""What `logging.disable` was given, and the level of each logger that has one of its own; the root's name is `""`."""

_Plain = (str, int, float, bool, type(None))
_formatter = logging.Formatter()


def levels_here() -> Levels:
    """Return the levels of this process, so that workers send what its loggers would take."""
    manager = logging.root.manager
    levels = {"": logging.root.level}
    for name, logger in list(manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET:
            levels[str(name)] = logger.level
    return manager.disable, levels


class Forwarding:
    """Sends what is logged in this process, as plain data, whatever somebody does to the configuration of logging.

    Args:
        send: Takes the attributes of a record.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._handler = _Forwarder(send)
        self._disabled, self._levels = logging.NOTSET, {"": logging.WARNING}
        self.keep()

    def adopt(self, levels: Levels) -> None:
        """Make the caller's levels those of this process."""
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.NOTSET)
        self._disabled, self._levels = levels
        self._put_back()

    def keep(self) -> None:
        """Put back what a step or `setup` did to it, as frameworks do that configure logging themselves."""
        root = logging.root
        is_as_before = root.level == self._levels[""] and root.manager.disable == self._disabled
        if not is_as_before or self._handler not in root.handlers:
            self._put_back()

    def _put_back(self) -> None:
        logging.disable(self._disabled)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        logging.root.addHandler(self._handler)


class _Forwarder(logging.Handler):
    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(_fields_of(record))
        except Exception:  # as handlers do: arguments that do not fit the message, for one
            self.handleError(record)


def emit_here(fields: dict[str, Any]) -> None:
    """Hand a record from elsewhere to the logger of its name, if that takes records of its level.

    Raises:
        Exception: Whatever a handler or a filter of the program raises.
    """
    logger = logging.getLogger(fields["name"])
    if logger.isEnabledFor(fields["levelno"]):
        logger.handle(logging.makeLogRecord(fields))


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields = {name: value for name, value in record.__dict__.items() if type(value) in _Plain}
    fields |= {"name": str(record.name), "msg": str(record.getMessage()), "args": None, "exc_info": None}
    fields |= {"levelno": int(record.levelno), "levelname": str(record.levelname)}  # an enum's member, perhaps
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = _formatter.formatException(record.exc_info)
    return fields
