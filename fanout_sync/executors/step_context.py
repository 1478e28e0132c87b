"""The context variables of an executor: of its `setup`, its steps and its `teardown`."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .executor import AgentExecutor
from .loops import note_nesting

if TYPE_CHECKING:
    from .event_loop import EventLoop


class StepContext:
    """The context variables of an executor: `setup` and `teardown` run in one context, each step in a copy of it.

    So a step sees the values that `setup` has set, and none that another step has set. A variable whose value is a
    mutable object holds the same object in every copy; of such objects only the decimal context is copied, too.

    Args:
        base: Begin as a copy of this one, in which nothing may be running; by default of the current context.

    Attributes:
        copy: Returns a context for one step. Called for every step, so it is `Context.copy` itself where possible.
    """

    copy: Callable[[], contextvars.Context]

    def __init__(self, base: StepContext | None = None) -> None:
        self._context: contextvars.Context = own_context() if base is None else _separate_copy(base._context)
        self._context.run(note_nesting)
        self._loop: EventLoop | None = None
        self._choose_copy()

    @property
    def is_outdated(self) -> bool:
        """Whether the event loop in which `setup` was called is abandoned, and with it what belongs to that loop."""
        return self._loop is not None and self._loop.is_abandoned

    def set_up(self, executor: AgentExecutor) -> None:
        """Call `setup` of an executor, plain or async; steps see the context variables that it sets.

        Raises:
            BaseException: Whatever `setup` raises.
        """
        self._call(executor, "setup")

    def tear_down(self, executor: AgentExecutor) -> None:
        """Call `teardown` of an executor, plain or async.

        Raises:
            BaseException: Whatever `teardown` raises.
        """
        self._call(executor, "teardown")

    def _call(self, executor: AgentExecutor, name: str) -> None:
        if not executor._has_hook(name):
            return
        from .async_code import call_in_loop  # imported lazily: slow, and few executors have hooks in the loop

        hook, title = getattr(executor, name), f"{name}() of {type(executor).__name__}"
        try:
            # Where the steps run, so that a plain hook, too, can make what belongs to an event loop or to its thread.
            if executor._runs_in_event_loop() or inspect.iscoroutinefunction(hook):
                self._context, self._loop = self._context.run(call_in_loop, hook, title)
                return
            result = self._context.run(hook)
            if inspect.isawaitable(result):
                self._context, self._loop = self._context.run(call_in_loop, lambda: result, title)
        finally:
            self._choose_copy()

    def _choose_copy(self) -> None:
        if _decimal_variable(self._context) is None:
            self.copy = self._context.copy
        else:
            self.copy = lambda: _separate_copy(self._context)


def own_context() -> contextvars.Context:
    """Return a copy of the current context, with a copy of its decimal context."""
    return _separate_copy(contextvars.copy_context())


def _separate_copy(context: contextvars.Context) -> contextvars.Context:
    copied = context.copy()
    variable = _decimal_variable(context)
    if variable is not None:
        # `decimal.getcontext().prec = 5` changes the object that the variable holds, and copies share that object.
        copied.run(variable.set, context[variable].copy())
    return copied


def _decimal_variable(context: contextvars.Context) -> contextvars.ContextVar[Any] | None:
    """Return the variable that holds the decimal context; `None` if `context` has none yet.

    The `decimal` module does not export this variable.
    """
    for variable in context:
        if variable.name == "decimal_context" and type(context[variable]).__module__ == "decimal":
            return variable
    return None
