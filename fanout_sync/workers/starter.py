"""When to start a worker, and when to stop trying."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from .lane import Lane, is_exiting, kill_lanes
from .loss import Lost
from .worker_start import StartedWorker, start_worker

MAX_FAILED_STARTS = 3
"""After so many failed starts in a row, with no step done between them, no more workers are started."""

_RETRY_AFTER_S = 0.3


class WorkerStarter:
    """Starts the workers of one set until too many starts in a row have failed.

    Attributes:
        failures: How many starts in a row have failed.
        last_failure: What the steps that no worker could run fail with.

    Args:
        captures_output: Whether what workers print comes to this process's streams.
        started: Workers that were started early.
    """

    def __init__(self, captures_output: bool, started: Iterable[StartedWorker] = ()) -> None:
        self.failures = 0
        self.last_failure: Lost | None = None
        self._captures_output = captures_output
        self._started = deque(started)
        self._was_made_at_exit = is_exiting.is_set()  # by a run in an exit hook of the program
        self._not_before = 0.0

    def may_start(self) -> bool:
        """Return whether to try now."""
        return self.failures < MAX_FAILED_STARTS and time.monotonic() >= self._not_before

    def start(self) -> Lane:
        """Start a worker, unless there is one that was started early.

        Raises:
            Exception: As `start_worker` does.
            RuntimeError: The interpreter has begun to exit since this set of workers was made.
        """
        self._refuse_at_exit()
        lane = Lane.of(self._started.popleft() if self._started else start_worker(self._captures_output))
        try:
            self._refuse_at_exit()  # the exit hook may have looked for workers just before this one had a lane
        except RuntimeError:
            kill_lanes([lane])
            raise
        return lane

    def _refuse_at_exit(self) -> None:
        if is_exiting.is_set() and not self._was_made_at_exit:
            raise RuntimeError("the interpreter is exiting")

    def discard_early(self) -> None:
        """Kill the workers that were started early and that nobody has needed."""
        while self._started:
            self._started.popleft().discard()

    def put_off(self) -> None:
        """Do not try again at once: the system has no more processes or descriptors."""
        self._not_before = time.monotonic() + _RETRY_AFTER_S

    def note_failure(self, failure: Lost) -> None:
        """Count a start that failed."""
        self.failures += 1
        self.last_failure = failure

    def stop(self, failure: Lost) -> None:
        """Start no more workers."""
        self.failures = MAX_FAILED_STARTS
        self.last_failure = failure
