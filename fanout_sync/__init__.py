"""Run many agent steps at once from synchronous code, and get every outcome back in order.

Each name is imported when it is first used, so that a worker process loads only what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import wire as _wire  # noqa: F401 - it gives the records their codec

if TYPE_CHECKING:
    from .backends import Backend, ProcessBackend, ThreadBackend
    from .channel import EventChannel, EventReceiver, Lagged
    from .current import Cancelled, CurrentStep, current_step
    from .errors import (
        ExecutorNotPicklable,
        FanoutError,
        FanoutInterrupted,
        InputError,
        OptionError,
        UnknownOption,
        WireError,
    )
    from .events import (
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
    from .executor import DEFAULT_MAX_PARALLEL_TASKS, AgentExecutor, EventSender
    from .executors import FunctionExecutor
    from .jsonl import read_specs, write_outcomes
    from .records import AttemptRecord, StepRecord
    from .retry import Retry, RetryAfter
    from .run import Run
    from .runner import Runner, execute_steps_parallel
    from .status import Status, StepError
    from .steps import AgentStepSpec, StepOutcome

__all__ = [
    "DEFAULT_MAX_PARALLEL_TASKS",
    "AgentExecutor",
    "AgentStepSpec",
    "AttemptRecord",
    "Backend",
    "Cancelled",
    "CurrentStep",
    "Event",
    "EventChannel",
    "EventReceiver",
    "EventSender",
    "ExecutorNotPicklable",
    "FanoutError",
    "FanoutInterrupted",
    "FunctionExecutor",
    "InputError",
    "Lagged",
    "OptionError",
    "ProcessBackend",
    "Retry",
    "RetryAfter",
    "Run",
    "RunEnd",
    "RunStart",
    "Runner",
    "Status",
    "StepError",
    "StepOutcome",
    "StepRecord",
    "StepRetry",
    "SubagentEnd",
    "SubagentProgress",
    "SubagentStart",
    "TextDelta",
    "ThreadBackend",
    "ToolEnd",
    "ToolStart",
    "UnknownEvent",
    "UnknownOption",
    "WireError",
    "current_step",
    "execute_steps_parallel",
    "read_specs",
    "write_outcomes",
]

_NAMES_BY_MODULE = {
    "backends": "Backend ProcessBackend ThreadBackend",
    "channel": "EventChannel EventReceiver Lagged",
    "current": "Cancelled CurrentStep current_step",
    "errors": "ExecutorNotPicklable FanoutError FanoutInterrupted InputError OptionError UnknownOption WireError",
    "events": "Event RunEnd RunStart StepRetry SubagentEnd SubagentProgress "
    "SubagentStart TextDelta ToolEnd ToolStart UnknownEvent",
    "executor": "DEFAULT_MAX_PARALLEL_TASKS AgentExecutor EventSender",
    "executors": "FunctionExecutor",
    "jsonl": "read_specs write_outcomes",
    "records": "AttemptRecord StepRecord",
    "retry": "Retry RetryAfter",
    "run": "Run",
    "runner": "Runner execute_steps_parallel",
    "status": "Status StepError",
    "steps": "AgentStepSpec StepOutcome",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
