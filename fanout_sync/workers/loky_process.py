"""The loky process of a worker that was launched already (see `launch`)."""

from __future__ import annotations

import os
from multiprocessing import process
from multiprocessing.util import Finalize

from loky.backend.popen_loky_posix import Popen
from loky.backend.process import LokyProcess


class WorkerProcess(LokyProcess):  # type: ignore[misc]  # loky has no type hints
    """A process that runs already, as `multiprocessing` and loky know their processes.

    It is among `multiprocessing.active_children()`. Unlike `start`, this works in a daemonic process as well: whatever
    becomes of the caller, a worker ends by itself (see `parent`).

    Args:
        pid: Its process id.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(name="fanout-worker")
        self._popen = _RunningPopen(pid)
        process._children.add(self)  # type: ignore[attr-defined]  # as `start` does

    def forget(self) -> None:
        """Have `multiprocessing` forget it, in a forked child: it would wait for this child of its parent."""
        process._children.discard(self)  # type: ignore[attr-defined]

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process ends."""
        return int(self._popen.sentinel)


class _RunningPopen(Popen):  # type: ignore[misc]  # as above
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode = None
        self._sentinel: int | None = None

    @property
    def sentinel(self) -> int:
        if self._sentinel is None:  # few ask for it, and descriptors may be rare
            self._sentinel = os.pidfd_open(self.pid)
            Finalize(self, os.close, (self._sentinel,))
        return self._sentinel
