"""Who holds a workflow, and whether they still live."""

from __future__ import annotations

import functools
import os
import socket
import sys
from pathlib import Path

from attrs import frozen

LEASE_S = 60.0
"""Seconds for which a holder that cannot be asked counts as alive after its last sign of life."""

RENEW_EVERY_S = 5.0
"""Seconds between two such signs."""


@frozen
class Holder:
    """A process that holds a workflow.

    Attributes:
        pid: Its process id.
        host: The name of its host.
        pid_space: What its process id is valid in: the boot of the host and the namespace of process ids, so that two
            containers of one name are not taken for one host; `""` where the system does not say.
        started: When the system started it, as the system counts; `""` where it does not say. A process id that has
            been given to another process since is told by it.
    """

    pid: int
    host: str
    pid_space: str
    started: str

    def is_alive(self) -> bool | None:
        """Return whether the process lives; `None` if it cannot be asked from here."""
        if (self.host, self.pid_space) != _here() or sys.platform == "win32":
            return None
        return self.pid > 0 and _is_running(self.pid, self.started)

    def is_this_process(self) -> bool:
        """Return whether it is the one that asks."""
        return self == this_process()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Holder:
    """Return the process that asks, as a holder."""
    pid = os.getpid()  # each time anew: after a fork it is another one
    return Holder(pid, *_here(), _stat(pid)[1])


@functools.cache
def _here() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pid_space = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        pid_space = ""
    return socket.gethostname(), pid_space


def _is_running(pid: int, started: str) -> bool:
    state, began = _stat(pid)
    if not state:
        return _answers(pid)
    # A zombie runs nothing any more: it only waits for its parent to hear of its end.
    return state not in "ZXx" and (not started or began == started)


def _stat(pid: int) -> tuple[str, str]:
    # The state and the start time: fields 3 and 22 of proc(5); field 2 may itself hold spaces and brackets.
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return "", ""
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), fields[19].decode()


def _answers(pid: int) -> bool:
    # Only where /proc shows no such process: it may not be there, or hide the processes of other users.
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
