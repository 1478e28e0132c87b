"""How an agent of a `FunctionExecutor` gets an object that cannot be sent to workers, or copied for threads."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from typing import Any

from ...executors.function import FunctionExecutor

_AGENT = re.compile(r"\._functions\[(['\"])(.*?)\1\]")
_NAME = re.compile(r"\((?:global|closure|default of) (\w+)\)")


def setup_advice(path: str, owners: Iterable[Any]) -> str:
    """Return how the agent's function that holds an object gets it from `setup`: two lines of code, to be appended.

    Args:
        path: The path to the object.
        owners: The objects on the way to it, from the outermost to the innermost.

    Returns:
        "" if it is no agent of a `FunctionExecutor` that holds it.
    """
    objects = list(owners)
    agent = _AGENT.search(path)
    if agent is None or not any(issubclass(type(owner), FunctionExecutor) for owner in objects):
        return ""
    functions = (owner.__name__ for owner in objects if type(owner) is types.FunctionType)
    function = next((name for name in functions if name.isidentifier()), "ask")
    names = _NAME.findall(path)
    name = names[-1].lower() if names else "client"
    return (
        " For this function:\n"
        f"    def {function}(spec, {name}): ...\n"
        f"    FunctionExecutor({{{agent[2]!r}: {function}}}, setup=lambda: {{{name!r}: ...}})"
    )
