"""Checkpoints: what is done of a workflow, as JSON that other programs read and write."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import JournalError, WireError
from ..records.step_record import JournalRecord
from ..records.steps import Json, StepOutcome
from ..wire.codec import as_mapping, refuse_repeated
from ..wire.strict_json import check_text, described, parse_json, write_json

SCHEMA_VERSION = 1
"""The schema version of the checkpoints that are written, and the newest one that can be read."""

_FIELDS = ("schema_version", "workflow_id", "steps", "checkpoint_ms")
_FIELDS_OF_STEP = ("task_id", "outcome")


def write_checkpoint(workflow_id: str, records: Iterable[JournalRecord]) -> str:
    """Return the checkpoint of a workflow: its steps that succeeded; see `Journal.export_checkpoint`.

    Raises:
        JournalError: An outcome nests too deep for a checkpoint.
    """
    successes = (record for record in records if record.outcome.success)
    checkpoint = {
        "schema_version": SCHEMA_VERSION,
        "workflow_id": workflow_id,
        "steps": [{"task_id": record.task_id, "outcome": record.outcome.to_dict()} for record in successes],
        "checkpoint_ms": int(time.time() * 1000),
    }
    try:
        return write_json(checkpoint)
    except WireError as error:  # the checkpoint nests an outcome deeper, so one that was at the limit is beyond it here
        raise JournalError(f"workflow {workflow_id!r} cannot be exported: {error}") from error


def read_checkpoint(json: str | bytes | Mapping[str, Any]) -> tuple[str, dict[str, JournalRecord]]:
    """Return the workflow's id and its steps by `task_id`; see `Journal.import_checkpoint`.

    Raises:
        WireError: This is not a checkpoint; the field at fault is named.
        JournalError: The checkpoint was written by a newer version.
    """
    checkpoint = as_mapping(json if isinstance(json, Mapping) else parse_json(json))
    refuse_repeated(checkpoint, _FIELDS)
    _check_version(checkpoint.get("schema_version", 0))
    workflow_id = _text(checkpoint, "workflow_id")
    if not workflow_id:
        raise WireError("expected a string that is not empty", "workflow_id")
    _count(checkpoint.get("checkpoint_ms", 0), "checkpoint_ms")
    return workflow_id, {record.task_id: record for record in _records(_required(checkpoint, "steps"))}


def _check_version(version: Json) -> None:
    if _count(version, "schema_version") > SCHEMA_VERSION:
        raise JournalError(
            f"the checkpoint was written by a newer version (schema {version}, this one reads up to {SCHEMA_VERSION}); "
            "upgrade fanout_sync"
        )


def _records(steps: Json) -> Iterator[JournalRecord]:
    if not isinstance(steps, list):
        raise WireError(f"expected an array, got {described(steps)}", "steps")
    places: dict[str, int] = {}
    for index, step in enumerate(steps):
        record = _record(index, step)
        first = places.setdefault(record.task_id, index)
        if first != index:
            raise WireError(f"duplicate; steps[{first}] is that step too", f"steps[{index}].task_id")
        yield record


def _record(index: int, step: Json) -> JournalRecord:
    place = f"steps[{index}]"
    with _placed(place):
        fields = as_mapping(step)
        refuse_repeated(fields, _FIELDS_OF_STEP)
    outcome = _outcome(_required(fields, "outcome", place), f"{place}.outcome")
    return JournalRecord(
        index=index,
        status="succeeded" if outcome.success else "failed",
        error=None,
        attempts=(),
        started=None,
        finished=None,
        duration_s=None,
        worker=None,
        task_id=_text(fields, "task_id", place),
        outcome=outcome,
    )


def _outcome(value: Json, place: str) -> StepOutcome:
    with _placed(place):
        return StepOutcome.from_dict(value)


@contextlib.contextmanager
def _placed(place: str) -> Iterator[None]:
    try:
        yield
    except WireError as error:
        raise WireError(error.reason, f"{place}.{error.field}" if error.field else place) from None


def _required(fields: Mapping[str, Json], name: str, place: str = "") -> Json:
    if fields.get(name) is None:
        raise WireError("missing; a checkpoint requires it", f"{place}.{name}" if place else name)
    return fields[name]


def _text(fields: Mapping[str, Json], name: str, place: str = "") -> str:
    value, path = _required(fields, name, place), f"{place}.{name}" if place else name
    if not isinstance(value, str):
        raise WireError(f"expected a string, got {described(value)}", path)
    check_text(value, path)
    return value


def _count(value: Json, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WireError(f"expected an integer of at least 0, got {described(value)}", path)
    return value
