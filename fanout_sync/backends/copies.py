"""Copies of an executor that threads must not share: one for each thread, with its own `setup` and `teardown`."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

from ..errors import ExecutorNotPicklable
from ..executors.executor import AgentExecutor, is_thread_safe
from ..executors.step_context import StepContext
from ..formatting import describe
from ..records.status import StepError
from .hooks import Hooks

MAX_FAILED_SETUPS = 3
"""After so many failed setups in a row no more are tried, as with worker processes."""

MakeCopy = Callable[[], AgentExecutor]
"""Returns another copy each time. Called in the thread that uses it."""


def copier_of(executor: AgentExecutor, *, always: bool = False) -> MakeCopy | None:
    """Return what makes the copies of `executor`; `None` if all threads are to share it.

    Args:
        executor: What to copy.
        always: Whether to copy it even if it says that it is thread-safe.

    Raises:
        ExecutorNotPicklable: It cannot be copied.
        OptionError: Its `thread_safe` is no bool.
    """
    if is_thread_safe(executor) and not always:
        return None
    copier = _Copier(executor)
    return None if copier.makes_no_copies else copier


class _Copier:
    """Makes copies of an executor, one at a time, because its code need not be thread-safe.

    The first one is made at once, so that an executor that cannot be copied is refused before any step runs.

    Attributes:
        makes_no_copies: Whether the executor's `__deepcopy__` returns the executor itself, which is then shared.
    """

    def __init__(self, executor: AgentExecutor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._first: AgentExecutor | None = _copy_of(executor)
        self.makes_no_copies = self._first is executor

    def __call__(self) -> AgentExecutor:
        with self._lock:
            first, self._first = self._first, None
            return _copy_of(self._executor) if first is None else first


def _copy_of(executor: AgentExecutor) -> AgentExecutor:
    try:
        copied: object = copy.deepcopy(executor)
    except Exception as error:
        from .uncopyable import refuse_uncopyable  # imported lazily: slow, and most executors can be copied

        raise refuse_uncopyable(executor, error) from error
    if not isinstance(copied, AgentExecutor):
        reason = f"its __deepcopy__() returned {describe(copied)}, expected an AgentExecutor"
        raise ExecutorNotPicklable("executor", reason, "Return a copy, or the executor itself.", is_copy=True)
    return copied


class Setups:
    """Makes copies and sets them up, each in the context of the thread that makes this object.

    Args:
        make_copy: Makes a copy.
    """

    def __init__(self, make_copy: MakeCopy) -> None:
        self._make_copy = make_copy
        self._context = StepContext()
        self._lock = threading.Lock()
        self._failures = 0
        self._last_error: StepError | None = None

    @property
    def given_up(self) -> StepError | None:
        """Why no more setups are tried; `None` if they are."""
        return self._last_error if self._failures >= MAX_FAILED_SETUPS else None

    def set_up(self) -> Hooks | StepError:
        """Make a copy and set it up, in this thread; return its hooks, with one user, or why that failed."""
        hooks = self._hooks()
        error = hooks.set_up() if isinstance(hooks, Hooks) else hooks
        with self._lock:
            self._failures = 0 if error is None else self._failures + 1
            self._last_error = error
        return hooks if error is None else error

    def allow_again(self) -> None:
        """Forget the failures so far."""
        with self._lock:
            self._failures = 0

    def _hooks(self) -> Hooks | StepError:
        try:
            hooks = Hooks(self._make_copy(), StepContext(self._context))
        except BaseException as error:  # code of the executor, which may also raise SystemExit
            return StepError.of(error)
        hooks.register()
        return hooks


class ThreadCopies:
    """The copies of one run of the thread backend, by the name of their thread.

    Args:
        make_copy: Makes a copy.
    """

    def __init__(self, make_copy: MakeCopy) -> None:
        self._setups = Setups(make_copy)
        self._lock = threading.Lock()
        self._preparing: set[str] = set()
        self._ready: set[str] = set()
        self._is_over = False

    def prepare(self, name: str) -> Hooks | StepError | None:
        """Make a copy for the current thread and set it up, again if that fails.

        Args:
            name: The name of the thread.

        Returns:
            The hooks of the copy. If setups fail: `None` if other threads run the steps, else what the steps fail with.
        """
        with self._lock:
            self._preparing.add(name)
        hooks: Hooks | StepError | None = None
        while not self._is_over and self._setups.given_up is None and not isinstance(hooks, Hooks):
            hooks = self._setups.set_up()
        with self._lock:
            self._preparing.discard(name)
            if isinstance(hooks, Hooks):
                self._ready.add(name)
                return hooks
            return None if self._preparing or self._ready else self._setups.given_up

    def is_ready(self, name: str) -> bool:
        """Return whether the copy of this thread is set up."""
        return name in self._ready

    def abandon(self, name: str) -> None:
        """Forget the copy of a thread that is abandoned; the thread that takes its place may try a setup."""
        with self._lock:
            self._ready.discard(name)
            self._setups.allow_again()

    def end(self) -> None:
        """Let no more setups begin, because there are no more steps."""
        self._is_over = True
