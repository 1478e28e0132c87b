"""Killing workers and all processes that their steps started, also those that have left the process group.

Imports very little, and nothing of this package: the guard process runs this module too (see `guard_process.py`) and
has to start fast. So it uses `_signal`, because `signal` makes enums, and no `contextlib`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has none
import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .pauses import Pauses

MARK = "FANOUT_SYNC_WORKERS"
"""The environment variable that identifies the descendants of a worker: a path of marks, the outermost first.

It finds processes that have left the worker's process group and outlived their own parent, as daemons do."""

_MAX_ROUNDS = 20  # each round finds only the processes that were started during the one before
_CALLER_CHECK_S = 0.2


def mark_below(mark: str) -> str:
    """Return the value of `MARK` for a worker that this process starts."""
    return f"{os.environ.get(MARK, '')}/{mark}/"


def outermost_mark(mark: str) -> str:
    """Return the mark of the process, outside all workers, to which a process belongs that has this mark."""
    return os.environ.get(MARK, "").strip("/").partition("/")[0] or mark


def kill_group(pid: int) -> None:
    """Kill the process group that `pid` leads; `pid` itself may have ended."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(pid, _signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it is empty, or another user's group has its number now
            return


def has_group(pid: int) -> bool:
    """Return whether anything is left of the process group that `pid` has led, which has ended and was waited for.

    It costs one system call; only a search in /proc would find what has left the group.
    """
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's processes
        return True
    return True


def kill_trees(pids: Iterable[int], marks: Iterable[str], spare: int | None = None) -> None:
    """Kill processes and everything that they started, children of children included.

    Without /proc only the processes that are still in the process groups of `pids` are found.

    Args:
        pids: The processes; each leads a session and a process group of its own.
        marks: Their marks, which are in the environment of their descendants.
        spare: One of `pids` that is not killed itself: the process that calls this.
    """
    roots = set(pids)
    for pid in roots - {spare}:
        _send(pid, _signal.SIGSTOP)  # so that it starts no more processes during the search
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
        if not any(pid not in roots or pid == spare for pid, _ in found):  # stopped processes could not start any
            break
    for pid in roots - {spare}:
        kill_group(pid)


def _descendants(doomed: set[int], marks: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield process id and start time of the processes in `doomed`, of those with a mark, and of all descendants."""
    processes = list(_all_processes())
    first_start = min((started for pid, *_, started in processes if pid in doomed), default=0)
    family = doomed | {pid for pid, *_, started in processes if started >= first_start and _is_marked(pid, marks)}
    is_growing = bool(family)
    while is_growing:
        found = {pid for pid, parent, group, session, _ in processes if not family.isdisjoint((parent, group, session))}
        is_growing = not found <= family
        family |= found
    for pid, *_, started in processes:
        if pid in family:
            yield pid, started


def _all_processes() -> Iterator[tuple[int, int, int, int, int]]:
    """Yield process id, parent, process group, session and start time of all processes that are no zombies."""
    if not sys.platform.startswith("linux"):
        return
    try:
        names = os.listdir("/proc")  # noqa: PTH208 - pathlib would be slow to import
    except OSError:  # no descriptor is left to read it with; the process groups are killed all the same
        return
    for name in names:
        text = _read(f"/proc/{name}/stat") if name.isdecimal() else b""
        if text:
            # The name is in parentheses and may hold anything. After it: state, parent, group, session, … start time.
            state, parent, group, session, *rest = text[text.rindex(b")") + 2 :].split()
            if state not in (b"Z", b"X"):
                yield int(name), int(parent), int(group), int(session), int(rest[15])


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
    except OSError:  # it is gone, or another user's
        return b""


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # it is gone, or another user's
        return


def run_guard(caller: int, mark: str, pauses: Pauses) -> None:
    """Wait until the process `caller`, the parent of this one, has ended; then kill all processes with the mark.

    While the caller is stopped (Ctrl-Z, SIGSTOP), they are stopped, too: they have no terminal, so Ctrl-Z does not
    reach them.
    """
    try:
        pidfd = os.pidfd_open(caller)
    except OSError:  # the caller is gone already, or the system has no pidfd
        pidfd = -1
    poll = select.poll()
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    stopped: dict[int, int] | None = None
    while os.getppid() == caller:
        poll.poll(1000 * _CALLER_CHECK_S)
        is_stopped = _is_stopped(caller)
        if is_stopped and stopped is None:
            pauses.begin()
            stopped = _stop_all(mark)
        elif not is_stopped and stopped is not None:
            pauses.end()  # first: a worker that goes on knows that no time has passed
            _continue(stopped)
            stopped = None
    kill_trees([], [mark])


def _is_stopped(pid: int) -> bool:
    text = _read(f"/proc/{pid}/stat")
    return text[text.rfind(b")") + 2 :].startswith(b"T")


def _stop_all(mark: str) -> dict[int, int]:
    """Stop all processes with the mark, also those that they start meanwhile; return their ids and start times."""
    encoded = [f"/{mark}/".encode()]
    stopped: dict[int, int] = {}
    for _ in range(_MAX_ROUNDS):
        found = {pid: started for pid, started in _descendants(set(), encoded) if stopped.get(pid) != started}
        for pid in found:
            _send(pid, _signal.SIGSTOP)
        stopped.update(found)
        if not found:
            break
    return stopped


def _continue(stopped: dict[int, int]) -> None:
    started = {pid: start for pid, *_, start in _all_processes()}
    for pid, start in stopped.items():
        if started.get(pid) == start:  # and no other process that has its number now
            _send(pid, _signal.SIGCONT)
