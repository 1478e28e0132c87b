"""Adds up what the steps of one run use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..records.usage import Usage
    from .limiter import Limiter


class RunMeter:
    """Adds up the usage that steps report, by the index of the step. Any thread may report.

    Attributes:
        on_usage: Called with each report: the index of the step, and what it has used since its last report.
        on_nest: Called when a step starts a run of its own and waits for it: the index, and the limiter of that run.
    """

    def __init__(self) -> None:
        self.on_usage: Callable[[int, Usage], None] | None = None
        self.on_nest: Callable[[int, Limiter], None] | None = None
        # Reentrant, because a finalizer or a signal handler may report usage while its thread holds the lock.
        self._lock = threading.RLock()
        self._totals: dict[int, Usage] = {}
        self._sum = (0, 0, 0.0)  # no `Usage`, which has an upper limit that no step is to fail for

    def __bool__(self) -> bool:
        """Whether there is usage that nobody has taken yet."""
        return bool(self._totals)

    def add(self, index: int, usage: Usage) -> None:
        """Add what a step reports."""
        with self._lock:
            known = self._totals.get(index)
            self._totals[index] = usage if known is None else known + usage
            prompt_tokens, completion_tokens, cost_usd = self._sum
            self._sum = (
                prompt_tokens + usage.prompt_tokens,
                completion_tokens + usage.completion_tokens,
                cost_usd + usage.cost_usd,
            )
        if self.on_usage is not None:
            self.on_usage(index, usage)

    def nest(self, index: int, limiter: Limiter) -> None:
        """Pass on that a step starts a run of its own, under `limiter`."""
        if self.on_nest is not None:
            self.on_nest(index, limiter)

    def reported(self) -> tuple[int, int, float]:
        """Return what all steps have reported so far: tokens in, tokens out, and the cost in US dollars."""
        return self._sum

    def take(self, index: int) -> Usage | None:
        """Return the usage of a step and forget it; `None` if it reported nothing."""
        with self._lock:
            return self._totals.pop(index, None)
