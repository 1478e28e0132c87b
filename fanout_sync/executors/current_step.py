"""`current_step()`, and what belongs to the running step."""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from ..records.steps import AgentStepSpec
from ..tracebacks import ShortRuntimeError
from .clock import clock

if TYPE_CHECKING:
    from ..limits.limiter import Limiter
    from ..records.usage import Usage

__all__ = ["Cancelled", "CurrentStep", "current_step"]


class StopSignal:
    """Set once, when a run is cancelled. Steps can poll it, and listeners are called.

    Attributes:
        check_interval_s: How often to poll it; `None` if listeners are enough.
    """

    check_interval_s: float | None = None

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
        """Call `listener` when the signal is set, in the thread that sets it; at once if it is set already."""
        self._listeners.append(listener)
        if self.is_set():
            listener()

    def unlisten(self, listener: Callable[[], None]) -> None:
        self._listeners.remove(listener)


class Meter(Protocol):
    """Takes the usage that the steps of a run report, from any thread."""

    def add(self, index: int, usage: Usage) -> None:
        """Add `usage` to that of the step with this index."""

    def nest(self, index: int, limiter: Limiter) -> None:
        """Note that the step with this index waits for a run that it has started, which `limiter` limits."""


class Cancelled:
    """Tells a step to stop, because its timeout is over or its run was cancelled. Like a `threading.Event`."""

    def __init__(self, stop: StopSignal, deadline: float | None) -> None:
        self._stop = stop
        self._deadline = deadline

    def __bool__(self) -> bool:
        """Return whether the step should stop: `while not current_step().cancelled` is a loop that ends."""
        return self.is_set()

    def is_set(self) -> bool:
        """Return whether the step should stop."""
        return self._stop.is_set() or (self._deadline is not None and clock.has_reached(self._deadline))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the step should stop, but at most `timeout` seconds; return whether it should stop.

        Use it instead of `time.sleep`, so that the step can stop in time.
        """
        until = math.inf if timeout is None else clock.now() + timeout
        end = until if self._deadline is None else min(until, self._deadline)
        # Again if the clock stood still meanwhile.
        while not self.is_set() and (left := end - clock.now()) > 0:
            self._stop.wait(None if left == math.inf else min(left, threading.TIMEOUT_MAX))
        return self.is_set()


@frozen(eq=False)
class CurrentStep:
    """The running step, as `current_step()` returns it.

    Attributes:
        spec: The spec of the step.
        index: The step's place in the input, from 0.
        attempt: The number of this attempt, from 1.
        timeout_s: Seconds that this attempt may take; `None` if there is no timeout.
        deadline: When the timeout is over, in seconds on the clock of `time.monotonic()`; `None` if there is none. In a
            worker process, time for which the program was stopped, as by Ctrl-Z, is added to it afterwards.
        cancelled: Whether the step should stop by itself; has `is_set()` and `wait(timeout)`.
    """

    spec: AgentStepSpec
    index: int
    attempt: int
    timeout_s: float | None
    deadline: float | None
    stop: StopSignal = field(repr=False)
    meter: Meter = field(repr=False)
    cancelled: Cancelled = field(repr=False)

    def add_usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Report what this step has used since its last report; rate limits, budgets and its record count it.

        Args:
            prompt_tokens: Tokens that went in.
            completion_tokens: Tokens that came out.
            cost_usd: The cost, in US dollars.

        Raises:
            OptionError: A value is negative or no number; the error names it.
        """
        from ..records.usage import Usage  # imported lazily: few steps report usage

        self.meter.add(self.index, Usage(prompt_tokens, completion_tokens, cost_usd))


RunningStep = tuple[AgentStepSpec, int, int, float | None, float | None, StopSignal, Meter]
"""The attributes of a `CurrentStep`, in its order. A plain tuple, because few of the steps call `current_step()`."""

running_step: contextvars.ContextVar[RunningStep | None] = contextvars.ContextVar("fanout_sync_step", default=None)


def current_step() -> CurrentStep:
    """Return the step that runs in the current context, in a thread or in a worker process.

    It is a context variable: coroutines of the step and functions in `asyncio.to_thread` see it. A thread that the
    step starts itself does not, unless its function is run with `contextvars.copy_context().run`. A thread or a task
    with a copy of the context keeps that step: after the step has ended it still gets that one, never a later one.

    Raises:
        RuntimeError: No step runs in the current context.
    """
    step = running_step.get()
    if step is None:
        raise ShortRuntimeError("no step is running here: current_step() is for the code of a step, while it runs")
    spec, index, attempt, timeout_s, deadline, stop, meter = step
    at = None if deadline is None else clock.monotonic_at(deadline)
    return CurrentStep(spec, index, attempt, timeout_s, at, stop, meter, Cancelled(stop, deadline))


def begun(step: RunningStep) -> RunningStep:
    """Return `step` with the deadline that it has if it begins now."""
    spec, index, attempt, timeout_s, _, stop, meter = step
    return spec, index, attempt, timeout_s, None if timeout_s is None else clock.now() + timeout_s, stop, meter
