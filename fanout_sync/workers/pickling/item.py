"""Pickling the item of one step for a process that has the executor already; `loading.load_item` loads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...records.status import StepError
from .code_dump import dump_late
from .code_pickler import CodePickler, Sent

PickleItem = Callable[[int, Any], bytes]
"""Returns the item of the step with this index as bytes; raises `ItemNotPicklable`."""


class ItemNotPicklable(Exception):
    """An item cannot be sent to another process; the message names it, and the part of it that is at fault."""


def item_pickler(sent: Sent) -> PickleItem:
    """Return a function that pickles items for processes that have what was sent before; see `code_dump.sent_code`."""

    def pickle_item(index: int, item: Any) -> bytes:
        try:
            return dump_late(item, sent)
        except (Exception, SystemExit) as error:  # code of the item's class
            raise ItemNotPicklable(_refusal(f"items[{index}]", item, error)) from error

    return pickle_item


def _refusal(name: str, item: Any, error: Exception | SystemExit) -> str:
    place, reason = name, str(StepError.of(error))
    if isinstance(error, Exception):
        from .unpicklable import refuse_unpicklable  # imported lazily: only to say what is wrong

        found = refuse_unpicklable({name: item}, CodePickler, error)
        if found.path.startswith(name):
            place, reason = found.path, found.reason
    return f"{place} cannot be sent to another process: {reason}"
