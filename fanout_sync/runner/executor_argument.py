"""What is wrong with an executor that was given to a runner, and what to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError
from ..executors.executor import AgentExecutor
from ..formatting import describe


def refuse_executor(value: Any) -> OptionError:
    """Return the error for a value that is no executor."""
    refusal = f"executor must be an AgentExecutor, got {describe_argument(value, AgentExecutor)}"
    if isinstance(value, type) and issubclass(value, AgentExecutor):
        return OptionError(refusal)
    if isinstance(value, Mapping):
        return OptionError(f"{refusal}; wrap it: FunctionExecutor({{…}})")
    if callable(value) and not isinstance(value, type):
        name = str(getattr(value, "__name__", ""))
        functions = f"{name!r}: {name}" if name.isidentifier() else "…"
        return OptionError(f"{refusal}; wrap it: FunctionExecutor({{{functions}}})")
    return OptionError(f"{refusal}; subclass AgentExecutor, or wrap functions in a FunctionExecutor")


def describe_argument(value: Any, kind: type) -> str:
    """Return a description of an argument; of a class of the right kind, that it has to be called."""
    if isinstance(value, type) and issubclass(value, kind):
        return f"the class {value.__name__}; call it: {value.__name__}()"
    return describe(value)


def check_execute_step(executor: AgentExecutor) -> None:
    """Refuse an `execute_step` that cannot be called: otherwise every step would fail with the same `TypeError`.

    Raises:
        OptionError: It does not take a spec and an event sender, both by position.
    """
    method: Any = executor.execute_step
    expected = f"execute_step of {type(executor).__name__} must take (self, spec, event_tx=None)"
    if not callable(method):
        raise OptionError(f"{expected}, but it is {describe(method)}")
    try:
        # Of a decorator its own signature, not that of what it decorates: that is what is called.
        signature = inspect.signature(method, follow_wrapped=False)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise OptionError(f"{expected}, but its signature is {_written(method, signature)}") from None


def _written(method: Any, signature: inspect.Signature) -> inspect.Signature:
    """Return the signature as it is written in the class, with `self`."""
    if not inspect.ismethod(method):
        return signature
    try:
        return inspect.signature(method.__func__, follow_wrapped=False)
    except (TypeError, ValueError):
        return signature
