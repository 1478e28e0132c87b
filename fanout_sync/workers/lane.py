"""One worker process as its caller sees it: its state, how to kill it, and how it ended."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import select
import selectors
import signal
import threading
import time
import weakref
from collections.abc import Iterable
from multiprocessing.process import active_children
from multiprocessing.util import Finalize
from typing import Any, Literal

from attrs import define, field, frozen

from .. import forks
from ..executors.executor import TEARDOWN_GRACE_S
from ..executors.late_import import late_imports
from ..processes.guard_process import GuardProcess, release_guard
from ..processes.process_tree import kill_group, kill_trees
from .caller_state import State
from .link import LOST_LINK_EXIT_CODE, CallerLink
from .module_versions import Versions
from .output import Output
from .worker_start import StartedWorker

with late_imports():
    from .loky_process import WorkerProcess

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 0.1
"""How often, in seconds, to check for dead workers where the system has no pidfd."""

MIN_START_S = 0.01
"""No worker reaches the code of its executor in less time than this, in seconds."""

CLOSED_DESCRIPTORS = "it had lost its connection to the caller, as when a step closes all descriptors"


@define(eq=False)
class Assignment:
    """One message that a worker is to answer.

    Attributes:
        label: Marks the lines that the worker prints meanwhile.
        deliveries: How many workers the message was sent to.
    """

    index: int
    message: bytes
    timeout_s: float | None = None
    label: str = ""
    deliveries: int = 0


@define(eq=False)
class Lane:
    """One worker process, and what its caller knows of it.

    Attributes:
        mark: Identifies the worker's descendants; see `process_tree.MARK`.
        prepared: The PREPARE message that the worker was last sent.
        told: The other messages that it was last sent before a step.
        versions: Those of the modules that it may have imported.
        has_reported_start: Whether the worker has said that it is ready, or why it is not.
        loading: What it is unpickling, by name; empty if nothing.
        is_tearing_down: Whether it exits after `teardown`, as it was told or as it has said.
        assignments: How many messages it was given to answer.
        is_used_up: Whether it was given as many as it may be.
        overdue_at: When its step is overdue and it is killed, on the clock of `now`.
        kill_at: When it is killed if it has not exited, on the same clock; 0 if it is not expected to exit.
        is_unread: Whether it is certain that it has not read its last message to the end.
        is_inherited: Whether this is a forked child of the process that has started the worker.
    """

    process: Any
    link: CallerLink
    outputs: list[Output]
    guard_process: GuardProcess
    mark: str
    started_at: float
    prepared: bytes = b""
    told: tuple[State, bytes] | None = None
    versions: Versions = field(factory=dict)
    state: Literal["starting", "idle", "busy", "leaving", "gone"] = "starting"
    has_reported_start: bool = False
    loading: str = ""
    is_tearing_down: bool = False
    pidfd: int | None = None
    assignment: Assignment | None = None
    assignments: int = 0
    is_used_up: bool = False
    assigned_at: float = 0.0
    overdue_at: float = math.inf
    kill_at: float = 0.0
    is_unread: bool = False
    kill_reason: str = ""
    is_timed_out: bool = False
    is_inherited: bool = False

    def __attrs_post_init__(self) -> None:
        _lanes_of_process.add(self)
        forks.disown_in_child(self)
        _kill_at_exit_of_multiprocessing()

    @classmethod
    def of(cls, started: StartedWorker) -> Lane:
        """Return the lane of a worker that was started."""
        started.is_over = True
        worker = WorkerProcess(started.pid)
        return cls(worker, started.link, started.outputs, started.guard_process, started.mark, started.started_at)

    @property
    def pid(self) -> int:
        pid: int = self.process.pid
        return pid

    def now(self) -> float:
        """Return the time that its timeouts go by: it stands still while this process is stopped."""
        return self.guard_process.pauses.now()

    def is_dead(self) -> bool:
        if self.pidfd is None:
            return self.process.exitcode is not None
        # Also true when somebody else, such as a SIGCHLD handler of the caller's, has collected the exit code.
        return _is_readable(self.pidfd, 0.0)

    def kill(self) -> None:
        """Kill the worker and what is in its process group; see `kill_lanes` for all that it started."""
        if self.is_inherited:
            return
        # The process may be gone, or another thread may just be closing this lane at the exit of the interpreter.
        with contextlib.suppress(OSError, ValueError):
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            elif not self.is_dead():  # not reaped yet, so the process id is still this worker's own
                os.kill(self.pid, signal.SIGKILL)
        self.kill_group()

    def may_have_descendants(self) -> bool:
        """Return whether code of the executor may have run; no interpreter starts faster than `MIN_START_S`."""
        return time.monotonic() - self.started_at > MIN_START_S

    def kill_group(self) -> None:
        """Kill what is left of the worker's process group."""
        if not self.is_inherited:
            kill_group(self.pid)

    def kill_leftovers(self) -> None:
        """Kill what the dead worker has left behind; after a death of its own also what has left its process group."""
        self.kill_group()
        if not self.is_inherited and not self.is_timed_out and self.exit_code() != 0:
            kill_trees([], [self.mark])

    def label(self) -> str:
        """Return what marks the worker's output: the label of the running step, or the worker's process id."""
        step_label = "" if self.assignment is None else self.assignment.label
        return step_label or f"worker {self.pid}"

    def close(self) -> None:
        """Close all descriptors that lead to the worker."""
        if not self.is_inherited:
            self._close_descriptors()
            release_guard(self.guard_process)

    def _close_descriptors(self) -> None:
        self.link.close()
        pidfd, self.pidfd = self.pidfd, None
        if pidfd is not None:
            os.close(pidfd)
        for output in self.outputs:
            output.close()
        self.outputs = []

    def disown(self) -> None:
        """Close this process's copies of the descriptors, in a forked child: the worker belongs to the parent.

        They are only closed. To remove them from the selector would remove them for the parent, which shares it.
        """
        if not self.is_inherited:
            self.is_inherited, self.state = True, "gone"
            self.process.forget()
            with contextlib.suppress(OSError):  # another thread of the parent was just closing it
                self._close_descriptors()

    def await_exit(self, patience_s: float) -> bool:
        """Wait at most `patience_s` seconds for the worker to exit; return whether it has."""
        deadline = time.monotonic() + patience_s
        while not self.is_dead():
            if time.monotonic() >= deadline:
                return False
            if self.pidfd is not None:
                _is_readable(self.pidfd, CHECK_INTERVAL_S)
            else:
                time.sleep(CHECK_INTERVAL_S / 100)  # without a pidfd there is nothing to wait on
        return True

    def exit_code(self) -> int | None:
        """Return the exit code of a dead worker; `None` if somebody else has collected it."""
        code: int | None = self.process.exitcode
        for _ in range(20):
            if code is not None:
                break
            # Another thread may have collected it and not stored it yet, in multiprocessing.
            time.sleep(0.001)
            code = self.process.exitcode
        return code

    def exit_status(self) -> ExitStatus:
        """Return how the dead worker ended."""
        code = self.exit_code()
        exit_code = code if code is not None and code >= 0 else None
        signal_name = _signal_name(-code) if code is not None and code < 0 else None
        return ExitStatus(self._describe_exit(exit_code, signal_name), exit_code, signal_name)

    def _describe_exit(self, exit_code: int | None, signal_name: str | None) -> str:
        if self.kill_reason:
            return f"worker process {self.pid} was killed: {self.kill_reason}"
        if exit_code == LOST_LINK_EXIT_CODE:
            return f"worker process {self.pid} exited: {CLOSED_DESCRIPTORS}"
        if exit_code is not None:
            return f"worker process {self.pid} exited with code {exit_code}"
        if signal_name is None:
            return f"worker process {self.pid} died; its exit code was collected by other code of this program"
        hint = " (the system sends it when memory runs out)" if signal_name == "SIGKILL" else ""
        return f"worker process {self.pid} was killed by {signal_name}{hint}"


