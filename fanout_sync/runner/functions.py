"""The ways to run steps, as functions: thin, with the names of the reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..checks import refuse_unknown
from ..engine.loop import NextRound
from ..engine.pipeline import Stage
from ..events.senders import EventSink
from ..executors.executor import AgentExecutor
from ..records.steps import AgentStepSpec, StepOutcome
from .arguments import a_journal
from .options import OPTIONS, OptionsBesidesEvents, UnjournalledOptions, passes_options_to
from .runner import Runner

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..events.types import Event
    from ..journal import Journal

__all__ = ["execute_loop", "execute_pipeline", "execute_steps_parallel", "execute_steps_parallel_resumable"]


@passes_options_to(Runner)
def execute_steps_parallel(
    executor: AgentExecutor,
    specs: Iterable[AgentStepSpec],
    event_tx: EventSink | Callable[[Event], object] | None = None,
    **options: Unpack[OptionsBesidesEvents],
) -> list[StepOutcome]:
    """Run every spec, at most `executor.concurrency_hint()` at once, and return when all are done.

    Args:
        executor: How a step runs.
        specs: Any iterable of specs.
        event_tx: Where events go: an `EventChannel`, any object with a `send` method, or a function.
        **options: The keyword arguments of `Runner`.

    Returns:
        One outcome per spec, in the order of `specs`; a step that failed has a failed outcome.

    Raises:
        OptionError: An option that nobody can mean or that does not exist; it is named.
        InputError: As in `Runner.run`.
        ExecutorNotPicklable: As in `Runner.run`.
        FanoutInterrupted: As in `Runner.run`.
    """
    refuse_unknown("execute_steps_parallel", options, OPTIONS)
    return list(Runner(executor, event_tx=event_tx, **options).run(specs))


@passes_options_to(Runner)
def execute_steps_parallel_resumable(
    executor: AgentExecutor,
    specs: Iterable[AgentStepSpec],
    workflow_id: str,
    journal: str | os.PathLike[str] | Journal,
    event_tx: EventSink | Callable[[Event], object] | None = None,
    *,
    on_conflict: Literal["refuse", "rerun"] = "refuse",
    **options: Unpack[UnjournalledOptions],
) -> list[StepOutcome]:
    """As `execute_steps_parallel`, but what an earlier call has journalled with success is not run again.

    Args:
        executor: How a step runs.
        specs: Any iterable of specs, each with a `task_id` of its own.
        workflow_id: Names the work: a call resumes what an earlier one with the same id has done.
        journal: The path of an SQLite file, or a `Journal`.
        event_tx: Where events go: an `EventChannel`, any object with a `send` method, or a function.
        on_conflict: What to do with a step whose `task_id` is journalled with another spec: `"refuse"` the call, or
            `"rerun"` the step.
        **options: The keyword arguments of `Runner`, but for `journal`.

    Returns:
        One outcome per spec, in the order of `specs`.

    Raises:
        OptionError, InputError, ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in
            `Runner.run`.
    """
    refuse_unknown("execute_steps_parallel_resumable", options, UnjournalledOptions.__annotations__)
    workflow = a_journal(journal).workflow(workflow_id, on_conflict)
    return list(Runner(executor, journal=workflow, event_tx=event_tx, **options).run(specs))


@passes_options_to(Runner)
def execute_pipeline(
    executor: AgentExecutor,
    items: Iterable[Any],
    stages: Sequence[Stage],
    event_tx: EventSink | Callable[[Event], object] | None = None,
    **options: Unpack[OptionsBesidesEvents],
) -> list[StepOutcome | None]:
    """Take each item through the stages on its own; see `Runner.pipeline`.

    Args:
        executor: How a step runs.
        items: Any iterable.
        stages: Functions `stage(outcome, item) -> AgentStepSpec | None`.
        event_tx: Where events go: an `EventChannel`, any object with a `send` method, or a function.
        **options: The keyword arguments of `Runner`.

    Returns:
        Each item's last outcome, in the order of `items`; `None` if its first stage gave no spec.

    Raises:
        OptionError, InputError, ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in
            `Runner.pipeline`.
    """
    refuse_unknown("execute_pipeline", options, OPTIONS)
    return Runner(executor, event_tx=event_tx, **options).pipeline(items, stages)


@passes_options_to(Runner)
def execute_loop(
    executor: AgentExecutor,
    initial: Iterable[AgentStepSpec],
    max_iterations: int,
    next_round: NextRound,
    event_tx: EventSink | Callable[[Event], object] | None = None,
    **options: Unpack[OptionsBesidesEvents],
) -> list[StepOutcome]:
    """Run rounds of steps until `next_round` says stop; see `Runner.loop`.

    Args:
        executor: How a step runs.
        initial: The specs of the first round.
        max_iterations: How many rounds there are at the most, at least 1.
        next_round: Called with the outcomes of a round; returns `Continue(specs)` or `Stop()`.
        event_tx: Where events go: an `EventChannel`, any object with a `send` method, or a function.
        **options: The keyword arguments of `Runner`.

    Returns:
        The outcomes of the last round, in the order of its specs.

    Raises:
        OptionError, InputError, ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in
            `Runner.loop`.
    """
    refuse_unknown("execute_loop", options, OPTIONS)
    return Runner(executor, event_tx=event_tx, **options).loop(initial, max_iterations, next_round)
