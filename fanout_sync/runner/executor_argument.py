"""What is wrong with an executor that was given to a runner, and what to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError
from ..executors.executor import AgentExecutor
from ..formatting import describe, describe_argument


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


def check_methods(executor: AgentExecutor) -> None:
    """Refuse methods that cannot be called: otherwise every step, or every worker, would fail with the same error.

    Raises:
        OptionError: A method does not take what it is called with, all by position.
    """
    for name, takes, count in _METHODS:
        method: Any = getattr(executor, name)
        expected = f"{name} of {type(executor).__name__} must take {takes}"
        if not callable(method):
            raise OptionError(f"{expected}, but it is {describe(method)}")
        try:
            # Of a decorator its own signature, not that of what it decorates: that is what is called.
            signature = inspect.signature(method, follow_wrapped=False)
        except (TypeError, ValueError):  # some builtins have none
            continue
        try:
            signature.bind(*[None] * count)
        except TypeError:
            raise OptionError(f"{expected}, but its signature is {_written(method, signature)}") from None


_METHODS = (
    ("execute_step", "(self, spec, event_tx=None)", 2),
    ("setup", "(self)", 0),
    ("teardown", "(self)", 0),
    ("timeout_for", "(self, spec)", 1),
    ("repair", "(self, spec, outcome, errors)", 3),
    ("concurrency_hint", "(self)", 0),
)
"""The methods of an executor: how they are written, and how many arguments they are called with."""


def _written(method: Any, signature: inspect.Signature) -> inspect.Signature:
    """Return the signature as it is written in the class, with `self`."""
    if not inspect.ismethod(method):
        return signature
    try:
        return inspect.signature(method.__func__, follow_wrapped=False)
    except (TypeError, ValueError):
        return signature
