"""A worker exits when its caller is gone, even in the middle of a step."""

from __future__ import annotations

import os
import select
import threading
import time

from ..processes.process_tree import kill_trees

ORPHANED_EXIT_CODE = 83
"""The exit code of a worker whose caller is gone."""

_PARENT_CHECK_S = 0.5


def watch_parent(mark: str) -> None:
    """Start a thread that watches the caller. When the caller ends, it kills this worker and all that it started.

    The closed socket is not enough: a worker that is busy does not read it, and another child of the caller may keep it
    open.

    Raises:
        RuntimeError: The system has no more threads.
    """
    threading.Thread(target=_watch, args=(os.getppid(), mark), name="fanout-parent-watch", daemon=True).start()


def _watch(parent: int, mark: str) -> None:
    try:
        pidfd = os.pidfd_open(parent)
    except (AttributeError, OSError):  # the system has no pidfd, or the parent is gone already
        pidfd = None
    poll = None
    if pidfd is not None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
    # The parent's process id alone would be enough; the pidfd is faster. A step may close it, so it is not relied on.
    while os.getppid() == parent:
        if poll is None:
            time.sleep(_PARENT_CHECK_S)
        elif any(event & select.POLLNVAL for _, event in poll.poll(_PARENT_CHECK_S * 1000)):
            poll = None
    kill_trees([os.getpid()], [mark], spare=os.getpid())
    os._exit(ORPHANED_EXIT_CODE)
