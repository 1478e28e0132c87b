"""Which globals of its module a function or a class may look up."""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from ..module_versions import own_attribute

_GLOBAL_OPERATIONS = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_WORD = re.compile(r"[^\W\d]\w*")

LOOKUPS = frozenset(
    ("globals", "vars", "dir", "eval", "exec", "__main__", "modules", "__subclasses__", "import_module", "getmembers")
)
"""Code that uses one of these names may look up others that it does not name."""

_names_of_code: WeakKeyDictionary[CodeType, frozenset[str]] = WeakKeyDictionary()


def globals_reached(function: FunctionType) -> dict[str, Any]:
    """Return the globals that the code of a function uses, with all functions, lambdas and classes inside it."""
    namespace = function.__globals__
    reached = {name: namespace[name] for name in sorted(_global_names(function.__code__)) if name in namespace}
    # `concurrent.futures` is used by the name of `concurrent`; its import elsewhere has set the attribute.
    attributes = _all_names(function.__code__)
    for module in [value for value in reached.values() if isinstance(value, ModuleType)]:
        reached |= _submodules(module, attributes)
    return reached


def names_in_annotations(annotations: Any) -> Iterator[str]:
    """Yield the names in annotations that are strings; `typing.get_type_hints` looks them up."""
    for text in annotations.values() if isinstance(annotations, Mapping) else ():
        if isinstance(text, str):
            yield from _WORD.findall(text)


def looks_names_up(function: FunctionType) -> bool:
    """Return whether the function may use globals that it does not name."""
    return not LOOKUPS.isdisjoint(_all_names(function.__code__))


def _global_names(code: CodeType) -> frozenset[str]:
    names = _names_of_code.get(code)
    if names is None:
        used = {
            str(operation.argval) for operation in dis.get_instructions(code) if operation.opname in _GLOBAL_OPERATIONS
        }
        names = frozenset(used.union(*map(_global_names, _inner(code))))
        _names_of_code[code] = names
    return names


def _all_names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*map(_all_names, _inner(code)))


def _inner(code: CodeType) -> Iterable[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _submodules(module: ModuleType, attributes: set[str]) -> dict[str, Any]:
    """Return the loaded submodules of a package that code seems to use, by names that are no identifiers."""
    if own_attribute(module, "__path__") is None:
        return {}
    start = f"{module.__name__}."
    modules: dict[str, Any] = dict(sys.modules)  # `None` stands for one that must not be imported
    return {
        name: loaded
        for name, loaded in modules.items()
        if name.startswith(start) and loaded is not None and attributes.issuperset(name[len(start) :].split("."))
    }
