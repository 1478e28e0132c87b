"""The resource trackers that workers share with their caller: processes that remove what killed workers leave behind.

Multiprocessing has one and loky has another; whoever needs one first starts it. A tracker reads one pipe until all
writers are gone. So a worker can be launched with the pipe of a tracker that is not running yet.

When a tracker ends, it warns of all semaphores and shared memory that are left. Where workers are killed that is
expected, so the trackers that are started here do not warn.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from contextlib import ExitStack
from typing import Any

from attrs import define, frozen

from . import interpreter
from .launch import absolute_path, spawn

_PROGRAM = """\
import sys
sys.path[:] = {path}
from {module} import main
import warnings
warnings.filterwarnings("ignore", "resource_tracker", UserWarning)
main({reader})
"""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

MODULES = ("multiprocessing.resource_tracker", "loky.backend.resource_tracker")


@frozen
class _Pipe:
    """A pipe that a tracker is to read when it is started."""

    reader: int
    writer: int


@define(eq=False)
class _Trackers:
    """The trackers of one process."""

    pid: int
    pipes: dict[str, _Pipe]


_lock = threading.RLock()
_trackers = _Trackers(os.getpid(), {})


def tracker_descriptors() -> dict[str, int]:
    """Return what workers are to write to, by the name of the tracker's module; nothing is started.

    Raises:
        OSError: The system has no more descriptors.
    """
    with _lock:
        return {module: _descriptor(module) for module in MODULES}


def _descriptor(module: str) -> int:
    running = _running(module)
    if running is not None:
        return running
    if _trackers.pid != os.getpid():  # in a forked child: those of the parent belong to the parent
        _trackers.pid, _trackers.pipes = os.getpid(), {}
    if module not in _trackers.pipes:
        _trackers.pipes[module] = _Pipe(*os.pipe())
    return _trackers.pipes[module].writer


def _running(module: str) -> int | None:
    # Another thread may be importing the module just now.
    tracker = getattr(sys.modules.get(module), "_resource_tracker", None)
    descriptor: int | None = getattr(tracker, "_fd", None)
    return descriptor


def waiting_pipes() -> list[tuple[int, int]]:
    """Return both ends of each pipe whose tracker is not started yet."""
    with _lock:
        return [(pipe.reader, pipe.writer) for pipe in _trackers.pipes.values()]


def start_trackers() -> None:
    """Start the trackers whose pipes were given to workers.

    Raises:
        OSError: The system has no more processes or descriptors; later calls try again.
    """
    with _lock:
        for module in list(_trackers.pipes) if _trackers.pid == os.getpid() else ():
            _start(module, _trackers.pipes[module])
            del _trackers.pipes[module]


def _start(module: str, pipe: _Pipe) -> None:
    """Start a tracker as its module does, but with a filter and without the current directory on its path."""
    tracker: Any = importlib.import_module(module)._resource_tracker
    with tracker._lock, ExitStack() as stack:
        program = _PROGRAM.format(path=absolute_path(), module=module, reader=pipe.reader)
        # The signals are blocked until its program has begun: the tracker must survive a Ctrl-C.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        pid = spawn(interpreter.command(program), [pipe.reader])
        os.close(pipe.reader)
        if tracker._fd is None:  # otherwise the program has started one of its own since then
            tracker._fd, tracker._pid = pipe.writer, pid
