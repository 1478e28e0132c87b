"""The clock that timeouts go by: it is `time.monotonic()`, but stands still in a worker while its caller is stopped."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class Clock:
    """Seconds since some moment.

    Attributes:
        stopped_s: Returns for how many seconds the clock has stood still so far; `None` if it never does.
    """

    def __init__(self) -> None:
        self.stopped_s: Callable[[], float] | None = None

    def now(self) -> float:
        """Return the time."""
        return monotonic() if self.stopped_s is None else monotonic() - self.stopped_s()

    def has_reached(self, moment: float) -> bool:
        """Return whether it is that time, at little cost if not."""
        return monotonic() >= moment and self.now() >= moment

    def monotonic_at(self, moment: float) -> float:
        """Return what `time.monotonic()` will be at that time, if the clock does not stand still before."""
        return moment if self.stopped_s is None else moment + self.stopped_s()


clock = Clock()
"""The clock of this process."""
