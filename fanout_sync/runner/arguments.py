"""The arguments of `Runner`: each one's own check, and what it becomes. All refusals are `OptionError`s."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve

from ..backends import Backend, ProcessBackend, ThreadBackend
from ..checks import one_of, positive_seconds, refuse_signature
from ..engine.plan import RunPlan
from ..engine.warn import warn_caller
from ..errors import OptionError
from ..events.senders import EventSink, FunctionSink, is_async
from ..executors.current_step import running_step
from ..executors.executor import AgentExecutor, is_thread_safe
from ..formatting import describe, describe_argument, did_you_mean
from ..records.steps import AgentStepSpec
from ..results.bar import Bar, is_bar_class, visible_bar_class
from ..results.progress import ShownBy
from ..results.progress_function import ProgressFunction
from .executor_argument import check_methods, refuse_executor

if TYPE_CHECKING:
    from ..journal import Journal, Workflow
    from ..limits.budget import Budget
    from ..limits.rate_limit import RateLimit
    from ..results.progress import ProgressSink
    from ..retry.policy import RetryPolicy

_BACKENDS: dict[str, Callable[[], Backend]] = {"thread": ThreadBackend, "process": ProcessBackend}


def an_executor(value: Any) -> AgentExecutor:
    """Return the executor, if it is one."""
    if isinstance(value, AgentExecutor):
        is_thread_safe(value)  # refuses what is no bool
        check_methods(value)
        return value
    raise refuse_executor(value)


def a_backend(value: Any) -> Executor:
    """Return the backend, or the one that a word names."""
    if isinstance(value, Executor):
        return value
    if isinstance(value, str) and value in _BACKENDS:
        return _BACKENDS[value]()
    raise OptionError(
        "backend must be 'thread', 'process', a Backend or a concurrent.futures.Executor, "
        f"got {describe_argument(value, Executor)}{did_you_mean(value, _BACKENDS)}"
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
    name = "event_tx" if sink is not value else f"send of event_tx ({type(value).__name__})"
    refuse_signature(name, send, "(event)", None)
    sender: EventSink = sink
    return sender


def a_progress(value: Any) -> Callable[[], ProgressSink | None] | None:
    """Return what makes the sink of a call's progress, if somebody sees it; `None` if nothing is to be shown."""
    expected = "progress must be True, False, None, a tqdm class or a function of a Progress"
    if value is None or value is False:
        return None
    if isinstance(value, ShownBy):
        return value.make_sink
    if value is True:
        return _bar_where_seen
    if isinstance(value, partial) and is_bar_class(value.func) and not value.args:
        return partial(_bar_of, value.func, value.keywords)
    if is_bar_class(value):
        return partial(_bar_of, value, {})
    if isinstance(value, type) or is_bar_class(type(value)):
        is_bar = not isinstance(value, type)
        raise OptionError(f"{expected}, got {describe(value)}{'; give its class' if is_bar else ''}")
    if isinstance(value, partial) and is_bar_class(value.func):
        raise OptionError(f"{expected}, got {describe(value)}; give the class keyword arguments only")
    if not callable(value):
        raise OptionError(f"{expected}, got {describe(value)}")
    if is_async(value):
        raise OptionError(f"{expected}, got {describe(value)}, which is async: nobody would await it")
    refuse_signature("progress", value, "(progress)", None)
    return partial(ProgressFunction, value)


def _bar_where_seen() -> Bar | None:
    # A step in another process, whose call may have a bar already: neither would know where the other one draws.
    if running_step.get() is not None:
        from multiprocessing import parent_process  # imported lazily: slow

        if parent_process() is not None:
            return None
    return None if (bar_class := visible_bar_class()) is None else _bar_of(bar_class, {})


def _bar_of(bar_class: Any, options: Mapping[str, Any]) -> Bar:
    # Those of runs within steps come and go; there may be hundreds.
    return Bar(bar_class, options, stays=running_step.get() is None)


def rate_limits(value: Any) -> tuple[RateLimit, ...]:
    """Return all rate limits, of which there may be none."""
    if value is None:
        return ()
    from ..limits.rate_limit import RateLimit  # imported lazily: slow, and few need it

    limits = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for limit in limits:
        if not isinstance(limit, RateLimit):
            got = describe_argument(limit, RateLimit, "…")
            raise OptionError(f"rate_limit must be a RateLimit or a list of them, got {got}")
    return limits


def a_budget(value: Any) -> Budget | None:
    """Return the budget."""
    if value is None:
        return None
    from ..limits.budget import Budget

    if not isinstance(value, Budget):
        got = describe_argument(value, Budget, "…")
        raise OptionError(f"budget must be a Budget, such as Budget(max_cost_usd=5), got {got}")
    return value


def a_workflow(value: Any, on_conflict: Any) -> Workflow | None:
    """Return the workflow that `journal=` names; steps rerun if either it or `on_conflict=` says so."""
    may_rerun = one_of("on_conflict", on_conflict, ("refuse", "rerun")) == "rerun"
    if value is None:
        if may_rerun:
            raise OptionError("on_conflict='rerun' needs a journal: give journal= as well")
        return None
    from ..journal import Workflow  # imported lazily: slow, and few need it

    workflow = value if isinstance(value, Workflow) else Workflow(a_journal(value))
    return evolve(workflow, on_conflict="rerun") if may_rerun else workflow


def a_journal(value: Any) -> Journal:
    """Return the journal that was given, or the one of a path."""
    from ..journal import Journal, SqliteJournal

    if isinstance(value, Journal):
        return value
    if isinstance(value, (str, os.PathLike)) and os.fspath(value):
        return SqliteJournal(value)
    raise OptionError(
        f"journal must be the path of an SQLite file, a Journal or what its workflow() returns, "
        f"got {describe_argument(value, Journal)}"
    )


def warn_of_soft_timeout(plan: RunPlan) -> None:
    """Warn if there is a timeout that the backend cannot keep."""
    policies = plan.policies
    if isinstance(plan.backend, Backend) or (policies.timeout_s is None and policies.timeout_for is None):
        return
    warn_caller(
        f"the timeout is a soft one: {type(plan.backend).__name__} cannot stop a step that is overdue, which is "
        "reported as timed out and keeps its place there; backend='process' kills it"
    )
