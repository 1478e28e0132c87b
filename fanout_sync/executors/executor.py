"""The interface of executors: an executor runs one step, and the runner does everything else."""

from __future__ import annotations

import abc
import inspect
import logging
from collections.abc import Awaitable

from ..checks import flag
from ..events.senders import EventSender
from ..records.steps import AgentStepSpec, StepOutcome

__all__ = ["DEFAULT_MAX_PARALLEL_TASKS", "AgentExecutor"]

DEFAULT_MAX_PARALLEL_TASKS = 8
"""How many steps run at once, unless the executor or the caller sets another number."""

TEARDOWN_GRACE_S = 5.0
"""Seconds that the end of a run waits for `teardown`, before it abandons the thread or kills the worker."""


def warn_of_teardown(logger: logging.Logger, consequence: str) -> None:
    """Log that `teardown` has not ended within `TEARDOWN_GRACE_S`, and what happens to its worker."""
    logger.warning("teardown() is still running after %s s; %s", TEARDOWN_GRACE_S, consequence)


class AgentExecutor(abc.ABC):
    """Runs one step. Subclass it, or use `FunctionExecutor`.

    With the process backend the executor is pickled once per worker. Create objects that do not pickle, such as
    clients, locks and connections, in `setup`.

    `execute_step`, `repair`, `setup` and `teardown` may be `async def`. All async code of a process, the caller's or a
    worker's, runs in one event loop in a thread of its own, which goes on until the process ends; a forked child has a
    new one. So a client, a lock or a pool that belongs to a loop can be shared by all steps and all runs. If all steps
    are async, a plain `setup` and `teardown` are called in that thread, too. The task of a step is cancelled when its
    timeout is over or its run is given up; if it does not end within a second, it is abandoned.

    Async code must not block. If one task blocks the loop for more than a second, that is logged once for each agent.
    If it still does when the timeout of a step is over, or when a second has passed since the run was given up, the
    loop is abandoned: new steps get a new loop, in which `setup` is called again if it was called in the old one, and
    the message of each step that is overdue in the old one names the code that blocks it.
    """

    thread_safe: bool = True
    """Whether threads may share the executor.

    With `False` each worker thread has a copy of its own (`copy.deepcopy`), as each worker process has, and calls its
    `setup` and `teardown`. The executor itself is then only copied. Set it in the class, or on an object.
    """

    @abc.abstractmethod
    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        """Run `spec` and return its outcome. Called from many threads at once, unless `thread_safe` is `False`.

        Args:
            spec: What to run.
            event_tx: Sends events, at once, and reports usage; `None` if the run needs neither.

        Returns:
            The outcome, `success` true or false, or an awaitable of it; the runner keeps its `task_id` and `agent`. If
            this method raises, the runner makes a failed outcome with the `task_id` and the `agent` of the spec. If the
            spec has an `output_schema`, a successful outcome must fit it: its `structured`, or if that is `None` the
            first JSON in its `output` that does, which becomes `structured`.
        """

    def concurrency_hint(self) -> int:
        """Return how many steps may run at once; the runner's `max_concurrency` overrides it."""
        return DEFAULT_MAX_PARALLEL_TASKS

    def timeout_for(self, spec: AgentStepSpec) -> float | None:
        """Return how many seconds an attempt at `spec` may take; `None` means the runner's `timeout`.

        Called in the caller's thread, before each attempt; `math.inf` means no limit.
        """
        return None

    def _unsupported(self, spec: AgentStepSpec) -> str | None:
        """Return what `spec` asks for that the executor cannot do; `None` if it can do it all."""
        return None

    def repair(self, spec: AgentStepSpec, outcome: StepOutcome, errors: list[str]) -> StepOutcome:
        """Return a better outcome than one that does not fit the `output_schema` of its spec. Plain or `async def`.

        Called in the worker and the attempt of the step, at most twice, so the time it takes counts, and
        `current_step()` is still the step. An executor that does not override this is not asked.

        Args:
            spec: What was run.
            outcome: What came of it: a successful outcome whose `structured`, or whose `output` if that is `None`, does
                not fit. The second time, what `repair` returned the first time.
            errors: Up to ten things that are wrong with it, each as `"path: message"`, such as
                `"$.items[0].price: 'ten' is not of type 'number'"`.

        Returns:
            An outcome, or an awaitable of it. If it does not fit either, or has failed, the step is `invalid`, and has
            the text of the outcome that `execute_step` returned. If this method raises, so has the step.
        """
        return outcome

    def _runs_in_event_loop(self) -> bool:
        """Return whether all its steps do, being async: then its hooks are called in the thread of the loop, too."""
        return inspect.iscoroutinefunction(self.execute_step)

    def _has_hook(self, name: str) -> bool:
        """Return whether `setup` or `teardown` does anything."""
        return getattr(getattr(self, name), "__func__", None) is not getattr(AgentExecutor, name)

    def setup(self) -> Awaitable[None] | None:
        """Prepare a worker, before its first step.

        Called once in each worker process. On threads it is called once per run; if `thread_safe` is `False`, once in
        each thread, on its copy.

        If it raises on threads that share the executor, every step fails with its error. A worker process, or a thread
        with a copy of its own, then runs no step, and after three such starts in a row no more are tried: the other
        workers run the steps, and if there are none, the steps fail with the error. Whoever is still in `setup` when
        the run is over is killed, or as a thread abandoned. Neither timeout nor retries apply to `setup`. Every step
        starts with the context variables and the `decimal` context that it leaves; no step sees what another step
        changes in them.
        """
        return None

    def teardown(self) -> Awaitable[None] | None:
        """Undo `setup`, in the same context and as often: after the last step of the worker.

        It is not called if `setup` failed, the worker died, or the event loop in which it was set up is abandoned. If
        it raises, that is logged, or shown on standard error if logging is not configured, and changes no outcome. On
        threads that share the executor, steps that were abandoned after their timeout may still be running. If
        `thread_safe` is `False`, it is called in the thread of the copy; in an abandoned thread when its step ends, be
        that after the run. On a pool of your own, where no thread can be chosen, it is called in any thread.
        """
        return None


def is_thread_safe(executor: AgentExecutor) -> bool:
    """Return whether threads may share the executor.

    Raises:
        OptionError: Its `thread_safe` is no bool.
    """
    return flag(f"thread_safe of {type(executor).__name__}", executor.thread_safe)
