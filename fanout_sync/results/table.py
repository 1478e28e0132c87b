"""The steps of a run as a table: a flat row for each, or a data frame of pandas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..formatting import printable
from ..records.conversion import record_of
from ..records.report import Report
from ..records.step_record import iso_time
from ..wire.strict_json import write_json

if TYPE_CHECKING:
    import pandas

_TIME = "datetime64[ns, UTC]"

_TYPES = {
    "index": "Int64",
    "task_id": "string",
    "agent": "string",
    "session_id": "string",
    "success": "boolean",
    "status": "string",
    "output": "string",
    "structured": "object",
    "error_type": "string",
    "error_message": "string",
    "attempts": "Int64",
    "started": _TIME,
    "finished": _TIME,
    "duration_s": "Float64",
    "worker": "string",
    "exit_code": "Int64",
    "signal": "string",
    "prompt_tokens": "Int64",
    "completion_tokens": "Int64",
    "cost_usd": "Float64",
    "from_journal": "boolean",
}
"""The type that each column has in pandas."""


def rows_of(reports: Iterable[Report]) -> list[dict[str, Any]]:
    """Return a flat dict of JSON scalars for each step; see `Run.to_dicts`."""
    return [_json_row(report) for report in reports]


def data_frame_of(reports: Sequence[Report]) -> pandas.DataFrame:
    """Return a data frame with a row for each step; see `Run.to_pandas`.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        if error.name != "pandas":  # it is installed, and something else is wrong
            raise
        message = "to_pandas needs pandas, which is not installed: pip install 'fanout_sync[pandas]'"
        raise ImportError(message, name="pandas") from error
    rows = [_row(report) for report in reports]
    columns = {
        name: pandas.Series([_cell(row[name], kind) for row in rows], dtype=kind) for name, kind in _TYPES.items()
    }
    return pandas.DataFrame(columns)


def _row(report: Report) -> dict[str, Any]:
    outcome, record = report.outcome, record_of(report)
    error, usage = record.error, record.usage
    return {
        "index": record.index,
        "task_id": outcome.task_id,
        "agent": outcome.agent,
        "session_id": outcome.session_id,
        "success": outcome.success,
        "status": record.status,
        "output": outcome.output,
        "structured": outcome.structured,
        "error_type": None if error is None else error.type,
        "error_message": None if error is None else error.message,
        "attempts": len(record.attempts),
        "started": record.started,
        "finished": record.finished,
        "duration_s": record.duration_s,
        "worker": record.worker,
        "exit_code": record.exit_code,
        "signal": record.signal,
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "completion_tokens": None if usage is None else usage.completion_tokens,
        "cost_usd": None if usage is None else usage.cost_usd,
        "from_journal": record.from_journal,
    }


def _json_row(report: Report) -> dict[str, Any]:
    row = _row(report)
    for name in ("started", "finished"):
        row[name] = None if row[name] is None else iso_time(row[name])
    row["structured"] = None if row["structured"] is None else write_json(row["structured"])
    return row


def _cell(value: Any, kind: str) -> Any:
    if value is None or kind != "string":
        return value
    return printable(str(value))  # a worker may be a number, and pyarrow takes no lone surrogates
