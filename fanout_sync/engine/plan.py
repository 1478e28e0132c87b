"""What the caller of a run wants: the arguments of `Runner`, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ..checks import positive_seconds
from ..errors import OptionError
from ..executors.executor import AgentExecutor
from ..formatting import describe
from ..records.steps import AgentStepSpec

if TYPE_CHECKING:
    from ..events.senders import EventSink
    from ..journal.journal import Workflow
    from ..limits.budget import Budget
    from ..limits.rate_limit import RateLimit
    from ..results.progress import ProgressSink
    from ..results.run import Run
    from ..retry.policy import RetryPolicy


@frozen(eq=False)
class Policies:
    """What a runner decides about its steps.

    Attributes:
        timeout_s: How long an attempt may take; `None` for any time.
        timeout_for: Asked for each step; what it says goes before `timeout_s`.
        retry: Whether and when there is another attempt; `None` for never.
        max_failures: After so many failed steps no more are started; `None` for any number.
    """

    timeout_s: float | None = None
    timeout_for: Callable[[AgentStepSpec], float | None] | None = None
    retry: RetryPolicy | None = None
    max_failures: int | None = None

    def timeout_of(self, spec: AgentStepSpec) -> float | None:
        """Return the timeout of an attempt at `spec`.

        Raises:
            Exception: `timeout_for` raised, or returned what is no timeout.
        """
        own = None if self.timeout_for is None else self.timeout_for(spec)
        if own is None:
            return self.timeout_s
        seconds = positive_seconds("what timeout_for() of the executor returned", own)
        return None if seconds == math.inf else seconds


@frozen(eq=False, kw_only=True)
class RunPlan:
    """What the caller wants of every run.

    Attributes:
        executor: How a step runs.
        backend: Where.
        max_concurrency: How many steps may run at once; `None` for what the executor hints.
        policies: Timeouts, retries, and how many failures are too many.
        limits: Each has to let a step start.
        budget: What all steps together may use up; `None` for any amount.
        workflow: Where outcomes are kept; `None` for nowhere.
        event_tx: Where events go; `None` for nowhere.
        make_sink: Makes what shows the progress of a call, if somebody sees it; `None` if nothing does.
        retry_failed: Runs the failed steps of a run again: called with the plan of that run, the run, their specs, and
            options that go before those of the plan; `None` if nothing does.
        raises_interrupts: Whether an interrupted run raises; otherwise it returns what there is.
    """

    executor: AgentExecutor
    backend: Executor
    max_concurrency: int | None = None
    policies: Policies = field(factory=Policies)
    limits: tuple[RateLimit, ...] = ()
    budget: Budget | None = None
    workflow: Workflow | None = None
    event_tx: EventSink | None = None
    make_sink: Callable[[], ProgressSink | None] | None = None
    retry_failed: Callable[[RunPlan, Run, Sequence[AgentStepSpec], Mapping[str, Any]], Run] | None = None
    raises_interrupts: bool = True

    @property
    def is_limited(self) -> bool:
        """Whether a step may have to wait for a rate limit or a budget."""
        return bool(self.limits) or self.budget is not None

    def bound(self) -> int:
        """Return how many steps may run at once.

        Raises:
            OptionError: The executor's hint is no int.
        """
        if self.max_concurrency is not None:
            return self.max_concurrency
        return max(1, an_int_hint(self.executor.concurrency_hint()))


def an_int_hint(hint: object) -> int:
    """Return what `concurrency_hint` has returned.

    Raises:
        OptionError: It is no int.
    """
    if not isinstance(hint, int) or isinstance(hint, bool):
        raise OptionError(f"concurrency_hint() of the executor must return an int, got {describe(hint)}")
    return hint
