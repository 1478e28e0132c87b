"""The worker processes that are kept from one run for the next."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..interrupts import InterruptScope

# The modules of worker processes are imported where they are used, so that `import fanout_sync` stays fast.
if TYPE_CHECKING:
    from ..workers.lane import Lane

IDLE_S = 5.0
"""After so many seconds the idle workers are ended that no single run can need."""


class KeptWorkers:
    """Keeps idle workers as long as somebody holds it. May be used from any thread.

    Args:
        holds: How often it is held already.
    """

    def __init__(self, holds: int = 0) -> None:
        self._lanes: list[Lane] = []
        self.holds = holds
        self._most_needed = 0
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()  # a finalizer may end a session in a thread that holds it

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def is_held(self) -> bool:
        """Whether workers are to be kept."""
        return self.holds > 0

    def hold(self) -> None:
        """Keep workers until `let_go` is called as often as this."""
        with self._lock:
            self.holds += 1

    def let_go(self, scope: InterruptScope, *, is_urgent: bool) -> None:
        """End the workers, if nobody holds them any more.

        Args:
            scope: When it notes an interrupt, the workers that are left are killed.
            is_urgent: Whether to kill them rather than to tear the executor down.
        """
        with self._lock:
            self.holds -= 1
            if self.holds:
                return
            timer, self._timer, self._most_needed = self._timer, None, 0
        if timer is not None:
            timer.cancel()
            timer.join()
        if lanes := self.take():
            from ..workers.lanes import Lanes

            Lanes.end(lanes, is_urgent, scope)

    def take(self) -> list[Lane]:
        """Return all workers, which are kept no more."""
        with self._lock:
            lanes, self._lanes = self._lanes, []
        return lanes

    def keep(self, lanes: list[Lane], most_needed: int) -> None:
        """Keep workers for the next run, or end them if nobody holds this.

        Args:
            lanes: The workers.
            most_needed: How many the run could have that they come from.
        """
        with self._lock:
            if self.holds:
                self._lanes += lanes
                self._most_needed = max(self._most_needed, most_needed)
                if self._timer is None or not self._timer.is_alive():
                    self._end_superfluous_later()
                return
        _end(lanes)

    def _end_superfluous_later(self) -> None:
        if len(self._lanes) <= self._most_needed:
            self._timer = None
            return
        self._timer = threading.Timer(IDLE_S, self._end_superfluous)
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # the system has no more threads; the next run tries again
            self._timer = None

    def _end_superfluous(self) -> None:
        timer = threading.current_thread()
        with self._lock:
            if self._timer is not timer:  # `let_go` ends all of them
                return
            superfluous = self._lanes[self._most_needed :]
            del self._lanes[self._most_needed :]
        _end(superfluous)
        with self._lock:
            if self._timer is timer:
                self._end_superfluous_later()  # for those that came meanwhile


def _end(lanes: list[Lane]) -> None:
    if lanes:
        from ..workers.lanes import Lanes

        Lanes.end(lanes)
