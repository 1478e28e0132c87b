"""The first thing that runs in a worker process: it becomes a child of its caller, and then serves it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from multiprocessing import process
from types import ModuleType
from typing import Any

from ..executors.clock import clock
from ..processes import pauses
from .worker import main


def boot(descriptor: int, facts: dict[str, Any]) -> None:
    """Be a worker process until the caller says stop.

    Args:
        descriptor: Where the messages of the caller come from.
        facts: What `launch.facts_for_boot` has sent.
    """
    sys.modules["__main__"] = ModuleType("__main__")
    _become_child(facts["caller"], facts["authkey"])
    sharing: Any = _SharedTrackers(facts["trackers"])
    sys.meta_path.insert(0, sharing)
    pauses.inherited = pauses.Pauses(facts["pauses"])
    clock.stopped_s = pauses.inherited.stopped_s
    main(descriptor, facts["outputs"], facts["mark"])


def _become_child(caller: int, authkey: bytes) -> None:
    """Have `multiprocessing` know that this process has a parent, as in the processes that it starts itself."""
    itself: Any = process.current_process()
    itself.name = "fanout-worker"
    itself.authkey = authkey
    parent = process._ParentProcess("MainProcess", caller, None)  # type: ignore[attr-defined]  # as `_bootstrap` does
    process._parent_process = parent  # type: ignore[attr-defined]


# No subclasses of the abstract classes of `importlib.abc`, which would be slow to import.
class _SharedTrackers:
    """Has the modules of resource trackers use those of the caller, should a step ever import them.

    Args:
        descriptors: Where to write to, by the name of the module.
    """

    def __init__(self, descriptors: dict[str, int]) -> None:
        self._descriptors = descriptors

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._descriptors:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = _TrackerLoader(spec.loader, self._descriptors.pop(name))
            spec.loader = loader
        return spec


class _TrackerLoader:
    def __init__(self, loader: Any, descriptor: int) -> None:
        self._loader = loader
        self._descriptor = descriptor

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module._resource_tracker._fd = self._descriptor
