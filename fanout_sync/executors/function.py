"""Plain functions as agents."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..checks import positive_int
from ..errors import OptionError, WireError
from ..events.senders import EventSender
from ..formatting import describe
from ..records.steps import AgentStepSpec, Json, StepOutcome
from ..wire.strict_json import write_json
from .executor import DEFAULT_MAX_PARALLEL_TASKS, AgentExecutor

__all__ = ["FunctionExecutor"]

AgentFunction = Callable[..., Any]
"""`(spec)` or `(spec, event_tx)`, plain or `async`, to a `str`, a `StepOutcome` or a JSON value."""

F = TypeVar("F", bound=AgentFunction)


class FunctionExecutor(AgentExecutor):
    """Runs the function that is registered under the spec's `agent`.

    A function takes `(spec)` or `(spec, event_tx)` and may be `async def`: then it runs in an event loop of its own
    in its worker. What it returns becomes the outcome: a `str` its `output`; a `StepOutcome` is taken as it is; any
    other JSON value but `None` becomes `structured`, and its text `output`. Anything else is a failed outcome.

    Args:
        functions: The functions by agent name.
        concurrency: How many steps may run at once.

    Raises:
        OptionError: An argument is unusable; it is named.
    """

    def __init__(
        self, functions: Mapping[str, AgentFunction] | None = None, *, concurrency: int = DEFAULT_MAX_PARALLEL_TASKS
    ) -> None:
        if functions is not None and not isinstance(functions, Mapping):
            raise OptionError(f"functions must map agent names to functions, got {describe(functions)}")
        self._concurrency = positive_int("concurrency", concurrency)
        self._functions: dict[str, AgentFunction] = {}
        self._takes_event_tx: dict[str, bool] = {}
        for name, function in (functions or {}).items():
            self._add(name, function)

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that registers a function as the agent `name`, and leaves it as it is."""

        def add(function: F) -> F:
            self._add(name, function)
            return function

        return add

    def concurrency_hint(self) -> int:
        return self._concurrency

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        function = self._functions.get(spec.agent)
        if function is None:
            known = ", ".join(sorted(self._functions)) or "none"
            return StepOutcome.failed(
                spec.task_id, spec.agent, f"no agent {spec.agent!r} is registered; known agents: {known}"
            )
        value = function(spec, event_tx) if self._takes_event_tx[spec.agent] else function(spec)
        if inspect.isawaitable(value):
            value = _complete(value)
        return _outcome(spec, value)

    def _add(self, name: str, function: AgentFunction) -> None:
        if not isinstance(name, str):
            raise OptionError(f"the name of an agent must be a str, got {describe(name)}")
        if not callable(function):
            raise OptionError(f"agent {name!r} must be a function, got {describe(function)}")
        self._takes_event_tx[name] = _takes_event_tx(name, function)
        self._functions[name] = function


def _complete(awaitable: Awaitable[Any]) -> Any:
    import asyncio  # only those who have async agents pay for it

    async def complete() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(complete())
    # Called directly in a notebook's cell, or by a pool that runs steps inline: this thread's loop is taken.
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, asyncio.run, complete()).result()


def _takes_event_tx(name: str, function: AgentFunction) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none; then one argument is the best guess
        return False
    for count, answer in ((2, True), (1, False)):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return answer
    raise OptionError(f"agent {name!r} must take (spec) or (spec, event_tx), but its signature is {signature}")


def _outcome(spec: AgentStepSpec, value: Any) -> StepOutcome:
    if isinstance(value, StepOutcome):
        return value
    if isinstance(value, str):
        return StepOutcome.completed(spec, value)
    if value is None:
        return _useless(spec, "returned None; return a str, a StepOutcome or a JSON value")
    structured: Json = value
    try:
        text = write_json(structured)
    except WireError as error:
        return _useless(spec, f"returned {describe(value)}, expected a str, a StepOutcome or a JSON value ({error})")
    return StepOutcome.completed(spec, text, structured)


def _useless(spec: AgentStepSpec, reason: str) -> StepOutcome:
    return StepOutcome.failed(spec.task_id, spec.agent, f"agent {spec.agent!r} {reason}")
