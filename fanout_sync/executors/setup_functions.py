"""The functions `setup` and `teardown` of a `FunctionExecutor`, and how its agents get what `setup` returned."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from typing import Any

from attrs import frozen

from ..errors import OptionError
from ..events.senders import EventSender
from ..formatting import describe
from ..records.steps import AgentStepSpec
from .signature import POSITIONAL, VARIADIC, AgentFunction, own_signature

_SPEC, _SENDER = object(), object()
_RESERVED = ("spec", "event_tx")

Hook = Generator[Any, Any, None]
"""A hook that yields what a function has returned, which may be an awaitable, and is sent the result of that."""

_prepared: ContextVar[Mapping[int, Prepared]] = ContextVar("fanout_sync_setup")
"""What `setup` returned, by the `id` of its `SetupFunctions`.

A context variable, because each run has a `setup` of its own and runs its steps in the context that this leaves: two
runs of one executor at the same time do not see each other's clients, and none of them is pickled with the executor.
"""


def complete_hook(hook: Hook) -> None:
    """Run a hook to its end; wait for what is async."""
    from .async_code import complete  # imported lazily: slow, and few hooks are async

    try:
        value = next(hook)
        while True:
            value = hook.send(complete(value, None) if inspect.isawaitable(value) else value)
    except StopIteration:
        return


async def await_hook(hook: Hook) -> None:
    """Run a hook to its end in the event loop."""
    try:
        value = next(hook)
        while True:
            value = hook.send(await value if inspect.isawaitable(value) else value)
    except StopIteration:
        return


class SetupFunctions:
    """Calls `setup` and `teardown`, and agents with what `setup` returned.

    Args:
        setup: Takes nothing. If it returns a mapping, each key is the name of a parameter; any other value but `None`
            goes to the one parameter of a function that is left.
        teardown: Gets what `setup` returned, in the same way; or takes nothing.

    Raises:
        OptionError: One of them is no function, or takes other arguments.
    """

    def __init__(self, setup: Callable[[], Any] | None, teardown: Callable[..., Any] | None) -> None:
        self.setup = setup
        self.teardown = teardown
        if setup is not None:
            _check_setup(setup)
        if teardown is not None:
            _check_teardown(teardown, has_setup=setup is not None)

    def check(self, name: str, function: AgentFunction) -> None:
        """Refuse an agent's function that has no place for the spec.

        Raises:
            OptionError: It has none. What else it requires is known when `setup` has returned.
        """
        signature = _signature_of(function)
        if signature is None or _takes_any_number(signature):
            return
        if _spec_parameter(_open_parameters(signature, function), {"event_tx": None}) is None:
            raise OptionError(f"agent {name!r} must take the spec, but its signature is {signature}")

    def set_up(self, functions: Mapping[str, AgentFunction]) -> Hook:
        """Call `setup`, and keep what it returns for the steps that run in the current context, or in a copy of it.

        Raises:
            OptionError: A function requires what `setup` has not returned. `teardown` has been called then.
        """
        value = None if self.setup is None else (yield self.setup())
        prepared = Prepared(value, None, {})
        try:
            _check_result(value)
            calls = {name: prepared.call_of(name, function) for name, function in functions.items()}
            end = None if self.teardown is None else _teardown_call(self.teardown, value)
        except BaseException:
            yield from self._tear_down_early(value)
            raise
        self._keep(Prepared(value, end, calls))

    def tear_down(self) -> Hook:
        """Call `teardown`, if there is one."""
        prepared = self._get()
        self._keep(None)
        if prepared.teardown is not None:
            yield prepared.teardown.call(None, None)

    def call(self, name: str, function: AgentFunction, spec: AgentStepSpec, event_tx: EventSender | None) -> Any:
        """Call an agent's function.

        Raises:
            RuntimeError: `set_up` was not called in the current context.
        """
        prepared = self._get()
        call = prepared.calls.get(name)
        if call is None or call.function is not function:  # registered since
            call = prepared.calls[name] = prepared.call_of(name, function)
        return call.call(spec, event_tx)

    def _get(self) -> Prepared:
        prepared = _prepared.get({}).get(id(self))
        if prepared is None:
            raise RuntimeError(
                "setup() of this FunctionExecutor was not called here; a Runner calls it, and so must an executor that "
                "calls this one, in its own setup()"
            )
        return prepared

    def _keep(self, prepared: Prepared | None) -> None:
        others = {key: value for key, value in _prepared.get({}).items() if key != id(self)}
        _prepared.set(others if prepared is None else {**others, id(self): prepared})

    def _tear_down_early(self, value: Any) -> Hook:
        if self.teardown is None or inspect.isgenerator(value):
            return
        try:
            call = _teardown_call(self.teardown, value)
        except OptionError:  # `setup` and `teardown` do not fit together: nothing can be undone
            return
        yield call.call(None, None)


@frozen(eq=False)
class Prepared:
    """What one call of `setup` returned, and who gets what of it.

    Attributes:
        value: What it returned.
        teardown: How to call `teardown`; `None` if there is none.
        calls: How to call the agents, by name; more are added for functions that are registered later.
    """

    value: Any
    teardown: FunctionCall | None
    calls: dict[str, FunctionCall]

    def call_of(self, name: str, function: AgentFunction) -> FunctionCall:
        """Return how to call an agent's function.

        Raises:
            OptionError: It requires what `setup` has not returned.
        """
        return _agent_call(f"agent {name!r}", function, self.value)


@frozen(eq=False)
class FunctionCall:
    """A call that lacks only the spec and the event sender.

    Attributes:
        function: What to call.
        positional: The arguments by position, with `_SPEC` and `_SENDER` in place of these two.
        keywords: The arguments by keyword, in the same way.
    """

    function: AgentFunction
    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def call(self, spec: AgentStepSpec | None, event_tx: EventSender | None) -> Any:
        def filled(value: Any) -> Any:
            return spec if value is _SPEC else event_tx if value is _SENDER else value

        arguments = [filled(value) for value in self.positional]
        return self.function(*arguments, **{name: filled(value) for name, value in self.keywords.items()})


def _agent_call(what: str, function: AgentFunction, value: Any) -> FunctionCall:
    """Return how to call an agent's function with what `setup` has returned.

    Args:
        what: The function, for the error.
        function: The function.
        value: What `setup` has returned.

    Raises:
        OptionError: It requires something else.
    """
    signature = _signature_of(function)
    if signature is None:
        return FunctionCall(function, (_SPEC,), {})
    given = {**(value if isinstance(value, Mapping) else {}), "event_tx": _SENDER}
    parameters = _open_parameters(signature, function)
    place = _spec_parameter(parameters, given)
    if place is None and not _takes_any_number(signature):
        raise OptionError(f"{what} has no parameter left for the spec: its signature is {signature}, {_gives(value)}")
    if place is not None:
        given[place] = _SPEC
    left = _required(parameters, given)
    if left and value is not None and not isinstance(value, Mapping):
        given[left.pop(0)] = value
    if left:
        names = ", ".join(repr(name) for name in left)
        raise OptionError(f"{what} requires {names}, {_gives(value)}; return a dict with a key for each")
    return _bound(function, parameters, given, () if place else (_SPEC,))


def _teardown_call(function: Callable[..., Any], value: Any) -> FunctionCall:
    """Return how to call `teardown` with what `setup` has returned.

    Raises:
        OptionError: It requires more than one argument, and they are no names of what `setup` has returned.
    """
    signature = _signature_of(function)
    if signature is None:
        return FunctionCall(function, (), {})
    parameters = _open_parameters(signature, function)
    given = dict(value) if isinstance(value, Mapping) else {}
    if len(left := _required(parameters, given)) == 1:
        given[left.pop()] = value
    if left:
        raise OptionError(f"teardown must take what setup returns, or nothing, but its signature is {signature}")
    return _bound(function, parameters, given, ())


def _bound(
    function: AgentFunction, parameters: list[inspect.Parameter], given: Mapping[Any, Any], more: tuple[Any, ...]
) -> FunctionCall:
    """Return the call that passes what is given, by position where possible: a decorator may pass on only that."""
    positional = [parameter for parameter in parameters if parameter.kind in POSITIONAL]
    while positional and not more and positional[-1].name not in given:
        positional.pop()
    others = [parameter.name for parameter in parameters if parameter not in positional and parameter.name in given]
    return FunctionCall(
        function,
        (*(given.get(parameter.name, parameter.default) for parameter in positional), *more),
        {name: given[name] for name in others},
    )


def _spec_parameter(parameters: list[inspect.Parameter], given: Mapping[Any, Any]) -> str | None:
    """Return the name of the parameter that gets the spec: `spec`, or the first that gets nothing else."""
    free = [item.name for item in parameters if item.kind in POSITIONAL and item.name not in given]
    return "spec" if "spec" in free else free[0] if free else None


def _signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return own_signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return None


def _open_parameters(signature: inspect.Signature, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that can get a value: not `*args` and `**kwargs`, nor what a `partial` has filled."""
    filled = function.keywords if isinstance(function, functools.partial) else ()
    return [item for item in signature.parameters.values() if item.kind not in VARIADIC and item.name not in filled]


