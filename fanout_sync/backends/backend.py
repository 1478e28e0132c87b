"""What the runner needs of a place to run steps."""

from __future__ import annotations

import abc
from concurrent.futures import Executor

from ..attempt import Report
from ..executor import AgentExecutor, EventSender
from ..steps import AgentStepSpec


class Session(abc.ABC):
    """One run's hold on a backend; used from the caller's thread alone.

    Whatever happens to a step, `wait` returns exactly one report for each `start`.
    """

    lookahead: int = 0
    """How many steps beyond the bound may be handed over early, to wait inside: only where that is no step's delay."""

    @abc.abstractmethod
    def start(self, ticket: int, spec: AgentStepSpec) -> None:
        """Hand over a step; returns at once. The caller keeps to the bound."""

    @abc.abstractmethod
    def wait(self) -> Report:
        """Return the next report, waiting for it if need be."""

    @abc.abstractmethod
    def poll(self) -> Report | None:
        """Return the next report if there is one now."""

    @abc.abstractmethod
    def close(self) -> None:
        """End after the last report: tear the executor down, leave no worker behind."""

    @abc.abstractmethod
    def abort(self) -> None:
        """End now: drop what has not begun, kill or abandon what runs."""


class Backend(Executor):
    """Where steps run. Each one is a `concurrent.futures.Executor` as well.

    A backend that is no stdlib pool implements `open`, and so decides how steps get to its workers.
    """

    @abc.abstractmethod
    def open(self, executor: AgentExecutor, bound: int, event_tx: EventSender | None, *, unattended: bool) -> Session:
        """Prepare to run steps on `executor`.

        Args:
            executor: What runs them.
            bound: How many may run at once.
            event_tx: Takes the events of steps; `None` when nobody listens.
            unattended: Whether the caller's thread may be away between calls (`Runner.stream`), so that workers
                have to be looked after from another thread.

        Raises:
            ExecutorNotPicklable: The executor cannot be sent to where steps run.
        """

    def keep_warm(self) -> None:
        """Keep workers after a run for the next one, until `cool_down`. Calls nest."""

    def cool_down(self) -> None:
        """End the workers that `keep_warm` kept."""
