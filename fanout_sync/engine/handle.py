"""A handle of a run that goes on in the background."""

from __future__ import annotations

import weakref
from typing import Any, NoReturn

from ..errors import OptionError
from ..formatting import describe
from ..results.progress import Progress
from ..results.run import Run
from .background_run import BackgroundRun

__all__ = ["RunHandle"]


class RunHandle:
    """What `Runner.start` returns: a run that goes on in a thread of its own. Any thread may use it.

    As the last expression of a notebook cell it shows how far the run is, and follows it to its end. Ctrl-C, or the
    interrupt of a kernel, leaves the run alone, also while `result` waits for it. It is cancelled by `cancel`, at the
    end of the `with` block of its runner, and when the program ends, which is when its main thread does. What had
    finished by then is in the journal, if there is one.

    A handle that nobody refers to any more does not end its run. If nobody has read the result, failed steps and what
    the run has raised are logged, once.
    """

    def __init__(self, run: BackgroundRun) -> None:
        self._run = run
        weakref.finalize(self, run.drop).atexit = False

    def done(self) -> bool:
        """Return whether the run has ended, in whatever way.

        Raises:
            RuntimeError: This is a forked child of the process in which the run goes on.
        """
        return self._run.is_done()

    def result(self, timeout: float | None = None) -> Run:
        """Return the run, waiting for its end.

        Args:
            timeout: How many seconds to wait at most; `None` for any time.

        Returns:
            What `Runner.run` would have returned. After `cancel` it is what that does on Ctrl-C: with
            `on_interrupt="return"` this returns the run so far, with cancelled outcomes for the rest.

        Raises:
            TimeoutError: The run has not ended by then; it goes on.
            FanoutInterrupted: The run was cancelled; its `.run` has what was done.
            InputError, ExecutorNotPicklable, JournalError, JournalConflict: As in `Runner.run`.
            OptionError: `timeout` is no number.
            RuntimeError: This is the thread of the run, as in its input, or a forked child of its process.
        """
        return self._run.result(_seconds_or_none(timeout))

    def cancel(self) -> None:
        """End the run as Ctrl-C would, and return at once; `result` waits until it has ended.

        No more steps are started, worker processes are killed, steps on threads have `current_step().cancelled` set and
        a second to stop, and all that is not done ends as cancelled. If the input is just making a spec, that is waited
        for. Nothing happens if the run has ended.
        """
        self._run.cancel()

    def snapshot(self) -> Run:
        """Return a run of the steps that have ended so far, in the order of their specs; after the end, all of them.

        Raises:
            RuntimeError: As in `done`.
        """
        return self._run.snapshot()

    def progress(self) -> Progress:
        """Return how far the run is.

        Raises:
            RuntimeError: As in `done`.
        """
        return self._run.progress()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._run.status()}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RunHandle cannot be pickled or copied: its run goes on in this process; its result() can be")

    def _ipython_display_(self) -> None:
        self._run.show()


def _seconds_or_none(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout == timeout:
        return timeout
    raise OptionError(f"timeout must be a number of seconds or None, got {describe(timeout)}")
