"""A thread that turns a set of lanes while their owner is elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

from .lanes import Lanes


class WatcherThread:
    """Owns `lanes` from the first `do` until `stop`; all that is done to them in between is done on its thread.

    Args:
        lanes: What to look after.
        after_turn: Called on the thread after each turn, to take the answers.
        on_failure: Called with what ended the thread too early, after the last order, so that nobody waits for it.
    """

    def __init__(
        self, lanes: Lanes, after_turn: Callable[[], None], on_failure: Callable[[BaseException], object]
    ) -> None:
        self._lanes = lanes
        self._after_turn = after_turn
        self._on_failure = on_failure
        self._orders: deque[Callable[[], None]] = deque()
        self._door_lock = threading.RLock()  # a finalizer that gives an order may run in any thread, at any time
        self._thread: threading.Thread | None = None
        self._is_retiring = False
        self._is_closed = False

    def do(self, order: Callable[[], None]) -> bool:
        """Have `order` called on the keeper's thread, soon. May be called from any thread.

        Returns:
            Whether it will be called: not if the thread has ended.

        Raises:
            RuntimeError: There are no more threads to be had. Nothing will be called, and the lanes have no owner yet.
        """
        with self._door_lock:
            if self._is_closed:
                return False
            self._orders.append(order)
            if self._thread is None:
                try:
                    self._start()
                except BaseException:
                    self._orders.remove(order)
                    raise
        self._lanes.wake()
        return True

    def retire_unbegun(self) -> bool:
        """Accept no orders any more, if there has been none; return whether that is so, and the lanes are nobody's."""
        with self._door_lock:
            is_unbegun = self._thread is None and not self._is_closed
            self._is_closed = self._is_closed or is_unbegun
            return is_unbegun

    def stop(self) -> None:
        """Return when the thread has ended; what was ordered before is done."""
        self.retire()
        self._lanes.wake()
        self.join()

    def retire(self) -> None:
        """End the thread after this turn."""
        self._is_retiring = True

    def join(self) -> None:
        """Wait for the thread to end, unless it is the one that asks."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._keep, name="fanout-keeper", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._thread = None  # nobody can wait for the end of one that never began
            raise

    def _keep(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # a fault of ours; whoever waits has to hear of it
            with self._door_lock:
                self._is_closed = True
            while self._orders:
                with contextlib.suppress(BaseException):  # which may well come of the same fault
                    self._orders.popleft()()
            self._on_failure(error)

    def _serve(self) -> None:
        while True:
            while self._orders:
                self._orders.popleft()()
            self._after_turn()
            if not self._is_retiring:
                self._lanes.turn()
            elif self._close():
                return

    def _close(self) -> bool:
        """Take no more orders, unless some have just come."""
        with self._door_lock:
            self._is_closed = not self._orders
            return self._is_closed