def _required(parameters: list[inspect.Parameter], given: Mapping[Any, Any]) -> list[str]:
    empty = inspect.Parameter.empty
    return [item.name for item in parameters if item.default is empty and item.name not in given]


def _takes_any_number(signature: inspect.Signature) -> bool:
    return any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in signature.parameters.values())


def _gives(value: Any) -> str:
    """Return what `setup` has returned, as the end of a sentence."""
    if not isinstance(value, Mapping):
        return f"but setup returned {describe(value)}"
    return f"but setup returned only {', '.join(map(repr, value))}" if value else "but setup returned an empty dict"


def _check_setup(setup: Any) -> None:
    if not callable(setup):
        raise OptionError(f"setup must be a function, got {describe(setup)}")
    signature = _signature_of(setup)
    if signature is not None and _required(_open_parameters(signature, setup), {}):
        raise OptionError(f"setup must take no arguments, but its signature is {signature}")


def _check_teardown(teardown: Any, *, has_setup: bool) -> None:
    if not callable(teardown):
        raise OptionError(f"teardown must be a function, got {describe(teardown)}")
    signature = None if has_setup else _signature_of(teardown)
    if signature is not None and _required(_open_parameters(signature, teardown), {}):
        raise OptionError(f"teardown must take nothing if there is no setup, but its signature is {signature}")


def _check_result(value: Any) -> None:
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        raise OptionError("setup is a generator function; return what it makes, and undo it in teardown=")
    for name in _RESERVED if isinstance(value, Mapping) else ():
        if name in value:
            raise OptionError(f"setup returned {name!r}, a name that every agent already has; choose another one")
