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
from . import interpreter, process_tree
from . import pauses as pauses_module
from .launch import spawn
from .pauses import Pauses

logger = logging.getLogger(__name__)

# Imported and not run as a script: an imported module is compiled already. From its own folder, because to import the
# package takes long; a frozen program has no such folder.
_PROGRAM = """\
import sys
sys.path.append({folder!r})
from pauses import Pauses
from process_tree import run_guard
run_guard({caller}, {mark!r}, Pauses({pauses}))
"""
_PROGRAM_IF_FROZEN = """\
from fanout_sync.workers.pauses import Pauses
from fanout_sync.workers.process_tree import run_guard
run_guard({caller}, {mark!r}, Pauses({pauses}))
"""
_IS_SUPPORTED = sys.platform.startswith("linux")


@define
class GuardProcess:
    """The guard process of this process; it runs as long as there are workers.

    Attributes:
        mark: Part of the mark of every worker of this process; see `process_tree.MARK`.
        pauses: Tells how long this process was stopped.
    """

    mark: str
    pauses: Pauses
    _workers: int = 0
    _pid: int | None = None

    def add_worker(self) -> None:
        """Count one more worker."""
        self._workers += 1

    def ensure_running(self) -> None:
        """Start the process unless it runs already: a worker is about to get its first step."""
        if self._pid is None and _IS_SUPPORTED:
            try:
                self._pid = _spawn(self.mark, self.pauses.descriptor)
            except OSError as error:  # the system has no more processes; workers still watch their caller themselves
                logger.warning("no guard process: if this process is killed, workers may outlive it: %s", error)

    def remove_worker(self) -> None:
        """Count one worker less; the last one ends the process."""
        self._workers -= 1
        if self._workers:
            return
        self.pauses.close()
        if self._pid is not None:
            pid, self._pid = self._pid, None
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # other code has collected its exit code
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def add_worker() -> GuardProcess:
    """Count one more worker of this process; return the guard process that counts it."""
    global _guard_process
    with _lock:
        if _guard_process is None:
            _guard_process = GuardProcess(os.urandom(8).hex(), Pauses.create())
        elif not _guard_process._workers:
            _guard_process.pauses = Pauses.create()
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
    if _guard_process is not None:
        with contextlib.suppress(OSError):  # another thread of the parent was just closing it
            _guard_process.pauses.close()
    _guard_process, _lock = None, threading.RLock()


forks.call_in_child(_disown)


def _spawn(mark: str, pauses: int) -> int:
    # In a worker the guard process of its caller notes the pauses.
    passed = {"pauses": pauses} if pauses >= 0 and pauses_module.inherited is None else {}
    values = {"caller": os.getpid(), "mark": mark, **({} if passed else {"pauses": -1})}
    if getattr(sys, "frozen", False):
        pid, _ = spawn(_PROGRAM_IF_FROZEN, passed, values, is_silent=True)
    else:
        values["folder"] = str(Path(process_tree.__file__).parent)
        pid, _ = spawn(_PROGRAM, passed, values, command=_isolated, is_silent=True)
    return pid


def _isolated(program: str) -> list[str]:
    return [interpreter.executable(), "-I", "-S", "-c", program]
