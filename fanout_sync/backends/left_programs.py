"""Programs that are still running after the steps on threads that have started them were given up."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..executors.loops import THREAD_NAME, TO_THREAD_NAME

MOST_NAMED = 5
"""So many programs are named in a warning."""

_LONGEST_COMMAND = 100
_SHARED = (THREAD_NAME, TO_THREAD_NAME)


class LeftPrograms:
    """Finds the programs that a run leaves behind.

    Nobody can safely kill what the code of a thread has started: the thread may be waiting for it, or share it. Linux
    tells which thread has started a process; on other systems nothing is found.
    """

    def __init__(self) -> None:
        self._since_s = _seconds_since_boot()
        self._steps: dict[int, str] = {}
        self._was_interrupted = False

    def note(self, thread: int | None, task_id: str) -> None:
        """Note that a step was given up in a thread, as `threading.Thread.native_id` identifies it."""
        if thread is not None:
            self._steps[thread] = f", of step {task_id!r}"

    def note_interrupt(self, threads: list[threading.Thread]) -> None:
        """Note that the run was interrupted, and that these threads go on nevertheless."""
        self._was_interrupted = True
        self._note_unnamed(threads)

    def _note_unnamed(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            if thread.native_id is not None:
                self._steps.setdefault(thread.native_id, "")

    def warning(self) -> str | None:
        """Return a text that names the programs; `None` if no step was given up, or none has left a program."""
        if not self._steps and not self._was_interrupted:
            return None
        # The programs of async steps are started in threads that all steps share.
        self._note_unnamed([thread for thread in threading.enumerate() if thread.name in _SHARED])
        found = [
            f"{command!r} (process {pid}{step})"
            for thread, step in self._steps.items()
            for pid, command in _children_of(thread, self._since_s)
        ]
        if not found:
            return None
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        return (
            f"steps that timed out or were interrupted have left programs running: {', '.join(found[:MOST_NAMED])}"
            f"{more}. What a thread has started cannot be killed safely; with backend='process' it is killed together "
            "with its step"
        )


def _children_of(thread: int, since_s: float) -> Iterator[tuple[int, str]]:
    """Yield process id and command of the processes that a thread has started since then, and that still run."""
    if not sys.platform.startswith("linux"):
        return
    try:
        children = Path(f"/proc/self/task/{thread}/children").read_text().split()
    except OSError:  # the thread has ended, or the kernel does not tell
        return
    for child in children:
        try:
            stat = Path(f"/proc/{child}/stat").read_bytes()
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        # The name is in parentheses and may hold anything. After it: state, parent, group, … and the start time.
        started_s = int(stat[stat.rindex(b")") + 2 :].split()[19]) / os.sysconf("SC_CLK_TCK")
        command = b" ".join(words).decode("utf-8", "replace").strip()
        if command and started_s >= since_s - 0.1:  # a zombie has no command; and the start time is rounded
            yield int(child), command if len(command) <= _LONGEST_COMMAND else f"{command[:_LONGEST_COMMAND]}…"


def _seconds_since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform.startswith("linux") else 0.0
