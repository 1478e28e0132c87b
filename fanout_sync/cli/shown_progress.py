"""The progress of a run of the command line, on its standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..results.progress import RunView, ShownBy
from ..results.run_status import RunStatus
from .displays import Display, LiveDisplay, display_on
from .lines_file import LinesFile

if TYPE_CHECKING:
    from .captured import Captured


class ShownProgress:
    """Shows the progress of a run during a `with` block. What is printed meanwhile does not tear the view.

    Args:
        display: Where it is shown.
        descriptors: What is written to them goes above a live view, if they are open on the same terminal.
    """

    shows_steps = True

    def __init__(self, display: Display, descriptors: Iterable[int]) -> None:
        self.interval_s = display.interval_s
        self._display = display
        self._descriptors = [*descriptors]
        self._view: RunView | None = None
        self._status: RunStatus | None = None
        self._captured: Captured | None = None
        self._stack = ExitStack()

    @classmethod
    def on_stderr(cls, files: Iterable[LinesFile | None]) -> ShownProgress | None:
        """Return what shows the progress on the standard error; `None` if that is closed.

        Args:
            files: What is written besides, maybe to the same terminal; `None` if it is not.
        """
        if sys.stderr is None:
            return None
        return cls(display_on(sys.stderr), [1, 2, *(file.fileno() for file in files if file is not None)])

    def as_option(self) -> Any:
        """Return it as `progress=` of a runner."""
        return ShownBy(lambda: self)

    def __enter__(self) -> ShownProgress:
        if isinstance(self._display, LiveDisplay):
            from .captured import Captured  # imported lazily: only a terminal needs it

            self._captured = self._stack.enter_context(Captured(self._display.screen, self._descriptors))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stack.close()  # first, so that all that was printed stands above
        try:
            self._display.finish(self._status, error)
        except OSError:  # the window was closed, or nobody reads the lines
            self._status = None

    def begin(self, view: RunView) -> None:
        self._view = view
        self.update()

    def update(self) -> None:
        self._look()
        if self._captured is not None:
            self._captured.resize()
        if self._status is not None:
            self._display.show(self._status)

    def end(self) -> None:
        self._look()

    def _look(self) -> None:
        if self._view is not None:
            self._status = RunStatus.of(self._view)
