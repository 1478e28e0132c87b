"""What is known about a step beyond its outcome."""

from __future__ import annotations

import traceback
from datetime import datetime
from typing import Literal

from attrs import frozen

from .wording import printable

Status = Literal["succeeded", "failed", "raised", "crashed", "cancelled", "invalid"]
"""How a step ended.

- `succeeded`, `failed`: the executor returned an outcome that says so.
- `raised`: the step, or the `setup` before it, raised.
- `crashed`: its worker process died.
- `cancelled`: a foreign pool gave it up before it started.
- `invalid`: it returned no `StepOutcome`, or one that the wire cannot carry.
"""


@frozen
class StepError:
    """Why a step failed, as text: no exception object ever leaves its worker.

    Attributes:
        type: The exception's qualified name, such as `"ValueError"` or `"json.decoder.JSONDecodeError"`; for a dead
            worker `"WorkerDied"`, for a useless return value `"InvalidOutcome"`.
        message: Its message.
        traceback: The formatted traceback, where there is one.
    """

    type: str
    message: str
    traceback: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> StepError:
        """Describe any exception, also one whose own methods raise."""
        return cls(_type_name(error), _message(error), _traceback(error))

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@frozen
class StepRecord:
    """Everything known about one step but its outcome.

    Attributes:
        index: The step's place in the input, from 0.
        status: How it ended; see `Status`.
        error: Why, unless the executor returned an outcome.
        started: When its worker began it (UTC); `None` if none did.
        finished: When it ended (UTC); `None` if it never began.
        duration_s: Seconds from `started` to `finished`, by a monotonic clock; `None` if it never began.
        worker: The thread's name, or the process id of the worker process; `None` if it never began.
    """

    index: int
    status: Status
    error: StepError | None
    started: datetime | None
    finished: datetime | None
    duration_s: float | None
    worker: str | int | None


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _message(error: BaseException) -> str:
    # The exception is the step's: its __str__ may raise anything, SystemExit included.
    try:
        return printable(str(error))
    except BaseException as second:
        return f"<str() of it raised {type(second).__name__}>"


def _traceback(error: BaseException) -> str | None:
    try:
        return printable("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    except BaseException as second:
        return f"<formatting it raised {type(second).__name__}>"
