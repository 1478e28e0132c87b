"""Log records of workers: forwarded to the loggers of the caller."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from .. import forks, last_resort
from ..tracebacks import traceback_of

Levels = tuple[int, dict[str, int]]
"""The argument of `logging.disable`, and the level of each logger that has one of its own; the root's name is `""`."""

_Plain = (str, int, float, bool, type(None))
_formatter = logging.Formatter()


def levels_here() -> Levels:
    """Return the levels of this process: workers send only the records that its loggers would take."""
    manager = logging.root.manager
    levels = {"": logging.root.level}
    for name, logger in list(manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET:
            levels[str(name)] = logger.level
    return manager.disable, levels


class Forwarding:
    """Sends the log records of this process as plain data, even after code has changed the configuration of logging.

    Args:
        send: Called with the attributes of each record.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._handler = _Forwarder(send)
        self._disabled, self._levels = logging.NOTSET, {"": logging.WARNING}
        self.restore()
        # A child that a step forks must not send anything: its records are handled as in any other process.
        last_resort.install()
        forks.call_in_child(lambda: logging.root.removeHandler(self._handler))

    def set_levels(self, levels: Levels) -> None:
        """Use the levels of the caller in this process."""
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.NOTSET)
        self._disabled, self._levels = levels
        self._apply()

    def restore(self) -> None:
        """Undo what a step or `setup` did to the configuration: some frameworks configure logging themselves."""
        root = logging.root
        is_as_before = root.level == self._levels[""] and root.manager.disable == self._disabled
        if not is_as_before or self._handler not in root.handlers:
            self._apply()

    def _apply(self) -> None:
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
        except Exception:  # as other handlers do, for example when arguments do not fit the message
            self.handleError(record)


def emit_here(fields: dict[str, Any]) -> None:
    """Pass a record of another process to the logger of its name, if that logger takes records of its level.

    Raises:
        Exception: Any that a handler or a filter of the program raises.
    """
    logger = logging.getLogger(fields["name"])
    if logger.isEnabledFor(fields["levelno"]):
        logger.handle(logging.makeLogRecord(fields))


def _traceback_of(logger: str, exc_info: Any) -> str:
    is_ours = logger.partition(".")[0] == __name__.partition(".")[0]
    if is_ours and exc_info[1] is not None:  # which shows errors in the user's code
        return traceback_of(exc_info[1]).rstrip("\n")
    return _formatter.formatException(exc_info)


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields = {name: value for name, value in record.__dict__.items() if type(value) in _Plain}
    fields |= {"name": str(record.name), "msg": str(record.getMessage()), "args": None, "exc_info": None}
    fields |= {"levelno": int(record.levelno), "levelname": str(record.levelname)}  # a level may be an enum member
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = _traceback_of(record.name, record.exc_info)
    return fields
