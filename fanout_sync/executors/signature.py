"""Which parameter of an agent's function gets the event sender."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, Protocol

from attrs import frozen

from ..checks import own_signature as own_signature  # also for those who ask for more of a function
from ..errors import OptionError
from ..events.senders import EventSender
from ..records.steps import AgentStepSpec


class SpecFunction(Protocol):
    """`(spec) -> …` or `(spec, event_tx) -> …`, plain or `async`, returning text, a `StepOutcome` or a JSON value."""

    def __call__(self, spec: AgentStepSpec, /, *args: Any, **kwargs: Any) -> Any: ...


AgentFunction = SpecFunction | Callable[..., Any]
"""A function of a spec; or one whose parameters are in another order, as the sender is found by its name."""

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@frozen
class SenderPlace:
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


def sender_place(name: str, function: AgentFunction) -> SenderPlace | None:
    """Return how to pass the event sender to `function`; `None` if it takes none.

    Raises:
        OptionError: `function` cannot be called with a spec, or with a spec and a sender.
    """
    try:
        signature = own_signature(function)
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
            f"agent {name!r} must take (spec) or (spec, event_tx), but its signature is {signature}; what else it "
            "needs, make in setup= of FunctionExecutor"
        ) from None
    return place


def _place_in(signature: inspect.Signature, function: AgentFunction) -> SenderPlace | None:
    positional = [parameter for parameter in signature.parameters.values() if parameter.kind in POSITIONAL]
    named = signature.parameters.get("event_tx")
    if named is not None and named.kind not in VARIADIC:
        return None if _is_filled(function) else _named_place(named, positional)
    if len(positional) > 1 and positional[1].default is inspect.Parameter.empty:
        return SenderPlace("after")
    return None


def _named_place(named: inspect.Parameter, positional: list[inspect.Parameter]) -> SenderPlace:
    if named not in positional:
        return SenderPlace("keyword")
    index = positional.index(named)
    if index == 0:
        return SenderPlace("before")
    if index == 1:  # by position, because a decorator may pass on only positional arguments
        return SenderPlace("after")
    if named.kind is not inspect.Parameter.POSITIONAL_ONLY:
        return SenderPlace("keyword")
    defaults = [parameter.default for parameter in positional[1:index]]
    # A parameter without a default gets no value: the call then lacks an argument, and the function is refused.
    return SenderPlace("after", tuple(default for default in defaults if default is not inspect.Parameter.empty))


def _is_filled(function: AgentFunction) -> bool:
    """Whether `functools.partial` has already given `event_tx` a value, which is kept."""
    return isinstance(function, functools.partial) and "event_tx" in function.keywords
