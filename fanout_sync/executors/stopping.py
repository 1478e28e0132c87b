"""The steps that stop by themselves when their timeout is over: their threads need not be abandoned.

Imports little: every backend needs this, and few steps do it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .. import forks
from .current_step import RunningStep, StopSignal

STOP_BOUND_S = 2.0
"""So many seconds after its deadline such a step may take to stop."""

_stopping: set[tuple[int, int]] = set()
"""The `id` of the stop signal of the run, and the index of the step."""


@contextlib.contextmanager
def stops_by_itself(step: RunningStep | None) -> Iterator[None]:
    """Promise that the block ends soon when the deadline of the step is over, or its run is given up."""
    if step is None:
        yield
        return
    key = id(step[5]), step[1]
    _stopping.add(key)
    try:
        yield
    finally:
        _stopping.discard(key)


def patience_with(stop: StopSignal, index: int) -> float:
    """Return for how many seconds to wait for a step of a run that is overdue."""
    return STOP_BOUND_S if (id(stop), index) in _stopping else 0.0


forks.call_in_child(_stopping.clear)
