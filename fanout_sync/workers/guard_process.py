"""A small process that kills the workers of a caller that was killed, and what their steps started.

A worker whose caller is gone does that itself (see `parent.py`), but not while a step is in a C call that holds the
interpreter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from attrs import define

from .. import forks
from . import process_tree

logger = logging.getLogger(__name__)

# Imported and not run as a script: an imported module is compiled already.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); "
    "import process_tree; process_tree.run_guard(int(sys.argv[2]), sys.argv[3])"
)
_IS_SUPPORTED = sys.platform.startswith("linux") and hasattr(os, "posix_spawn")


@define
class GuardProcess:
    """The guard process of this process; it runs as long as there are workers.

    Attributes:
        mark: Part of the mark of every worker of this process; see `process_tree.MARK`.
    """

    mark: str
    _workers: int = 0
    _pid: int | None = None

    def add_worker(self) -> None:
        """Count one more worker."""
        self._workers += 1

    def ensure_running(self) -> None:
        """Start the process unless it runs already: a worker is about to get its first step."""
        if self._pid is None and _IS_SUPPORTED and sys.executable:
            try:
                self._pid = _spawn(self.mark)
            except OSError as error:  # the system has no more processes; workers still watch their caller themselves
                logger.warning("no guard process: if this process is killed, workers may outlive it: %s", error)

    def remove_worker(self) -> None:
        """Count one worker less; the last one ends the process."""
        self._workers -= 1
        if self._workers == 0 and self._pid is not None:
            pid, self._pid = self._pid, None
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # other code has collected its exit code
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def add_worker() -> GuardProcess:
    """Count one more worker of this process; return the guard process that counts it."""
    global _guard_process
    with _lock:
        if _guard_process is None:
            _guard_process = GuardProcess(os.urandom(8).hex())
        _guard_process.add_worker()
        return _guard_process


def ensure_guard(guard_process: GuardProcess) -> None:
    """Start the guard process unless it runs already."""
    with _lock:
        guard_process.ensure_running()


def remove_worker(guard_process: GuardProcess) -> None:
    """Count one worker less; the last one ends the guard process."""
    with _lock:
        guard_process.remove_worker()


_guard_process: GuardProcess | None = None
_lock = threading.RLock()  # a finalizer may remove a worker in a thread that holds it


def _disown() -> None:
    """Have no guard process yet, in a forked child: the one that there is belongs to the parent."""
    global _guard_process, _lock
    _guard_process, _lock = None, threading.RLock()


forks.call_in_child(_disown)


def _spawn(mark: str) -> int:
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    # In a session of its own Ctrl-C does not reach it.
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(process_tree.__file__).parent), str(os.getpid()), mark],
        os.environ,
        file_actions=quiet,
        setsid=True,
    )
