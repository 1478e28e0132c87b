"""An executor whose agents are plain functions."""

from __future__ import annotations

import contextvars
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any, Literal, Protocol, TypeVar

from attrs import frozen

from ..checks import positive_int
from ..errors import OptionError, WireError
from ..events.senders import EventSender
from ..formatting import describe
from ..records.steps import AgentStepSpec, Json, StepOutcome
from ..wire.strict_json import write_json
from .executor import DEFAULT_MAX_PARALLEL_TASKS, AgentExecutor
from .late_import import late_imports

__all__ = ["FunctionExecutor"]


class SpecFunction(Protocol):
    """`(spec) -> …` or `(spec, event_tx) -> …`, plain or `async`, which returns a `str`, an outcome or a JSON value."""

    def __call__(self, spec: AgentStepSpec, /, *args: Any, **kwargs: Any) -> Any: ...


AgentFunction = SpecFunction | Callable[..., Any]
"""A function of a spec; or one whose parameters are in another order, as the sender is found by its name."""

F = TypeVar("F", bound=AgentFunction)


class FunctionExecutor(AgentExecutor):
    """Runs the function that is registered under the spec's `agent`.

    A function takes `(spec)` or `(spec, event_tx)`. An `async def` function runs in an event loop of its own in its
    worker. The parameter named `event_tx` gets the event sender, wherever it stands; it may be keyword-only. If there
    is none, the second parameter gets it, if that is positional and has no default. All other parameters keep their
    defaults; `*args` and `**kwargs` get nothing.

    The return value becomes the outcome. A `str` becomes its `output`; a `StepOutcome` is passed on unchanged; any
    other JSON value except `None` becomes `structured`, and its JSON text `output`. Any other value makes a failed
    outcome.

    Args:
        functions: The functions by agent name.
        concurrency: How many steps may run at once.

    Raises:
        OptionError: An argument has no usable value; the error names it.
    """

    def __init__(
        self, functions: Mapping[str, AgentFunction] | None = None, *, concurrency: int = DEFAULT_MAX_PARALLEL_TASKS
    ) -> None:
        if functions is not None and not isinstance(functions, Mapping):
            raise OptionError(f"functions must map agent names to functions, got {describe(functions)}")
        self._concurrency = positive_int("concurrency", concurrency)
        self._functions: dict[str, AgentFunction] = {}
        self._senders: dict[str, _SenderPlace | None] = {}
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

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        function = self._functions.get(spec.agent)
        if function is None:
            known = ", ".join(sorted(self._functions)) or "none"
            return StepOutcome.failed(
                spec.task_id, spec.agent, f"no agent {spec.agent!r} is registered; known agents: {known}"
            )
        place = self._senders[spec.agent]
        value = function(spec) if place is None else place.call(function, spec, event_tx)
        if inspect.isawaitable(value):
            value = _complete(value)
        return _outcome(spec, value)

    def _add(self, name: str, function: AgentFunction) -> None:
        if not isinstance(name, str):
            raise OptionError(f"the name of an agent must be a str, got {describe(name)}")
        if not callable(function):
            raise OptionError(f"agent {name!r} must be a function, got {describe(function)}")
        self._senders[name] = _sender_place(name, function)
        self._functions[name] = function


def _complete(awaitable: Awaitable[Any]) -> Any:
    with late_imports():
        import asyncio  # imported lazily: slow, and only async agents need it
        import concurrent.futures.thread  # noqa: F401 - asyncio imports it when `asyncio.to_thread` needs it

    async def complete() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(complete())
    # A loop runs in this thread already, as in a cell of a notebook, or in a pool that runs steps inline.
    try:
        return _in_a_thread(lambda: asyncio.run(complete()))
    except _NoThread as error:  # Python would warn about a coroutine that is not awaited
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise error.__cause__ or error from None


class _NoThread(Exception):
    """The system, or Python, starts no more threads."""


