"""How long the caller has been stopped, by Ctrl-Z or SIGSTOP: time that counts against no timeout.

Imports very little, and nothing of this package, because the guard process imports it, too (see `process_tree`).
"""

from __future__ import annotations

import os
from time import monotonic_ns

_WORD = 8  # bytes


class Pauses:
    """Two numbers in memory that the guard process writes, and that the caller and its workers read.

    The first is when the caller was stopped, or 0 while it runs; the second is for how long it was stopped before. Both
    are nanoseconds on the clock of `time.monotonic()`, which all processes share.

    Args:
        descriptor: Of the memory; -1 for none: then there are no pauses.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._before = 0  # when it was last read: the clock goes on from there without the memory

    @classmethod
    def create(cls) -> Pauses:
        """Return new memory for them, or none where the system has none to share.

        In a worker it is the same memory: its own workers are stopped when its caller is.
        """
        if inherited is not None:
            return inherited.copy()
        try:
            descriptor = os.memfd_create("fanout-sync-pauses")
        except (AttributeError, OSError):
            return cls(-1)
        pauses = cls(descriptor)
        pauses._write(0, 0)
        return pauses

    def copy(self) -> Pauses:
        """Return the same memory, with a descriptor of its own."""
        try:
            return Pauses(os.dup(self.descriptor))
        except OSError:  # the system has no more descriptors, or a step has closed this one
            return Pauses(-1)

    def now(self) -> float:
        """Return the time, in seconds, on a clock like that of `time.monotonic()` which stands still in a pause."""
        return (monotonic_ns() - self._stopped_ns()) / 1e9

    def stopped_s(self) -> float:
        """Return for how many seconds the caller has been stopped so far."""
        return self._stopped_ns() / 1e9

    def begin(self) -> None:
        """Note that the caller is stopped."""
        self._write(monotonic_ns(), self._read()[1])

    def end(self) -> None:
        """Note that it goes on."""
        since, before = self._read()
        self._write(0, before + monotonic_ns() - since)

    def close(self) -> None:
        self._read()
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _stopped_ns(self) -> int:
        since, before = self._read()
        return before + monotonic_ns() - since if since else before

    def _read(self) -> tuple[int, int]:
        if self.descriptor < 0:
            return 0, self._before
        try:
            data = os.pread(self.descriptor, 2 * _WORD, 0)
        except OSError:  # a step has closed all descriptors
            return 0, self._before
        self._before = int.from_bytes(data[_WORD:], "little")
        return int.from_bytes(data[:_WORD], "little"), self._before

    def _write(self, since: int, before: int) -> None:
        if self.descriptor < 0:
            return
        os.pwrite(self.descriptor, since.to_bytes(_WORD, "little") + before.to_bytes(_WORD, "little"), 0)


inherited: Pauses | None = None
"""Those of the caller of this process, if it is a worker."""
