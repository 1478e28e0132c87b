"""Waiting, in the thread of a step or of a hook, for its async code, which runs in the event loop of this process."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

from .. import forks
from .async_steps import CodeCancelled, CodeOverdue, waiting
from .clock import clock
from .current_step import RunningStep
from .event_loop import EventLoop, NoEventLoop, event_loop

if TYPE_CHECKING:
    import asyncio

    from .loop_monitor import Blocker

CANCEL_GRACE_S = 1.0
"""Seconds that a cancelled task has to end, before it is abandoned."""

BLOCKED_S = 1.0
"""A loop that has been blocked for so many seconds, or for half of the timeout, when a step is overdue is abandoned."""

NAMED_S = 0.1
"""The message of an overdue step names what has blocked the loop for so many seconds."""

HOOK_PATIENCE_S = 5.0
"""After so many seconds in which the loop was blocked, a hook that has not begun in it gets another loop."""


def complete(awaitable: Awaitable[Any], step: RunningStep | None) -> Any:
    """Return the result of an awaitable.

    Its task has a copy of the current context. It is cancelled when the timeout of the step is over or its run is given
    up. If it goes on nevertheless, it is abandoned.

    Args:
        awaitable: Of an executor.
        step: The step that it is part of; `None` if it is part of none, so that nothing ends it.

    Raises:
        CodeOverdue: The timeout is over.
        CodeCancelled: The run was given up.
        BaseException: Whatever the awaitable raises.
    """

    async def await_it() -> Any:
        return await awaitable

    code = _AsyncCode(await_it, "an executor") if step is None else _StepCode(await_it, step)
    try:
        return code.result()
    finally:
        if not code.has_begun and inspect.iscoroutine(awaitable):
            awaitable.close()  # or Python warns that it was never awaited


def call_in_loop(function: Callable[[], Any], name: str) -> tuple[contextvars.Context, EventLoop | None]:
    """Call a hook, plain or async, in the thread of the event loop.

    Args:
        function: What to call, in a copy of the current context.
        name: What it is, for messages about a blocked loop.

    Returns:
        The context that it leaves, and the loop; `None` if there can be none, so that it was called in this thread.

    Raises:
        BaseException: Whatever the hook raises.
    """

    async def call() -> contextvars.Context:
        result = function()
        if inspect.isawaitable(result):
            await result
        return contextvars.copy_context()

    code = _AsyncCode(call, name, may_block=not inspect.iscoroutinefunction(function))
    return code.result(), code.loop


class _AsyncCode:
    """A coroutine function that runs in the event loop, while the thread that has made this object waits for it.

    Args:
        function: Called in the loop.
        name: Whose code it is.
        may_block: Whether it is plain code, which nobody need be told that it blocks the loop.

    Attributes:
        agent: Whose code it is.
        may_block: As above.
        has_begun: Whether the function was called.
        loop: Where it runs; `None` before, and if there is no loop.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, Any]], name: str, *, may_block: bool = False) -> None:
        self.agent = name
        self.may_block = may_block
        self.has_begun = False
        self.loop: EventLoop | None = None
        self._function = function
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        # Held to begin in a loop, or to leave it for another one: it must not do both.
        self._moving = threading.Lock()
        # `None` wakes the thread that waits.
        self._answers: SimpleQueue[tuple[Any, BaseException | None] | None] = SimpleQueue()
        self._forks = forks.count

    def __str__(self) -> str:
        return self.agent

    def result(self) -> Any:
        """Return what the function returns, or raise what it raises."""
        try:
            self.loop = event_loop(self)
        except NoEventLoop as refusal:
            return self._run_here(refusal)
        context = contextvars.copy_context()
        try:
            self._post(self.loop, context)
            while (answer := self._wait()) is None:
                self._move(context)
        except BaseException:  # such as an interrupt, in a pool that runs steps in the main thread
            self._cancel()
            raise
        finally:
            self.loop.unregister(self)
        value, error = answer
        if error is None:
            return value
        try:
            if type(error).__name__ == "CancelledError":
                self._explain_cancellation()
            raise error
        finally:
            del error, answer  # its traceback refers to this frame

    # In the thread that waits -----------------------------------------------------------------------------------------

    def _wait(self) -> tuple[Any, BaseException | None] | None:
        """Return the result, or the error; `None` if the loop was abandoned before this has begun."""
        while True:
            try:
                answer = self._answers.get(timeout=HOOK_PATIENCE_S)
            except Empty:
                if not self.has_begun and self.loop is not None:
                    self.loop.abandon_if_blocked(HOOK_PATIENCE_S)
                continue
            if answer is not None or not self.has_begun:
                return answer

    def _explain_cancellation(self) -> None:
        """Raise why the task was cancelled, if that was done here."""

    def loop_was_abandoned(self) -> None:
        """Wake the thread that waits."""
        self._answers.put(None)

    def _move(self, context: contextvars.Context) -> None:
        """Begin in another loop, if this has not begun in the one that was abandoned."""
        old = self.loop
        if old is None or not old.is_abandoned:
            return
        with self._moving:
            if self.has_begun:
                return
            self.loop = event_loop(self)
        old.unregister(self)
        self._post(self.loop, context.copy())

    def _post(self, loop: EventLoop, context: contextvars.Context) -> None:
        loop.post(lambda: self._begin(loop), context)

    def _cancel(self) -> None:
        """Have the task cancelled; any thread may call this."""
        self._is_cancelled = True
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: the program ends
                self.loop.post(self._cancel_task)

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

    def _begin(self, loop: EventLoop) -> None:
        if self.loop is loop:
            self._task = loop.start(self._run(loop), self)

    def _cancel_task(self) -> None:
        if self._task is not None and self.has_begun:
            self._task.cancel()

    async def _run(self, loop: EventLoop) -> None:
        from asyncio import CancelledError  # imported already

        value = error = None
        try:
            with self._moving:
                if self.loop is not loop:
                    return
                if self._is_cancelled:
                    raise CancelledError
                self.has_begun = True
            value = await self._function()
        except BaseException as raised:  # passed on to the thread that waits: SystemExit would end the loop here
            error = raised
        if self._forks != forks.count:  # a child that it has forked: the step and the loop belong to the parent
            os._exit(0)
        self._answers.put((value, error))
        del error  # as above


