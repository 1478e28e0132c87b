"""Run many agent steps at once from synchronous code, and get every outcome back in order.

Each name is imported when it is first used, so that a worker process loads only what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import wire as _wire  # noqa: F401 - it gives the records their codec

if TYPE_CHECKING:
    from .backends import Backend, ProcessBackend, ThreadBackend
    from .budget import Budget, BudgetUsed
    from .channel import EventChannel, EventReceiver, Lagged
    from .combinators import (
        execute_loop,
        execute_pipeline,
        execute_steps_parallel,
        execute_steps_parallel_resumable,
    )
    from .current import Cancelled, CurrentStep, current_step
    from .errors import (
        ExecutorNotPicklable,
        FanoutError,
        FanoutInterrupted,
        InputError,
        JournalConflict,
        JournalError,
        OptionError,
        UnknownOption,
        WireError,
    )
    from .events import (
        BudgetExhausted,
        Event,
        RunEnd,
        RunStart,
        StepRetry,
        SubagentEnd,
        SubagentProgress,
        SubagentStart,
        TextDelta,
        ToolEnd,
        ToolStart,
        UnknownEvent,
    )
    from .executor import DEFAULT_MAX_PARALLEL_TASKS, AgentExecutor, EventSender, EventSink
    from .executors import FunctionExecutor
    from .journal import Journal, MemoryJournal, OpenWorkflow, SqliteJournal, Workflow
    from .jsonl import read_specs, write_outcomes
    from .loop import Continue, Stop
    from .rate_limit import RateLimit
    from .records import AttemptRecord, JournalRecord, StepRecord
    from .retry import Retry
    from .retry_after import RetryAfter
    from .run import Run
    from .runner import Runner
    from .status import Status, StepError
    from .steps import AgentStepSpec, StepOutcome
    from .usage import Usage

__all__ = [
    "DEFAULT_MAX_PARALLEL_TASKS",
    "AgentExecutor",
    "AgentStepSpec",
    "AttemptRecord",
    "Backend",
    "Budget",
    "BudgetExhausted",
    "BudgetUsed",
    "Cancelled",
    "Continue",
    "CurrentStep",
    "Event",
    "EventChannel",
    "EventReceiver",
    "EventSender",
    "EventSink",
    "ExecutorNotPicklable",
    "FanoutError",
    "FanoutInterrupted",
    "FunctionExecutor",
    "InputError",
    "Journal",
    "JournalConflict",
    "JournalError",
    "JournalRecord",
    "Lagged",
    "MemoryJournal",
    "OpenWorkflow",
    "OptionError",
    "ProcessBackend",
    "RateLimit",
    "Retry",
    "RetryAfter",
    "Run",
    "RunEnd",
    "RunStart",
    "Runner",
    "SqliteJournal",
    "Status",
    "StepError",
    "StepOutcome",
    "StepRecord",
    "StepRetry",
    "Stop",
    "SubagentEnd",
    "SubagentProgress",
    "SubagentStart",
    "TextDelta",
    "ThreadBackend",
    "ToolEnd",
    "ToolStart",
    "UnknownEvent",
    "UnknownOption",
    "Usage",
    "WireError",
    "Workflow",
    "current_step",
    "execute_loop",
    "execute_pipeline",
    "execute_steps_parallel",
    "execute_steps_parallel_resumable",
    "read_specs",
    "write_outcomes",
]

_NAMES_BY_MODULE = {
    "backends": "Backend ProcessBackend ThreadBackend",
    "budget": "Budget BudgetUsed",
    "channel": "EventChannel EventReceiver Lagged",
    "combinators": "execute_loop execute_pipeline execute_steps_parallel execute_steps_parallel_resumable",
    "current": "Cancelled CurrentStep current_step",
    "errors": "ExecutorNotPicklable FanoutError FanoutInterrupted InputError JournalConflict JournalError OptionError "
    "UnknownOption WireError",
    "events": "BudgetExhausted Event RunEnd RunStart StepRetry SubagentEnd SubagentProgress "
    "SubagentStart TextDelta ToolEnd ToolStart UnknownEvent",
    "executor": "DEFAULT_MAX_PARALLEL_TASKS AgentExecutor EventSender EventSink",
    "executors": "FunctionExecutor",
    "journal": "Journal MemoryJournal OpenWorkflow SqliteJournal Workflow",
    "jsonl": "read_specs write_outcomes",
    "loop": "Continue Stop",
    "rate_limit": "RateLimit",
    "records": "AttemptRecord JournalRecord StepRecord",
    "retry": "Retry",
    "retry_after": "RetryAfter",
    "run": "Run",
    "runner": "Runner",
    "status": "Status StepError",
    "steps": "AgentStepSpec StepOutcome",
    "usage": "Usage",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
