"""A small process beside the caller that outlives it for a moment, to take its workers along.

A worker that sees its caller gone leaves by itself, and takes along what its steps started (see `parent.py`); but not
while a step is in a call to C that holds the interpreter.
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

from . import process_tree

logger = logging.getLogger(__name__)

# Imported and not run as a script, because what is imported is compiled already.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); "
    "import process_tree; process_tree.stand_guard(int(sys.argv[2]), sys.argv[3])"
)
_IS_SUPPORTED = sys.platform.startswith("linux") and hasattr(os, "posix_spawn")


@define
class GuardProcess:
    """The guard process of this process, there as long as it has workers.

    Attributes:
        mark: What all workers of this process bear.
    """

    mark: str
    _caller: int
    _charges: int = 0
    _pid: int | None = None

    def take_charge(self) -> None:
        """Look after one worker more."""
        self._charges += 1

    def stand_guard(self) -> None:
        """Be there, from now on: a worker is about to get its first step."""
        if self._pid is None and _IS_SUPPORTED and sys.executable:
            try:
                self._pid = _spawn(self.mark)
            except OSError as error:  # no more processes to be had; workers still look after themselves
                logger.warning("there is nobody to kill the workers should this process be killed: %s", error)

    def let_go(self) -> None:
        """Look after one worker less."""
        self._charges -= 1
        if self._charges == 0 and self._pid is not None and os.getpid() == self._caller:
            pid, self._pid = self._pid, None
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # somebody else has collected it
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def take_charge() -> GuardProcess:
    """Have the guard process of this process look after one worker more; returns it."""
    global _guard_process
    with _lock:
        if _guard_process is None or _guard_process._caller != os.getpid():  # a fork has no part in its parent's
            _guard_process = GuardProcess(os.urandom(8).hex(), os.getpid())
        _guard_process.take_charge()
        return _guard_process


def stand_guard(guard_process: GuardProcess) -> None:
    """Have it be there from now on."""
    with _lock:
        guard_process.stand_guard()


def let_go(guard_process: GuardProcess) -> None:
    """Have it look after one worker less."""
    with _lock:
        guard_process.let_go()


_guard_process: GuardProcess | None = None
_lock = threading.RLock()  # a finalizer may let go of a worker in the middle of this


def _spawn(mark: str) -> int:
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    # A session of its own: no Ctrl-C is meant for it.
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(process_tree.__file__).parent), str(os.getpid()), mark],
        os.environ,
        file_actions=quiet,
        setsid=True,
    )
