"""The one seam: how a step runs is the caller's; everything around it is ours."""

from __future__ import annotations

import abc
import logging

from ..events.senders import EventSender
from ..records.steps import AgentStepSpec, StepOutcome

__all__ = ["DEFAULT_MAX_PARALLEL_TASKS", "AgentExecutor"]

DEFAULT_MAX_PARALLEL_TASKS = 8
"""How many steps run at once unless the executor or the caller says otherwise."""

TEARDOWN_GRACE_S = 5.0
"""How long the end of a run waits for `teardown` before it abandons the thread or kills the worker."""


def warn_of_teardown(logger: logging.Logger, consequence: str) -> None:
    """Log that `teardown` has not ended within `TEARDOWN_GRACE_S`, and what becomes of the worker that it runs in."""
    logger.warning("teardown() is still running after %s s; %s", TEARDOWN_GRACE_S, consequence)


class AgentExecutor(abc.ABC):
    """Runs one step. Subclass it, or use `FunctionExecutor`.

    With the process backend the executor is pickled once per worker; what does not pickle (clients, locks,
    connections) is made in `setup`.
    """

    @abc.abstractmethod
    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        """Run `spec` and return its outcome. Called from many workers at once.

        Args:
            spec: What to run.
            event_tx: Where to send events, live, and to report usage; `None` when nobody listens to either.

        Returns:
            The outcome, `success` true or false. Whatever is raised becomes a failed outcome as well.
        """

    def concurrency_hint(self) -> int:
        """Return how many steps may run at once; the caller's `max_concurrency` wins over it."""
        return DEFAULT_MAX_PARALLEL_TASKS

    def timeout_for(self, spec: AgentStepSpec) -> float | None:
        """Return how many seconds an attempt at `spec` may take; `None` for what the runner's `timeout` says.

        Called in the caller's thread, before each attempt; `math.inf` is no limit.
        """
        return None

    def setup(self) -> None:
        """Prepare a worker: called once in each worker process, and once per run on threads, before the first step.

        If it raises, the steps of that worker fail with its error. A worker process that is still at it when the run
        is over is killed. No timeout applies to it, nor a retry. Every step starts with the context variables and the
        `decimal` context that it leaves; what a step changes in them, no other step sees.
        """

    def teardown(self) -> None:
        """Undo `setup`, in the same context: once after the last step of a worker process, once per run on threads.

        It is not called where `setup` failed or the worker died. What it raises is logged, and costs no outcome. On
        threads, steps that were abandoned because they were overdue may still be running.
        """
