"""The event loop of this process, in a thread of its own: all async code of all executors runs in it."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from .. import forks
from . import loops
from .late_import import late_imports
from .loop_monitor import Blocker, LoopMonitor

if TYPE_CHECKING:
    import asyncio

BLOCKED_S = 0.2
"""The end of the program does not wait for a loop that has been blocked for so many seconds."""

CLOSE_S = 1.0
"""Seconds that pending tasks have to handle their cancellation when the program or the worker ends."""


class NoEventLoop(RuntimeError):
    """There is no thread for an event loop: the system, or Python after the end of the main thread, starts none."""


class LoopUser(Protocol):
    """What waits for its code in a loop."""

    def loop_was_abandoned(self) -> None:
        """Called in any thread."""


class EventLoop:
    """An asyncio event loop in a daemon thread; any thread may use it, unless a method says otherwise.

    Args:
        nesting: How many other loops are blocked by the code that waits for this one.

    Attributes:
        nesting: As above.
        is_abandoned: Whether it was blocked, so that new steps get another loop.
        monitor: Finds out whether it turns.

    Raises:
        NoEventLoop: Its thread cannot be started.
    """

    def __init__(self, nesting: int = 0) -> None:
        with late_imports():
            import asyncio  # imported lazily: slow, and only async agents need it

            from .to_thread import DaemonThreadPool

        self.nesting = nesting
        self.is_abandoned = False
        self._asyncio = asyncio
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(DaemonThreadPool(loops.TO_THREAD_NAME))
        self._users: set[LoopUser] = set()
        self._is_ending = False
        self._forks = forks.count
        forks.disown_in_child(self)
        self._thread = threading.Thread(target=self._run, name=loops.THREAD_NAME, daemon=True)
        self.monitor = LoopMonitor(self._thread, self._loop)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._loop.close()
            raise NoEventLoop(str(error)) from error
        loops.add(self)

    @property
    def runs_here(self) -> bool:
        """Whether this is the thread of the loop."""
        return self._thread is threading.current_thread()

    def register(self, user: LoopUser) -> None:
        """Note one more user: an abandoned loop ends when it has none."""
        with loops.lock:
            self._users.add(user)
        self.monitor.wake()

    def unregister(self, user: LoopUser) -> None:
        """Note that a user has its result."""
        with loops.lock:
            self._users.discard(user)
            if not self._users:
                self.monitor.rest()
            self._end_if_unused()

    def post(self, callback: Callable[[], object], context: contextvars.Context | None = None) -> None:
        """Have the loop call `callback()` soon.

        Raises:
            RuntimeError: The loop is closed, as the program ends.
        """
        self._loop.call_soon_threadsafe(callback, context=context)

    def start(self, coroutine: Coroutine[Any, Any, None], owner: object) -> asyncio.Task[None]:
        """Start a task. Called in the loop.

        Args:
            coroutine: What it runs.
            owner: Whose task it is; `str()` of it is for messages about a blocked loop.
        """
        self.monitor.note_owner(owner)
        task = self._loop.create_task(coroutine)
        self.monitor.note_task(task, owner)
        return task

    def abandon_if_blocked(self, least_s: float) -> Blocker | None:
        """Give new steps, and those that have not begun here, another loop if one task has blocked this one so long.

        Args:
            least_s: How long at least, in seconds.

        Returns:
            What blocks the loop; `None` if it is not blocked, or not long enough.
        """
        blocker = self.monitor.blocker(least_s)
        if blocker is None:
            return None
        with loops.lock:
            self.is_abandoned = True
            if loops.current.get(self.nesting) is self:
                del loops.current[self.nesting]
            users = list(self._users)
            self._end_if_unused()
        for user in users:
            user.loop_was_abandoned()
        return blocker

    # Its end ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel what is pending, close its async generators and end its thread; if it is blocked, give up."""
        is_blocked = self.monitor.blocker(BLOCKED_S) is not None
        self._end()
        if not is_blocked:
            self._thread.join(2 * CLOSE_S)

    def _end_if_unused(self) -> None:
        if self.is_abandoned and not self._users:
            self._end()

    def _end(self) -> None:
        self._is_ending = True
        self.monitor.end()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        loop = self._loop
        self._asyncio.set_event_loop(loop)
        while not self._is_ending:
            self._until_stopped(loop.run_forever)
        self._until_stopped(lambda: loop.run_until_complete(self._end_tasks()))
        self._until_stopped(lambda: loop.run_until_complete(loop.shutdown_asyncgens()))
        loop.close()

    def _until_stopped(self, run: Callable[[], object]) -> None:
        try:
            run()
        except BaseException as error:  # SystemExit and KeyboardInterrupt, of a task that a step has started
            self._loop.call_exception_handler({"message": "a task raised out of the event loop", "exception": error})
        if self._forks != forks.count:  # a step has forked: everything here belongs to the parent
            os._exit(0)

    async def _end_tasks(self) -> None:
        tasks = self._asyncio.all_tasks() - {self._asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await self._asyncio.wait(tasks, timeout=CLOSE_S)

    def disown(self) -> None:
        """In a forked child that code in the loop has made, return from the loop in order to end."""
        if self.runs_here:
            self._loop.stop()


def event_loop(user: LoopUser) -> EventLoop:
    """Return the loop for async code that this thread waits for, registered as used; it is started if need be.

    There is one for all executors and runs. Only if this thread is that of the loop itself, because async code calls a
    run without `asyncio.to_thread`, the run gets another one: its steps could never begin in the loop that it blocks.

    Raises:
        NoEventLoop: None can be started.
    """
    nesting = loops.nesting_here()
    with loops.lock:
        loop = loops.current.get(nesting)
        if not isinstance(loop, EventLoop):
            loop = loops.current[nesting] = EventLoop(nesting)
        loop.register(user)
        return loop
