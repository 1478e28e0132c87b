"""Which part of an executor `copy.deepcopy` cannot copy."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any

from ..errors import ExecutorNotPicklable
from ..formatting import describe
from ..records.status import StepError
from ..workers.pickling.parts import parts_of
from ..workers.pickling.setup_advice import setup_advice

ADVICE = (
    "Make it in the executor's setup(), which runs in each thread; or, if threads may share it, give its class a "
    "__deepcopy__() that returns self."
)

_DEEPEST_PATH = 12


def refuse_uncopyable(executor: Any, error: Exception) -> ExecutorNotPicklable:
    """Return the error for an executor that cannot be copied; it names the innermost part that cannot be.

    Args:
        executor: The executor.
        error: What copying it has raised.
    """
    path, value, seen = "executor", executor, set[int]()
    owners = []
    for _ in range(_DEEPEST_PATH):
        seen.add(id(value))
        owners.append(value)
        for step, part in () if _is_imported(value) else parts_of(value):
            cause = None if id(part) in seen else _error_of_copying(part)
            if cause is not None:
                path, value, error = path + step, part, cause
                break
        else:
            break
    reason = str(StepError.of(error))
    if value is not executor:
        reason = f"it is {describe(value)} ({reason})"
    return ExecutorNotPicklable(path, reason, ADVICE + setup_advice(path, owners), is_copy=True)


def _error_of_copying(part: Any) -> Exception | None:
    try:
        copy.deepcopy(part)
    except Exception as error:
        return error
    return None


def _is_imported(value: Any) -> bool:
    """Whether it is a module that others share, so that its parts are not at fault."""
    return isinstance(value, types.ModuleType) and sys.modules.get(value.__name__) is value
