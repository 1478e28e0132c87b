"""Starting the process of a worker, so that it imports nothing before it looks where its caller looks.

Imports little: the first workers of a run are launched before the rest of this package is loaded (see `worker_start`).
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Mapping
from typing import Any

from ..processes.spawn import spawn
from .link import LOST_LINK_EXIT_CODE

# Python itself puts the current directory first on `sys.path` when it runs a program given with `-c` or `-m`: a file
# `random.py` there would be imported instead of the library's own. So this program imports only modules that are
# built in, until it has the path of its caller. This package comes from where the caller has it.
_PROGRAM = """\
import _frozen_importlib_external, marshal, posix, sys
def read(size, data=b""):
    while len(data) < size:
        data += posix.read({link}, size - len(data)) or posix._exit({lost_link})
    return data
posix.set_blocking({link}, True)
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
boot({link}, facts)
"""

_PACKAGE_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120


def launch(passed: Mapping[str, int], variables: Mapping[str, str]) -> tuple[int, dict[str, int]]:
    """Start the process of a worker.

    Args:
        passed: The descriptors that the worker inherits, by name; it reads `facts_for_boot` from `link`, and then its
            messages.
        variables: The environment variables that only workers have.

    Returns:
        As `spawn`.

    Raises:
        OSError: The system has no more processes or descriptors.
        OptionError: There is no Python to start.
    """
    return spawn(_PROGRAM, passed, {"lost_link": LOST_LINK_EXIT_CODE}, variables=variables)


def facts_for_boot(**facts: Any) -> bytes:
    """Return what a worker needs to know before it can import anything, as bytes that follow their length."""
    entries: list[Any] = sys.path  # other objects than texts are ignored, as Python does
    path = [str.__str__(entry) for entry in entries if isinstance(entry, str)]
    data = marshal.dumps({"path": path, "package_folder": _PACKAGE_FOLDER, **facts})
    return len(data).to_bytes(8, "big") + data


def absolute_path() -> list[str]:
    """Return where this process looks for modules, without the folders that depend on the current one."""
    entries: list[Any] = sys.path  # other objects than texts are ignored, as Python does
    path = [entry for entry in entries if isinstance(entry, str) and os.path.isabs(entry)]  # noqa: PTH117 - as above
    return [*path, _PACKAGE_FOLDER]
