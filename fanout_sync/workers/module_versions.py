"""Which modules of the caller are not what they were when a worker may have imported them."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

Versions = dict[str, Any]
"""The spec of each module: `importlib.reload` gives a module a new one. Of what is no module, the object itself."""

CHECK_INTERVAL_S = 1.0
"""So many seconds, at least, are between two checks for sources that were edited."""

_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})

_seen: dict[str, tuple[Any, float]] = {}
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
    return versions


def changed_between(before: Versions, now: Versions) -> list[str]:
    """Return the names of the modules that were reloaded meanwhile, or imported anew."""
    return [name for name, spec in now.items() if before.get(name, spec) is not spec]


def warn_of_edited_modules() -> None:
    """Warn, once, of each module of the user's own whose source was edited since the first run, but not reloaded."""
    global _next_check
    now = time.monotonic()
    if now < _next_check:
        return
    _next_check = now + CHECK_INTERVAL_S
    for name, spec, path in _modules_of_the_user():
        try:
            modified = os.stat(path).st_mtime  # noqa: PTH116 - pathlib is slow to import
        except OSError:  # it has no source
            continue
        before = _seen.get(name)
        _seen[name] = spec, modified
        if before is not None and before[0] is spec and before[1] != modified:
            warnings.warn(
                f"{path} was edited, but this process still has the module {name!r} as it was: worker processes that "
                "start now import the new one. Reload the module, or start this program again.",
                stacklevel=2,
            )


def _modules_of_the_user() -> Iterator[tuple[str, Any, str]]:
    for name, module in list(sys.modules.items()):
        path = own_attribute(module, "__file__")
        if isinstance(path, str) and path.endswith(".py") and name != "__main__" and not path.startswith(_LIBRARIES):
            yield name, own_attribute(module, "__spec__"), path
