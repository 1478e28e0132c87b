"""A small process that kills what a caller has left behind that was killed: its workers, and what its steps started.

A worker whose caller is gone does that itself (see `workers/parent.py`), but not while a step is in a C call that holds
the interpreter. For a program that a step on a thread has started, nobody else does.
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
from ..errors import OptionError
from . import interpreter, process_tree
from . import pauses as pauses_module
from .pauses import Pauses
from .process_tree import outermost_mark
from .scratch import make_folder, remove_folder
from .spawn import spawn

logger = logging.getLogger(__name__)

# Imported and not run as a script: an imported module is compiled already. From its own folder, because to import the
# package takes long; a frozen program has no such folder.
_PROGRAM = """\
import sys
sys.path.append({folder!r})
from pauses import Pauses
from process_tree import run_guard
run_guard({caller}, {mark!r}, Pauses({pauses}))
from scratch import remove_folder
remove_folder({folder_mark!r})
"""
_PROGRAM_IF_FROZEN = """\
from fanout_sync.processes.pauses import Pauses
from fanout_sync.processes.process_tree import run_guard
run_guard({caller}, {mark!r}, Pauses({pauses}))
from fanout_sync.processes.scratch import remove_folder
remove_folder({folder_mark!r})
"""
_IS_SUPPORTED = sys.platform.startswith("linux")


@define
class GuardProcess:
    """The guard process of this process; it runs as long as somebody uses it, such as a worker.

    Attributes:
        mark: Part of the mark of every process that it is to kill; see `process_tree.MARK`.
        pauses: Tells how long this process was stopped.
    """

    mark: str
    pauses: Pauses
    users: int = 0
    _pid: int | None = None

    def ensure_running(self) -> None:
        """Start the process unless it runs already: code of a step is about to run."""
        if self._pid is None and _IS_SUPPORTED:
            try:
                folder_mark = None if self._is_inside_another else self.mark
                self._pid = _spawn(self.mark, folder_mark, self.pauses.descriptor)
            except (OSError, OptionError) as error:  # no more processes, or no Python
                # Workers still watch their caller themselves.
                logger.warning("no guard process: if this process is killed, what it has started may go on: %s", error)

    @property
    def _is_inside_another(self) -> bool:
        """Whether this process is a worker, or a program of a step: then another one removes the temporary files."""
        return outermost_mark(self.mark) != self.mark

    def make_folder(self) -> str:
        """Return the path of the folder for temporary files; it is made if there is none.

        Raises:
            OSError: It cannot be made.
        """
        return make_folder(outermost_mark(self.mark))

    def remove_user(self) -> None:
        """Count one user less; the last one ends the process."""
        self.users -= 1
        if self.users:
            return
        self.pauses.close()
        if self._pid is not None:
            pid, self._pid = self._pid, None
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # other code has collected its exit code
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if not self._is_inside_another:
            remove_folder(self.mark)


def use_guard() -> GuardProcess:
    """Count one more user of the guard process of this process, and return it; it need not run yet."""
    global _guard_process
    with _lock:
        if _guard_process is None:
            _guard_process = GuardProcess(os.urandom(8).hex(), Pauses.create())
        elif not _guard_process.users:
            _guard_process.pauses = Pauses.create()
        _guard_process.users += 1
        return _guard_process


def ensure_guard(guard_process: GuardProcess) -> None:
    """Start the guard process unless it runs already."""
    with _lock:
        guard_process.ensure_running()


def release_guard(guard_process: GuardProcess) -> None:
    """Count one user less; the last one ends the guard process."""
    with _lock:
        guard_process.remove_user()


_guard_process: GuardProcess | None = None
_lock = threading.RLock()  # a finalizer may release it in a thread that holds the lock


def _disown() -> None:
    """Have no guard process yet, in a forked child: the one that there is belongs to the parent."""
    global _guard_process, _lock
    if _guard_process is not None:
        with contextlib.suppress(OSError):  # another thread of the parent was just closing it
            _guard_process.pauses.close()
    _guard_process, _lock = None, threading.RLock()


forks.call_in_child(_disown)


def _spawn(mark: str, folder_mark: str | None, pauses: int) -> int:
    # In a worker the guard process of its caller notes the pauses.
    passed = {"pauses": pauses} if pauses >= 0 and pauses_module.inherited is None else {}
    values = {"caller": os.getpid(), "mark": mark, "folder_mark": folder_mark, **({} if passed else {"pauses": -1})}
    if getattr(sys, "frozen", False):
        pid, _ = spawn(_PROGRAM_IF_FROZEN, passed, values, is_silent=True)
    else:
        values["folder"] = str(Path(process_tree.__file__).parent)
        pid, _ = spawn(_PROGRAM, passed, values, command=_isolated, is_silent=True)
    return pid


def _isolated(program: str) -> list[str]:
    return [interpreter.executable(), "-I", "-S", "-c", program]
