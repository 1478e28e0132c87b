"""Killing workers with all that their steps started, wherever that has got to.

Imports next to nothing, and nothing of this package: the guard process runs it too (see `guard_process.py`), and that
has to start at once. So `_signal`, where `signal` would make enums, and no `contextlib`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has none
import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MARK = "FANOUT_SYNC_WORKERS"
"""The environment variable by which the descendants of a worker are known: a path of marks, the outermost first.

It finds what left the worker's process group and outlived its own parent, as daemons do."""

_MAX_ROUNDS = 20  # each finds only what was started during the one before
_CALLER_CHECK_S = 0.5


def mark_below(mark: str) -> str:
    """Return the value of `MARK` for a worker that this process starts."""
    return f"{os.environ.get(MARK, '')}/{mark}/"


def kill_group(pid: int) -> None:
    """Kill the process group that `pid` leads, or led a moment ago."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(pid, _signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # nobody is left in it, or it is somebody else's by now
            return


def kill_trees(pids: Iterable[int], marks: Iterable[str], spare: int | None = None) -> None:
    """Kill processes and everything that they started, children of children included.

    Where there is no /proc, only what is still in the process group of one of them is found.

    Args:
        pids: Which; each leads a process group of its own.
        marks: What is in the environment of their descendants.
        spare: A process that is not to be killed, itself: the one that asks.
    """
    roots = set(pids)
    for pid in roots - {spare}:
        _send(pid, _signal.SIGSTOP)  # so that it starts nothing more while its descendants are looked for
    doomed = set(roots)
    encoded = [f"/{mark}/".encode() for mark in marks]
    seen: set[tuple[int, int]] = set()
    for _ in range(_MAX_ROUNDS):
        found = [process for process in _descendants(doomed, encoded) if process not in seen]
        for process in found:
            seen.add(process)
            doomed.add(process[0])
            if process[0] != spare:
                _send(process[0], _signal.SIGKILL)
        if not any(pid not in roots or pid == spare for pid, _ in found):  # the others could not start anything
            break
    for pid in roots - {spare}:
        kill_group(pid)


def _descendants(doomed: set[int], marks: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield number and time of birth of the doomed, and of all who descend from them."""
    processes = list(_all_processes())
    eldest = min((born for pid, _, _, born in processes if pid in doomed), default=0)
    family = set(doomed)
    is_growing = True
    while is_growing:
        kin = {pid for pid, parent, group, _ in processes if parent in family or group in family}
        is_growing = not kin <= family
        family |= kin
    for pid, _, _, born in processes:
        if pid in family or (born >= eldest and _is_marked(pid, marks)):
            yield pid, born


def _all_processes() -> Iterator[tuple[int, int, int, int]]:
    """Yield number, parent, process group and time of birth of all that live."""
    if not sys.platform.startswith("linux"):
        return
    try:
        names = os.listdir("/proc")  # noqa: PTH208 - see above for why there is no pathlib
    except OSError:  # no descriptor is left to read it with: what is in the process groups is killed all the same
        return
    for name in names:
        text = _read(f"/proc/{name}/stat") if name.isdecimal() else b""
        if text:
            # After the name, which is in parentheses and may hold anything: state, parent, group, … and the birth.
            state, parent, group, *rest = text[text.rindex(b")") + 2 :].split()
            if state not in (b"Z", b"X"):
                yield int(name), int(parent), int(group), int(rest[16])


def _is_marked(pid: int, marks: list[bytes]) -> bool:
    environment = _read(f"/proc/{pid}/environ")
    start = environment.find(MARK.encode() + b"=")
    if start < 0:
        return False
    value = environment[start:].partition(b"\0")[0]
    return any(mark in value for mark in marks)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:  # gone by now, or somebody else's
        return b""


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # gone by now, or somebody else's
        return


def stand_guard(caller: int, mark: str) -> None:
    """Wait for the end of the process `caller`, this one's parent, then kill what bears the mark."""
    try:
        pidfd = os.pidfd_open(caller)
    except OSError:  # gone already, or a system that has no such thing
        pidfd = -1
    poll = select.poll()
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    while os.getppid() == caller:
        poll.poll(1000 * (_CALLER_CHECK_S if pidfd < 0 else 3600))
    kill_trees([], [mark])
