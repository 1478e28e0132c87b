"""Journal records as rows of plain values, and back: everything that two journals have to agree on."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any, get_args

from attrs import asdict, frozen

from ..errors import JournalError, WireError
from ..formatting import describe, printable
from ..records.status import Status, StepError
from ..records.step_record import AttemptRecord, JournalRecord
from ..records.steps import AgentStepSpec, Json, StepOutcome
from ..records.usage import Usage
from ..wire.strict_json import check_json, parse_json, quoted

COLUMNS = (
    "task_id",
    "position",
    "identity",
    "spec",
    "outcome",
    "status",
    "error",
    "attempts",
    "started",
    "duration_s",
    "worker",
    "exit_code",
    "signal",
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
)
"""The names of a row's values, in order."""

Row = tuple[Any, ...]
"""A record as `str`, `int`, `float` and `None`."""

_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_STATUSES = get_args(Status)


def row_of(record: JournalRecord) -> Row:
    """Return the record as a row.

    Raises:
        JournalError: It holds what cannot be journalled, such as a lone surrogate; the step is named.
    """
    try:
        row = _row_of(record)
        for value in row:
            if type(value) is str and not value.isascii():
                value.encode()
    except (WireError, ValueError, OverflowError, TypeError) as error:
        raise JournalError(f"step {record.task_id!r} cannot be journalled: {printable(str(error))}") from error
    return row


def _row_of(record: JournalRecord) -> Row:
    spec, error, usage, started = record.spec, record.error, record.usage, record.started
    return (
        record.task_id,
        record.index,
        record.identity,
        None if spec is None else _text_of_spec(spec),
        _text_of_outcome(record.outcome),
        record.status,
        None if error is None else _write(asdict(error)),
        _text_of_attempts(record.attempts),
        None if started is None else started.timestamp(),
        record.duration_s,
        record.worker,
        record.exit_code,
        record.signal,
        None if usage is None else usage.prompt_tokens,
        None if usage is None else usage.completion_tokens,
        None if usage is None else float(usage.cost_usd),
    )


def _text_of_spec(spec: AgentStepSpec) -> str:
    """Return JSON from which the spec can be read; what is plain its class has checked already."""
    rest = ""
    if spec.max_steps is not None:
        rest += f',"max_steps":{int(spec.max_steps)}'
    if spec.parent_session_id is not None:
        rest += f',"parent_session_id":{quoted(spec.parent_session_id)}'
    if spec.output_schema is not None:
        rest += f',"output_schema":{_checked(spec.output_schema, "output_schema")}'
    text = (
        f'{{"task_id":{quoted(spec.task_id)},"agent":{quoted(spec.agent)},'
        f'"description":{quoted(spec.description)},"prompt":{quoted(spec.prompt)}{rest}}}'
    )
    if not is_text(text):
        spec.to_json()  # which names the field
    return text


def _text_of_outcome(outcome: StepOutcome) -> str:
    rest = "" if outcome.structured is None else f',"structured":{_checked(outcome.structured, "structured")}'
    text = (
        f'{{"task_id":{quoted(outcome.task_id)},"session_id":{quoted(outcome.session_id)},'
        f'"agent":{quoted(outcome.agent)},"output":{quoted(outcome.output)},'
        f'"success":{"true" if outcome.success else "false"}{rest}}}'
    )
    if not is_text(text):
        outcome.to_json()
    return text


def _checked(value: Json, name: str) -> str:
    check_json(value, name)
    return _write(value)


def _text_of_attempts(attempts: tuple[AttemptRecord, ...]) -> str:
    if len(attempts) == 1 and (only := attempts[0]).reason is None and only.wait_s is None:
        # As nearly every step has it.
        return (
            f'[{{"number":{only.number},"status":"{only.status}","reason":null,'
            f'"duration_s":{_write(only.duration_s)},"wait_s":null}}]'
        )
    return _write([asdict(attempt) for attempt in attempts])


def is_text(value: str) -> bool:
    """Return whether UTF-8 can carry it; what it cannot carry is in no journal."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def record_of(row: Row) -> JournalRecord:
    """Return the record that a row was made of.

    Raises:
        JournalError: The row is no such record; the step is named.
    """
    try:
        return _record_of(_Fields(*row))
    except (WireError, ValueError, OverflowError, TypeError) as error:
        raise JournalError(f"step {row[0]!r} cannot be read back: {printable(str(error))}") from error


@frozen
class _Fields:
    # The values of a row, by the names of `COLUMNS`.
    task_id: Any
    position: Any
    identity: Any
    spec: Any
    outcome: Any
    status: Any
    error: Any
    attempts: Any
    started: Any
    duration_s: Any
    worker: Any
    exit_code: Any
    signal: Any
    prompt_tokens: Any
    completion_tokens: Any
    cost_usd: Any


def _record_of(fields: _Fields) -> JournalRecord:
    started = None if fields.started is None else datetime.fromtimestamp(fields.started, timezone.utc)
    is_timed = started is not None and fields.duration_s is not None
    return JournalRecord(
        index=fields.position,
        status=_status(fields.status),
        error=None if fields.error is None else StepError(**parse_json(fields.error)),
        attempts=tuple(AttemptRecord(**attempt) for attempt in parse_json(fields.attempts)),
        started=started,
        finished=started + timedelta(seconds=fields.duration_s) if started is not None and is_timed else None,
        duration_s=fields.duration_s,
        worker=fields.worker,
        exit_code=fields.exit_code,
        signal=fields.signal,
        usage=_usage(fields),
        from_journal=True,
        task_id=fields.task_id,
        outcome=StepOutcome.from_json(fields.outcome),
        spec=None if fields.spec is None else AgentStepSpec.from_json(fields.spec),
        identity=fields.identity,
    )


def _usage(fields: _Fields) -> Usage | None:
    if fields.prompt_tokens is None:
        return None
    return Usage(fields.prompt_tokens, fields.completion_tokens, fields.cost_usd)


def _status(value: Any) -> Status:
    if value not in _STATUSES:
        raise ValueError(f"there is no status {describe(value)}")
    return value  # type: ignore[no-any-return]  # it is one of them
