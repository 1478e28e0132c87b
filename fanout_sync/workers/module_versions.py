"""Which modules of the caller are not what they were when a worker may have imported them."""

from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from .findable import namespace_of

Versions = dict[str, Any]
"""The spec of each module: `importlib.reload` gives a module a new one. Of what is no module, the object itself."""

_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})

_seen: dict[str, tuple[Any, float]] = {}


def versions_here() -> Versions:
    """Return the versions of all modules of this process."""
    return {name: _version(module) for name, module in list(sys.modules.items())}


def changed_since(versions: Versions) -> list[str]:
    """Return the names of the modules that were reloaded since then, or imported anew."""
    return [
        name
        for name, module in list(sys.modules.items())
        if name in versions and _version(module) is not versions[name]
    ]


def warn_of_edited_modules() -> None:
    """Warn, once, of each module of the user's own whose source was edited since the first run, but not reloaded."""
    for name, module, path in _modules_of_the_user():
        try:
            modified = os.stat(path).st_mtime  # noqa: PTH116 - pathlib is slow to import
        except OSError:  # it has no source
            continue
        spec = _version(module)
        before = _seen.get(name)
        _seen[name] = spec, modified
        if before is not None and before[0] is spec and before[1] != modified:
            warnings.warn(
                f"{path} was edited, but this process still has the module {name!r} as it was: worker processes that "
                "start now import the new one. Reload the module, or start this program again.",
                stacklevel=2,
            )


def _modules_of_the_user() -> Iterator[tuple[str, ModuleType, str]]:
    for name, module in list(sys.modules.items()):
        path = namespace_of(module).get("__file__")
        if isinstance(path, str) and path.endswith(".py") and name != "__main__" and not path.startswith(_LIBRARIES):
            yield name, module, path


def _version(module: Any) -> Any:
    return namespace_of(module).get("__spec__") if issubclass(type(module), ModuleType) else module
