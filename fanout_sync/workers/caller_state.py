"""What a worker takes over from its caller at the beginning of each run, so that a step sees what it would on a thread.

A worker inherits most of it when it starts. It may be kept for later runs, and the caller may change it meanwhile.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import socket
import sys
import time
import warnings
from typing import Any

from ..processes.process_tree import MARK
from .log_records import levels_here
from .surroundings import working_directory

State = dict[str, Any]
"""The state by name, as builtins."""


def state_here() -> State:
    """Return the state of this process."""
    path: list[Any] = sys.path  # other objects than texts are ignored, as Python does
    return {
        "environment": {name: value for name, value in os.environ.items() if name != MARK},
        "directory": working_directory(),
        "path": [str.__str__(entry) for entry in path if isinstance(entry, str)],
        "argv": [str.__str__(argument) for argument in getattr(sys, "argv", None) or ()],
        "filters": _filters(),
        "levels": levels_here(),
        "faulthandler": _is_faulthandler_on(),
        **{name: get() for name, (get, _) in _SETTINGS.items()},
    }


def take_over(state: State) -> None:
    """Change the state of this process to that of its caller, as far as it differs."""
    _take_environment(state["environment"])
    _take_directory(state["directory"])
    if sys.path != state["path"]:
        sys.path[:] = state["path"]
    importlib.invalidate_caches()  # the caller may have made new modules
    sys.argv[:] = state["argv"]
    if _is_faulthandler_on() != state["faulthandler"]:
        _switch_faulthandler(on=state["faulthandler"])
    for name, (get, put) in _SETTINGS.items():
        if get() != state[name]:
            put(state[name])


def _take_directory(directory: str | None) -> None:
    if directory is not None and directory == working_directory():
        return
    try:
        os.chdir(f"/proc/{os.getppid()}/cwd" if directory is None else directory)
    except OSError:  # it was deleted just now, or the system has no /proc: no place is better than that of now
        return


def _take_environment(environment: dict[str, str]) -> None:
    before = dict(os.environ)
    for name in before.keys() - environment.keys() - {MARK}:
        del os.environ[name]
    for name, value in environment.items():
        if before.get(name) != value:
            os.environ[name] = value
    if before.get("TZ") != environment.get("TZ") and hasattr(time, "tzset"):
        time.tzset()


# Settings of the interpreter ------------------------------------------------------------------------------------------


def _locale() -> str:
    import _locale  # the C module: the other one is slow to import

    return str(_locale.setlocale(_locale.LC_ALL, None))


def _set_locale(name: str) -> None:
    import _locale

    _locale.setlocale(_locale.LC_ALL, name)


def _set_garbage_collection(is_on: bool) -> None:
    if is_on:
        gc.enable()
    else:
        gc.disable()


def _set_attribute(name: str) -> Any:
    return lambda: getattr(sys, name), lambda value: setattr(sys, name, value)


_SETTINGS: dict[str, Any] = {
    "recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "switch interval": (sys.getswitchinterval, sys.setswitchinterval),
    "socket timeout": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "garbage collection": (gc.isenabled, _set_garbage_collection),
    "collection thresholds": (gc.get_threshold, lambda thresholds: gc.set_threshold(*thresholds)),
    "locale": (_locale, _set_locale),
    "dont_write_bytecode": _set_attribute("dont_write_bytecode"),
    "pycache_prefix": _set_attribute("pycache_prefix"),
}
if hasattr(sys, "get_int_max_str_digits"):  # since 3.10.7
    _SETTINGS["digits"] = (sys.get_int_max_str_digits, sys.set_int_max_str_digits)


def _is_faulthandler_on() -> bool:
    faulthandler = sys.modules.get("faulthandler")
    return faulthandler is not None and faulthandler.is_enabled()


def _switch_faulthandler(*, on: bool) -> None:
    import faulthandler

    if on:
        faulthandler.enable(file=2)
    else:
        faulthandler.disable()


# Warning filters ------------------------------------------------------------------------------------------------------

_Filter = tuple[str, str | None, tuple[str, str], str | None, int]


def take_over_filters(state: State) -> None:
    """Use the warning filters of the caller, but for those about warnings of modules that are not loaded here."""
    if state["filters"] == _filters():
        return
    filters = [restored for each in state["filters"] if (restored := _restored(each)) is not None]
    warnings.resetwarnings()  # so that Python forgets what it has remembered of the old ones
    warnings.filters[:] = filters  # type: ignore[index]  # it is a list


def _filters() -> list[_Filter]:
    return [
        (action, _pattern(message), (category.__module__, category.__qualname__), _pattern(module), line)
        for action, message, category, module, line in list(warnings.filters)
        if isinstance(category, type)
    ]


def _pattern(pattern: Any) -> Any:
    """Return a pattern as builtins: `warnings` has texts, which it compares, and regular expressions."""
    return (pattern.pattern, pattern.flags) if isinstance(pattern, re.Pattern) else pattern


def _restored(described: Any) -> Any:
    action, message, (module_name, name), module, line = described
    category: Any = sys.modules.get(module_name)
    for part in name.split("."):
        category = getattr(category, part, None)
    if not isinstance(category, type):
        return None
    return action, _compiled(message), category, _compiled(module), line


def _compiled(pattern: Any) -> Any:
    return re.compile(*pattern) if isinstance(pattern, tuple) else pattern
