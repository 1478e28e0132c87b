"""Which modules of the caller are not what they were when a worker may have imported them."""

from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

Versions = dict[str, Any]
"""The spec of each module: `importlib.reload` gives a module a new one."""

_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})

_seen: dict[str, tuple[Any, float]] = {}


def versions_here() -> Versions:
    """Return the versions of all modules of this process."""
    return {name: getattr(module, "__spec__", None) for name, module in list(sys.modules.items())}


def changed_since(versions: Versions) -> list[str]:
    """Return the names of the modules that were reloaded since then, or imported anew."""
    return [
        name
        for name, module in list(sys.modules.items())
        if name in versions and getattr(module, "__spec__", None) is not versions[name]
    ]


def warn_of_edited_modules() -> None:
    """Warn, once, of each module of the user's own whose source was edited since the first run, but not reloaded."""
    for name, module, path in _modules_of_the_user():
        try:
            modified = os.stat(path).st_mtime  # noqa: PTH116 - pathlib is slow to import
        except OSError:  # it has no source
            continue
        spec = getattr(module, "__spec__", None)
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
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path.endswith(".py") and name != "__main__" and not path.startswith(_LIBRARIES):
            yield name, module, path
