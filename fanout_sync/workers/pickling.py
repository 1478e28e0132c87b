"""Pickling an executor, and saying what is at fault when that fails. See `loading` for the other end."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING

import cloudpickle

from ..executors.executor import AgentExecutor
from .loading import PROTOCOL

if TYPE_CHECKING:
    from ..retry.policy import RetryRule

PICKLER: type[pickle.Pickler] = cloudpickle.Pickler


def pickle_executor(executor: AgentExecutor, retry_rule: RetryRule | None) -> bytes:
    """Return both, pickled; classes and functions of `__main__` and of notebook cells are pickled by value.

    They are pickled one after the other by one pickler, so that what both refer to stays one object, and yet the worker
    can tell which of them it cannot load.

    Raises:
        ExecutorNotPicklable: One of them cannot be pickled; the error names the attribute at fault.
    """
    values = {"executor": executor, "retry": retry_rule}
    buffer = io.BytesIO()
    pickler = PICKLER(buffer, protocol=PROTOCOL)
    try:
        for value in values.values():
            pickler.dump(value)
    except Exception as error:
        from .unpicklable import refuse_unpicklable  # imported lazily: only to say what is wrong

        raise refuse_unpicklable(values, PICKLER, error) from error
    return buffer.getvalue()
