"""What the runner needs of a place to run steps."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from attrs import field, frozen

from ..events.senders import EventSender
from ..executors.current_step import Meter, StopSignal
from ..executors.executor import AgentExecutor
from ..interrupts import InterruptScope
from ..records.report import Report
from ..records.steps import AgentStepSpec

if TYPE_CHECKING:
    from ..retry.policy import RetryRule

__all__ = ["Backend"]

SIGNALS_S = 0.5
"""No wait is longer than this: Python looks for signals when a wait ends, and misses one that comes just before it."""


POLL_S = 0.05
"""How often a wait for something that does not tell looks again, in seconds."""


class Session(abc.ABC):
    """One run's hold on a backend; used from the caller's thread alone, but for `wake`.

    Whatever happens to a step, `wait` returns exactly one report for each `start`, unless `cancel` comes first.
    """

    lookahead: int = 0
    """How many steps beyond the bound may be handed over early, to wait inside: only where that is no step's delay."""

    may_run_inline: bool = False
    """Whether `start` may run the step then and there, as the pools of others do that have no workers."""

    @abc.abstractmethod
    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        """Hand over an attempt at a step; returns at once. The caller keeps to the bound.

        Args:
            index: The step's index.
            spec: What to run.
            attempt: Which try it is; all but the first go before what still waits inside.
            timeout_s: How many seconds it may take, once it has begun; `None` for any.
        """

    @abc.abstractmethod
    def wait(self, timeout_s: float | None = None) -> Report | None:
        """Return the next report, waiting for it if need be.

        Returns:
            `None` after `timeout_s` seconds, when woken, or just to be called again.
        """

    def poll(self) -> Report | None:
        """Return the next report if there is one now."""
        return self.wait(0.0)

    @abc.abstractmethod
    def wake(self) -> None:
        """Make `wait` return, now or when it is called next. May be called from any thread and in a signal handler."""

    @abc.abstractmethod
    def cancel(self, grace_s: float) -> Iterable[Report]:
        """Start nothing more, kill or ask to stop what runs, and return the reports of what ends within `grace_s`.

        Only `abort` may come after it.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End after the last report: tear the executor down, leave no worker behind. Being woken cuts it short."""

    @abc.abstractmethod
    def abort(self) -> None:
        """End now: drop what has not begun, kill or abandon what runs."""


@frozen(eq=False)
class RunContext:
    """What a backend has to know of a run.

    Attributes:
        executor: What runs the steps.
        bound: How many may run at once.
        event_tx: Takes the events of steps; `None` when nobody listens.
        retry_rule: What is asked after each attempt, where it ran; `None` when steps are tried once.
        stop: Set when the run is given up.
        meter: Takes what steps report as used.
        unattended: Whether the caller's thread may be away between calls (`Runner.stream`), so that workers have to be
            looked after from another thread.
        on_end: Told of each attempt's end at once, in whichever thread; `None` if nobody wants to know.
    """

    executor: AgentExecutor
    bound: int
    meter: Meter
    event_tx: EventSender | None = None
    retry_rule: RetryRule | None = None
    stop: StopSignal = field(factory=StopSignal)
    unattended: bool = False
    on_end: Callable[[Report], None] | None = None


class Backend(Executor):
    """Where steps run. Each one is a `concurrent.futures.Executor` as well.

    A backend that is no stdlib pool implements `open`, and so decides how steps get to its workers.
    """

    @abc.abstractmethod
    def open(self, context: RunContext) -> Session:
        """Prepare to run steps.

        Raises:
            ExecutorNotPicklable: The executor cannot be sent to where steps run.
        """

    def keep_warm(self) -> None:
        """Keep workers after a run for the next one, until `cool_down`. Calls nest."""

    def cool_down(self, scope: InterruptScope, *, is_urgent: bool = False) -> None:
        """End the workers that `keep_warm` kept.

        Args:
            scope: An interrupt that it notes makes the end an urgent one.
            is_urgent: Whether to kill them rather than to tear the executor down.
        """
