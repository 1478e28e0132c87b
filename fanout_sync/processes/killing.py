"""Killing many process trees at once: one search of all processes serves all who ask meanwhile."""

from __future__ import annotations

import threading

from attrs import define

from .. import forks
from .process_tree import kill_trees


@define(eq=False)
class _Request:
    pids: list[int]
    mark: str
    is_done: bool = False


class TreeKiller:
    """Kills process trees, as `process_tree.kill_trees` does, for several threads together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Request] = []
        forks.disown_in_child(self)

    def disown(self) -> None:
        """Begin anew, in a forked child: threads of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._waiting = []

    def kill(self, pids: list[int], mark: str) -> None:
        """Kill processes and everything that they started; see `kill_trees`."""
        request = _Request(pids, mark)
        self._waiting.append(request)
        with self._lock:
            if not request.is_done:  # another thread has done it while this one waited for the lock
                requests = self._waiting[:]
                del self._waiting[: len(requests)]  # and not those that others have added since
                kill_trees([pid for each in requests for pid in each.pids], [each.mark for each in requests])
                for each in requests:
                    each.is_done = True


tree_killer = TreeKiller()
"""That of this process."""
