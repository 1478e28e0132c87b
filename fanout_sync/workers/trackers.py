"""The resource trackers that workers share with their caller: processes that remove what killed workers leave behind.

Multiprocessing has one and loky has another; whoever needs one first starts it. When a tracker ends, it warns of all
semaphores and shared memory that are left. Where workers are killed that is expected, so the trackers that are started
here do not warn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import resource_tracker as multiprocessing_tracker
from multiprocessing import spawn as multiprocessing_spawn
from multiprocessing import util
from typing import Any

from loky.backend import resource_tracker as loky_tracker
from loky.backend import spawn as loky_spawn

from .. import forks

_PROGRAM = (
    # It begins like the programs of the trackers: frozen programs recognize by that what they were started for.
    "from {module} import main; import warnings; "
    "warnings.filterwarnings('ignore', 'resource_tracker', UserWarning); main({reader})"
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def ensure_trackers() -> None:
    """Start the trackers that are not running yet.

    Raises:
        OSError: The system has no more processes or descriptors.
    """
    loky: Any = loky_tracker._resource_tracker
    multiprocessing: Any = multiprocessing_tracker._resource_tracker
    _ensure(loky, loky_tracker.__name__, loky_spawn.get_executable)
    _ensure(multiprocessing, multiprocessing_tracker.__name__, multiprocessing_spawn.get_executable)


def _ensure(tracker: Any, module: str, get_executable: Callable[[], str | bytes | None]) -> None:
    # The tracker could start itself with a filter in the environment or in `sys.warnoptions`. But those belong to the
    # caller: other threads read them, and two threads that change them would restore each other's values.
    with tracker._lock:
        executable = get_executable()
        if tracker._fd is None and executable:
            tracker._fd, tracker._pid = _start(module, os.fsencode(executable))
    tracker.ensure_running()


def _start(module: str, executable: bytes) -> tuple[int, int]:
    """Start a tracker as its module does, with a filter; return the descriptor to write to, and the process id."""
    reader, writer = os.pipe()
    try:
        pid = _spawn(executable, _PROGRAM.format(module=module, reader=reader), reader)
    except BaseException:
        os.close(writer)
        raise
    finally:
        os.close(reader)
    return writer, pid


def _spawn(executable: bytes, program: str, reader: int) -> int:
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as the trackers do
    command = [executable, *map(os.fsencode, (*flags, "-c", program))]
    # The signals are blocked until its program has begun: the tracker must survive a Ctrl-C.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return int(util.spawnv_passfds(executable, command, [*_error_output(), reader]))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _error_output() -> list[int]:
    try:
        return [sys.stderr.fileno()]
    except Exception:  # it is `None`, or closed, or has no descriptor
        return []


def _renew_locks() -> None:
    # A forked child shares the trackers of its parent, as multiprocessing intends; but a thread of the parent may have
    # held a lock just then.
    for module in (loky_tracker, multiprocessing_tracker):
        tracker: Any = module._resource_tracker
        tracker._lock._at_fork_reinit()


forks.call_in_child(_renew_locks)
