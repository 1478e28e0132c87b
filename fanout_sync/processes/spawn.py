"""Starting a process that runs a small program in Python, in a session of its own.

Imports little, as whoever starts the first workers of a run does before the rest of this package is loaded.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import count, islice
from types import MappingProxyType
from typing import Any

from . import interpreter

# Each process has a session of its own, where neither Ctrl-C nor a hangup of the terminal reaches it, and only those
# inherited descriptors that are meant for it: others may come along, such as the sockets of a server written in C.
# Descriptors that Python or a `sitecustomize` has opened by now are not inheritable.
_BEGINNING = """\
import posix
try:
    posix.setsid()
except OSError:
    pass
try:
    opened = posix.listdir("/dev/fd")
except OSError:
    opened = ()
for descriptor in map(int, opened):
    try:
        if descriptor not in {kept} and posix.get_inheritable(descriptor):
            posix.close(descriptor)
    except OSError:
        pass
"""

_LONGEST_VARIABLE = 32_000  # of 131 072 bytes that Linux takes, and a character may be four bytes
_FIRST_AFTER_STREAMS = 3


def spawn(
    program: str,
    passed: Mapping[str, int],
    values: Mapping[str, Any],
    *,
    variables: Mapping[str, str] = MappingProxyType({}),
    command: Callable[[str], list[str]] = interpreter.command,
    blocked: Collection[signal.Signals] = (signal.SIGINT,),
    is_silent: bool = False,
) -> tuple[int, dict[str, int]]:
    """Start a process in a session of its own; whoever starts it has to collect its exit code.

    `os.posix_spawn` rather than `subprocess`, which gevent and eventlet replace by something else.

    Args:
        program: What it runs, with the names of descriptors and values in braces.
        passed: The descriptors that it inherits, by name. In the process they have other numbers.
        values: Those of the other names.
        variables: Environment variables that it has besides those of this process.
        command: Returns the command line for a program.
        blocked: The signals that are blocked until the program unblocks them.
        is_silent: Whether its outputs lead nowhere; otherwise they are those of this process.

    Returns:
        The process id, and the numbers of the descriptors there, by name.

    Raises:
        OSError: The system has no more processes or descriptors.
        OptionError: There is no Python to start.
    """
    numbers = dict(zip(passed, _numbers_beside(passed.values()), strict=False))
    beginning = _BEGINNING.format(kept=(0, 1, 2, *numbers.values()))
    arguments = command(beginning + program.format(**numbers, **values))
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, passed[name], numbers[name]) for name in passed]
    silent = [number for number in (1, 2) if is_silent or number in passed.values() or not is_open(number)]
    actions += [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, *silent)]
    mask = {*signal.pthread_sigmask(signal.SIG_BLOCK, ()), *blocked}
    environment = {**_environment(), **variables}
    try:
        pid = _posix_spawn(arguments, environment, file_actions=actions, setsigmask=mask)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        # A descriptor was to get a number in the process that is too large there.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
    return pid, numbers


def _posix_spawn(arguments: list[str], environment: Mapping[str, str], **options: Any) -> int:
    try:
        # From the very beginning, so that Ctrl-Z does not stop a guard process that is just starting.
        return os.posix_spawn(arguments[0], arguments, environment, setsid=True, **options)
    except NotImplementedError:  # Python was built for a system that could not; then the program does it itself
        return os.posix_spawn(arguments[0], arguments, environment, **options)


def _numbers_beside(taken: Collection[int]) -> Iterable[int]:
    """Return as many numbers for descriptors as are taken, and others than these."""
    return islice((number for number in count(_FIRST_AFTER_STREAMS) if number not in taken), len(taken))


def is_open(descriptor: int) -> bool:
    """Return whether this process has something under this number."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _environment() -> dict[str, str]:
    """Return the environment of this process, but for what would have a worker import from its current directory.

    What is too long for a new process is left out, and so is what asks for a prompt at its end. A worker gets all of it
    with the state of its caller.
    """
    environment = {name: value for name, value in os.environ.items() if len(name) + len(value) < _LONGEST_VARIABLE}
    environment.pop("PYTHONINSPECT", None)
    searched = environment.get("PYTHONPATH")
    if searched and not sys.flags.ignore_environment:
        absolute = [folder for folder in searched.split(os.pathsep) if os.path.isabs(folder)]  # noqa: PTH117
        environment["PYTHONPATH"] = os.pathsep.join(absolute)
    return environment
