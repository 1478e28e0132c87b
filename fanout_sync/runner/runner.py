"""What users call: bounded, ordered, isolating dispatch of specs over a backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from weakref import WeakSet

from ..backends.backend import Backend
from ..checks import one_of, positive_int, refuse_unknown
from ..engine.background_run import BackgroundRun
from ..engine.handle import RunHandle
from ..engine.loop import NextRound, run_loop
from ..engine.pipeline import Stage, run_pipeline
from ..engine.plan import Policies, RunPlan
from ..engine.run import run
from ..engine.stream import OutcomeStream, stream
from ..errors import FanoutInterrupted
from ..events.senders import EventSink
from ..executors.executor import AgentExecutor
from ..interrupts import InterruptScope, end_as_if_killed
from ..records.steps import AgentStepSpec, StepOutcome
from ..results.run import Run
from .arguments import (
    a_backend,
    a_budget,
    a_progress,
    a_retry,
    a_timeout,
    a_workflow,
    an_event_sink,
    an_executor,
    own_timeout_for,
    rate_limits,
    warn_of_soft_timeout,
)
from .options import OPTIONS
from .retry_failed import retry_failed

if TYPE_CHECKING:
    from tenacity import BaseRetrying

    from ..events.types import Event
    from ..journal.journal import Journal, Workflow
    from ..limits.budget import Budget
    from ..limits.rate_limit import RateLimit
    from ..results.progress import Progress
    from ..retry.policy import Retry

__all__ = ["Runner"]


class Runner:
    """Runs specs on an executor, many at once, and gives back every outcome.

    A step that raises, dies or returns garbage becomes a failed outcome that says so and keeps the spec's `task_id`
    and `agent`; the others are not touched. One runner can be used any number of times, from several threads at once
    and inside its own steps; each call has its own bound.

    As a context manager it keeps process workers warm between calls; at its end, streams that are open are closed, and
    runs that `start` has started are cancelled.

    Args:
        executor: How a step runs.
        backend: Where: `"thread"`, `"process"`, a `Backend`, or any `concurrent.futures.Executor`.
        max_concurrency: How many steps of one call may run at once; by default what the executor hints.
        timeout: How many seconds an attempt at a step may take, from when it begins in its worker; by default any
            time. `AgentExecutor.timeout_for` goes before it. In a worker process the step is killed with all that it
            started; a thread is abandoned; on a foreign pool the step is given up, and keeps its place there (a
            `UserWarning` says so).
        retry: Whether steps that failed are tried again: how many attempts there are, a `Retry`, or a
            `tenacity.Retrying` object, of which `stop`, `wait` and `retry` count. By default each step is tried once.
        rate_limit: A `RateLimit`, or several: steps wait, holding no slot, until all of them let them start.
        budget: A `Budget`: what all steps together may use up.
        max_failures: After so many failed steps (not attempts) no more are started; those left end as `cancelled`.
        journal: Keeps outcomes, so that a run that was cut short resumes where it was: the path of an SQLite file, a
            `Journal`, or one of its workflows (`SqliteJournal("run.db").workflow("nightly")`). Every outcome is durable
            before it is handed out. A step that is journalled with success is not run again; each step of a run needs
            a `task_id` of its own.
        on_conflict: What to do if the `task_id` of a step is journalled with another spec: `"refuse"` the run, or
            `"rerun"` the step. A workflow that was made with `on_conflict="rerun"` keeps it.
        event_tx: Where events go: an `EventChannel`, any object with a `send` method, or a function, which is called
            with each event, from any thread.
        progress: Shows how far a call is. `True`: a progress bar, if there is a terminal or a notebook to draw it in. A
            tqdm class: such a bar, wherever that draws it; `functools.partial` of one gives it options, as
            `partial(tqdm, desc="reviews")` does. A function: it is called with a `Progress` at the beginning, at most
            ten times a second, and at the end, in the thread of the call. An error of a bar or a function is logged,
            and costs the call nothing but the rest of its progress.
        on_interrupt: What Ctrl-C does when everything is cleaned up: `"raise"` a `FanoutInterrupted`, or `"return"`
            what there is.

    Raises:
        OptionError: An argument that nobody can mean; it is named.
    """

    def __init__(
        self,
        executor: AgentExecutor,
        *,
        backend: Literal["thread", "process"] | Executor = "thread",
        max_concurrency: int | None = None,
        timeout: float | None = None,
        retry: int | Retry | BaseRetrying | None = None,
        rate_limit: RateLimit | Sequence[RateLimit] | None = None,
        budget: Budget | None = None,
        max_failures: int | None = None,
        journal: str | os.PathLike[str] | Journal | Workflow | None = None,
        on_conflict: Literal["refuse", "rerun"] = "refuse",
        event_tx: EventSink | Callable[[Event], object] | None = None,
        progress: bool | type | partial[Any] | Callable[[Progress], object] | None = None,
        on_interrupt: Literal["raise", "return"] = "raise",
        **unknown: NoReturn,
    ) -> None:
        refuse_unknown("Runner", unknown, OPTIONS)
        executor = an_executor(executor)
        policies = Policies(
            timeout_s=a_timeout(timeout),
            timeout_for=own_timeout_for(executor),
            retry=a_retry(retry),
            max_failures=None if max_failures is None else positive_int("max_failures", max_failures),
        )
        self._plan = RunPlan(
            executor=executor,
            backend=a_backend(backend),
            max_concurrency=None if max_concurrency is None else positive_int("max_concurrency", max_concurrency),
            policies=policies,
            limits=rate_limits(rate_limit),
            budget=a_budget(budget),
            workflow=a_workflow(journal, on_conflict),
            event_tx=an_event_sink(event_tx),
            make_sink=a_progress(progress),
            retry_failed=retry_failed,
            raises_interrupts=one_of("on_interrupt", on_interrupt, ("raise", "return")) == "raise",
        )
        warn_of_soft_timeout(self._plan)
        self._streams: WeakSet[OutcomeStream] = WeakSet()
        self._started: WeakSet[BackgroundRun] = WeakSet()

    def __getstate__(self) -> RunPlan:
        # A step that uses its own runner takes it to a worker process. What is open and kept workers stay here.
        return self._plan

    def __setstate__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._streams = WeakSet()
        self._started = WeakSet()

    def __repr__(self) -> str:
        executor, backend = type(self._plan.executor).__name__, type(self._plan.backend).__name__
        try:
            bound = f"at most {self._plan.bound()} at once"
        except Exception:  # the executor's own code
            bound = "its bound is not known"
        return f"<{type(self).__name__} of {executor} on {backend}, {bound}>"

    def run(self, specs: Iterable[AgentStepSpec]) -> Run:
        """Run every spec and return when all are done.

        Args:
            specs: Any iterable, consumed lazily, in this thread; with a journal, read to its end first.

        Returns:
            One outcome per spec, in the order of `specs`.

        Raises:
            InputError: `specs` is not iterable, its iterator raised, or an item is no spec. Steps that were started
                by then are finished first, and are in its `.run`.
            ExecutorNotPicklable: The executor cannot be pickled, no worker process can unpickle it, or it cannot be
                copied for each thread; no step was run. The error names what is at fault, and says what to do.
            JournalError: The journal cannot be used; if that comes to light in the middle, steps that were started are
                finished first, and are in its `.run`.
            JournalConflict: Two specs have the same `task_id`, or one is journalled with another spec; nothing was run.
            FanoutInterrupted: Ctrl-C. Worker processes are killed, steps on threads have `current_step().cancelled`
                set and a second to stop. Its `.run` has what was done.
        """
        return run(self._plan, specs)

    def stream(self, specs: Iterable[AgentStepSpec], order: Literal["input", "completion"] = "input") -> OutcomeStream:
        """Yield outcomes as they become available; a consumer that stops taking them stops the feed.

        After its end the stream has a `run`: records, usage and summary of all its steps, without their outputs.

        Args:
            specs: Any iterable, consumed lazily, in this thread: at most the bound of specs plus unread outcomes are
                held. Behind one slow step at most 256 finished ones wait for it.
            order: `"input"`, the order of `specs`, or `"completion"`.

        Yields:
            One outcome per spec; a step that failed yields a failed outcome, never an exception.

        Raises:
            InputError: As in `run`; steps that were started are finished and yielded first.
            OptionError: `order` is neither.
            ExecutorNotPicklable: As in `run`, when the first outcome is asked for.
            JournalError, JournalConflict: As in `run`; but unless `specs` is a container, such as a list or a set, a
                conflict is found only when its spec is read.
            FanoutInterrupted: Ctrl-C while it waits for an outcome; its `.run` has those that were not yielded yet.
        """
        one_of("order", order, ("input", "completion"))
        outcomes = stream(self._plan, specs, in_input_order=order == "input")
        self._streams.add(outcomes)
        return outcomes

    def start(self, specs: Iterable[AgentStepSpec]) -> RunHandle:
        """Start what `run` does in a thread of its own, and return at once.

        Several may go on at a time, each with its own bound. Steps see the context variables of now. Inside a step of
        another run it is cancelled together with that run, and at the timeout of the step; the step should wait for it.

        Args:
            specs: Any iterable. A list is taken as it is now; anything else is consumed lazily, in the thread of the
                run.

        Returns:
            A handle that tells how far the run is, gives its result, and can cancel it.

        Raises:
            InputError: `specs` is not iterable, or a list whose first item is no spec. All else that `run` raises is
                raised by the `result` of the handle.
            RuntimeError: There is no thread for it.
        """
        run = BackgroundRun(self._plan, specs)
        self._started.add(run)
        run.begin()
        return RunHandle(run)

    def pipeline(self, items: Iterable[Any], stages: Sequence[Stage]) -> list[StepOutcome | None]:
        """Take each item through the stages on its own: no item waits for another one's stage.

        Args:
            items: Any iterable, consumed lazily, in this thread.
            stages: Functions `stage(outcome, item) -> AgentStepSpec | None`: each makes an item's next step of the
                outcome of the one before (`None` for the first stage) and the item. They are called in this thread.
                `None` ends the item's chain, and so does a step that fails.

        Returns:
            Each item's last outcome, in the order of `items`; `None` if its first stage gave no spec. A stage that
            raises ends its own chain only, with a failed outcome that names stage and error.

        Raises:
            OptionError: `stages` is no list of functions.
            InputError: `items` is not iterable or its iterator raised. What was under way is finished first.
            ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in `run`; a conflict is found
                only when its spec is made.
        """
        return run_pipeline(self._plan, items, stages)

    def loop(self, initial: Iterable[AgentStepSpec], max_iterations: int, next_round: NextRound) -> list[StepOutcome]:
        """Run rounds of steps, each when the one before is done, until `next_round` says stop.

        Args:
            initial: The specs of the first round.
            max_iterations: How many rounds there are at the most, at least 1.
            next_round: Called, in this thread, with the outcomes of a round; returns `Continue(specs)` or `Stop()`.
                `Continue` with no specs ends the loop, too. With a journal all rounds together are one run: each step
                needs a `task_id` of its own.

        Returns:
            The outcomes of the last round, in the order of its specs. It is the last one also if the budget is
            exhausted or `max_failures` steps have failed by then.

        Raises:
            OptionError: `max_iterations` is no int of at least 1, or `next_round` no function.
            InputError: As in `run`; or `next_round` raised, or returned neither: `.run` is the round before.
            ExecutorNotPicklable: As in `run`. In a later round, `.run` is the round before.
            JournalError, JournalConflict, FanoutInterrupted: As in `run`.
        """
        return run_loop(self._plan, initial, max_iterations, next_round)

    def __enter__(self) -> Runner:
        if isinstance(self._plan.backend, Backend):
            self._plan.backend.keep_warm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        is_interrupted = isinstance(error, KeyboardInterrupt)
        with InterruptScope() as scope:
            with ExitStack() as stack:
                if isinstance(self._plan.backend, Backend):
                    stack.callback(self._plan.backend.cool_down, scope, is_urgent=is_interrupted)
                for outcomes in self._streams:
                    stack.callback(_close, outcomes)
                for run in list(self._started):
                    run.cancel()
                    stack.callback(run.cancel_and_wait, lambda: scope.is_interrupted)
            if scope.is_interrupted and self._plan.raises_interrupts and not is_interrupted:
                end_as_if_killed()
                raise FanoutInterrupted(Run([], 0.0))


def _close(outcomes: OutcomeStream) -> None:
    with suppress(ValueError):  # another thread is just reading it: it is that one's to end
        outcomes.close()
