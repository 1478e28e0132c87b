"""Waiting, in the thread of a step or of a hook, for its async code, which runs in the event loop of this process."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

from .. import forks
from .clock import clock
from .current_step import RunningStep, StopSignal, running_step
from .event_loop import Blocker, NoEventLoop, event_loop

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

PROBE_S = 0.5
"""At least so often, in seconds, code that waits finds out whether the loop turns."""

LOGGED_AFTER_S = 1.0
"""Code that blocks the loop for more than so many seconds is logged."""

CANCEL_GRACE_S = 1.0
"""Seconds that a cancelled task has to end, before it is abandoned."""


class CodeCancelled(BaseException):
    """The run was given up while a step waited for its async code."""


class CodeOverdue(Exception):
    """The timeout of a step was over while it waited for its async code.

    Attributes:
        note: A text to add to the message of the timeout; empty unless the event loop was blocked.
    """

    def __init__(self, note: str) -> None:
        super().__init__(note)
        self.note = note


def complete(awaitable: Awaitable[Any]) -> Any:
    """Return the result of an awaitable of the running step; without a step, of any code.

    Its task has a copy of the current context. It is cancelled when the timeout of the step is over or its run is given
    up. If it goes on nevertheless, it is abandoned.

    Raises:
        CodeOverdue: The timeout is over.
        CodeCancelled: The run was given up.
        BaseException: Whatever the awaitable raises.
    """

    async def await_it() -> Any:
        return await awaitable

    code = _AsyncCode(await_it, "an executor", running_step.get())
    try:
        return code.result()
    finally:
        if not code.has_begun and inspect.iscoroutine(awaitable):
            awaitable.close()  # or Python warns that it was never awaited


def call_in_loop(function: Callable[[], Any], name: str) -> contextvars.Context:
    """Call a hook, plain or async, in the thread of the event loop; return the context that it leaves.

    Args:
        function: What to call, in a copy of the current context.
        name: What it is, for messages about a blocked loop.

    Raises:
        BaseException: Whatever the hook raises.
    """

    async def call() -> contextvars.Context:
        result = function()
        if inspect.isawaitable(result):
            await result
        return contextvars.copy_context()

    code = _AsyncCode(call, name, None)
    code.may_block = not inspect.iscoroutinefunction(function)
    context: contextvars.Context = code.result()
    return context


class _AsyncCode:
    """A coroutine function that runs in the event loop, while the thread that has made this object waits for it.

    Args:
        function: Called in the loop.
        name: Whose code it is, if it is not that of a step.
        step: Its timeout and its run end the code; `None` if nothing does.

    Attributes:
        has_begun: Whether the function was called.
        may_block: Whether it is plain code, which nobody need be told that it blocks the loop.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, Any]], name: str, step: RunningStep | None) -> None:
        self.has_begun = False
        self.may_block = False
        self._function = function
        self._name = name
        self._step = step
        self._key = None if step is None else _key_of(step)
        self._stop: StopSignal | None = None if step is None else step[5]
        self._deadline = math.inf if step is None or step[4] is None else step[4]
        self._probe_s = PROBE_S if step is None or step[3] is None else min(PROBE_S, step[3] / 4)
        self._cancelled_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._forks = forks.count

    def __str__(self) -> str:
        return self._name if self._step is None else f"step {self._step[0].task_id!r} of {self.agent}"

    @property
    def agent(self) -> str:
        """Whose code it is, without the step."""
        return self._name if self._step is None else f"agent {self._step[0].agent!r}"

    def result(self) -> Any:
        """Return what the function returns, or raise what it raises."""
        try:
            self._loop = event_loop()
        except NoEventLoop as refusal:
            return self._run_here(refusal)
        try:
            with self._listed():
                self._loop.post(self._begin, contextvars.copy_context())
                value, error = self._wait()
        except BaseException:  # such as an interrupt, in a pool that runs steps in the main thread
            self._cancel()
            raise
        finally:
            self._loop.unregister()
        if error is None:
            return value
        try:
            if self._cancelled_at is not None and type(error).__name__ == "CancelledError":
                self._raise_why_cancelled()
            raise error
        finally:
            del error  # its traceback refers to this frame

    @contextlib.contextmanager
    def _listed(self) -> Iterator[None]:
        """Let the end of the run, and those who report the step as overdue, find this."""
        if self._key is None or self._stop is None:
            yield
            return
        _waiting[self._key] = self
        self._stop.listen(self._cancel)
        try:
            yield
        finally:
            self._stop.unlisten(self._cancel)
            if _waiting.get(self._key) is self:  # not that of a later attempt
                del _waiting[self._key]

    # In the thread that waits -----------------------------------------------------------------------------------------

    def _wait(self) -> tuple[Any, BaseException | None]:
        while True:
            left = self._deadline - clock.now()
            if left <= 0 and self._cancelled_at is None:
                self._cancel()
            try:
                return self._answers.get(timeout=self._probe_s if left <= 0 else min(self._probe_s, left))
            except Empty:
                self._log_if_blocked()
            if self._cancelled_at is not None and time.monotonic() >= self._cancelled_at + CANCEL_GRACE_S:
                self._raise_why_cancelled()

    def _raise_why_cancelled(self) -> NoReturn:
        if self._stop is not None and self._stop.is_set():
            raise CodeCancelled
        raise CodeOverdue(self.note_if_blocked())

    def note_if_blocked(self) -> str:
        """Return a text about what blocks the loop, and have new steps run in another one; `""` if it turns."""
        blocker = self._loop.abandon_if_blocked()
        if blocker is None:
            return ""
        who = f"it blocks it itself{blocker.place}" if blocker.owner is self else f"{blocker} blocks it"
        return f"; its event loop does not turn: {who}"

    def _log_if_blocked(self) -> None:
        if self._loop.probe() < LOGGED_AFTER_S:
            return
        blocker = self._loop.blocker()
        is_allowed = isinstance(blocker.owner, _AsyncCode) and blocker.owner.may_block
        now = object()
        if not is_allowed and _logged.setdefault(_code_of(blocker), now) is now:
            logger.warning(
                "%s has blocked the event loop, in which all async code of this process runs, for more than %g s; "
                "let it await, or call what blocks with asyncio.to_thread",
                blocker,
                LOGGED_AFTER_S,
            )

    def _cancel(self) -> None:
        """Have the task cancelled; any thread may call this."""
        if self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            with contextlib.suppress(RuntimeError):  # it is closed: the program ends
                self._loop.post(self._cancel_task)

    def _run_here(self, refusal: NoEventLoop) -> Any:
        """Run the code in a loop of its own in this thread, as there is no other."""
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.has_begun = True
            return asyncio.run(self._function())
        raise refusal  # a loop runs here already, as in a cell of a notebook

    # In the loop ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._task = self._loop.start(self._run(), self)

    def _cancel_task(self) -> None:
        if self._task is not None and self.has_begun:
            self._task.cancel()

    async def _run(self) -> None:
        from asyncio import CancelledError  # imported already

        value = error = None
        try:
            if self._cancelled_at is not None:
                raise CancelledError
            self.has_begun = True
            value = await self._function()
        except BaseException as raised:  # passed on to the thread that waits: SystemExit would end the loop here
            error = raised
        if self._forks != forks.count:  # a child that it has forked: the step and the loop belong to the parent
            os._exit(0)
        self._loop.forget(self._task)
        self._answers.put((value, error))


_waiting: dict[tuple[int, int], _AsyncCode] = {}
_logged: dict[str, object] = {}


def _code_of(blocker: Blocker) -> str:
    return blocker.owner.agent if isinstance(blocker.owner, _AsyncCode) else str(blocker)


def _key_of(step: RunningStep) -> tuple[int, int]:
    return id(step[5]), step[1]


def note_if_blocked(step: RunningStep) -> str:
    """Return what to add to the message of an overdue step: what blocks the loop that it runs in, or nothing."""
    code = _waiting.get(_key_of(step))
    return "" if code is None else code.note_if_blocked()


def _forget_parents_code() -> None:
    _waiting.clear()


forks.call_in_child(_forget_parents_code)