def _in_a_thread(function: Callable[[], Any]) -> Any:
    # No `ThreadPoolExecutor`, which takes nothing after the end of the main thread.
    future: Future[Any] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(function))
        except BaseException as error:  # the future has whatever the function raised
            future.set_exception(error)

    thread = threading.Thread(target=run)
    try:
        thread.start()
    except RuntimeError as error:
        raise _NoThread from error
    try:
        return future.result()
    finally:
        thread.join()


@frozen
class _SenderPlace:
    """How to pass the event sender to a function.

    Attributes:
        kind: By keyword, by position before the spec, or by position after it.
        between: For the last kind, the defaults of the parameters between the two, which have to be passed, too.
    """

    kind: Literal["keyword", "before", "after"]
    between: tuple[Any, ...] = ()

    def call(self, function: Callable[..., Any], spec: AgentStepSpec | None, event_tx: EventSender | None) -> Any:
        if self.kind == "keyword":
            return function(spec, event_tx=event_tx)
        if self.kind == "before":
            return function(event_tx, spec)
        return function(spec, *self.between, event_tx)


def _sender_place(name: str, function: AgentFunction) -> _SenderPlace | None:
    """Return how to pass the event sender to `function`; `None` if it takes none.

    Raises:
        OptionError: `function` cannot be called with a spec, or with a spec and a sender.
    """
    try:
        signature = _own_signature(function)
    except (TypeError, ValueError):  # some builtins have no signature; one argument is the best guess
        return None
    place = _place_in(signature, function)
    try:
        if place is None:
            signature.bind(None)
        else:
            place.call(signature.bind, None, None)
    except TypeError:
        raise OptionError(
            f"agent {name!r} must take (spec) or (spec, event_tx), but its signature is {signature}"
        ) from None
    return place


def _own_signature(function: AgentFunction) -> inspect.Signature:
    """Return what the function itself takes: of a decorator that passes on everything, what the decorated one does.

    Raises:
        TypeError, ValueError: It has no signature.
    """
    signature = inspect.signature(function, follow_wrapped=False)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    return inspect.signature(function) if inspect.Parameter.VAR_POSITIONAL in kinds else signature


def _place_in(signature: inspect.Signature, function: AgentFunction) -> _SenderPlace | None:
    positional = [parameter for parameter in signature.parameters.values() if parameter.kind in _POSITIONAL]
    named = signature.parameters.get("event_tx")
    if named is not None and named.kind not in _VARIADIC:
        return None if _is_filled(function) else _named_place(named, positional)
    if len(positional) > 1 and positional[1].default is inspect.Parameter.empty:
        return _SenderPlace("after")
    return None


def _named_place(named: inspect.Parameter, positional: list[inspect.Parameter]) -> _SenderPlace:
    if named not in positional:
        return _SenderPlace("keyword")
    index = positional.index(named)
    if index == 0:
        return _SenderPlace("before")
    if index == 1:  # by position, because a decorator may pass on only positional arguments
        return _SenderPlace("after")
    if named.kind is not inspect.Parameter.POSITIONAL_ONLY:
        return _SenderPlace("keyword")
    defaults = [parameter.default for parameter in positional[1:index]]
    # A parameter without a default gets no value: the call then lacks an argument, and the function is refused.
    return _SenderPlace("after", tuple(default for default in defaults if default is not inspect.Parameter.empty))


def _is_filled(function: AgentFunction) -> bool:
    """Whether `functools.partial` has already given `event_tx` a value, which is kept."""
    return isinstance(function, functools.partial) and "event_tx" in function.keywords


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _outcome(spec: AgentStepSpec, value: Any) -> StepOutcome:
    if isinstance(value, StepOutcome):
        return value
    if isinstance(value, str):
        return StepOutcome.completed(spec, value)
    if value is None:
        return _invalid(spec, "returned None; return a str, a StepOutcome or a JSON value")
    structured: Json = value
    try:
        text = write_json(structured)
    except WireError as error:
        return _invalid(spec, f"returned {describe(value)}, expected a str, a StepOutcome or a JSON value ({error})")
    return StepOutcome.completed(spec, text, structured)


def _invalid(spec: AgentStepSpec, reason: str) -> StepOutcome:
    return StepOutcome.failed(spec.task_id, spec.agent, f"agent {spec.agent!r} {reason}")
