"""The programs that an executor has started in this process, and what they have left behind."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator

from attrs import define

from ... import forks
from ...processes import pauses
from ...processes.guard_process import GuardProcess, ensure_guard, release_guard, use_guard
from ...processes.process_tree import kill_trees
from .private_folders import PrivateFolders


@define(eq=False)
class _Period:
    """The time from the first program to the moment when nobody uses the executor any more.

    Attributes:
        guard_process: Kills what is left if this process is killed.
        mark: Part of the mark of each program.
        folders: The configuration folders of the programs.
        count: How many programs were started.
    """

    guard_process: GuardProcess
    mark: str
    folders: PrivateFolders
    count: int = 0

    @classmethod
    def begin(cls) -> _Period:
        guard_process = use_guard()
        if pauses.inherited is None:  # in a worker process, what guards its caller finds its programs, too
            ensure_guard(guard_process)
        period = cls(
            guard_process, f"{guard_process.mark}/{os.urandom(4).hex()}", PrivateFolders(guard_process.make_folder)
        )
        _periods.add(period)
        return period

    def end(self) -> None:
        """Kill what the programs have left behind, wherever it is by now."""
        self.clean_up()
        _periods.discard(self)
        release_guard(self.guard_process)

    def clean_up(self) -> None:
        kill_trees([], [self.mark])
        self.folders.remove()


_periods: set[_Period] = set()
"""Those of this process that have not ended."""


@atexit.register
def _clean_up_at_exit() -> None:
    # The guard process stays: a thread may just be starting another program.
    for period in list(_periods):
        period.clean_up()


forks.call_in_child(_periods.clear)


class OwnPrograms:
    """Counts the users of an executor: runs that have set it up, and programs that are running.

    What programs have left behind is searched for by their mark when the last user is gone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._period: _Period | None = None
        forks.disown_in_child(self)

    def disown(self) -> None:
        """Begin anew, in a forked child: the programs are its parent's."""
        self._lock = threading.Lock()
        self._users, self._period = 0, None

    def add_user(self) -> None:
        """Count one more user."""
        with self._lock:
            self._users += 1

    def remove_user(self) -> None:
        """Count one user less."""
        with self._lock:
            self._users -= 1
            if self._users > 0 or self._period is None:
                return
            period, self._period = self._period, None
        period.end()

    @contextlib.contextmanager
    def one_more(self) -> Iterator[tuple[str, PrivateFolders]]:
        """Count one more program while the block runs; yields its mark, and where private folders come from."""
        with self._lock:
            self._users += 1
            if self._period is None:
                self._period = _Period.begin()
            self._period.count += 1
            mark, folders = f"{self._period.mark}/{self._period.count}", self._period.folders
        try:
            yield mark, folders
        finally:
            self.remove_user()
