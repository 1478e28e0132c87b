"""The executor's `setup` before the first step and `teardown` after the last: each once, on any thread."""

from __future__ import annotations

import logging
import threading

from ..executors.executor import AgentExecutor
from ..executors.step_context import StepContext
from ..records.status import StepError

logger = logging.getLogger(__name__)


class Hooks:
    """Counts the users of an executor: the first that needs it runs `setup`, the last to unregister runs `teardown`.

    Both run in one context, and every step gets a copy of it, so that it sees the context variables that `setup` sets.

    Args:
        executor: Whose hooks they are.
        context: Where they run; by default in a copy of the current context.
    """

    def __init__(self, executor: AgentExecutor, context: StepContext | None = None) -> None:
        self.context = StepContext() if context is None else context
        self.executor = executor
        self._setup_lock = threading.Lock()
        self._is_set_up = False
        self._setup_error: StepError | None = None
        self._users_lock = threading.Lock()
        self._users = 0

    def register(self) -> None:
        """Count one more user; `teardown` does not run before it has unregistered."""
        with self._users_lock:
            self._users += 1

    def try_register(self) -> bool:
        """Count one more user, unless the last one has unregistered; return whether it is counted."""
        with self._users_lock:
            if self._users == 0:
                return False
            self._users += 1
        return True

    def unregister(self) -> None:
        """Count one user less; the last one runs `teardown`, if `setup` has succeeded."""
        with self._users_lock:
            self._users -= 1
            is_last = self._users == 0
        # What belongs to a loop that was abandoned cannot be used any more, and so not be closed.
        if is_last and self._is_set_up and not self.context.is_outdated:
            self._tear_down()

    def set_up(self) -> StepError | None:
        """Run `setup` unless it was run before; return the error if it failed.

        If the event loop in which it was run has been abandoned since, it is run again, in the new one.
        """
        with self._setup_lock:
            if (not self._is_set_up or self.context.is_outdated) and self._setup_error is None:
                try:
                    self.context.set_up(self.executor)
                    self._is_set_up = True
                except BaseException as error:  # code of the executor, which may also raise SystemExit
                    self._setup_error = StepError.of(error)
        return self._setup_error

    def _tear_down(self) -> None:
        try:
            self.context.tear_down(self.executor)
        except BaseException:  # as above
            logger.exception("teardown() of %s raised", type(self.executor).__name__)
