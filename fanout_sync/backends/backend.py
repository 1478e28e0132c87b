"""What the runner needs of a backend."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

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

T = TypeVar("T")

SIGNALS_S = 0.5
"""The longest wait, in seconds. Python handles signals when a wait ends, and misses one that comes just before it."""

POLL_S = 0.05
"""How often, in seconds, a wait checks for something that gives no notice."""


class Session(abc.ABC):
    """One run on a backend. Used only from the caller's thread, except for `wake`.

    Whatever happens to a step, `wait` returns exactly one report for each `start`, unless `cancel` is called first.
    """

    lookahead: int = 0
    """How many steps beyond the bound may be started early, to wait in a queue here: only where that delays no step."""

    may_run_inline: bool = False
    """Whether `start` may run the step before it returns, as some foreign pools do that have no workers."""

    @abc.abstractmethod
    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        """Start an attempt at a step; returns at once. The caller keeps to the bound.

        Args:
            index: The step's index.
            spec: What to run.
            attempt: Which attempt it is; all but the first go before the steps that wait in the queue.
            timeout_s: How many seconds it may take, once it has begun; `None` for any time.
        """

    @abc.abstractmethod
    def wait(self, timeout_s: float | None = None) -> Report | None:
        """Return the next report, waiting for it if need be.

        Returns:
            `None` after `timeout_s` seconds, when woken, or just to be called again.

        Raises:
            ExecutorNotPicklable: No worker can load the executor, so that no step has begun. `cancel` comes next.
        """

    def poll(self) -> Report | None:
        """Return the next report if there is one now."""
        return self.wait(0.0)

    @abc.abstractmethod
    def wake(self) -> None:
        """Make `wait` return, now or when it is called next. May be called from any thread and in a signal handler."""

    @abc.abstractmethod
    def cancel(self, grace_s: float) -> Iterable[Report]:
        """Start no more steps, and kill those that run or ask them to stop.

        Only `abort` may be called after it.

        Returns:
            The reports of the steps that end within `grace_s` seconds.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End after the last report: tear the executor down and leave no worker behind. `wake` cuts it short."""

    @abc.abstractmethod
    def abort(self) -> None:
        """End now: drop the steps that have not begun, kill or abandon those that run."""

    def left_programs(self) -> str | None:
        """Return a warning of programs that steps which were given up have left running, if there are any.

        Only called after `close` or `abort`.
        """
        return None

    def disown(self) -> None:
        """Refuse every further use, in a forked child: the run belongs to its parent (see `forks`)."""
        self.__dict__.clear()  # methods that are being called, or were bound before, find nothing, either
        self.__class__ = _InheritedSession


class _InheritedSession(Session):
    """A session in a forked child of the process that has opened it."""

    def start(self, index: int, spec: AgentStepSpec, attempt: int = 1, timeout_s: float | None = None) -> None:
        refuse_inherited_run()

    def wait(self, timeout_s: float | None = None) -> Report | None:
        refuse_inherited_run()

    def wake(self) -> None:
        """Do nothing: nobody waits here."""

    def cancel(self, grace_s: float) -> Iterable[Report]:
        refuse_inherited_run()

    def close(self) -> None:
        refuse_inherited_run()

    def abort(self) -> None:
        """Do nothing: none of its workers is this process's own."""

    def __getattr__(self, name: str) -> NoReturn:
        refuse_inherited_run()


def refuse_inherited_run() -> NoReturn:
    """Refuse to go on with a run in a forked child of the process that has begun it.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(
        f"this run or stream belongs to the parent of process {os.getpid()}: a child that was forked meanwhile cannot "
        "go on with it; leave the loop in the child, or start a run of its own there"
    )


class Ask(Protocol):
    """Returns what code of the caller's answers, or the default if an interrupt ends it, which is noted then."""

    def __call__(self, question: Callable[[], T], default: T) -> T: ...


def _ask(question: Callable[[], T], default: T) -> T:
    return question()


@frozen(eq=False)
class RunContext:
    """What a backend has to know of a run.

    Attributes:
        executor: What runs the steps.
        bound: How many may run at once.
        expected: How many will certainly start, as far as that is known.
        meter: Takes the usage that steps report.
        event_tx: Takes the events of steps; `None` when nobody listens.
        retry_rule: Asked after each attempt, where it ran; `None` when each step is tried once.
        stop: Set when the run is given up.
        unattended: Whether the caller's thread may be elsewhere between calls (`Runner.stream`), so that another thread
            has to watch the workers.
        on_end: Called with the report of each attempt when it ends, in any thread; `None` if nobody listens.
        ask: Calls code of the caller's that may not return, in the caller's thread. If it is interrupted, no step of
            the run starts.
    """

    executor: AgentExecutor
    bound: int
    meter: Meter
    expected: int = 0
    event_tx: EventSender | None = None
    retry_rule: RetryRule | None = None
    stop: StopSignal = field(factory=StopSignal)
    unattended: bool = False
    on_end: Callable[[Report], None] | None = None
    ask: Ask = _ask


class Backend(Executor):
    """Where steps run. Each backend is also a `concurrent.futures.Executor`.

    It implements `open`, and so decides how steps get to its workers.
    """

    @abc.abstractmethod
    def open(self, context: RunContext) -> Session:
        """Prepare to run steps.

        Raises:
            ExecutorNotPicklable: The executor cannot be pickled, or copied for each thread. If it cannot be unpickled,
                `Session.wait` raises it.
        """

    def keep_warm(self) -> None:
        """Keep the workers of a run for the next one, until `cool_down` is called as often as this."""

    def cool_down(self, scope: InterruptScope, *, is_urgent: bool = False) -> None:
        """End the workers that `keep_warm` kept.

        Args:
            scope: When it notes an interrupt, the workers that are left are killed.
            is_urgent: Whether to kill them rather than to tear the executor down.
        """
