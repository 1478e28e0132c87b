"""An executor whose agents are plain functions."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from ..checks import positive_int
from ..errors import OptionError
from ..events.senders import EventSender
from ..formatting import describe
from ..records.steps import AgentStepSpec, StepOutcome
from .answers import outcome_of
from .current_step import running_step
from .executor import DEFAULT_MAX_PARALLEL_TASKS, AgentExecutor
from .loops import is_event_loop_thread
from .setup_functions import Hook, SetupFunctions, await_hook, complete_hook
from .signature import AgentFunction, SenderPlace, sender_place

__all__ = ["FunctionExecutor"]

F = TypeVar("F", bound=AgentFunction)


class FunctionExecutor(AgentExecutor):
    """Runs the function that is registered under the spec's `agent`.

    A function takes `(spec)` or `(spec, event_tx)`. An `async def` function runs in the event loop of its process, see
    `AgentExecutor`. The parameter named `event_tx` gets the event sender, wherever it stands; it may be keyword-only.
    If there is none, the second parameter gets it, if that is positional and has no default. All other parameters keep
    their defaults; `*args` and `**kwargs` get nothing.

    The return value becomes the outcome. A `str` becomes its `output`, as do `bytes` that are UTF-8; a `StepOutcome` is
    passed on unchanged. Any other value becomes `structured`, and its JSON text `output`: a JSON value as it is, and as
    far as JSON can hold them also data classes, attrs classes and pydantic models (objects by field), tuples and sets
    (arrays), mappings with keys of any plain type, dates and times (ISO 8601), `timedelta` (seconds), `Decimal`, `UUID`
    and paths (strings), enums (their values), and numbers and arrays of numpy of at most 100 000 items, in any nesting.
    `None` and all other values make a failed outcome of status `invalid`; its `output` has the `repr` of the value, up
    to 1 MB.

    `setup` makes what does not pickle or is slow to make, such as a client: once in each worker process; on threads
    once per run, or once per thread if `thread_safe` is `False`. If it returns a mapping, each key is a name, and every
    function gets the values that its parameters name. Any other value goes to the one parameter without a default that
    a function has besides the spec and `event_tx`::

        def ask(spec, client):
            return client.ask(spec.prompt)

        FunctionExecutor({"ask": ask}, setup=Client, teardown=Client.close)
        FunctionExecutor({"ask": ask}, setup=lambda: {"client": Client(), "cache": Cache()})

    With `setup`, only a parameter named `event_tx` gets the event sender. The spec goes to the parameter `spec`, or to
    the first one that gets nothing else. If a function requires what `setup` does not return, `setup` fails, and the
    error names both.

    Args:
        functions: The functions by agent name.
        concurrency: How many steps may run at once.
        setup: Called without arguments before the first step of a worker; plain or `async`.
        teardown: Called after the last one; plain or `async`. If it requires an argument, it gets what `setup`
            returned; if it names keys of a mapping that `setup` returned, their values.

    Raises:
        OptionError: An argument has no usable value; the error names it.
    """

    def __init__(
        self,
        functions: Mapping[str, AgentFunction] | None = None,
        *,
        concurrency: int = DEFAULT_MAX_PARALLEL_TASKS,
        setup: Callable[[], Any] | None = None,
        teardown: Callable[..., Any] | None = None,
    ) -> None:
        if functions is not None and not isinstance(functions, Mapping):
            raise OptionError(
                f"functions must map agent names to functions, got {describe(functions)}{_hint(functions)}"
            )
        self._concurrency = positive_int("concurrency", concurrency)
        self._functions: dict[str, AgentFunction] = {}
        self._senders: dict[str, SenderPlace | None] = {}
        has_none = setup is None and teardown is None
        self._setup_functions = None if has_none else SetupFunctions(setup, teardown)
        for name, function in (functions or {}).items():
            self._add(name, function)

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that registers a function as the agent `name`, and returns the function unchanged."""

        def add(function: F) -> F:
            self._add(name, function)
            return function

        return add

    def concurrency_hint(self) -> int:
        return self._concurrency

    def _runs_in_event_loop(self) -> bool:
        functions = self._functions.values()
        return super()._runs_in_event_loop() or (bool(functions) and all(map(_is_async, functions)))

    def setup(self) -> Awaitable[None] | None:
        if self._setup_functions is None:
            return None
        return _called(self._setup_functions.set_up(self._functions))

    def teardown(self) -> Awaitable[None] | None:
        if self._setup_functions is None:
            return None
        return _called(self._setup_functions.tear_down())

    def _has_hook(self, name: str) -> bool:
        is_own = getattr(getattr(self, name), "__func__", None) is getattr(FunctionExecutor, name)
        return self._setup_functions is not None if is_own else super()._has_hook(name)

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        function = self._functions.get(spec.agent)
        if function is None:
            known = ", ".join(sorted(self._functions)) or "none"
            return StepOutcome.failed(
                spec.task_id, spec.agent, f"no agent {spec.agent!r} is registered; known agents: {known}"
            )
        if self._setup_functions is not None:
            value = self._setup_functions.call(spec.agent, function, spec, event_tx)
        else:
            place = self._senders[spec.agent]
            value = function(spec) if place is None else place.call(function, spec, event_tx)
        kind = type(value)
        # Most answers are of these types. To ask `inspect` is slow, because it asks an abstract base class.
        if kind is not str and kind is not StepOutcome and inspect.isawaitable(value):
            from .async_code import complete  # imported lazily: slow, and few agents are async

            value = complete(value, running_step.get())
        return outcome_of(spec, value)

    def _add(self, name: str, function: AgentFunction) -> None:
        if not isinstance(name, str):
            raise OptionError(f"the name of an agent must be a str, got {describe(name)}")
        if not callable(function):
            raise OptionError(f"agent {name!r} must be a function, got {describe(function)}")
        if self._setup_functions is None:
            self._senders[name] = sender_place(name, function)
        else:
            self._setup_functions.check(name, function)
        self._functions[name] = function


def _hint(functions: Any) -> str:
    """Return how to write what was probably meant; `""` if that cannot be told."""
    given = functions if isinstance(functions, (list, tuple)) else [functions]
    names = [getattr(function, "__name__", None) for function in given]
    if not names or not all(isinstance(name, str) and name.isidentifier() for name in names):
        return ""
    return f"; write FunctionExecutor({{{', '.join(f'{name!r}: {name}' for name in names)}}})"


def _called(hook: Hook) -> Awaitable[None] | None:
    """Call the functions of a hook, in this thread; those that are async in the event loop."""
    if is_event_loop_thread():  # which must not wait
        return await_hook(hook)
    complete_hook(hook)
    return None


def _is_async(function: AgentFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
