"""How far steps are that run in other processes, in a file that those share with the caller."""

from __future__ import annotations

import atexit
import os
import tempfile
from contextlib import suppress
from functools import partial


class StateFile:
    """How far the steps of one run are that were sent to other processes; each process opens the file by its path.

    A pool does not say when a step begins: `Future.running()` of the standard library's is true for steps that wait in
    the queue to its processes, and of other pools it is never true. So the step itself says so. The first byte of the
    file says whether the run is over. After it each step has a byte that it sets itself, and one that the caller sets
    to withdraw the step. Each side writes its byte first and reads the other's then, so that at least one of them
    sees both: a step that the caller has withdrawn never begins.
    """

    ARRIVED = 1
    """The step has a place in the pool; its executor is being set up."""
    BEGUN = 2

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        # At the latest when the interpreter exits, as for a pool that never ends some step.
        self._removal = partial(_remove, path, os.getpid())

    @classmethod
    def create(cls) -> StateFile | None:
        """Return a new file; `None` if the system has no room for one."""
        if not hasattr(os, "pread"):  # Windows
            return None
        try:
            descriptor, path = tempfile.mkstemp(prefix="fanout_sync-", suffix=".steps")
        except OSError:
            return None
        states = cls(path, descriptor)
        atexit.register(states._removal)
        return states

    @classmethod
    def open(cls, path: str | None) -> StateFile | None:
        """Return the file of the caller; `None` if it cannot be reached, as from another machine."""
        if path is None:
            return None
        try:
            return cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError:
            return None

    def close(self) -> None:
        os.close(self._descriptor)

    # For the caller

    def of(self, number: int) -> int:
        """Return how far the step with this number is: 0, or what it has set."""
        return self._read(2 * number)

    def withdraw(self, number: int) -> bool:
        """Have this step never begin; return whether it had not even arrived."""
        self._write(2 * number + 1, 1)
        return not self.of(number)

    def end(self) -> None:
        """Have no step begin any more."""
        self._write(0, 1)

    def remove(self) -> None:
        self._removal()
        atexit.unregister(self._removal)

    # For the step

    def arrive(self, number: int) -> bool:
        """Note that this step has a place; return whether it is to begin."""
        self._write(2 * number, self.ARRIVED)
        return not (self._read(0) or self._read(2 * number + 1))

    def begin(self, number: int) -> None:
        """Note that the time of this step has begun."""
        self._write(2 * number, self.BEGUN)

    def _read(self, offset: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, 1, offset), "little")

    def _write(self, offset: int, value: int) -> None:
        with suppress(OSError):  # the disk is full: then nobody hears of it, as from another machine
            os.pwrite(self._descriptor, bytes([value]), offset)


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a child that was forked
        with suppress(OSError):  # somebody has cleared the folder of temporary files
            os.unlink(path)  # noqa: PTH108 - no path object is needed for one call
