"""How an agent of a `FunctionExecutor`, or a function of `fanout_map`, gets what cannot be sent to workers."""

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
    is_agents = any(issubclass(type(owner), FunctionExecutor) for owner in objects)
    if agent is None or not is_agents or takes_items(objects):
        return ""
    function, name = _names(path, objects)
    return (
        " For this function:\n"
        f"    def {function}(spec, {name}): ...\n"
        f"    FunctionExecutor({{{agent[2]!r}: {function}}}, setup=lambda: {{{name!r}: ...}})"
    )


def takes_items(owners: Iterable[Any]) -> bool:
    """Return whether one of these objects is the agent of `fanout_map`, which has no `setup`."""
    return any(type(owner).__name__ == "ItemFunction" for owner in owners)  # of `runner`, which stands above


def item_function_advice(path: str, owners: Iterable[Any]) -> str:
    """Return how the function of `fanout_map` that holds an object makes it in each worker; arguments as above."""
    function, name = _names(path, list(owners))
    return (
        "in the function, once in each worker, or use backend='thread'. For example:\n"
        "    @functools.cache\n"
        f"    def get_{name}(): ...\n"
        f"    def {function}(item): {name} = get_{name}(); ..."
    )


def _names(path: str, owners: list[Any]) -> tuple[str, str]:
    """Return the name of the function that holds an object, and that of the object."""
    functions = (owner.__name__ for owner in owners if type(owner) is types.FunctionType)
    function = next((name for name in functions if name.isidentifier()), "ask")
    names = _NAME.findall(path)
    return function, names[-1].lower() if names else "client"
