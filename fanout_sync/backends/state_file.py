"""The states of steps in other processes, in a file that these share with the caller."""

from __future__ import annotations

import atexit
import os
import tempfile
from contextlib import suppress
from functools import partial

FIRST_BLOCK_BYTES = 4096
"""So many bytes are there from the beginning, so that a full disk shows at once: they are enough for 2 047 steps."""


class StateFile:
    """The states of those steps of one run that were sent to other processes; each process opens the file by its path.

    A pool does not say when a step begins: in the standard library `Future.running()` is true for steps that wait in
    the queue to the processes, and in other pools it is never true. So the step itself says so. The first byte of the
    file says whether the run is over. After it each step has one byte that it sets itself, and one that the caller sets
    to withdraw the step. Each side first writes its own byte and then reads the other one, so at least one of them
    sees both: a step that the caller has withdrawn never begins.
    """

    CALLED = 1
    """The pool has called the step, which sets up its executor now."""
    BEGUN = 2
    """The time of the step has begun."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.has_failed = False
        self._descriptor = descriptor
        # At the latest it runs when the interpreter exits, for example if a pool never ends some step.
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
        try:
            os.pwrite(descriptor, bytes(FIRST_BLOCK_BYTES), 0)
        except OSError:  # the disk is full
            states._removal()
            states.close()
            return None
        atexit.register(states._removal)
        return states

    @classmethod
    def open(cls, path: str | None) -> StateFile | None:
        """Open the file of the caller; `None` if it cannot be opened, for example on another machine."""
        if path is None:
            return None
        try:
            return cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError:
            return None

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    # For the caller

    def state_of(self, number: int) -> int:
        """Return the state of the step with this number: 0, `CALLED` or `BEGUN`."""
        return self._read(2 * number)

    def withdraw(self, number: int) -> bool:
        """Withdraw this step; return whether the pool had not called it yet, so that it never begins."""
        return self._write(2 * number + 1, 1) and not self.state_of(number)

    def end(self) -> None:
        """Let no more steps begin."""
        self._write(0, 1)

    def remove(self) -> None:
        self._removal()
        atexit.unregister(self._removal)

    # For the step

    def set_called(self, number: int) -> bool:
        """Note that the pool has called this step; return whether it may begin."""
        self._write(2 * number, self.CALLED)
        return not (self._read(0) or self._read(2 * number + 1))

    def set_begun(self, number: int) -> None:
        """Note that the time of this step has begun."""
        self._write(2 * number, self.BEGUN)

    def is_over(self) -> bool:
        """Return whether the run is over; also if this file was closed, as it is after the last step."""
        try:
            return bool(self._read(0))
        except OSError:
            return True

    def _read(self, offset: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, 1, offset), "little")

    def _write(self, offset: int, value: int) -> bool:
        try:
            os.pwrite(self._descriptor, bytes([value]), offset)
        except OSError:  # the disk is full: then nobody sees the state, as on another machine
            self.has_failed = True
            return False
        return True


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a child that was forked
        with suppress(OSError):  # it was deleted with other temporary files
            os.unlink(path)  # noqa: PTH108 - no path object is needed for one call