@frozen(eq=False)
class ExitStatus:
    """How a worker ended, in words and in numbers."""

    text: str
    exit_code: int | None
    signal: str | None


def kill_lanes(lanes: Iterable[Lane]) -> None:
    """Kill workers and all that their steps started."""
    ours = [lane for lane in lanes if not lane.is_inherited]
    alive = [lane for lane in ours if lane.may_have_descendants() and not lane.is_dead()]
    if alive:
        kill_trees([lane.pid for lane in alive], [lane.mark for lane in alive])
    for lane in ours:
        lane.kill()


def kill_and_reap(lanes: list[Lane]) -> None:
    """Kill workers that belong to no set, wait until they have exited, and close their lanes. Opens no descriptors."""
    kill_lanes(lanes)
    for lane in lanes:
        lane.state = "gone"
        reap_killed(lane)
    active_children()  # makes multiprocessing forget those that have exited


def reap_killed(lane: Lane) -> None:
    """Wait until a worker that was killed has exited, and close its lane."""
    if not lane.await_exit(TEARDOWN_GRACE_S):
        logger.warning("worker process %s was killed but has not exited after %s s", lane.pid, TEARDOWN_GRACE_S)
    lane.close()


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; `None` where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    if not hasattr(select, "poll"):  # eventlet removes what would block its greenlets
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            return bool(selector.select(timeout_s))
    poll = select.poll()  # not select(), which stops at descriptor 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_lanes_of_process: weakref.WeakSet[Lane] = weakref.WeakSet()
is_exiting = threading.Event()


@atexit.register
def _kill_at_exit() -> None:
    # Registered after the hook of multiprocessing, which waits for children to end, and so called before it.
    is_exiting.set()
    _kill_all()


def _kill_all() -> None:
    kill_lanes([lane for lane in _lanes_of_process if lane.state != "gone"])


def _kill_at_exit_of_multiprocessing() -> None:
    """Have workers killed also at the end of a process of `multiprocessing` that was forked.

    Such a process runs no hook of `atexit`, and waits for its children, warm workers among them.
    """
    global _finalizer
    if _finalizer is None or not _finalizer.still_active():
        _finalizer = Finalize(None, _kill_all, exitpriority=100)


_finalizer: Any = None