class _StepCode(_AsyncCode):
    """The async code of a step, which ends with the timeout of the step and with its run.

    Args:
        function: Called in the loop.
        step: The step.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, Any]], step: RunningStep) -> None:
        spec, index, _, timeout_s, deadline, stop, _ = step
        super().__init__(function, f"agent {spec.agent!r}")
        self._task_id = spec.task_id
        self._key = id(stop), index
        self._stop = stop
        self._deadline = math.inf if deadline is None else deadline
        self._blocked_s = BLOCKED_S if timeout_s is None else min(BLOCKED_S, timeout_s / 2)
        self._cancelled_at: float | None = None
        self._earlier_note = ""

    def __str__(self) -> str:
        return f"step {self._task_id!r} of {self.agent}"

    def result(self) -> Any:
        with self._listed():
            return super().result()

    @contextlib.contextmanager
    def _listed(self) -> Iterator[None]:
        """Let the end of the run, and those who report the step as overdue, find this."""
        outer = waiting.get(self._key)  # the same step may call another executor in the loop
        waiting[self._key] = self
        self._stop.listen(self._cancel)
        try:
            yield
        finally:
            self._stop.unlisten(self._cancel)
            if waiting.get(self._key) is self:  # not that of a later attempt
                if outer is None:
                    del waiting[self._key]
                else:
                    waiting[self._key] = outer

    def _cancel(self) -> None:
        if self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            super()._cancel()
            self._answers.put(None)  # from now on it waits only for the end of the task

    def _wait(self) -> tuple[Any, BaseException | None] | None:
        while True:
            try:
                answer = self._answers.get(timeout=self._patience_s())
            except Empty:
                answer = None
            if answer is not None:
                return answer
            if self._cancelled_at is None and clock.has_reached(self._deadline):
                self._cancel()
            if self._cancelled_at is not None and time.monotonic() >= self._cancelled_at + CANCEL_GRACE_S:
                self._raise_why_cancelled()
            if not self.has_begun and self.loop is not None and self.loop.is_abandoned:
                self._earlier_note = self._note_on(self.loop.monitor.blocker(NAMED_S))
                return None

    def _patience_s(self) -> float | None:
        if self._cancelled_at is not None:
            return max(0.0, self._cancelled_at + CANCEL_GRACE_S - time.monotonic())
        if self._deadline == math.inf:
            return None
        return min(max(0.0, self._deadline - clock.now()), threading.TIMEOUT_MAX)

    def _explain_cancellation(self) -> None:
        if self._cancelled_at is not None:
            self._raise_why_cancelled()

    def _raise_why_cancelled(self) -> NoReturn:
        note = self.note_if_blocked(CANCEL_GRACE_S / 2)
        if self._stop.is_set():
            raise CodeCancelled
        raise CodeOverdue(note)

    def note_if_blocked(self, blocked_s: float | None = None) -> str:
        """Return a text about what blocks the loop, or nothing; have new steps run in another loop if it was for long.

        Args:
            blocked_s: For how long, in seconds; by default for half of the timeout, and a second at most.
        """
        if self.loop is None:
            return ""
        blocker = self.loop.abandon_if_blocked(self._blocked_s if blocked_s is None else blocked_s)
        return self._note_on(blocker or self.loop.monitor.blocker(NAMED_S))

    def _note_on(self, blocker: Blocker | None) -> str:
        if blocker is None:
            return self._earlier_note
        who = "it" if blocker.owner is self else blocker.owner
        return f"; {who} blocks the event loop{blocker.place}"
