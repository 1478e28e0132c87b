"""Whether a worker finds a module where its caller looks for modules, and finds the same one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from ..module_versions import own_attribute, own_namespace
from ..surroundings import working_directory

_found: dict[str, tuple[Any, bool]] = {}
"""Whether each module was found, and under which circumstances; a search takes time, and most runs are alike."""

_ALWAYS_THERE = ("fanout_sync", "cloudpickle")
"""What each worker has, wherever the caller has found it."""

_LIBRARY = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120 - pathlib is slow to import


class ModuleSearch:
    """Remembers, for the time of one run, which modules a worker finds."""

    def __init__(self) -> None:
        self._is_findable: dict[str, bool] = {}
        self._place = (list(sys.path), list(sys.meta_path), working_directory())

    def is_findable(self, name: str) -> bool:
        """Return whether `import` finds the module in a worker as well.

        It does not if the module was loaded from a path, was made by hand, is hidden by another one of its name, or was
        found in a current directory that has changed. It does not find `__main__`, which is never imported.
        """
        if name not in self._is_findable:
            if _is_initializing(name):
                self._is_findable[name] = False
                return False
            self._is_findable[name] = True  # to search for it may ask for it: a finder is in a module, too
            circumstances = (own_attribute(sys.modules.get(name), "__spec__"), self._place)
            known = _found.get(name)
            if known is None or known[0] != circumstances:
                known = _found[name] = circumstances, self._search(name)
            self._is_findable[name] = known[1]
        return self._is_findable[name]

    def place_of(self, value: Any) -> tuple[str, str] | None:
        """Return a module that a worker finds, and the name that `value` has in it; `None` if there is none. Slow."""
        for name, module in list(sys.modules.items()):
            for each, found in list(own_namespace(module).items()):
                if found is value and self.is_findable(name):
                    return name, each
        return None

    def _search(self, name: str) -> bool:
        module = sys.modules.get(name)
        if name == "__main__" or module is sys.modules["__main__"]:
            return False
        top = name.partition(".")[0]
        if module is None or top in _ALWAYS_THERE or _is_of_library(top, module):
            return True  # pickle says what is wrong with a module that is not there
        parent, _, _ = name.rpartition(".")
        if parent and parent in sys.modules and not self.is_findable(parent):
            return False
        path = own_attribute(sys.modules.get(parent), "__path__") if parent else None
        return _is_same(module, _find(name, path, self._finders(name)))

    def _finders(self, name: str) -> Iterator[Any]:
        """Yield what finds modules in a worker, too: not what this program has made itself."""
        for finder in list(sys.meta_path):
            kind: Any = finder if isinstance(finder, type) else type(finder)
            if kind.__module__ != name and self.is_findable(kind.__module__):
                yield finder


def is_extension(module: ModuleType) -> bool:
    """Return whether a module is compiled, so that its code cannot be sent."""
    return isinstance(own_attribute(module, "__loader__"), ExtensionFileLoader)


def _is_initializing(name: str) -> bool:
    """Return whether a module's code is just running, and has begun this run: who imports it would begin it, too."""
    return getattr(own_attribute(sys.modules.get(name), "__spec__"), "_initializing", False) is True


def _is_of_library(top: str, module: ModuleType) -> bool:
    """Return whether a module is of the standard library, and not one of the user's that has such a name."""
    path = own_attribute(module, "__file__")
    return top in sys.stdlib_module_names and (path is None or path.startswith(_LIBRARY))


def _find(name: str, path: Sequence[str] | None, finders: Iterator[Any]) -> ModuleSpec | None:
    for finder in finders:
        try:
            if path is None and finder is PathFinder:  # which remembers where relative entries led to once
                path = [os.path.abspath(entry) for entry in map(str, sys.path)]  # noqa: PTH100 - as below
            spec: ModuleSpec | None = finder.find_spec(name, path)
        except Exception:  # a finder of another library; a worker would have the same error
            continue
        if spec is not None:
            return spec
    return None


def _is_same(module: ModuleType, found: ModuleSpec | None) -> bool:
    if found is None:
        return False
    loaded_from = own_attribute(module, "__file__")
    if found.origin is None or loaded_from is None or not found.has_location:  # a namespace package, or made in memory
        return True
    return found.origin == loaded_from or _real(found.origin) == _real(loaded_from)


def _real(path: str) -> str:
    # The source of a module may be beside its compiled form, and either may have been loaded.
    return os.path.splitext(os.path.realpath(path))[0]  # noqa: PTH122 - pathlib is slow to import
