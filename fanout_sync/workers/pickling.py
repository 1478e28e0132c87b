"""Pickling an executor, and saying what is at fault when that fails."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING

import cloudpickle

from ..executors.executor import AgentExecutor

if TYPE_CHECKING:
    from ..retry.policy import RetryRule

PICKLER: type[pickle.Pickler] = cloudpickle.Pickler


def pickle_executor(executor: AgentExecutor, retry_rule: RetryRule | None) -> bytes:
    """Return both, pickled as a pair; classes and functions of `__main__` and of notebook cells are pickled by value.

    Raises:
        ExecutorNotPicklable: One of them cannot be pickled; the error names the attribute at fault.
    """
    buffer = io.BytesIO()
    try:
        PICKLER(buffer, protocol=5).dump((executor, retry_rule))
    except Exception as error:
        from .unpicklable import refuse_unpicklable  # imported lazily: only to say what is wrong

        raise refuse_unpicklable({"executor": executor, "retry": retry_rule}, PICKLER, error) from error
    return buffer.getvalue()
