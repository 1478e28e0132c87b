"""Which modules of the caller are not what they were when a worker may have imported them."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from attrs import define

Versions = dict[str, Any]
"""What changes when a module is reloaded: its spec, as a rule. Of what is no module, the object itself."""

CHECK_INTERVAL_S = 0.2
"""So many seconds, at least, are between two checks for sources that were edited."""

_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})

_next_check = 0.0


def own_attribute(module: Any, name: str) -> Any:
    """Return what a module has itself, or `None`; one that is loaded when it is first used stays unloaded."""
    return own_namespace(module).get(name)


def own_namespace(module: Any) -> dict[str, Any]:
    """Return the namespace of a module, of which nothing is loaded for that."""
    try:
        namespace: dict[str, Any] = _namespace(module)
    except TypeError:  # anything may be in `sys.modules`
        return {}
    return namespace


_namespace: Any = vars(ModuleType)["__dict__"].__get__  # not `vars`, which asks the class of a lazy module


def versions_here() -> Versions:
    """Return the versions of all modules of this process."""
    versions = {}
    for name, module in list(sys.modules.items()):
        try:
            versions[name] = _namespace(module).get("__spec__")
        except TypeError:  # what is no module
            versions[name] = module
    return versions | {name: mark for name, mark in _patched.items() if name in versions}


def changed_between(before: Versions, now: Versions) -> list[str]:
    """Return the names of the modules that were reloaded meanwhile, or imported anew."""
    return [name for name, spec in now.items() if before.get(name, spec) is not spec]


# Sources that were edited ---------------------------------------------------------------------------------------------


@define
class _Source:
    """A module of the user's own, as it was when it was last looked at.

    Attributes:
        spec: Its spec.
        modified: When its source was edited, as the file system has it.
        codes: The code objects of its functions and methods.
        is_stale: Whether its source was edited and the module is as it was before.
    """

    spec: Any
    modified: float
    codes: list[CodeType]
    is_stale: bool = False


_sources: dict[str, _Source] = {}
_patched: dict[str, object] = {}
"""Marks of modules whose functions were replaced in place, as `%autoreload` of IPython does; each mark is new."""


def look_for_edited_modules() -> None:
    """Look at the sources of the user's own modules; warn, once, of each that was edited since, but not reloaded."""
    global _next_check
    now = time.monotonic()
    if now < _next_check:
        return
    _next_check = now + CHECK_INTERVAL_S
    for name, module, path in _modules_of_the_user():
        try:
            modified = os.stat(path).st_mtime  # noqa: PTH116 - pathlib is slow to import
        except OSError:  # it has no source
            continue
        _look_at(name, module, path, modified)


def _look_at(name: str, module: ModuleType, path: str, modified: float) -> None:
    spec, source = own_attribute(module, "__spec__"), _sources.get(name)
    if source is None or source.spec is not spec:
        _sources[name] = _Source(spec, modified, list(_codes_of(module)))
        _patched.pop(name, None)
        return
    if modified == source.modified and not source.is_stale:
        return
    codes = list(_codes_of(module))
    if list(map(id, codes)) != list(map(id, source.codes)):
        _sources[name] = _Source(spec, modified, codes)
        _patched[name] = object()
    elif modified != source.modified:
        source.modified, source.is_stale = modified, True
        warnings.warn(
            f"{path} was edited, but this process still has the module {name!r} as it was: worker processes that start "
            "now import the new one. Reload the module, or start this program again.",
            stacklevel=2,
        )


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    """Yield the code of the functions that a module defines, and of the methods of its classes."""
    for value in list(own_namespace(module).values()):
        # By `type`: an object may import something, or raise, when it is asked for its class or an attribute.
        is_class = issubclass(type(value), type) and vars(value).get("__module__") == module.__name__
        for member in list(vars(value).values()) if is_class else [value]:
            function = member.__func__ if type(member) in (staticmethod, classmethod) else member
            if type(function) is FunctionType:
                yield function.__code__


def _modules_of_the_user() -> Iterator[tuple[str, ModuleType, str]]:
    for name, module in list(sys.modules.items()):
        path = own_attribute(module, "__file__")
        is_source = isinstance(path, str) and path.endswith(".py") and not path.startswith(_LIBRARIES)
        if is_source and not name.startswith(_NOT_THE_USERS):
            yield name, module, path


_NOT_THE_USERS = ("__main__", "fanout_sync.")
