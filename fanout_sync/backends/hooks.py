"""The executor's `setup` before the first step and `teardown` after the last: each once, by any thread."""

from __future__ import annotations

import logging
import threading

from ..executors.current_step import StepContext
from ..executors.executor import AgentExecutor
from ..records.status import StepError

logger = logging.getLogger(__name__)


class Hooks:
    """Counts who is inside: the first to `set_up` runs `setup`, the last to `depart` runs `teardown`.

    Both run in one context, of which every step gets a copy, so that a context variable set in `setup` is seen.
    """

    def __init__(self, executor: AgentExecutor) -> None:
        self.context = StepContext()
        self._executor = executor
        self._setup_lock = threading.Lock()
        self._is_set_up = False
        self._setup_error: StepError | None = None
        self._door_lock = threading.Lock()
        self._inside = 0

    def arrive(self) -> None:
        with self._door_lock:
            self._inside += 1

    def arrive_again(self) -> bool:
        """Arrive, unless the last one has departed; return whether that was in time."""
        with self._door_lock:
            if self._inside == 0:
                return False
            self._inside += 1
        return True

    def depart(self) -> None:
        with self._door_lock:
            self._inside -= 1
            is_last = self._inside == 0
        if is_last and self._is_set_up:
            self._tear_down()

    def set_up(self) -> StepError | None:
        """Run `setup` unless it was run; return why it failed, if it did."""
        with self._setup_lock:
            if not self._is_set_up and self._setup_error is None:
                try:
                    self.context.run(self._executor.setup)
                    self._is_set_up = True
                except BaseException as error:  # the executor's own code: SystemExit too is a reason, not an end
                    self._setup_error = StepError.of(error)
        return self._setup_error

    def _tear_down(self) -> None:
        try:
            self.context.run(self._executor.teardown)
        except BaseException:  # as above
            logger.exception("teardown() of %s raised", type(self._executor).__name__)
