"""The messages between the caller and a worker: pickled tuples of builtins, so that loading one runs no other code."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import attrs

from ..executors.current_step import Meter, RunningStep, StopSignal, begun
from ..records.report import Report, failure
from ..records.status import StepError
from ..records.steps import AgentStepSpec, Json, StepOutcome
from ..wire.item_spec import ItemSpec, PackedItem
from ..wire.schema_text import schema_text

# From the caller.
STATE = "state"  # (STATE, see `caller_state`, names of modules that were reloaded, whether no PREPARE follows)
MODULES = "modules"  # (MODULES, what the caller's modules have that no step seems to use, see `sent_modules`)
PREPARE = "prepare"  # (PREPARE, pickled executor and retry rule, whether events are wanted)
STEP = "step"  # (STEP, index, spec fields, attempt, timeout in seconds)
ITEM_STEP = "item step"  # (ITEM_STEP, index, task id, agent, item, whether it is packed, attempt, timeout in seconds)
CALL = "call"  # (CALL, index, pickled function and arguments)
STOP = "stop"  # (STOP,)

# From the worker.
READY = "ready"  # (READY,) after PREPARE, or after STATE if modules were reloaded that this worker does not have
LOADING = "loading"  # (LOADING, "executor" or "retry") before each of the two is unpickled
LOADED = "loaded"  # (LOADED,) when both are, before setup()
UNLOADABLE = "unloadable"  # (UNLOADABLE, error fields) instead, of the one that was being unpickled
UNPREPARED = "unprepared"  # (UNPREPARED, error fields) when anything else has failed
DONE = "done"  # (DONE, index, the other fields of a `Report` that a worker knows, in its order) after STEP
LEAVING = "leaving"  # (LEAVING,) before its last answer, or after STATE if it has modules that were reloaded
RETURNED = "returned"  # (RETURNED, index, pickled result) after CALL
RAISED = "raised"  # (RAISED, index, pickled exception or None, error fields) after CALL
USAGE = "usage"  # (USAGE, index, prompt tokens, completion tokens, cost in US dollars) between STEP and DONE
LOG = "log"  # (LOG, fields of a log record)
EVENT = "event"  # (EVENT, event as JSON)

OF_START = frozenset((READY, LOADING, LOADED, UNLOADABLE, UNPREPARED))
"""What a worker sends after PREPARE, and before anything else of its work."""

Message = tuple[Any, ...]


def pack(message: Message) -> bytes:
    """Return the bytes of a message."""
    return pickle.dumps(message, 5)


def pack_step(index: int, spec: AgentStepSpec, attempt: int, timeout_s: float | None) -> bytes:
    """Return the STEP message of an attempt at a spec.

    Raises:
        NotASchema: JSON cannot carry the spec's `output_schema`.
    """
    schema = None if spec.output_schema is None else schema_text(spec.output_schema)
    texts = (spec.task_id, spec.agent, spec.description, spec.prompt)
    parent_session_id = _exact_or_none(spec.parent_session_id)
    return pack((STEP, index, *map(_exact, texts), spec.max_steps, parent_session_id, schema, attempt, timeout_s))


def unpack_step(message: Message, stop: StopSignal, meter: Meter) -> RunningStep:
    """Return the step of a STEP message; its time begins now."""
    _, index, task_id, agent, description, prompt, max_steps, parent_session_id, schema, attempt, timeout_s = message
    output_schema = None if schema is None else json.loads(schema)
    spec = AgentStepSpec(task_id, agent, description, prompt, max_steps, parent_session_id, output_schema)
    return begun((spec, index, attempt, timeout_s, None, stop, meter))


def pack_item_step(
    index: int, spec: ItemSpec, attempt: int, timeout_s: float | None, pickle_item: Callable[[int, Any], bytes]
) -> bytes:
    """Return the ITEM_STEP message of an attempt at a spec with an item.

    Raises:
        Exception: What `pickle_item` raises; it is called with the index and the item, if that is more than builtins.
    """
    before, after = (ITEM_STEP, index, _exact(spec.task_id), _exact(spec.agent)), (attempt, timeout_s)
    message = plain_pickle((*before, spec.item, False, *after))
    return pack((*before, pickle_item(index, spec.item), True, *after)) if message is None else message


def unpack_item_step(message: Message, stop: StopSignal, meter: Meter) -> RunningStep:
    """Return the step of an ITEM_STEP message; its time begins now. Its item is unpickled when it is called."""
    _, index, task_id, agent, item, is_packed, attempt, timeout_s = message
    spec = ItemSpec.of(task_id, agent, PackedItem(item) if is_packed else item)
    return begun((spec, index, attempt, timeout_s, None, stop, meter))


def plain_pickle(value: Any) -> bytes | None:
    """Return the pickle of a value that consists of nothing but builtins; `None` if it is another one."""
    try:
        _PlainPickler(file := io.BytesIO(), 5).dump(value)
    except Exception:  # if not `_NotPlain`, then what pickling it by other means raises, too
        return None
    return file.getvalue()


def pack_report(report: Report, spec: AgentStepSpec) -> bytes:
    """Return the DONE message of a report; if the outcome is too large to send, the message says that instead."""
    try:
        return _pack_report(report)
    except Exception as error:  # most likely MemoryError
        refusal = StepError("InvalidOutcome", f"the outcome could not be sent to the caller: {StepError.of(error)}")
        return _pack_report(
            failure(report.index, spec, "invalid", refusal, report.started, report.duration_s, report.worker)
        )


def read_report(index: int, spec: AgentStepSpec, message: Message) -> Report:
    """Return the report of a DONE message; if it cannot be read here, a failed outcome that says why."""
    try:
        return _unpack_report(message)
    except Exception as error:  # for example an int of more digits than this process reads
        refusal = StepError("InvalidOutcome", f"the outcome cannot be read here: {StepError.of(error)}")
        return failure(index, spec, "invalid", refusal)


def unpack(data: bytes | bytearray | memoryview) -> Message:
    """Return the message that some bytes hold.

    Raises:
        pickle.UnpicklingError: They hold something else than builtins, which neither side ever loads.
    """
    message: Message = _BuiltinsUnpickler(io.BytesIO(data)).load()
    return message


def error_fields(error: StepError) -> tuple[str, str, str | None]:
    """Return a `StepError` as a tuple."""
    return (_exact(error.type), _exact(error.message), _exact_or_none(error.traceback))


class _NotPlain(Exception):
    """Something is no builtin."""


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        raise _NotPlain


class _BuiltinsUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"a message may hold only builtins, got {module}.{name}")


_ADDED_BY_CALLER = {"exit_code", "signal", "attempts", "usage", "journalled", "spec"}
_SENT = tuple(field.name for field in attrs.fields(Report) if field.name not in _ADDED_BY_CALLER)
_sent_values = attrgetter(*_SENT)
_OUTCOME, _ERROR = _SENT.index("outcome"), _SENT.index("error")


def _pack_report(report: Report) -> bytes:
    values = [DONE, *_sent_values(report)]
    values[1 + _OUTCOME] = _outcome_fields(report.outcome)
    if report.error is not None:
        values[1 + _ERROR] = error_fields(report.error)
    return pack(tuple(values))


def _unpack_report(message: Message) -> Report:
    values = list(message[1:])
    task_id, session_id, agent, output, success, structured = values[_OUTCOME]
    if structured is not None:
        structured = json.loads(structured)
    values[_OUTCOME] = StepOutcome(task_id, session_id, agent, output, success, structured)
    if values[_ERROR] is not None:
        values[_ERROR] = StepError(*values[_ERROR])
    return Report(*values)


def _outcome_fields(outcome: StepOutcome) -> tuple[Any, ...]:
    return (
        _exact(outcome.task_id),
        _exact(outcome.session_id),
        _exact(outcome.agent),
        _exact(outcome.output),
        outcome.success,
        None if outcome.structured is None else _dump(outcome.structured),
    )


def _dump(value: Json) -> str:
    # JSON rather than pickle: loading a subclass of dict would run its code.
    return json.dumps(value, ensure_ascii=False)


def _exact(text: str) -> str:
    # A subclass of str would be pickled as a reference to its class, and loading it would run code of that class.
    return text if type(text) is str else str.__str__(text)


def _exact_or_none(text: str | None) -> str | None:
    return None if text is None else _exact(text)
