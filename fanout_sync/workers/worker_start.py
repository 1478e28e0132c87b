"""Starting a worker process."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from itertools import filterfalse

from attrs import define

from .. import forks
from ..interrupts import was_raised_by_handler
from ..processes.guard_process import GuardProcess, release_guard, use_guard
from ..processes.process_tree import MARK, mark_below
from ..processes.spawn import is_open
from .launch import facts_for_boot, launch
from .link import CallerLink, LinkLost, open_link
from .output import Output, flush_streams, open_outputs
from .trackers import MODULES, tracker_descriptors


@define(eq=False)
class StartedWorker:
    """A process that was launched to be a worker, before the rest of this package is loaded to serve it.

    Attributes:
        started_at: When, on the clock of `time.monotonic()`, or just before that.
        is_over: Whether it was discarded, or is in a lane by now.
    """

    pid: int
    link: CallerLink
    outputs: list[Output]
    guard_process: GuardProcess
    mark: str
    started_at: float
    is_over: bool = False

    def __attrs_post_init__(self) -> None:
        forks.disown_in_child(self)

    def disown(self) -> None:
        """Close this process's copies of the descriptors, in a forked child: the worker belongs to the parent."""
        if not self.is_over:
            self.is_over = True
            with contextlib.suppress(OSError):  # another thread of the parent was just closing them
                self._close()

    def discard(self) -> None:
        """Kill the process, which nobody needs after all, unless that is done already."""
        if self.is_over:
            return
        self.is_over = True
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # other code has collected its exit code
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._close()
        release_guard(self.guard_process)

    def _close(self) -> None:
        self.link.close()
        for output in self.outputs:
            output.close()


def start_worker(captures_output: bool) -> StartedWorker:
    """Start a worker process.

    Args:
        captures_output: Whether what it prints comes to the caller.

    Raises:
        OSError: The system has no more processes or descriptors. Nothing is left open.
        OptionError: There is no Python to start.
    """
    flush_streams()
    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as after_start:
        streams = on_failure.enter_context(_standard_descriptors_taken())
        link, theirs = open_link()
        on_failure.callback(link.close)
        # The copies of the worker's ends are closed here, so that they end when it dies.
        after_start.callback(theirs.close)
        outputs, their_outputs = open_outputs() if captures_output else ([], [])
        for output in outputs:
            on_failure.callback(output.close)
        for end in their_outputs:
            after_start.callback(os.close, end)
        guard_process = use_guard()
        on_failure.callback(release_guard, guard_process)
        mark = f"{guard_process.mark}/{os.urandom(8).hex()}"
        pauses = guard_process.pauses.descriptor
        streams.close()
        passed = {
            "link": theirs.fileno(),
            **tracker_descriptors(),
            **dict(zip(("stdout", "stderr"), their_outputs, strict=False)),
        }
        passed |= {"pauses": pauses} if pauses >= 0 else {}
        started_at = time.monotonic()
        pid, numbers = launch(passed, {MARK: mark_below(mark)})
        worker = StartedWorker(pid, link, outputs, guard_process, mark, started_at)
        on_failure.pop_all()
        on_failure.callback(worker.discard)
        after_start.close()
        _send_facts(worker, numbers)
        on_failure.pop_all()
    return worker


def _send_facts(worker: StartedWorker, numbers: dict[str, int]) -> None:
    from multiprocessing import process  # imported lazily: slow, and the worker is starting meanwhile

    facts = facts_for_boot(
        caller=os.getpid(),
        authkey=bytes(process.current_process().authkey),
        trackers={module: numbers[module] for module in MODULES if module in numbers},
        outputs=[numbers[name] for name in ("stdout", "stderr") if name in numbers],
        pauses=numbers.get("pauses", -1),
        mark=worker.mark,
    )
    with contextlib.suppress(LinkLost):  # it is dead already, which its lane will notice
        worker.link.send_bytes(facts)


def _standard_descriptors_taken() -> contextlib.ExitStack:
    """Return what keeps 0, 1 and 2 taken: in the worker they are the standard streams, though this program has none."""
    with contextlib.ExitStack() as on_failure:
        for _ in filterfalse(is_open, range(3)):
            on_failure.callback(os.close, os.open(os.devnull, os.O_RDWR))  # gets the lowest number that is free
        return on_failure.pop_all()


def start_early(count: int, captures_output: bool) -> list[StartedWorker]:
    """Start the first workers of a run, which is about to load what serves them; fewer if the system has no more.

    Raises:
        OptionError: There is no Python to start.
    """
    started: list[StartedWorker] = []
    try:
        # No more than can start at the same time: the others would delay the first one.
        for _ in range(min(count, os.cpu_count() or 1)):
            started.append(start_worker(captures_output))
    except BaseException as error:
        if isinstance(error, OSError) and not was_raised_by_handler(error):
            return started  # whoever needs more workers tries again, and tells why there are none
        for worker in started:
            worker.discard()
        raise
    return started
