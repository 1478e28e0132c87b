"""Run many agent steps at once from synchronous code, and get every outcome back in order."""

import logging as _logging

from .backends import Backend, ProcessBackend, ThreadBackend
from .channel import EventChannel, EventReceiver, Lagged
from .errors import ExecutorNotPicklable, FanoutError, InputError, OptionError, UnknownOption, WireError
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
from .records import Status, StepError, StepRecord
from .run import Run
from .runner import Runner, execute_steps_parallel
from .steps import AgentStepSpec, StepOutcome

__all__ = [
    "DEFAULT_MAX_PARALLEL_TASKS",
    "AgentExecutor",
    "AgentStepSpec",
    "Backend",
    "Event",
    "EventChannel",
    "EventReceiver",
    "EventSender",
    "ExecutorNotPicklable",
    "FanoutError",
    "FunctionExecutor",
    "InputError",
    "Lagged",
    "OptionError",
    "ProcessBackend",
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
    "execute_steps_parallel",
    "read_specs",
    "write_outcomes",
]

_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # silent until the program configures logging
