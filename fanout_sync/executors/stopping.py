"""The steps that stop by themselves when they are given up: their threads need not be abandoned.

Imports little: every backend needs this, and few steps do it.
"""

from __future__ import annotations

import threading

from .. import forks
from .current_step import RunningStep, StopSignal

STOP_BOUND_S = 2.0
"""So many seconds after its deadline, or after the end of its run, such a step may take to stop."""

_promises: dict[int, tuple[StopSignal, int, int]] = {}
"""The latest step of each thread that has promised to stop: the signal of its run, its index, and its attempt.

It stays there until the thread promises the same for another step, so that it holds until the step is reported."""


def promise_to_stop(step: RunningStep) -> None:
    """Promise that a step, which runs in this thread, ends soon when its deadline is over or its run is given up."""
    _, index, attempt, _, _, stop, _ = step
    _promises[threading.get_ident()] = stop, index, attempt


def patience_with(stop: StopSignal, index: int, attempt: int) -> float:
    """Return for how many seconds to wait for a step that is overdue."""
    return STOP_BOUND_S if (stop, index, attempt) in list(_promises.values()) else 0.0


def threads_that_stop(stop: StopSignal) -> set[int]:
    """Return the threads, as `threading.get_ident` identifies them, whose steps of a run have promised to stop."""
    return {thread for thread, (signal, _, _) in list(_promises.items()) if signal is stop}


forks.call_in_child(_promises.clear)
