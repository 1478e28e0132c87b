"""Starting worker processes, and when to stop trying."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from .. import forks
from ..executors.late_import import late_imports
from .guard_process import add_worker, remove_worker
from .lane import Lane, is_exiting
from .link import open_link
from .loss import Lost
from .output import open_outputs
from .process_tree import MARK, mark_below
from .worker import main as worker_main

MAX_FAILED_STARTS = 3
"""After so many failed starts in a row, with no step done between them, no more workers are started."""

_RETRY_AFTER_S = 0.3


class WorkerStarter:
    """Starts the workers of one set until too many starts in a row have failed.

    Attributes:
        failures: How many starts in a row have failed.
        last_failure: What the steps that no worker could run fail with.

    Args:
        prepare: The message that each worker is sent first.
        captures_output: Whether what workers print comes to this process's streams.
    """

    def __init__(self, prepare: bytes, captures_output: bool) -> None:
        self.failures = 0
        self.last_failure: Lost | None = None
        self._prepare = prepare
        self._captures_output = captures_output
        self._not_before = 0.0
        self._was_made_at_exit = is_exiting.is_set()  # by a run in an exit hook of the program

    def may_start(self) -> bool:
        """Return whether to try now."""
        return self.failures < MAX_FAILED_STARTS and time.monotonic() >= self._not_before

    def start(self) -> Lane:
        """Start a worker.

        Raises:
            RuntimeError: The interpreter has begun to exit since this set of workers was made.
            Exception: As for `start_worker`.
        """
        if is_exiting.is_set() and not self._was_made_at_exit:
            raise RuntimeError("the interpreter is exiting")
        return start_worker(self._prepare, self._captures_output)

    def put_off(self) -> None:
        """Do not try again at once: the system has no more processes or descriptors."""
        self._not_before = time.monotonic() + _RETRY_AFTER_S

    def note_failure(self, failure: Lost) -> None:
        """Count a start that failed."""
        self.failures += 1
        self.last_failure = failure

    def stop(self, failure: Lost) -> None:
        """Start no more workers."""
        self.failures = MAX_FAILED_STARTS
        self.last_failure = failure


def start_worker(prepare: bytes, captures_output: bool) -> Lane:
    """Start a worker process.

    Args:
        prepare: The message that the worker will be sent first.
        captures_output: Whether what it prints comes to the caller.

    Raises:
        OSError: The system has no more processes or descriptors; loky may raise others. Nothing is left open.
    """
    with late_imports():
        from .loky_process import WorkerProcess

    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as after_start:
        link, theirs = open_link()
        on_failure.callback(link.close)
        _close_copies(after_start, theirs)
        outputs, their_outputs = open_outputs() if captures_output else ([], [])
        for output in outputs:
            on_failure.callback(output.close)
        _close_copies(after_start, *their_outputs)
        guard_process = add_worker()
        on_failure.callback(remove_worker, guard_process)
        mark = f"{guard_process.mark}/{os.urandom(8).hex()}"
        process = WorkerProcess(
            target=worker_main, args=(theirs, their_outputs, mark), name="fanout-worker", env={MARK: mark_below(mark)}
        )
        with _sigint_blocked():
            process.start()
        on_failure.pop_all()
    return Lane(process, link, outputs, guard_process, mark, prepare)


def _close_copies(stack: contextlib.ExitStack, *ends: Any) -> None:
    """Have `stack` close this process's copies of the worker's ends, so that they end when the worker dies."""
    if sys.platform != "win32":  # where there are no copies
        for end in ends:
            stack.callback(end.close)


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT, so that a process that is started here has it blocked, too.

    Ctrl-C reaches every process in the foreground of the terminal. A worker in the middle of its start would die of it
    with a traceback. It unblocks the signal when it has a process group of its own and a handler.
    """
    if sys.platform == "win32":
        yield
        return
    from .trackers import ensure_trackers

    with _lock:
        ensure_trackers()  # before SIGINT is blocked: loky and multiprocessing unblock it when they start a tracker
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_lock = threading.RLock()
"""Taken while SIGINT is blocked. Greenlets of one thread share its signal mask, and would restore each other's."""


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # a thread of the parent may hold the other one


forks.call_in_child(_renew_lock)
