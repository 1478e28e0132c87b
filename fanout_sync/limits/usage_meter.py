"""What the steps of one run have used up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..records.usage import Usage
    from .limiter import Limiter


class RunMeter:
    """Adds up what steps report, from whichever thread, by their index.

    Attributes:
        on_usage: Also told of each report.
        on_nest: Told of each step that waits for a run of its own.
    """

    def __init__(self) -> None:
        self.on_usage: Callable[[int, Usage], None] | None = None
        self.on_nest: Callable[[int, Limiter], None] | None = None
        # It can be taken again: a finalizer or a signal handler may report usage at any moment.
        self._lock = threading.RLock()
        self._totals: dict[int, Usage] = {}

    def __bool__(self) -> bool:
        """Whether there is usage that was not taken."""
        return bool(self._totals)

    def add(self, index: int, usage: Usage) -> None:
        with self._lock:
            known = self._totals.get(index)
            self._totals[index] = usage if known is None else known + usage
        if self.on_usage is not None:
            self.on_usage(index, usage)

    def nest(self, index: int, limiter: Limiter) -> None:
        if self.on_nest is not None:
            self.on_nest(index, limiter)

    def take(self, index: int) -> Usage | None:
        """Return what a step has used up, and forget it; `None` if it reported nothing."""
        with self._lock:
            return self._totals.pop(index, None)
