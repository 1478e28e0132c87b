"""What the caller gets for a step whose worker gave no answer."""

from __future__ import annotations

import time
from typing import Literal

from attrs import frozen

from ..records.status import StepError
from .lane import ExitStatus, Lane
from .link import Garbled

STOP_BY_ITSELF_S = 0.25
"""So many seconds after its deadline a step may still stop by itself; then its worker is killed."""


@frozen
class Lost:
    """Stands for an answer: no worker could start, or the worker that ran the step died.

    Attributes:
        loading: What the worker that could not start was unpickling when it died, by name; empty if nothing.
    """

    error: StepError
    status: Literal["crashed", "raised", "timed_out"]
    pid: int | None = None
    started: float | None = None
    duration_s: float | None = None
    exit_code: int | None = None
    signal: str | None = None
    loading: str = ""


@frozen
class LoadFailure:
    """Why no worker can load the executor.

    Attributes:
        name: What cannot be unpickled: `"executor"` or `"retry"`.
        error: What unpickling it raised, or how a worker died of it.
        has_raised: Whether it raised.
    """

    name: str
    error: StepError
    has_raised: bool


def kill_reason_for(error: Exception) -> str:
    """Return why a worker is killed whose message cannot be read."""
    if isinstance(error, Garbled):
        return "something in it wrote to a descriptor that is not its own"
    return f"its message could not be read: {StepError.of(error)}"


def loss_of(lane: Lane, exit_status: ExitStatus) -> Lost:
    """Return what stands for the answer of a worker that died with a step."""
    assert lane.assignment is not None, "the worker died with a step"
    duration_s = max(0.0, time.time() - lane.assigned_at)
    if lane.is_timed_out or lane.now() >= lane.overdue_at - STOP_BY_ITSELF_S:
        killed = f"worker process {lane.pid} and all that it had started were killed"
        error = StepError("TimeoutError", f"timed out after {lane.assignment.timeout_s:g} s; {killed}")
        return Lost(error, "timed_out", lane.pid, lane.assigned_at, duration_s, signal=exit_status.signal)
    error = StepError("WorkerDied", exit_status.text)
    return Lost(
        error,
        "crashed",
        lane.pid,
        lane.assigned_at,
        duration_s,
        exit_code=exit_status.exit_code,
        signal=exit_status.signal,
    )
