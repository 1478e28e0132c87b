"""A loky process whose start changes nothing in the caller and, if it fails, leaves nothing open."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from loky.backend.process import LokyProcess

_PIPES = 3  # loky opens so many to start a process


class WorkerProcess(LokyProcess):  # type: ignore[misc]  # loky has no type hints
    """A loky process. It also starts if the standard streams of the caller are closed or `None`, which loky flushes."""

    @staticmethod
    def _Popen(process: WorkerProcess) -> Any:  # noqa: N802 - multiprocessing's name
        """Start the process.

        Raises:
            OSError: The system has no more processes or descriptors.
            RuntimeError: `sys.executable` is not set.
        """
        if sys.platform == "win32":
            return LokyProcess._Popen(process)
        from loky.backend.popen_loky_posix import Popen

        if not sys.executable:
            raise RuntimeError("worker processes need sys.executable, which is not set")
        _flush_streams()
        _check_descriptors()
        # This is what loky's constructor does after it has flushed the streams. To replace the streams meanwhile, so
        # that it can flush them, would lose what other threads print, and two threads would restore each other's.
        popen = Popen.__new__(Popen)
        popen.returncode = None
        popen._fds = []
        popen._launch(process)
        return popen


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it is closed, or `None`, or its file is gone
            stream.flush()


def _check_descriptors() -> None:
    """Raise an error if too few descriptors are left: when they run out, loky leaks those that it has opened."""
    with contextlib.ExitStack() as opened:
        for _ in range(_PIPES):
            for end in os.pipe():
                opened.callback(os.close, end)
