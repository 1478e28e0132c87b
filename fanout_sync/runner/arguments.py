"""The arguments of `Runner`: each one's own check, and what it becomes. All refusals are `OptionError`s."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from ..backends import Backend, ProcessBackend, ThreadBackend
from ..checks import positive_seconds
from ..engine.plan import RunPlan
from ..errors import OptionError
from ..events.senders import EventSink, FunctionSink, is_async
from ..executors.executor import AgentExecutor, is_thread_safe
from ..formatting import describe, did_you_mean
from ..records.steps import AgentStepSpec

if TYPE_CHECKING:
    from ..journal import Journal, Workflow
    from ..limits.budget import Budget
    from ..limits.rate_limit import RateLimit
    from ..retry.policy import RetryPolicy

OPTIONS = (
    "backend",
    "max_concurrency",
    "timeout",
    "retry",
    "rate_limit",
    "budget",
    "max_failures",
    "journal",
    "event_tx",
    "on_interrupt",
)
"""The keyword arguments of `Runner`."""

_BACKENDS: dict[str, Callable[[], Backend]] = {"thread": ThreadBackend, "process": ProcessBackend}


def an_executor(value: Any) -> AgentExecutor:
    """Return the executor, if it is one."""
    if isinstance(value, AgentExecutor):
        is_thread_safe(value)  # refuses what is no bool
        return value
    if isinstance(value, type) and issubclass(value, AgentExecutor):
        name = value.__name__
        raise OptionError(f"executor must be an instance of {name}, got the class; call it: {name}()")
    raise OptionError(
        f"executor must be an AgentExecutor, got {describe(value)}; "
        "subclass AgentExecutor, or wrap functions in a FunctionExecutor"
    )


def a_backend(value: Any) -> Executor:
    """Return the backend, or the one that a word names."""
    if isinstance(value, Executor):
        return value
    if isinstance(value, str) and value in _BACKENDS:
        return _BACKENDS[value]()
    raise OptionError(
        "backend must be 'thread', 'process', a Backend or a concurrent.futures.Executor, "
        f"got {describe(value)}{did_you_mean(value, _BACKENDS)}"
    )


def a_timeout(value: Any) -> float | None:
    """Return the timeout in seconds; `None` for any time."""
    seconds = None if value is None else positive_seconds("timeout", value)
    return None if seconds == math.inf else seconds


def a_retry(value: Any) -> RetryPolicy | None:
    """Return the policy; `None` if steps are tried once."""
    if value is None:
        return None
    from ..retry.policy import retry_policy  # imported lazily: slow, and few need it

    return retry_policy(value)


def own_timeout_for(executor: AgentExecutor) -> Callable[[AgentStepSpec], float | None] | None:
    """Return the executor's `timeout_for`; `None` if it has none of its own."""
    own = executor.timeout_for
    return None if getattr(own, "__func__", None) is AgentExecutor.timeout_for else own


def an_event_sink(value: Any) -> EventSink | None:
    """Return where events go; a function becomes the `send` of an object."""
    if value is None:
        return None
    expected = "event_tx must be an EventChannel, have a send method or be a plain function"
    if isinstance(value, type):
        raise OptionError(f"{expected}, got the class {value.__name__}; call it: {value.__name__}()")
    sink = value if hasattr(value, "send") else FunctionSink(value)
    if not callable(send := value.send if sink is value else value):
        raise OptionError(f"{expected}, got {describe(value)}")
    if is_async(send):
        raise OptionError(f"{expected}, got {describe(value)}, which is async: nobody would await it")
    sender: EventSink = sink
    return sender


def rate_limits(value: Any) -> tuple[RateLimit, ...]:
    """Return all rate limits, of which there may be none."""
    if value is None:
        return ()
    from ..limits.rate_limit import RateLimit  # imported lazily: slow, and few need it

    limits = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for limit in limits:
        if not isinstance(limit, RateLimit):
            raise OptionError(f"rate_limit must be a RateLimit or a list of them, got {describe(limit)}")
    return limits


def a_budget(value: Any) -> Budget | None:
    """Return the budget."""
    if value is None:
        return None
    from ..limits.budget import Budget

    if not isinstance(value, Budget):
        raise OptionError(f"budget must be a Budget, such as Budget(max_cost_usd=5), got {describe(value)}")
    return value


def a_workflow(value: Any) -> Workflow:
    """Return the workflow that `journal=` names."""
    from ..journal import Workflow  # imported lazily: slow, and few need it

    return value if isinstance(value, Workflow) else Workflow(a_journal(value))


def a_journal(value: Any) -> Journal:
    """Return the journal that was given, or the one of a path."""
    from ..journal import Journal, SqliteJournal

    if isinstance(value, Journal):
        return value
    if isinstance(value, (str, os.PathLike)) and os.fspath(value):
        return SqliteJournal(value)
    raise OptionError(
        f"journal must be the path of an SQLite file, a Journal or what its workflow() returns, got {describe(value)}"
    )


def warn_of_soft_timeout(plan: RunPlan) -> None:
    """Warn if there is a timeout that the backend cannot keep."""
    policies = plan.policies
    if isinstance(plan.backend, Backend) or (policies.timeout_s is None and policies.timeout_for is None):
        return
    warnings.warn(
        f"the timeout is a soft one: {type(plan.backend).__name__} cannot stop a step that is overdue, which is "
        "reported as timed out and keeps its place there; backend='process' kills it",
        stacklevel=_level_of_the_caller(),
    )


def _level_of_the_caller() -> int:
    """Return the `stacklevel` at which, for `warnings.warn` where this is called, the first frame of others is."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level
