"""Progress for a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable

from .progress import Progress, RunView


class ProgressFunction:
    """Calls a function with the `Progress`, at the beginning, at most ten times a second, and at the end.

    Args:
        function: What to call.
    """

    interval_s = 0.1
    shows_steps = False

    def __init__(self, function: Callable[[Progress], object]) -> None:
        self._function = function
        self._view: RunView | None = None

    def begin(self, view: RunView) -> None:
        self._view = view
        self.update()

    def update(self) -> None:
        if self._view is not None:
            self._function(self._view.progress())

    def end(self) -> None:
        self.update()
