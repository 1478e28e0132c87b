"""Finds out whether an event loop turns, and what blocks it if it does not."""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
import weakref
from types import FrameType
from typing import TYPE_CHECKING, Any

from attrs import frozen

from .clock import clock

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

PROBE_S = 0.1
"""How often, in seconds, the loop is asked for a sign of life while anybody waits for it."""

LOGGED_AFTER_S = 1.0
"""What blocks the loop for more than so many seconds is logged."""

MONITOR_NAME = "fanout-sync-loop-monitor"

_owner: contextvars.ContextVar[object] = contextvars.ContextVar("fanout_sync_loop_owner", default=None)


@frozen
class Blocker:
    """What an event loop is executing while it does not turn.

    Attributes:
        owner: Whose code it is: what was given to `note_owner`, or a description.
        place: Where the code stands: `", at FILE:LINE in FUNCTION"`, or nothing.
    """

    owner: object
    place: str

    @property
    def agent(self) -> str:
        """Whose code it is, without the step."""
        return str(getattr(self.owner, "agent", self.owner))

    @property
    def may_block(self) -> bool:
        """Whether it was put into the loop by this package, and need not know of it."""
        return bool(getattr(self.owner, "may_block", False))


class LoopMonitor:
    """Asks a loop for a sign of life, in a thread of its own.

    A loop is blocked if it gives none while it executes one and the same task or callback: many that each take a while
    make a loop slow, but none of them blocks it.

    Args:
        thread: The thread of the loop.
        loop: The loop.
    """

    def __init__(self, thread: threading.Thread, loop: asyncio.AbstractEventLoop) -> None:
        self._loop_thread = thread
        self._loop = loop
        self._owners: weakref.WeakKeyDictionary[asyncio.Task[Any], object] = weakref.WeakKeyDictionary()
        self._is_watching = threading.Event()
        self._is_over = False
        self._thread: threading.Thread | None = None
        self._is_asked = False
        # What it was executing when it was asked and has been executing since, and since when.
        self._suspect = (0, 0.0)

    def wake(self) -> None:
        """Watch the loop: somebody waits for it."""
        if self._is_watching.is_set():
            return
        self._is_watching.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name=MONITOR_NAME, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the system has no more threads: nobody finds out who blocks the loop
                logger.debug("no thread watches the event loop")

    def rest(self) -> None:
        """Stop watching, until somebody waits again."""
        self._is_watching.clear()

    def end(self) -> None:
        """End the thread."""
        self._is_over = True
        self._is_watching.set()

    def note_owner(self, owner: object) -> None:
        """Note whose code runs in the current context, and in the tasks that it starts."""
        _owner.set(owner)

    def note_task(self, task: asyncio.Task[Any], owner: object) -> None:
        """Note whose task it is."""
        self._owners[task] = owner

    def blocker(self, least_s: float) -> Blocker | None:
        """Return what has blocked the loop for at least so many seconds; `None` if nothing has. Any thread may ask."""
        executed, since = self._suspect
        if not self._is_asked or clock.now() - since < least_s:
            return None
        task, frame = self._current()
        if _id_of(task, frame) != executed:
            return None
        return Blocker(self._owner_of(task), _place_of(frame))

    def _watch(self) -> None:
        while True:
            self._is_watching.wait()
            if self._is_over:
                return
            self._look()
            time.sleep(PROBE_S)

    def _look(self) -> None:
        executed = _id_of(*self._current())
        if not self._is_asked or executed != self._suspect[0]:
            self._suspect = executed, clock.now()
        elif (blocker := self.blocker(LOGGED_AFTER_S)) is not None:
            _log(blocker)
        if not self._is_asked:
            self._is_asked = True
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # it is closed, as the program ends
                self._is_over = True

    def _answer(self) -> None:
        self._is_asked = False

    def _current(self) -> tuple[asyncio.Task[Any] | None, FrameType | None]:
        """Return the task and the frame that the loop is executing."""
        import asyncio

        frame = sys._current_frames().get(self._loop_thread.ident or 0)
        return asyncio.current_task(self._loop), frame

    def _owner_of(self, task: asyncio.Task[Any] | None) -> object:
        if task is None:
            return "a callback"
        if task in self._owners:
            return self._owners[task]
        # A task that a step or a hook has started.
        get_context = getattr(task, "get_context", None)  # since Python 3.12
        owner: object = None if get_context is None else get_context().get(_owner)
        return owner or f"the task {getattr(task.get_coro(), '__qualname__', None) or task.get_name()}"


def _log(blocker: Blocker) -> None:
    if blocker.agent in _logged or blocker.may_block:
        return
    _logged.add(blocker.agent)
    logger.warning(
        "%s has blocked the event loop, in which all async code of this process runs, for more than %g s%s; let it "
        "await, or call what blocks with asyncio.to_thread",
        *(blocker.owner, LOGGED_AFTER_S, blocker.place),
    )


_logged: set[str] = set()


def _id_of(task: asyncio.Task[Any] | None, frame: FrameType | None) -> int:
    """Return what identifies the task or the callback that is being executed, without keeping it alive."""
    return id(_outermost(frame)) if task is None else id(task)


def _outermost(frame: FrameType | None) -> FrameType | None:
    """Return the outermost frame of the code of others; `None` if there is none."""
    found = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LOOP_MODULES:
            found = frame
        frame = frame.f_back
    return found


def _place_of(frame: FrameType | None) -> str:
    found = _outermost(frame)
    if found is None:
        return ""
    return f", at {found.f_code.co_filename}:{found.f_lineno} in {found.f_code.co_name}"


_LOOP_MODULES = frozenset(("asyncio", "nest_asyncio", "selectors", "threading", "uvloop", __name__.partition(".")[0]))
