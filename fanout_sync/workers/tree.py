"""Killing a worker with all that its steps started, wherever that has got to."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import frozen

MARK = "FANOUT_SYNC_WORKERS"
"""The environment variable by which the descendants of a worker are known: a path of marks, the outermost first.

It finds what left the worker's process group and outlived its own parent, as daemons do."""

_MAX_ROUNDS = 20  # each finds only what was started during the one before

_PROC = Path("/proc")


@frozen
class Root:
    """A process that is to go with all its descendants.

    Attributes:
        pid: Its number; it leads a process group of its own.
        mark: What its environment says, and that of its descendants.
    """

    pid: int
    mark: str


@frozen
class _Process:
    pid: int
    parent: int
    group: int
    born: str


def mark_below(mark: str) -> str:
    """Return the value of `MARK` for a worker of this process."""
    return f"{os.environ.get(MARK, '')}/{mark}/"


def kill_group(pid: int) -> None:
    """Kill the process group that `pid` leads, or led a moment ago."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def kill_trees(roots: Iterable[Root], spare: int | None = None) -> None:
    """Kill processes and everything that they started, children of children included.

    Where there is no /proc, only what is still in the process group of a root is found.

    Args:
        roots: Which.
        spare: A process that is not to be killed, itself: the one that asks.
    """
    doomed = {root.pid for root in roots}
    marks = [f"/{root.mark}/".encode() for root in roots]
    if spare is None:
        for pid in doomed:
            # So that it starts nothing more while its descendants are looked for.
            _signal(pid, signal.SIGSTOP)
    seen: set[tuple[int, str]] = set()
    for _ in range(_MAX_ROUNDS):
        found = [process for process in _descendants(doomed, marks) if (process.pid, process.born) not in seen]
        for process in found:
            seen.add((process.pid, process.born))
            doomed.add(process.pid)
            if process.pid != spare:
                _signal(process.pid, signal.SIGKILL)
        if not found:
            break
    if spare is None:
        for root in roots:
            kill_group(root.pid)


def _descendants(doomed: set[int], marks: list[bytes]) -> Iterator[_Process]:
    processes = list(_all_processes())
    family = set(doomed)
    grown = True
    while grown:
        kin = {process.pid for process in processes if process.parent in family or process.group in family}
        grown = not kin <= family
        family |= kin
    for process in processes:
        if process.pid in family or _is_marked(process.pid, marks):
            yield process


def _all_processes() -> Iterator[_Process]:
    if not sys.platform.startswith("linux"):
        return
    with os.scandir(_PROC) as entries:
        names = [entry.name for entry in entries if entry.name.isdecimal()]
    for name in names:
        try:
            text = (_PROC / name / "stat").read_bytes()
        except OSError:  # gone by now
            continue
        # After the name, which is in parentheses and may hold anything: state, parent, group, … and the birth.
        state, parent, group, *rest = text[text.rindex(b")") + 2 :].split()
        if state not in (b"Z", b"X"):
            yield _Process(int(name), int(parent), int(group), rest[16].decode())


def _is_marked(pid: int, marks: list[bytes]) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:  # gone by now, or somebody else's
        return False
    start = environment.find(MARK.encode() + b"=")
    if start < 0:
        return False
    value = environment[start : environment.find(b"\0", start) + 1 or None]
    return any(mark in value for mark in marks)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
