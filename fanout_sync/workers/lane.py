"""One worker process as its caller sees it: started, watched, killed, and told of when it is dead."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from attrs import define, field, frozen

from .guard_process import GuardProcess, let_go, take_charge
from .link import CallerLink, open_link
from .output import Output, open_outputs
from .process_tree import MARK, kill_group, kill_trees, mark_below
from .worker import LOST_LINK_EXIT_CODE
from .worker import main as worker_main

LOOK_EVERY_S = 0.1
"""How often to look for dead workers where the system has no pidfd."""

SOONEST_START_S = 0.05
"""No worker gets to its executor sooner."""

CLOSED_DESCRIPTORS = "it had lost its connection to the caller, as when a step closes all descriptors"


@define(eq=False)
class Assignment:
    """One message that a worker is to answer."""

    index: int
    message: bytes
    timeout_s: float | None = None
    label: str = ""
    deliveries: int = 0


@define(eq=False)
class Lane:
    """One worker process, and what is known of it."""

    process: Any
    link: CallerLink
    outputs: list[Output]
    guard_process: GuardProcess
    mark: str
    prepared: bytes
    caller_pid: int = field(factory=os.getpid)
    state: Literal["starting", "idle", "busy", "leaving", "gone"] = "starting"
    start_is_known: bool = False
    leaves_in_order: bool = False
    born: float = field(factory=time.monotonic)
    pidfd: int | None = None
    assignment: Assignment | None = None
    assignments: int = 0
    is_spent: bool = False
    assigned_at: float = 0.0
    overdue_at: float = math.inf
    kill_at: float = 0.0
    is_unread: bool = False
    kill_reason: str = ""
    is_timed_out: bool = False

    def __attrs_post_init__(self) -> None:
        _known.add(self)

    @property
    def pid(self) -> int:
        pid: int = self.process.pid
        return pid

    def is_dead(self) -> bool:
        if self.pidfd is None:
            return self.process.exitcode is not None
        # Also true when somebody else, such as a SIGCHLD handler of the caller's, has collected the exit code.
        return _is_readable(self.pidfd, 0.0)

    def kill(self) -> None:
        """Kill the worker and what is in its process group; see `kill_lanes` for all that it started."""
        if os.getpid() != self.caller_pid:
            return
        # Gone already; or buried by another thread just now, at the exit of the interpreter.
        with contextlib.suppress(OSError, ValueError):
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            elif sys.platform == "win32":
                self.process.terminate()
            elif not self.is_dead():  # and so not reaped: the number is still this worker's own
                os.kill(self.pid, signal.SIGKILL)
        self.kill_followers()

    def may_have_followers(self) -> bool:
        """Return whether code of the executor's may have run: no interpreter is up so soon."""
        return time.monotonic() - self.born > SOONEST_START_S

    def kill_followers(self) -> None:
        """Kill what is left of the worker's process group."""
        if os.getpid() == self.caller_pid:
            kill_group(self.pid)

    def label(self) -> str:
        """Return whose output is coming: the running step's, or the worker's own."""
        named = "" if self.assignment is None else self.assignment.label
        return named or f"worker {self.pid}"

    def close(self) -> None:
        """Close everything that leads to the worker."""
        self.link.close()
        pidfd, self.pidfd = self.pidfd, None
        if pidfd is not None:
            os.close(pidfd)
        for output in self.outputs:
            output.close()
        self.outputs = []
        let_go(self.guard_process)

    def abandon(self) -> None:
        """Let go of a worker that belongs to another process: this one is a fork of its caller."""
        self.close()
        _known.discard(self)

    def await_exit(self, patience_s: float) -> bool:
        """Wait for the worker's end; return whether it came."""
        deadline = time.monotonic() + patience_s
        while not self.is_dead():
            if time.monotonic() >= deadline:
                return False
            if self.pidfd is not None:
                _is_readable(self.pidfd, LOOK_EVERY_S)
            else:
                time.sleep(LOOK_EVERY_S / 100)  # there is nothing to wait on where the system has no pidfd
        return True

    def exit_code(self) -> int | None:
        """Return the exit code of a dead worker; `None` if somebody else has collected it."""
        code: int | None = self.process.exitcode
        for _ in range(20):
            if code is not None:
                break
            # Another thread of multiprocessing's may be just between collecting it and writing it down.
            time.sleep(0.001)
            code = self.process.exitcode
        return code

    def exit_status(self) -> ExitStatus:
        """Tell how the worker ended."""
        code = self.exit_code()
        exit_code = code if code is not None and code >= 0 else None
        signal_name = _signal_name(-code) if code is not None and code < 0 else None
        return ExitStatus(self._describe_exit(exit_code, signal_name), exit_code, signal_name)

    def _describe_exit(self, exit_code: int | None, signal_name: str | None) -> str:
        if self.kill_reason:
            return f"worker process {self.pid} was killed: {self.kill_reason}"
        if exit_code == LOST_LINK_EXIT_CODE:
            return f"worker process {self.pid} left: {CLOSED_DESCRIPTORS}"
        if exit_code is not None:
            return f"worker process {self.pid} exited with code {exit_code}"
        if signal_name is None:
            return f"worker process {self.pid} died; somebody else collected its exit code"
        hint = " (the system does this when memory runs out)" if signal_name == "SIGKILL" else ""
        return f"worker process {self.pid} was killed by {signal_name}{hint}"


