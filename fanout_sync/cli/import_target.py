"""Finding and making the executor that the command line names: `package.module:name` or `path/file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import OptionError
from ..executors.executor import AgentExecutor
from ..executors.function import FunctionExecutor
from ..formatting import describe, did_you_mean
from ..records.status import StepError

_FORMS = "package.module:name or path/file.py:name"
_RUNNABLE = "an executor, an executor class or a function without arguments that makes one, or a dict of functions"


def resolve_target(text: str) -> AgentExecutor:
    """Import what `text` names, and return or make the executor.

    The current directory becomes importable, as with `python -m`. The directory of a file comes first on `sys.path`, as
    with `python path/file.py`, and the file is imported as a module of its own name, so that worker processes, which
    get the same `sys.path`, can import it too.

    Args:
        text: `package.module:name` or `path/file.py:name`. The name, which may have dots, is that of an executor, of
            a class or function without arguments that makes one (or a dict of functions), or of a dict of functions.

    Returns:
        The executor; a dict becomes a `FunctionExecutor`.

    Raises:
        OptionError: The target does not exist, importing or making it fails, or it is not runnable. The message names
            the target, what is wrong with it, and the line in the user's file that raised.
    """
    try:
        place, name = _split(text)
        is_file = place.endswith(".py") or "/" in place or os.sep in place
        module = _import_file(place) if is_file else _import_module(place)
        return _executor_of(_attribute(module, name), name)
    except _Unusable as error:
        raise OptionError(f"executor target {text!r}: {error}") from error.__cause__


class _Unusable(Exception):
    """A target cannot be run; the cause is the error that the user's code raised, if it raised one."""


def _split(text: str) -> tuple[str, str]:
    # Split at the last colon: a path may have another one, after a Windows drive.
    place, _, name = text.rpartition(":")
    if place and all(part.isidentifier() for part in name.split(".")):
        return place, name
    hint = ""
    if text.endswith(".py"):
        hint = f"; say which executor in the file, such as '{text}:executor'"
    elif "." in text and ":" not in text:
        module, _, attribute = text.rpartition(".")
        hint = f" (did you mean '{module}:{attribute}'?)"
    raise _Unusable(f"expected {_FORMS}{hint}")


# Modules --------------------------------------------------------------------------------------------------------------


def _import_module(name: str) -> ModuleType:
    _put_first(Path.cwd())
    if not all(name.split(".")):
        raise _Unusable(f"{name!r} is not an absolute module name; expected {_FORMS}")
    try:
        return _imported(name, f"module {name!r}")
    except _Unusable as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            hint = did_you_mean(cause.name, _siblings(cause.name))
            raise _Unusable(f"{cause}{hint}; it must be installed or stand in {Path.cwd()}") from cause
        raise


def _import_file(place: str) -> ModuleType:
    path = Path(place).absolute()
    if path.suffix != ".py":
        raise _Unusable(f"{place!r} is not a Python file; expected {_FORMS}")
    if not path.is_file():
        raise _Unusable(f"{path} is not a file" if path.exists() else f"there is no file {path}")
    _put_first(Path.cwd())
    _put_first(path.parent)
    _refuse_misleading_name(path)
    try:
        return _imported(path.stem, str(path))
    except _Unusable as error:
        if isinstance(error.__cause__, ImportError):
            raise _Unusable(f"{error}{_import_hint(path)}") from error.__cause__
        raise


def _imported(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise SystemExit, too; there is no executor then
        raise _Unusable(f"importing {what} raised {_description(error)}") from error


def _put_first(folder: Path) -> None:
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))


def _refuse_misleading_name(path: Path) -> None:
    """Refuse a file that `import` would not find by its name, or that would hide another module of that name."""
    name = path.stem
    if "." in name:
        raise _Unusable(f"{path} cannot be imported with a dot in its name; rename it")
    imported = sys.modules.get(name)
    if imported is not None:
        origin = getattr(imported, "__file__", None)
        if not _is_file(origin, path):
            imported_from = f" from {origin}" if origin else ""
            raise _Unusable(
                f"{path} has the name of the module {name!r}, already imported{imported_from}; rename the file"
            )
    elif name in sys.stdlib_module_names:
        raise _Unusable(f"{path} would hide the standard library's module {name!r}; rename the file")
    elif not _is_file(origin := _origin(importlib.util.find_spec(name)), path):
        raise _Unusable(f"{path} is hidden by {origin}, which `import {name}` finds first; rename the file")


