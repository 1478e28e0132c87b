"""A loky process that is started without changing anything of the caller's, and that leaves nothing if it cannot be."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from loky.backend.process import LokyProcess

_PIPES = 3  # which loky opens to start one


class WorkerProcess(LokyProcess):  # type: ignore[misc]  # loky has no type hints
    """A loky process, also for a caller whose standard streams are closed, or who has none: loky flushes them."""

    @staticmethod
    def _Popen(process: WorkerProcess) -> Any:  # noqa: N802 - multiprocessing's name
        """Start it.

        Raises:
            OSError: There are no more processes or descriptors to be had.
            RuntimeError: The interpreter does not know where it is.
        """
        if sys.platform == "win32":
            return LokyProcess._Popen(process)
        from loky.backend.popen_loky_posix import Popen

        if not sys.executable:
            raise RuntimeError("worker processes need sys.executable, which is not set")
        _flush_streams()
        _check_descriptors()
        # What loky's constructor does after it has flushed the streams. To put something in their place meanwhile would
        # take away what other threads print, and two of them would put back each other's.
        popen = Popen.__new__(Popen)
        popen.returncode = None
        popen._fds = []
        popen._launch(process)
        return popen


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or none at all, or what is behind it is gone
            stream.flush()


def _check_descriptors() -> None:
    """Raise an error if there are too few descriptors left: loky leaks what it has opened when they run out."""
    with contextlib.ExitStack() as opened:
        for _ in range(_PIPES):
            for end in os.pipe():
                opened.callback(os.close, end)
