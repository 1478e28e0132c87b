"""Pickling an executor, and finding the attribute at fault when that fails."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ExecutorNotPicklable
from ..executors.executor import AgentExecutor
from ..formatting import describe
from ..records.status import StepError
from .code_pickler import Sent, dump

if TYPE_CHECKING:
    from ..retry.policy import RetryRule

_DEEPEST_PATH = 12


def pickle_executor(executor: AgentExecutor, retry_rule: RetryRule | None) -> tuple[bytes, Sent]:
    """Return both, pickled as a pair, and what was sent with them; see `code_pickler.dump`.

    Raises:
        ExecutorNotPicklable: One of them cannot be pickled; the error names the attribute at fault.
    """
    try:
        return dump((executor, retry_rule))
    except Exception as error:
        culprit: tuple[str, Any] = ("executor", executor)
        if _is_picklable(executor):
            culprit = ("retry", retry_rule)
        path, value, cause = find_culprit(*culprit, error, _dumps)
        if value is executor:
            raise ExecutorNotPicklable(path, f"{StepError.of(cause)}") from error
        raise ExecutorNotPicklable(path, f"it is {describe(value)} ({StepError.of(cause)})") from error


def _dumps(value: Any) -> bytes:
    return dump(value)[0]


def _is_picklable(value: Any) -> bool:
    try:
        _dumps(value)
    except Exception:  # `find_culprit` finds out why
        return False
    return True


def find_culprit(
    path: str, value: Any, error: Exception, attempt: Callable[[Any], object]
) -> tuple[str, Any, Exception]:
    """Return the innermost part of `value` that `attempt` fails for: its path, itself, and the error.

    Args:
        path: The path of `value`.
        value: What `attempt` has failed for.
        error: What it raised.
        attempt: Pickles or copies what it is given.
    """
    seen: set[int] = set()
    for _ in range(_DEEPEST_PATH):
        seen.add(id(value))
        for step, part in () if _is_imported(value) else _parts(value):
            if id(part) in seen:
                continue
            try:
                attempt(part)
            except Exception as cause:
                path, value, error = path + step, part, cause
                break
        else:
            break
    return path, value, error


def _is_imported(value: Any) -> bool:
    """Whether it is a module that others share, so that its parts are not at fault."""
    return isinstance(value, types.ModuleType) and sys.modules.get(value.__name__) is value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        return
    if isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
        return
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from (("{…}", part) for part in value)
    yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                yield f".{name}", getattr(value, name)
    if type(value).__module__ == "__main__":
        yield from ((f".{name}", part) for name, part in vars(type(value)).items() if callable(part))


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"(closure {name})", cell.cell_contents
        except ValueError:  # a cell that is still empty
            continue
    for index, default in enumerate(function.__defaults__ or ()):
        yield f"(default {index})", default
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"(global {name})", function.__globals__[name]
