"""The least time between two starts of the same command in this process."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

from ... import forks


class StartTimes:
    """When each command may be started next; equal commands are the same one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        forks.disown_in_child(self)

    def disown(self) -> None:
        """Have no thread of the parent hold the lock, in a forked child."""
        self._lock = threading.Lock()

    def reserve(self, command: Any, interval_s: float) -> float:
        """Reserve the next start of a command; return for how many seconds to wait before it."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next.get(command, now))
            self._next[command] = start + interval_s
        return start - now


start_times = StartTimes()
"""Those of this process."""