def _is_file(origin: str | None, path: Path) -> bool:
    with suppress(OSError):  # "built-in" and the like are no files
        return origin is not None and path.samefile(origin)
    return False


def _origin(spec: ModuleSpec | None) -> str | None:
    return None if spec is None else spec.origin


def _import_hint(path: Path) -> str:
    if (path.parent / "__init__.py").is_file():
        return "; the file is in a package: write the target as package.module:name if it has relative imports"
    hidden = _origin(PathFinder.find_spec(path.stem, [folder for folder in sys.path if folder != str(path.parent)]))
    if hidden and not _is_file(hidden, path):
        return f"; the file hides the module {path.stem!r} of {hidden}: rename the file if it needs that module"
    return ""


def _siblings(module: str) -> Iterable[str]:
    parent, _, _ = module.rpartition(".")
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else sys.path
    return [f"{parent}.{found.name}" if parent else found.name for found in pkgutil.iter_modules(path)] if path else []


# The executor in a module ---------------------------------------------------------------------------------------------


def _attribute(module: ModuleType, name: str) -> Any:
    value: Any = module
    where = str(getattr(module, "__file__", None) or f"module {module.__name__!r}")
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            public = [each for each in dir(value) if not each.startswith("_")]
            raise _Unusable(f"{where} has no {part!r}{did_you_mean(part, public)}") from None
        except Exception as error:  # raised by a property, or by a module that imports its parts lazily
            raise _Unusable(f"looking up {part!r} in {where} raised {_description(error)}") from error
        where = f"{part!r} in {where}"
    return value


def _executor_of(value: Any, name: str) -> AgentExecutor:
    if (executor := _ready(value, name)) is not None:
        return executor
    if not callable(value):
        raise _Unusable(f"{name} is {describe(value)}; expected {_RUNNABLE}")
    made = _called(value, name)
    if (executor := _ready(made, f"what {name}() returned")) is not None:
        return executor
    if inspect.iscoroutine(made):
        made.close()
        raise _Unusable(f"{name}() is async; expected {_RUNNABLE}")
    raise _Unusable(f"{name}() returned {describe(made)}; expected an executor or a dict of functions")


def _ready(value: Any, name: str) -> AgentExecutor | None:
    if isinstance(value, AgentExecutor):
        return value
    if not isinstance(value, Mapping):
        return None
    if not value:
        raise _Unusable(f"{name} is empty; expected functions by the name of their agent")
    try:
        return FunctionExecutor(value)
    except OptionError as error:
        raise _Unusable(f"{name} is not a dict of functions: {error}") from error


def _called(factory: Callable[[], Any], name: str) -> Any:
    _refuse_arguments(factory, name)
    try:
        return factory()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as in `_imported`
        raise _Unusable(f"{name}() raised {_description(error)}") from error


def _refuse_arguments(factory: Callable[..., Any], name: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some builtins have no signature; the call shows whether they need arguments
        return
    try:
        signature.bind()
    except TypeError:
        hint = "" if inspect.isclass(factory) else f"; an agent's function belongs in a dict: {{'{name}': {name}}}"
        raise _Unusable(f"{name}{signature} needs arguments; expected {_RUNNABLE}{hint}") from None


# Errors of the user's code --------------------------------------------------------------------------------------------


def _description(error: BaseException) -> str:
    """Return the type and message of an error of the user's code, and the line that raised it."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    return f"{StepError.of(error)}{_place_in_users_code(error)}"


def _place_in_users_code(error: BaseException) -> str:
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    lines = [(name, line) for name, line in lines if not name.startswith(_MACHINERY)]
    # The innermost line of the user's own code, rather than one of a library that it calls.
    own = [(name, line) for name, line in lines if not name.startswith(_LIBRARIES)] or lines
    return " ({}, line {})".format(*own[-1]) if own else ""


def _inside(*folders: str) -> tuple[str, ...]:
    return tuple(folder + os.sep for folder in folders)


_MACHINERY = ("<", *_inside(str(Path(__file__).parents[1]), str(Path(importlib.__file__).parent)))
_LIBRARIES = _inside(*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")))
