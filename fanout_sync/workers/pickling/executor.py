"""Pickling an executor, and saying what is at fault when that fails. See `loading` for the other end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...executors.executor import AgentExecutor
from .code_dump import dump
from .code_pickler import CodePickler, Sent

if TYPE_CHECKING:
    from ...retry.policy import RetryRule


def pickle_executor(executor: AgentExecutor, retry_rule: RetryRule | None) -> tuple[bytes, Sent]:
    """Return both, pickled, and what was sent with them; see `code_dump.dump`.

    They are pickled one after the other by one pickler, so that what both refer to stays one object, and yet the worker
    can tell which of them it cannot load.

    Raises:
        ExecutorNotPicklable: One of them cannot be pickled; the error names the attribute at fault.
    """
    try:
        return dump(executor, retry_rule)
    except Exception as error:
        from .unpicklable import refuse_unpicklable  # imported lazily: only to say what is wrong

        raise refuse_unpicklable({"executor": executor, "retry": retry_rule}, CodePickler, error) from error
