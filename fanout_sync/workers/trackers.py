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
from contextlib import suppress
from typing import Any

from attrs import frozen

from .. import forks
from ..processes.spawn import spawn
from .launch import absolute_path

_PROGRAM = """\
import sys
sys.path[:] = {path}
from {module} import main
import warnings
warnings.filterwarnings("ignore", "resource_tracker", UserWarning)
main({reader})
"""
# A frozen program that is one file removes what it was unpacked to when it ends. If its tracker is only just starting,
# nobody needs it any more.
_PROGRAM_IF_FROZEN = """\
try:
    from {module} import main
    import warnings
except Exception:
    raise SystemExit
warnings.filterwarnings("ignore", "resource_tracker", UserWarning)
main({reader})
"""

MODULES = ("multiprocessing.resource_tracker", "loky.backend.resource_tracker")


@frozen
class _Pipe:
    """A pipe that a tracker is to read when it is started."""

    reader: int
    writer: int


_lock = threading.RLock()
_pipes: dict[str, _Pipe] = {}


def tracker_descriptors() -> dict[str, int]:
    """Return what workers are to write to, by the name of the tracker's module; nothing is started.

    Raises:
        OSError: The system has no more descriptors.
    """
    with _lock:
        return {module: _descriptor(module) for module in MODULES}


def _descriptor(module: str) -> int:
    running: int | None = getattr(_loaded(module), "_fd", None)
    if running is not None:
        return running
    if module not in _pipes:
        _pipes[module] = _Pipe(*os.pipe())
    return _pipes[module].writer


def _loaded(module: str) -> Any:
    # `None` also while another thread is importing the module.
    return getattr(sys.modules.get(module), "_resource_tracker", None)


def start_trackers() -> None:
    """Start the trackers whose pipes were given to workers.

    Raises:
        OSError: The system has no more processes or descriptors; later calls try again.
    """
    with _lock:
        for module in list(_pipes):
            _start(module, _pipes[module])
            del _pipes[module]


def _start(module: str, pipe: _Pipe) -> None:
    """Start a tracker as its module does, but with a filter and without the current directory on its path."""
    tracker: Any = importlib.import_module(module)._resource_tracker
    with tracker._lock:
        program = _PROGRAM_IF_FROZEN if getattr(sys, "frozen", False) else _PROGRAM
        values = {"path": absolute_path(), "module": module}
        # The signals are blocked until its program has begun: the tracker must survive a Ctrl-C.
        pid, _ = spawn(program, {"reader": pipe.reader}, values, blocked=(signal.SIGINT, signal.SIGTERM))
        os.close(pipe.reader)
        if tracker._fd is None:  # otherwise the program has started one of its own since then
            tracker._fd, tracker._pid = pipe.writer, pid


def _disown() -> None:
    """Close this process's copies of pipes that no tracker reads yet, in a forked child.

    It shares the trackers that run with its parent, as `multiprocessing` intends; but a thread of the parent may have
    held a lock just then.
    """
    global _lock
    _lock = threading.RLock()
    while _pipes:
        _, pipe = _pipes.popitem()
        for descriptor in (pipe.reader, pipe.writer):
            with suppress(OSError):  # another thread of the parent was just closing it
                os.close(descriptor)
    for tracker in filter(None, map(_loaded, MODULES)):
        tracker._lock._at_fork_reinit()


forks.call_in_child(_disown)
