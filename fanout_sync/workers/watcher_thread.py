"""A thread that turns a set of lanes while their owner is elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

from ..executors.thread_start import start_thread
from .lanes import Lanes


class WatcherThread:
    """Owns `lanes` from the first `do` until `stop`: meanwhile they are used on its thread only.

    Args:
        lanes: The lanes.
        after_turn: Called on the thread after each turn, to take the answers.
        on_failure: Called, after the last action, with an error that ended the thread, so that nobody waits for it.
    """

    def __init__(
        self, lanes: Lanes, after_turn: Callable[[], None], on_failure: Callable[[BaseException], object]
    ) -> None:
        self._lanes = lanes
        self._after_turn = after_turn
        self._on_failure = on_failure
        self._actions: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()  # a finalizer may call `do` in a thread that holds it
        self._thread: threading.Thread | None = None
        self._must_stop = False
        self._is_closed = False

    def do(self, action: Callable[[], None]) -> bool:
        """Have `action` called soon, on the watcher thread. May be called from any thread.

        Returns:
            Whether it will be called: not if the thread has ended.

        Raises:
            RuntimeError: The system has no more threads. Nothing will be called, and the lanes have no owner yet.
        """
        with self._lock:
            if self._is_closed:
                return False
            self._actions.append(action)
            if self._thread is None:
                try:
                    self._start()
                except BaseException:
                    self._actions.remove(action)
                    raise
        self._lanes.wake()
        return True

    def close_if_unstarted(self) -> bool:
        """If there was no action yet, accept none any more; return whether so, and thus the lanes have no owner."""
        with self._lock:
            is_unstarted = self._thread is None and not self._is_closed
            self._is_closed = self._is_closed or is_unstarted
            return is_unstarted

    def stop(self) -> None:
        """Return when the thread has ended; it does what was accepted before."""
        self.request_stop()
        self._lanes.wake()
        self.join()

    def request_stop(self) -> None:
        """End the thread after this turn."""
        self._must_stop = True

    def join(self) -> None:
        """Wait for the thread to end, unless this is called on it."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="fanout-watcher", daemon=True)
        try:
            start_thread(self._thread)
        except BaseException:
            self._thread = None  # a thread that never began cannot be joined
            raise

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # an internal error; whoever waits for an answer has to be told
            with self._lock:
                self._is_closed = True
            while self._actions:
                with contextlib.suppress(BaseException):  # which may well have the same cause
                    self._actions.popleft()()
            self._on_failure(error)

    def _serve(self) -> None:
        while True:
            while self._actions:
                self._actions.popleft()()
            self._after_turn()
            if not self._must_stop:
                self._lanes.turn()
            elif self._close():
                return

    def _close(self) -> bool:
        """Accept no more actions, unless some have just come; return whether that is so."""
        with self._lock:
            self._is_closed = not self._actions
            return self._is_closed
