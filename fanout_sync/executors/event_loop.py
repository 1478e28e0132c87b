"""The event loop of this process, in a thread of its own: all async code of all executors runs in it."""

from __future__ import annotations

import atexit
import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any

from attrs import frozen

from .. import forks
from .late_import import late_imports

if TYPE_CHECKING:
    import asyncio

BLOCKED_S = 0.2
"""A loop that has not turned for so many seconds when a step in it is overdue is taken for blocked."""

CLOSE_S = 1.0
"""Seconds that pending tasks have to handle their cancellation when the program or the worker ends."""

THREAD_NAME = "fanout-sync-event-loop"
TO_THREAD_NAME = "fanout-sync-to-thread"

_nesting: contextvars.ContextVar[int] = contextvars.ContextVar("fanout_sync_loop_nesting", default=0)
_owner: contextvars.ContextVar[object] = contextvars.ContextVar("fanout_sync_loop_owner", default=None)


class NoEventLoop(RuntimeError):
    """There is no thread for an event loop: the system, or Python after the end of the main thread, starts none."""


@frozen
class Blocker:
    """What an event loop is executing while it does not turn. `str()` says it in words.

    Attributes:
        owner: Whose code it is, as it was given to `EventLoop.start`, or a description.
        place: Where the code stands: `", at FILE:LINE in FUNCTION"`, or nothing.
    """

    owner: object
    place: str

    def __str__(self) -> str:
        return f"{self.owner}{self.place}"


class EventLoop:
    """An asyncio event loop in a daemon thread; any thread may use it, unless a method says otherwise.

    Who waits for something in it calls `probe` now and then, which finds out whether the loop still turns.

    Args:
        nesting: How many other loops are blocked by the code that waits for this one.

    Attributes:
        nesting: As above.
        is_abandoned: Whether it was blocked, so that new steps get another loop.

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
        self._loop.set_default_executor(DaemonThreadPool(TO_THREAD_NAME))
        self._users = 0
        self._is_ending = False
        self._owners: dict[asyncio.Task[Any], object] = {}
        self._unanswered_since: float | None = None
        self._forks = forks.count
        forks.disown_in_child(self)
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._loop.close()
            raise NoEventLoop(str(error)) from error

    @property
    def runs_here(self) -> bool:
        """Whether this is the thread of the loop."""
        return self._thread is threading.current_thread()

    def register(self) -> None:
        """Count one more user: an abandoned loop ends when it has none."""
        with _lock:
            self._users += 1

    def unregister(self) -> None:
        """Count one user less."""
        with _lock:
            self._users -= 1
            self._end_if_unused()

    def post(self, callback: Callable[[], object], context: contextvars.Context | None = None) -> None:
        """Have the loop call `callback()` soon."""
        if self._unanswered_since is None:
            self._unanswered_since = time.monotonic()
        # Raises a RuntimeError once the loop is closed, at the end of the program.
        self._loop.call_soon_threadsafe(self._answer, callback, context=context)

    def _answer(self, callback: Callable[[], object]) -> None:
        self._unanswered_since = None
        callback()

    def start(self, coroutine: Coroutine[Any, Any, None], owner: object) -> asyncio.Task[None]:
        """Start a task. Called in the loop.

        Args:
            coroutine: What it runs; at its end it calls `forget`.
            owner: Whose task it is: `str()` of it, such as `"step 't1'"`, is for messages about a blocked loop.
        """
        _owner.set(owner)
        task = self._loop.create_task(coroutine)
        self._owners[task] = owner
        return task

    def forget(self, task: asyncio.Task[None] | None) -> None:
        """Forget the owner of a task that ends. Called in the loop."""
        if task is not None:
            self._owners.pop(task, None)

    # Whether it turns -------------------------------------------------------------------------------------------------

    def probe(self) -> float:
        """Return for how many seconds the loop has not turned, as far as is known, and have it answer soon."""
        since = self._unanswered_since
        if since is None:
            self.post(_nothing)
            return 0.0
        return time.monotonic() - since

    def blocker(self) -> Blocker:
        """Return what the loop is executing."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return Blocker(self._owner_of(self._asyncio.current_task(self._loop)), _place_of(frame))

    def _owner_of(self, task: asyncio.Task[Any] | None) -> object:
        if task is None:
            return "a callback"
        if task in self._owners:
            return self._owners[task]
        # A task that a step or a hook has started.
        get_context = getattr(task, "get_context", None)  # since Python 3.12
        owner: object = None if get_context is None else get_context().get(_owner)
        return owner or f"the task {getattr(task.get_coro(), '__qualname__', None) or task.get_name()}"

    def abandon_if_blocked(self) -> Blocker | None:
        """Give new steps another loop if this one does not turn; return what blocks it, `None` if it does turn."""
        if self.probe() < BLOCKED_S:
            return None
        blocker = self.blocker()
        with _lock:
            self.is_abandoned = True
            if _loops.get(self.nesting) is self:
                del _loops[self.nesting]
            self._end_if_unused()
        return blocker

    # Its end ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel what is pending, close its async generators and end its thread; if it is blocked, give up."""
        self._end()
        self._thread.join(2 * CLOSE_S)

    def _end_if_unused(self) -> None:
        if self.is_abandoned and not self._users:
            self._end()

    def _end(self) -> None:
        self._is_ending = True
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


def _nothing() -> None:
    """Do nothing: that it is called shows that the loop turns."""


def _place_of(frame: FrameType | None) -> str:
    """Return where the code of others stands that a loop is executing: its outermost frame."""
    found = ""
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LOOP_MODULES:
            found = f", at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return found


_LOOP_MODULES = frozenset(("asyncio", "threading", "uvloop", __name__.partition(".")[0]))

# All loops of this process --------------------------------------------------------------------------------------------

_loops: dict[int, EventLoop] = {}
_lock = threading.RLock()


def event_loop() -> EventLoop:
    """Return the loop for async code that this thread waits for, with one more user; it is started if need be.

    There is one for all executors and runs. Only if this thread is that of the loop itself, because async code calls a
    run without `asyncio.to_thread`, the run gets another one: its steps could never begin in the loop that it blocks.

    Raises:
        NoEventLoop: None can be started.
    """
    nesting = _nesting_here()
    with _lock:
        if nesting not in _loops:
            _loops[nesting] = EventLoop(nesting)
            _close_at_exit()
        _loops[nesting].register()
        return _loops[nesting]


def note_nesting() -> None:
    """Note in the current context whether this is the thread of a loop, for what runs in the context elsewhere."""
    nesting = _nesting_here()
    if nesting != _nesting.get():
        _nesting.set(nesting)


def _nesting_here() -> int:
    for loop in list(_loops.values()):
        if loop.runs_here:
            return loop.nesting + 1
    return _nesting.get()


def close_event_loops() -> None:
    """Cancel what is pending in all loops, close their async generators, and end their threads."""
    with _lock:
        loops = list(_loops.values())
        _loops.clear()
    for loop in loops:
        loop.close()


def _close_at_exit() -> None:
    atexit.unregister(close_event_loops)
    atexit.register(close_event_loops)
    # A process of `multiprocessing`, which has imported this, runs no hook of `atexit`.
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, close_event_loops, exitpriority=0)  # after the executors of pools are torn down


def _have_no_loops() -> None:
    """Have none in a forked child, where nothing runs the loops of its parent."""
    global _lock
    _lock = threading.RLock()
    _loops.clear()


forks.call_in_child(_have_no_loops)
