"""Journal records as rows of plain values, and back, for all journals of this package.

The columns follow from the fields of `JournalRecord`, and their SQL types from the types of the fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from operator import attrgetter
from typing import Any, get_args

import attrs
from attrs import asdict, frozen

from ..errors import JournalError, WireError
from ..formatting import describe, printable
from ..records.status import Status, StepError
from ..records.step_record import AttemptRecord, JournalRecord
from ..records.steps import AgentStepSpec, Json, StepOutcome
from ..records.usage import Usage
from ..wire.strict_json import check_json, parse_json, quoted

Row = tuple[Any, ...]
"""A record as `str`, `int`, `float` and `None`."""

_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_STATUSES = get_args(Status)


def row_of(record: JournalRecord) -> Row:
    """Return the record as a row.

    Raises:
        JournalError: The record holds a value that cannot be stored, such as a lone surrogate; the step is named.
    """
    try:
        row = _row_of(record)
        for value in row:
            if type(value) is str and not value.isascii():
                value.encode()
    except (WireError, ValueError, OverflowError, TypeError) as error:
        raise JournalError(f"step {record.task_id!r} cannot be journalled: {printable(str(error))}") from error
    return row


def record_of(row: Row) -> JournalRecord:
    """Return the record that a row stores.

    Raises:
        JournalError: The row is not a valid record; the step is named.
    """
    try:
        return _record_of(row)
    except (WireError, ValueError, OverflowError, TypeError) as error:
        raise JournalError(f"step {row[TASK_ID]!r} cannot be read back: {printable(str(error))}") from error


def is_text(value: str) -> bool:
    """Return whether a text can be encoded as UTF-8; a text that cannot is in no journal."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


# Texts ----------------------------------------------------------------------------------------------------------------


def _text_of_spec(spec: AgentStepSpec) -> str:
    """Return the spec as JSON. Only JSON values are checked; the class has checked the other fields."""
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
        spec.to_json()  # raises an error that names the field
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
        # A faster way for nearly every step.
        return (
            f'[{{"number":{only.number},"status":"{only.status}","reason":null,'
            f'"duration_s":{_write(only.duration_s)},"wait_s":null}}]'
        )
    return _write([asdict(attempt) for attempt in attempts])


def _error(text: str) -> StepError:
    return StepError(**parse_json(text))


def _attempts(text: str) -> tuple[AttemptRecord, ...]:
    return tuple(AttemptRecord(**attempt) for attempt in parse_json(text))


def _status(value: Any) -> Status:
    if value not in _STATUSES:
        raise ValueError(f"there is no status {describe(value)}")
    return value  # type: ignore[no-any-return]  # it is one of them


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


# Columns --------------------------------------------------------------------------------------------------------------


@frozen
class _Column:
    """How the values of one field are stored.

    Attributes:
        declaration: The name of the column and its type, in SQL.
        write: Turns a value that is not `None` into one that SQLite can store; `None` if it can store it as it is.
        read: The reverse of `write`.
    """

    declaration: str
    write: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None

    @property
    def name(self) -> str:
        return self.declaration.partition(" ")[0]


_DERIVED = ("finished", "from_journal")  # computed from other fields when a row is read
_SPREAD = "usage"  # stored in one column for each of its fields, at the end of a row
_NAMES = {"index": "position"}  # "index" is a keyword of SQL

_STORED: dict[Any, tuple[str, Callable[[Any], Any] | None, Callable[[Any], Any] | None]] = {
    "int": ("INTEGER", None, None),
    "float": ("REAL", None, None),
    "str": ("TEXT", None, None),
    "str | int": ("", None, None),
    "datetime": ("REAL", datetime.timestamp, _moment),
    "Status": ("TEXT", None, _status),
    "StepError": ("TEXT", lambda error: _write(asdict(error)), _error),
    "tuple[AttemptRecord, ...]": ("TEXT", _text_of_attempts, _attempts),
    "AgentStepSpec": ("TEXT", _text_of_spec, AgentStepSpec.from_json),
    "StepOutcome": ("TEXT", _text_of_outcome, StepOutcome.from_json),
}
"""For each annotation of a field: the type of its column, and its `write` and `read`. Texts are JSON."""


def _column_of(field: attrs.Attribute[Any]) -> _Column:
    annotation = str(field.type)
    kind = annotation.removesuffix(" | None")
    sql_type, write, read = _STORED[kind]
    not_null = "NOT NULL" if kind == annotation else ""
    name = _NAMES.get(field.name, field.name)
    return _Column(" ".join(filter(None, (name, sql_type, not_null))), write, read)


_FIELDS = tuple(field for field in attrs.fields(JournalRecord) if field.name not in (*_DERIVED, _SPREAD))
_COLUMNS = tuple(map(_column_of, _FIELDS))
_USAGE_COLUMNS = tuple(_Column(f"{field.name} {_STORED[str(field.type)][0]}") for field in attrs.fields(Usage))
_values_of = attrgetter(*(field.name for field in _FIELDS))
_usage_of = attrgetter(*(field.name for field in attrs.fields(Usage)))
_writers = tuple(column.write for column in _COLUMNS)
_field_names = tuple(field.name for field in _FIELDS)
_readers = tuple((name, column.read) for name, column in zip(_field_names, _COLUMNS, strict=True) if column.read)
_NO_USAGE = (None,) * len(_USAGE_COLUMNS)

DECLARATIONS = tuple(column.declaration for column in (*_COLUMNS, *_USAGE_COLUMNS))
"""The columns of a row, in order, as SQL declares them."""

COLUMNS = tuple(column.name for column in (*_COLUMNS, *_USAGE_COLUMNS))
"""The names of a row's values, in order."""

TASK_ID, POSITION, IDENTITY = map(COLUMNS.index, ("task_id", "position", "identity"))


def _row_of(record: JournalRecord) -> Row:
    usage = record.usage
    plain = [
        value if write is None or value is None else write(value)
        for value, write in zip(_values_of(record), _writers, strict=True)
    ]
    return (*plain, *(_NO_USAGE if usage is None else _usage_of(usage)))


def _record_of(row: Row) -> JournalRecord:
    values: dict[str, Any] = dict(zip(_field_names, row, strict=False))  # the rest of the row is the usage
    for name, read in _readers:
        if (value := values[name]) is not None:
            values[name] = read(value)
    usage = row[len(_field_names) :]
    started, duration_s = values["started"], values["duration_s"]
    is_timed = started is not None and duration_s is not None
    return JournalRecord(
        **values,
        finished=started + timedelta(seconds=duration_s) if is_timed else None,
        usage=None if usage[0] is None else Usage(*usage),
        from_journal=True,
    )
