"""The executor of a run on a foreign pool, as the steps in one process use it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..events.senders import EventSender
from ..executors.attempt import run_attempt
from ..executors.current_step import Meter, StopSignal, begun
from ..executors.executor import AgentExecutor
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from .copies import MakeCopy, Setups
from .hooks import Hooks

if TYPE_CHECKING:
    from ..retry.policy import RetryRule

Step = tuple[AgentStepSpec, int, int, float | None]
"""Spec, index, attempt and timeout in seconds."""


class ExecutorInUse:
    """An executor that is set up before its first step, torn down after its last, and runs none after that.

    Args:
        executor: What runs the steps.
        rule: Asked after each attempt; `None` when each step is tried once.
        stop: Set when the run is given up.
        make_copy: Makes a copy of the executor for each thread; `None` if all threads share it.
    """

    def __init__(
        self, executor: AgentExecutor, rule: RetryRule | None, stop: StopSignal, make_copy: MakeCopy | None = None
    ) -> None:
        self.stop = stop
        self._rule = rule
        self._hooks: _SharedHooks | _OwnHooks = _SharedHooks(executor) if make_copy is None else _OwnHooks(make_copy)

    def run(
        self,
        step: Step,
        event_tx: EventSender | None,
        worker: str | int,
        meter: Meter,
        on_begin: Callable[[], None],
    ) -> Report:
        """Run a step; after `close` it is reported as cancelled instead.

        Args:
            step: What to run.
            event_tx: Takes the events of the step.
            worker: Where it runs: thread name or process id.
            meter: Takes the usage that the step reports.
            on_begin: Called when the executor is set up and the time of the step begins.
        """
        spec, index, attempt, timeout_s = step
        hooks = None if self.stop.is_set() else self._hooks.for_step()
        if hooks is None:
            return too_late(step)
        if isinstance(hooks, StepError):
            return failure(index, spec, "raised", hooks)
        try:
            setup_error = hooks.set_up()
            if setup_error is not None:
                return failure(index, spec, "raised", setup_error)
            on_begin()
            running = begun((spec, index, attempt, timeout_s, None, self.stop, meter))
            return hooks.context.copy().run(run_attempt, hooks.executor, running, event_tx, worker, self._rule)
        finally:
            hooks.unregister()

    def close(self) -> None:
        """Tear the executor down: now, or when the last step that is running on it ends."""
        self._hooks.close()


class _SharedHooks:
    """The hooks of an executor that all threads share."""

    def __init__(self, executor: AgentExecutor) -> None:
        self._hooks = Hooks(executor)
        self._hooks.register()
        self._is_closed = False

    def for_step(self) -> Hooks | None:
        """Return the hooks, with one more user; `None` after `close`, unless a step is still running."""
        return self._hooks if self._hooks.try_register() else None

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._hooks.unregister()


class _OwnHooks:
    """The hooks of the copies of an executor, one for each thread of a pool that has called a step."""

    def __init__(self, make_copy: MakeCopy) -> None:
        self._setups = Setups(make_copy)
        self._lock = threading.Lock()
        self._by_thread: dict[threading.Thread, Hooks] = {}
        self._is_closed = False

    def for_step(self) -> Hooks | StepError | None:
        """Return the hooks of this thread, set up, with one more user; why that failed; or `None` after `close`."""
        thread = threading.current_thread()
        hooks = self._by_thread.get(thread)
        if hooks is not None:
            return hooks if hooks.try_register() else None
        if self._is_closed:
            return None
        made = self._setups.given_up or self._setups.set_up()
        return self._kept(thread, made) if isinstance(made, Hooks) else made

    def _kept(self, thread: threading.Thread, hooks: Hooks) -> Hooks | None:
        with self._lock:
            is_too_late = self._is_closed
            surplus = [hooks] if is_too_late else self._take_those_of_ended_threads()
            if not is_too_late:
                hooks.register()
                self._by_thread[thread] = hooks
        for old in surplus:  # outside of the lock: teardown() is the caller's code, and may take long
            old.unregister()
        return None if is_too_late else hooks

    def _take_those_of_ended_threads(self) -> list[Hooks]:
        ended = [thread for thread in self._by_thread if not thread.is_alive()]
        return [self._by_thread.pop(thread) for thread in ended]

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            left = list(self._by_thread.values())
            self._by_thread.clear()
        for hooks in left:
            hooks.unregister()


def too_late(step: Step) -> Report:
    """Return the report of a step that its pool has called after the run was over or had given the step up."""
    spec, index, _, _ = step
    error = StepError("CancelledError", "the run was over, or had given the step up, before the step began")
    return failure(index, spec, "cancelled", error)
