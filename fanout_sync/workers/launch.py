"""Starting the process of a worker, so that it imports nothing before it looks where its caller looks.

Imports little: the first workers of a run are launched before the rest of this package is loaded (see `worker_start`).
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from . import interpreter
from .link import LOST_LINK_EXIT_CODE

# Python itself puts the current directory first on `sys.path` when it runs a program given with `-c` or `-m`: a file
# `random.py` there would be imported instead of the library's own. So this program imports only modules that are
# built in, until it has the path of its caller. This package comes from where the caller has it.
_PROGRAM = """\
import _frozen_importlib_external, marshal, posix, sys
def read(size, data=b""):
    while len(data) < size:
        data += posix.read({descriptor}, size - len(data)) or posix._exit({lost_link})
    return data
facts = marshal.loads(read(int.from_bytes(read(8), "big")))
sys.path[:] = facts["path"]
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "fanout_sync":
            return _frozen_importlib_external.PathFinder.find_spec(name, [facts["package_folder"]])
sys.meta_path.insert(0, Finder)
try:
    import fanout_sync
except ModuleNotFoundError:
    sys.path.append(facts["package_folder"])
    import fanout_sync
sys.meta_path.remove(Finder)
from fanout_sync.workers.boot import boot
boot({descriptor}, facts)
"""

_LONGEST_VARIABLE = 32_000  # of 131 072 bytes that Linux takes, and a character may be four bytes

_PACKAGE_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120


def launch(descriptor: int, passed: Collection[int], variables: Mapping[str, str]) -> int:
    """Start the process of a worker; return its process id.

    Args:
        descriptor: What the worker reads `facts_for_boot` from, and then its messages.
        passed: All descriptors that the worker inherits.
        variables: The environment variables that only workers have.

    Raises:
        OSError: The system has no more processes or descriptors.
        OptionError: There is no Python to start.
    """
    program = _PROGRAM.format(descriptor=descriptor, lost_link=LOST_LINK_EXIT_CODE)
    return spawn(interpreter.command(program), passed, variables)


def spawn(
    arguments: list[str],
    passed: Collection[int] = (),
    variables: Mapping[str, str] = MappingProxyType({}),
    *,
    is_silent: bool = False,
) -> int:
    """Start a process in a session of its own, where neither Ctrl-C nor a hangup of the terminal reaches it.

    Its standard input is empty. Whoever starts it has to collect its exit code.

    Args:
        arguments: The command line.
        passed: The descriptors that it inherits.
        variables: Environment variables that it has besides those of this process.
        is_silent: Whether its outputs lead nowhere; otherwise they are those of this process.

    Returns:
        The process id.

    Raises:
        OSError: The system has no more processes or descriptors.
    """
    outputs = subprocess.DEVNULL if is_silent else None
    started = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=outputs,
        stderr=outputs,
        pass_fds=tuple(passed),
        env={**_environment(), **variables},
        start_new_session=True,
    )
    # Others wait for the process, by its id. This object must not do so, too, when it is dropped.
    started.returncode = 0
    return started.pid


def facts_for_boot(**facts: Any) -> bytes:
    """Return what a worker needs to know before it can import anything, as bytes that follow their length."""
    entries: list[Any] = sys.path  # other objects than texts are ignored, as Python does
    path = [str.__str__(entry) for entry in entries if isinstance(entry, str)]
    arguments = [str.__str__(argument) for argument in getattr(sys, "argv", None) or ()]
    data = marshal.dumps({"path": path, "argv": arguments, "package_folder": _PACKAGE_FOLDER, **facts})
    return len(data).to_bytes(8, "big") + data


def absolute_path() -> list[str]:
    """Return where this process looks for modules, without the folders that depend on the current one."""
    entries: list[Any] = sys.path  # other objects than texts are ignored, as Python does
    path = [entry for entry in entries if isinstance(entry, str) and os.path.isabs(entry)]  # noqa: PTH117 - as above
    return [*path, _PACKAGE_FOLDER]


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