@frozen(eq=False)
class ExitStatus:
    """How a worker ended, in words and in numbers."""

    text: str
    exit_code: int | None
    signal: str | None


def kill_lanes(lanes: Iterable[Lane]) -> None:
    """Kill workers and all that their steps started."""
    ours = [lane for lane in lanes if lane.caller_pid == os.getpid()]
    alive = [lane for lane in ours if lane.may_have_followers() and not lane.is_dead()]
    if alive:
        kill_trees([lane.pid for lane in alive], [lane.mark for lane in alive])
    for lane in ours:
        lane.kill()


def start_worker(prepared: bytes, captures_output: bool) -> Lane:
    """Start a worker process.

    Args:
        prepared: The message that the worker will be sent first.
        captures_output: Whether what it prints comes to the caller.

    Raises:
        OSError: There are no more processes or descriptors to be had; loky may raise others. Nothing is left open.
    """
    from .loky_process import WorkerProcess

    if _is_exiting.is_set():
        raise RuntimeError("the interpreter is exiting")
    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as given_away:
        link, theirs = open_link()
        on_failure.callback(link.close)
        _close_ours(given_away, theirs)
        outputs, their_outputs = open_outputs() if captures_output else ([], [])
        for output in outputs:
            on_failure.callback(output.close)
        _close_ours(given_away, *their_outputs)
        guard_process = take_charge()
        on_failure.callback(let_go, guard_process)
        mark = f"{guard_process.mark}/{os.urandom(8).hex()}"
        process = WorkerProcess(
            target=worker_main, args=(theirs, their_outputs, mark), name="fanout-worker", env={MARK: mark_below(mark)}
        )
        with _not_for_interrupts():
            process.start()
        on_failure.pop_all()
    return Lane(process, link, outputs, guard_process, mark, prepared)


def _close_ours(stack: contextlib.ExitStack, *ends: Any) -> None:
    """Have our copies of a worker's ends closed, so that its death is the end of what comes."""
    if sys.platform != "win32":  # where there are no copies
        for end in ends:
            stack.callback(end.close)


@contextlib.contextmanager
def _not_for_interrupts() -> Iterator[None]:
    """Have a process start with SIGINT blocked, until it has a process group of its own and a handler.

    Ctrl-C would reach it in the middle of its start, as it reaches all that the terminal has in the foreground, and
    it would die with a traceback.
    """
    if sys.platform == "win32":
        yield
        return
    from .trackers import ensure_trackers

    ensure_trackers()  # before the signal is blocked: loky and multiprocessing unblock it when they start one
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; `None` where the system has no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()  # not select(), which stops at descriptor 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_known: weakref.WeakSet[Lane] = weakref.WeakSet()
_is_exiting = threading.Event()


@atexit.register
def _kill_at_exit() -> None:
    # Registered after multiprocessing's own hook and so called before it: that one waits for children to end.
    _is_exiting.set()
    kill_lanes([lane for lane in _known if lane.state != "gone"])
