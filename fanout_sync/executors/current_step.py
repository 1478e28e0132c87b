"""What a running step can ask about itself: `current_step()`."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from attrs import field, frozen

from ..records.steps import AgentStepSpec

if TYPE_CHECKING:
    from ..limits.limiter import Limiter
    from ..records.usage import Usage

__all__ = ["Cancelled", "CurrentStep", "current_step"]


T = TypeVar("T")


class StopSignal:
    """Set once, when a run is given up; tells every step that asks, and whoever listens."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._listeners: list[Callable[[], None]] = []

    def set(self) -> None:
        self._event.set()
        for listener in list(self._listeners):
            listener()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float | None) -> None:
        self._event.wait(timeout_s)

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when the signal is set; from any thread, and at once if it is set already."""
        self._listeners.append(listener)
        if self.is_set():
            listener()

    def unlisten(self, listener: Callable[[], None]) -> None:
        self._listeners.remove(listener)


class Meter(Protocol):
    """Takes what the steps of a run report as used; from any thread."""

    def add(self, index: int, usage: Usage) -> None:
        """Count `usage` for the step with this index."""

    def nest(self, index: int, limiter: Limiter) -> None:
        """Take note that the step with this index waits for a run of its own, which that one governs."""


class Cancelled:
    """Whether a step should stop by itself: its time is up, or its run was given up. Like a `threading.Event`."""

    def __init__(self, stop: StopSignal, deadline: float | None) -> None:
        self._stop = stop
        self._deadline = deadline

    def is_set(self) -> bool:
        """Return whether the step should stop."""
        return self._stop.is_set() or (self._deadline is not None and monotonic() >= self._deadline)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the step should stop, at most `timeout` seconds; return whether it should.

        Sleep with it rather than with `time.sleep`, and a step ends when it has to.
        """
        left = None if self._deadline is None else max(0.0, self._deadline - monotonic())
        limits = [limit for limit in (timeout, left) if limit is not None]
        self._stop.wait(min(min(limits), threading.TIMEOUT_MAX) if limits else None)
        return self.is_set()


@frozen(eq=False)
class CurrentStep:
    """The running step, as `current_step()` gives it.

    Attributes:
        spec: What is being run.
        index: The step's place in the input, from 0.
        attempt: Which try at it this is, from 1.
        timeout_s: How many seconds this attempt may take; `None` if any.
        deadline: When its time is up, on the clock of `time.monotonic()`; `None` if it may take any time.
    """

    spec: AgentStepSpec
    index: int
    attempt: int
    timeout_s: float | None
    deadline: float | None
    stop: StopSignal = field(repr=False)
    meter: Meter = field(repr=False)

    @property
    def cancelled(self) -> Cancelled:
        """Whether the step should stop by itself; has `is_set()` and `wait(timeout)`."""
        return Cancelled(self.stop, self.deadline)

    def add_usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Report what this step has used up since its last report, for rate limits, budgets and its record.

        Args:
            prompt_tokens: Tokens that went in.
            completion_tokens: Tokens that came out.
            cost_usd: What it cost, in US dollars.

        Raises:
            OptionError: One of them is negative or no number; it is named.
        """
        from ..records.usage import Usage  # few steps report any

        self.meter.add(self.index, Usage(prompt_tokens, completion_tokens, cost_usd))


RunningStep = tuple[AgentStepSpec, int, int, float | None, float | None, StopSignal, Meter]
"""The attributes of a `CurrentStep`, in their order: every step has them, few ask for them."""

running_step: contextvars.ContextVar[RunningStep | None] = contextvars.ContextVar("fanout_sync_step", default=None)


def current_step() -> CurrentStep:
    """Return the step that is running here, in a thread or in a worker process.

    It is a context variable: seen by coroutines of the step and by `asyncio.to_thread`, but not by a thread that the
    step starts on its own (`contextvars.copy_context().run` takes it there). A thread or a task that has such a copy
    keeps it: after the step has ended, this is still the step that started it, never the one that runs by then.

    Raises:
        RuntimeError: No step is running here.
    """
    step = running_step.get()
    if step is None:
        raise RuntimeError("no step is running here: current_step() is for the code of a step, while it runs")
    return CurrentStep(*step)


class StepContext:
    """The context variables of an executor: `setup` and `teardown` run in one context, each step in a copy of it.

    So a step sees what `setup` has set, and nothing that another step has. A variable whose value is a mutable object
    holds the same object in every copy. Only the decimal context, which is such an object, is copied with it.

    Attributes:
        copy: Returns a context for one step. Called for every step, so it is `Context.copy` itself where that will do.
    """

    copy: Callable[[], contextvars.Context]

    def __init__(self) -> None:
        self._context = own_context()
        self._choose_copy()

    def run(self, function: Callable[[], T]) -> T:
        """Call `function`, which is `setup` or `teardown`; what it sets stays for the steps to come."""
        try:
            return self._context.run(function)
        finally:
            self._choose_copy()

    def _choose_copy(self) -> None:
        if _decimal_variable(self._context) is None:
            self.copy = self._context.copy
        else:
            self.copy = lambda: _separate_copy(self._context)


def own_context() -> contextvars.Context:
    """Return a copy of the current context in which changes of the decimal context reach nobody else, either."""
    return _separate_copy(contextvars.copy_context())


def _separate_copy(context: contextvars.Context) -> contextvars.Context:
    copied = context.copy()
    variable = _decimal_variable(context)
    if variable is not None:
        # `decimal.getcontext().prec = 5` changes the object that the variable holds, and copies share that object.
        copied.run(variable.set, context[variable].copy())
    return copied


def _decimal_variable(context: contextvars.Context) -> contextvars.ContextVar[Any] | None:
    """Return the variable that holds the decimal context; `None` if no number has been computed in `context`.

    The `decimal` module does not export it.
    """
    for variable in context:
        if variable.name == "decimal_context" and type(context[variable]).__module__ == "decimal":
            return variable
    return None


def begun(step: RunningStep) -> RunningStep:
    """Return `step` with its deadline, if its time begins now."""
    spec, index, attempt, timeout_s, _, stop, meter = step
    return spec, index, attempt, timeout_s, None if timeout_s is None else monotonic() + timeout_s, stop, meter
