"""Run many agent steps at once from synchronous code, and get every outcome back in order.

Each name is imported when it is first used, so that a worker process loads only what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .records.display import DisplayedRecord
from .records.steps import WireRecord
from .wire.classes import UserClasses
from .wire.codec import RecordCodec

if TYPE_CHECKING:  # the same modules as below, for type checkers; each says in its `__all__` what it offers
    from .backends.backend import *
    from .backends.process import *
    from .backends.thread import *
    from .engine.handle import *
    from .engine.loop import *
    from .engine.stream import *
    from .errors import *
    from .events.channel import *
    from .events.senders import *
    from .events.types import *
    from .executors.command.command import *
    from .executors.command.executor import *
    from .executors.current_step import *
    from .executors.executor import *
    from .executors.function import *
    from .journal.journal import *
    from .journal.memory import *
    from .journal.sqlite import *
    from .limits.budget import *
    from .limits.rate_limit import *
    from .records.status import *
    from .records.step_record import *
    from .records.steps import *
    from .records.usage import *
    from .results.progress import *
    from .results.run import *
    from .retry.policy import *
    from .runner.fanout import *
    from .runner.functions import *
    from .runner.runner import *
    from .wire.class_schema import *
    from .wire.jsonl import *

    __version__: str

_NAMES_BY_MODULE = {
    "backends.backend": "Backend",
    "backends.process": "ProcessBackend",
    "backends.thread": "ThreadBackend",
    "engine.handle": "RunHandle",
    "engine.loop": "Continue Stop",
    "engine.stream": "OutcomeStream",
    "errors": "ExecutorNotPicklable FanoutError FanoutInterrupted InputError JournalConflict JournalError OptionError "
    "UnknownOption WireError",
    "events.channel": "EventChannel EventReceiver Lagged",
    "events.senders": "EventSender EventSink",
    "events.types": "BudgetExhausted Event RunEnd RunStart StepRetry StepReused SubagentEnd SubagentProgress "
    "SubagentStart TextDelta ToolEnd ToolStart UnknownEvent",
    "executors.command.command": "Command",
    "executors.command.executor": "CommandExecutor",
    "executors.current_step": "Cancelled CurrentStep current_step",
    "executors.executor": "AgentExecutor DEFAULT_MAX_PARALLEL_TASKS",
    "executors.function": "FunctionExecutor",
    "journal.journal": "Journal OpenWorkflow Workflow",
    "journal.memory": "MemoryJournal",
    "journal.sqlite": "SqliteJournal",
    "limits.budget": "Budget BudgetUsed",
    "limits.rate_limit": "RateLimit",
    "records.status": "Status StepError",
    "records.step_record": "AttemptRecord JournalRecord StepRecord",
    "records.steps": "AgentStepSpec StepOutcome",
    "records.usage": "Usage",
    "results.progress": "Progress",
    "results.run": "Run",
    "retry.policy": "Retry RetryAfter",
    "runner.fanout": "fanout_map fanout_stream",
    "runner.functions": "execute_loop execute_pipeline execute_steps_parallel execute_steps_parallel_resumable",
    "runner.runner": "Runner",
    "wire.class_schema": "schema_of",
    "wire.jsonl": "read_specs write_outcomes",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def _html_of(record: Any) -> str:
    from .results.html import record_html  # imported lazily: only notebooks need it

    return record_html(record)


# Set here, because records/ must not import wire/ and results/.
WireRecord.codec = RecordCodec()
WireRecord.classes = UserClasses()
DisplayedRecord.html_of = _html_of


def _version() -> str:
    from importlib import metadata  # imported lazily: slow

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:  # it is run from a checkout or a frozen program that left the metadata out
        return "0+unknown"


if not TYPE_CHECKING:  # type checkers take all names that are imported above, and know no others
    __all__ = sorted(_MODULE_OF)

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return _version()
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import last_resort  # imported lazily: slow, and whatever may log imports what it needs anyway

        last_resort.install()
        value = globals()[name] = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
        return value

    def __dir__() -> list[str]:
        return __all__
