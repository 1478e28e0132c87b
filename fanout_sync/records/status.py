"""How a step ended, and why."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from ..formatting import message_of, printable
from ..tracebacks import traceback_of

__all__ = ["Status", "StepError"]

Status = Literal["succeeded", "failed", "raised", "crashed", "timed_out", "cancelled", "invalid"]
"""How a step ended.

- `succeeded`, `failed`: the executor returned an outcome that says so.
- `raised`: the step raised an exception, or `setup` before it did.
- `crashed`: its worker process died.
- `timed_out`: it took longer than its timeout.
- `cancelled`: the run was interrupted, or a foreign pool cancelled the step, before it ended; or it was not started,
  because the budget was exhausted, too many steps had failed, or the journal failed.
- `invalid`: it returned something of which no outcome can be made, an outcome that the wire cannot carry, or one that
  does not fit the `output_schema` of its spec; the `output` has what came. Or the `output_schema` is no JSON Schema,
  and the step was not run.
"""


@frozen
class StepError:
    """Why a step failed, as text: exception objects never leave their worker.

    Attributes:
        type: The exception's qualified name, such as `"ValueError"` or `"json.decoder.JSONDecodeError"`; for a dead
            worker `"WorkerDied"`, for an invalid return value `"InvalidOutcome"`, for an `output_schema` that is no
            JSON Schema `"InvalidSchema"`, for a timeout `"TimeoutError"`, for a cancelled step `"CancelledError"`, or
            `"BudgetExhausted"` if the budget is the reason.
        message: The exception's message; of a program that failed or took too long, with the end of its stderr, if
            that was captured.
        traceback: The formatted traceback, without the frames of this package; `None` if there is none.
    """

    type: str
    message: str
    traceback: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> StepError:
        """Describe any exception, even one whose own methods raise."""
        return cls(_type_name(error), _message(error), _traceback(error))

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


def _type_name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    package, _, _ = __name__.partition(".")
    is_ours = kind.__module__.startswith(f"{package}.")
    return f"{package if is_ours else kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    # The exception's class is user code: its __str__ may raise anything, SystemExit included.
    try:
        return printable(message_of(error))
    except BaseException as second:
        return f"<str() of it raised {type(second).__name__}>"


def _traceback(error: BaseException) -> str | None:
    try:
        return printable(traceback_of(error))
    except BaseException as second:
        return f"<formatting it raised {type(second).__name__}>"
