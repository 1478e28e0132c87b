"""A worker that outlives its caller leaves, even in the middle of a step."""

from __future__ import annotations

import os
import select
import threading
import time

from .process_tree import kill_trees

ORPHANED_EXIT_CODE = 83
"""How a worker leaves whose caller is gone; nobody is there to see it."""

_PARENT_CHECK_S = 0.5


def watch_parent(mark: str) -> None:
    """Watch the process that started this one, from a thread, and end this one and all that it started with it.

    The closed socket tells only a worker that reads it: not one that is busy, nor one whose socket is held open by
    another child of the caller.

    Raises:
        RuntimeError: There are no more threads to be had.
    """
    threading.Thread(target=_watch, args=(os.getppid(), mark), name="fanout-parent-watch", daemon=True).start()


def _watch(parent: int, mark: str) -> None:
    try:
        pidfd = os.pidfd_open(parent)
    except (AttributeError, OSError):  # no such thing here, or the parent is gone already
        pidfd = None
    poll = None
    if pidfd is not None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
    # The parent's number alone would do; the pidfd is there to be quick. A step may close it, so it is not relied on.
    while os.getppid() == parent:
        if poll is None:
            time.sleep(_PARENT_CHECK_S)
        elif any(event & select.POLLNVAL for _, event in poll.poll(_PARENT_CHECK_S * 1000)):
            poll = None
    kill_trees([os.getpid()], [mark], spare=os.getpid())
    os._exit(ORPHANED_EXIT_CODE)
