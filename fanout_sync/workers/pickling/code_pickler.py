"""Pickling values together with the code that a worker cannot import; `sent_modules` is the other side."""

from __future__ import annotations

import copyreg
import enum
import functools
import importlib
import io
import os
import pickle
import sys
import threading
import typing
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, ParamSpec

import cloudpickle
from attrs import frozen

from . import sent_modules
from .findable import ModuleSearch, is_extension
from .reach import globals_reached, looks_names_up, names_in_annotations
from .sent_modules import Place, is_special

PROTOCOL = 5
"""The version of the pickle protocol."""

CACHED = type(functools.lru_cache(len))
"""The class of functions with a cache."""

_DISPATCHER_CODE = functools.singledispatch(len).__code__  # type: ignore[attr-defined]  # it is a function
_DISPATCHER_NAMES = {"register", "dispatch", "registry", "_clear_cache"}
_FUNCTION_ATTRIBUTES = (
    *("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__", "__annotations__"),
    "__type_params__",  # since Python 3.12
)


class CodePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no type hints
    """Pickles by value what is defined in `__main__` or in another module that a worker cannot import.

    Cloudpickle does that, too, for functions and classes one by one. Here all functions of a module share one namespace
    in the worker, and it is that of a module that can be looked up.

    Args:
        file: Where the pickles go, one after the other.
        sent: What was sent before and is not sent again.
        protocol: The version of the pickle protocol.
    """

    def __init__(self, file: io.BytesIO, sent: Sent | None = None, protocol: int = PROTOCOL) -> None:
        super().__init__(file, protocol=protocol)
        self.search = ModuleSearch()
        self.modules: dict[str, ModuleType] = {}
        self.filenames: set[str] = set()
        self.wanted: dict[Place, None] = {}  # in order
        self.looks_names_up = False
        self._sent = sent
        self._registered: list[ModuleType] = []
        self._cells: dict[int, _EmptyCell] = {}
        self._shared = {
            id(getattr(owner, name)): _Shared(owner, name) for owner, name in _SHARED if hasattr(owner, name)
        }

    def dump(self, value: Any) -> None:
        """Pickle one more value."""
        try:
            super().dump(value)
        finally:  # whatever cloudpickle is used for next, it treats modules as before
            while self._registered:
                _register(self._registered.pop(), -1)

    def send_main(self) -> None:
        """Have the worker make `__main__`, though nothing in the value is from there: anybody may look at it."""
        main = sys.modules["__main__"]
        if sys.modules.get(main.__name__) is main:
            self._send(main)

    def reducer_override(self, value: Any) -> Any:
        """Return how `value` is pickled; see `pickle.Pickler.reducer_override`."""
        if self._sent is not None and (place := self._sent.place_of(value)) is not None:
            return sent_modules.attribute, place
        if isinstance(value, FunctionType):
            reduced = self._reduce_function(value)
        elif isinstance(value, type):
            reduced = self._note_class(value)
        elif isinstance(value, CodeType):
            self.filenames.add(value.co_filename)
            make, arguments = self.dispatch_table[CodeType](value)
            return sent_modules.code, (make, arguments, value.co_filename)
        else:
            reduce = _REDUCERS.get(type(value))
            if reduce is None and issubclass(type(value), ModuleType):
                reduce = CodePickler._reduce_special_module
            reduced = self._reduce_object(value) if reduce is None else reduce(self, value)
        return super().reducer_override(value) if reduced is NotImplemented else reduced

    # Functions --------------------------------------------------------------------------------------------------------

    def _reduce_function(self, function: FunctionType) -> Any:
        if function.__code__ is _DISPATCHER_CODE and not self._is_importable(function):
            registry: Any = function.registry  # type: ignore[attr-defined]  # a dispatcher has it
            own = {name: value for name, value in vars(function).items() if name not in _DISPATCHER_NAMES}
            state = (dict(registry), own)
            return sent_modules.dispatching, (registry[object],), state, None, None, sent_modules.set_dispatching
        module = self._module_of(function)
        if module is None:
            return NotImplemented
        self.looks_names_up = self.looks_names_up or looks_names_up(function)
        self._want_annotated(module, function.__annotations__)
        cells = None if function.__closure__ is None else tuple(self._empty_cell(cell) for cell in function.__closure__)
        arguments = (module, function.__code__, cells)
        return sent_modules.function, arguments, self._state_of(function, module), None, None, sent_modules.set_function

    def _module_of(self, function: FunctionType) -> str | None:
        """Return the name of the module whose globals the function has, if that module is sent."""
        name: Any = function.__globals__.get("__name__")
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or self.search.is_findable(name):
            return None
        # Multiprocessing runs the script of its parent elsewhere, and copies what it has defined to this module.
        if vars(module) is not function.__globals__ and name != "__mp_main__":
            return None
        return self._send(module)

    def _state_of(self, function: FunctionType, module: str) -> Any:
        attributes = {name: getattr(function, name) for name in _FUNCTION_ATTRIBUTES if hasattr(function, name)}
        reached = globals_reached(function)
        reached = {name: self._shared.get(id(value), value) for name, value in reached.items()}
        if self._sent is not None:
            reached = {name: value for name, value in reached.items() if (module, name) not in self._sent.names}
        contents = [
            (self._empty_cell(cell), cell.cell_contents) for cell in function.__closure__ or () if _is_filled(cell)
        ]
        return attributes, dict(vars(function)), reached, contents

    def _empty_cell(self, cell: CellType) -> _EmptyCell:
        return self._cells.setdefault(id(cell), _EmptyCell(cell))

    # Classes and modules ----------------------------------------------------------------------------------------------

    def _note_class(self, kind: type) -> Any:
        module = sys.modules.get(getattr(kind, "__module__", None) or "")
        if module is None or self.search.is_findable(kind.__module__):
            return NotImplemented
        self._want_annotated(self._send(module), vars(kind).get("__annotations__"))
        return self._reduce_enum(kind) if isinstance(kind, enum.EnumMeta) else self._reduce_class(kind)

    def _reduce_class(self, kind: type) -> Any:
        """Add what cloudpickle leaves out.

        That is the qualified name. And no `__init_subclass__` is called that is sent: what it has done is sent, too.
        """
        reduced = super().reducer_override(kind)
        bases = [base for base in kind.__mro__[1:] if "__init_subclass__" in vars(base)]
        bases = [base for base in bases if not self.search.is_findable(base.__module__)]
        if not isinstance(reduced, tuple) or not (bases or kind.__qualname__ != kind.__name__):
            return reduced
        make, arguments, *rest = reduced
        return sent_modules.class_of, (kind.__qualname__, bases, make, arguments), *rest

    def _reduce_enum(self, kind: Any) -> Any:
        """Add what the members have been given in `__init__` or `__new__`, which cloudpickle does not call."""
        own = {name: _own_attributes(member) for name, member in kind.__members__.items()}
        reduced = super().reducer_override(kind)
        if not any(own.values()) or not isinstance(reduced, tuple):
            return reduced
        make, arguments, state, _, _, set_state = reduced
        return make, arguments, (set_state, state, own), None, None, sent_modules.set_enum

    def _want_annotated(self, module: str, annotations: Any) -> None:
        self.wanted.update(((module, name), None) for name in names_in_annotations(annotations))

    def _reduce_module(self, module: ModuleType) -> Any:
        if sys.modules.get(module.__name__) is not module or self.search.is_findable(module.__name__):
            return NotImplemented
        name = self._send(module)
        self.wanted.update(((name, each), None) for each in list(vars(module)) if not is_special(each))
        return sent_modules.sent_module, (name,)

    def _reduce_special_module(self, module: ModuleType) -> Any:
        """Have a worker import a module of a class of its own, such as those that import their submodules lazily."""
        name = module.__name__
        if sys.modules.get(name, module) is not module or not self.search.is_findable(name):
            return NotImplemented
        return importlib.import_module, (name,)

    def _send(self, module: ModuleType) -> str:
        """Have the worker make the module; return its name."""
        name = module.__name__
        if is_extension(module):
            raise pickle.PicklingError(
                f"module {name!r} ({module.__file__}) is compiled, and no worker can import it: put its folder on "
                "sys.path"
            )
        self.modules[name] = module
        if "__getattr__" in vars(module):  # which makes attributes when they are looked up; see PEP 562
            self.wanted[name, "__getattr__"] = None
        if name != "__main__" and module not in self._registered:
            _register(module, 1)
            self._registered.append(module)
        return name

    def _is_importable(self, value: Any) -> bool:
        """Return whether a worker finds `value` under its name."""
        found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
        if found is None or not self.search.is_findable(found.__name__):
            return False
        for part in value.__qualname__.split("."):
            found = getattr(found, part, None)
        return found is value

    # Objects that pickle as a name ------------------------------------------------------------------------------------

    def _reduce_object(self, value: Any) -> Any:
        """Return how an object is pickled that says so itself: some say that they are to be looked up in their module.

        If a worker has no such module, they are sent.
        """
        kind = type(value)
        if kind in self.dispatch_table or (kind.__reduce_ex__, kind.__reduce__) == _DEFAULT_REDUCE:
            return NotImplemented
        reduced = value.__reduce_ex__(PROTOCOL)
        if not isinstance(reduced, str):
            return reduced
        module = sys.modules.get(_module_name(value, reduced))
        if module is None or self.search.is_findable(module.__name__):
            return reduced
        self._send(module)
        if kind is _TYPE_ALIAS and not value.__type_params__:  # its value may name the alias itself
            holder: list[Any] = []
            state = holder, value.__value__
            return (
                sent_modules.alias,
                (value.__name__, value.__module__, holder),
                state,
                None,
                None,
                sent_modules.set_alias,
            )
        make_arguments = _TYPING_ARGUMENTS.get(kind)
        if make_arguments is None:
            return object.__new__, (kind,), _state_of_object(value)
        return sent_modules.of_typing, (kind, value.__module__, *make_arguments(value))

    # Other code -------------------------------------------------------------------------------------------------------

    def _reduce_cached(self, function: Any) -> Any:
        if self._is_importable(function):
            return NotImplemented
        arguments = (function.__wrapped__, function.cache_parameters())
        return sent_modules.cached, arguments, dict(vars(function))

    def _reduce_property(self, cached: functools.cached_property[Any]) -> Any:
        # Before Python 3.12 it has a lock, which does not pickle.
        state = {"attrname": cached.attrname, "__doc__": cached.__doc__}
        return functools.cached_property, (cached.func,), state

    def _reduce_variable(self, variable: ContextVar[Any]) -> Any:
        place = self.search.place_of(variable)
        if place is not None:
            context = copy_context()
            return sent_modules.imported_variable, (*place, (context[variable],) if variable in context else ())
        try:
            values: tuple[Any, ...] = (variable.get(),)
        except LookupError:
            values = ()
        return sent_modules.context_variable, (variable.name, values)

    def _reduce_environment(self, environment: Any) -> Any:
        return (getattr, (os, "environ")) if environment is os.environ else NotImplemented

    def _reduce_shared(self, shared: _Shared) -> Any:
        return getattr, (shared.module, shared.name)

    def _reduce_empty_cell(self, cell: _EmptyCell) -> Any:
        return sent_modules.empty_cell, ()


_DEFAULT_REDUCE: Any = (object.__reduce_ex__, object.__reduce__)

_TYPING_ARGUMENTS: dict[Any, Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    ParamSpec: lambda made: (
        (made.__name__,),
        {"bound": made.__bound__, "covariant": made.__covariant__, "contravariant": made.__contravariant__},
    )
}
if sys.version_info >= (3, 11):
    _TYPING_ARGUMENTS[typing.TypeVarTuple] = lambda made: ((made.__name__,), {})
_TYPE_ALIAS: Any = getattr(typing, "TypeAliasType", None)  # since Python 3.12
if _TYPE_ALIAS is not None:
    _TYPING_ARGUMENTS[_TYPE_ALIAS] = lambda made: (
        (made.__name__, made.__value__),
        {"type_params": made.__type_params__},
    )


def _own_attributes(member: enum.Enum) -> dict[str, Any]:
    return {name: value for name, value in vars(member).items() if not (name.startswith("_") and name.endswith("_"))}


def _module_name(value: Any, name: str) -> str:
    found: str = pickle.whichmodule(value, name)  # type: ignore[attr-defined]  # as `pickle` does
    return found


def _state_of_object(value: Any) -> Any:
    names = copyreg._slotnames(type(value))  # type: ignore[attr-defined]  # as `copyreg` does
    slots = {name: getattr(value, name) for name in names if hasattr(value, name)}
    own = getattr(value, "__dict__", None)
    return (own, slots) if slots else own


@frozen(eq=False)
class _EmptyCell:
    """Stands for a cell, which pickles without what is in it, so that a function can close over itself."""

    cell: CellType


@frozen(eq=False)
class _Shared:
    """Stands for an object of which each process has one, such as `sys.path`, and code may have it as a global."""

    module: ModuleType
    name: str


_SHARED = [(os, "environ"), (os, "environb"), *((sys, name) for name in ("argv", "meta_path", "modules", "path"))]

_REDUCERS: dict[type, Callable[[CodePickler, Any], Any]] = {
    ModuleType: CodePickler._reduce_module,
    sent_modules.SentModule: CodePickler._reduce_module,
    CACHED: CodePickler._reduce_cached,
    functools.cached_property: CodePickler._reduce_property,
    ContextVar: CodePickler._reduce_variable,
    type(os.environ): CodePickler._reduce_environment,
    _Shared: CodePickler._reduce_shared,
    _EmptyCell: CodePickler._reduce_empty_cell,
}


@frozen
class Sent:
    """What was sent by name before."""

    names: frozenset[Place]
    places: dict[int, Place]
    values: list[Any]
    """Kept alive, so that no other object gets the identity of one of them."""

    def place_of(self, value: Any) -> Place | None:
        """Return the module and the name under which the worker has `value`."""
        return self.places.get(id(value))


def is_shared(value: Any) -> bool:
    """Return whether each process has an object of its own of the kind, such as `sys.path`."""
    return any(getattr(module, name, None) is value for module, name in _SHARED)


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - to see whether that is an error
    except ValueError:
        return False
    return True


# Cloudpickle has one set of modules to pickle by value, for all threads.
_registrations: Counter[str] = Counter()
_lock = threading.Lock()


def _register(module: ModuleType, change: int) -> None:
    name = module.__name__
    with _lock:
        is_registered_by_others = not _registrations[name] and name in cloudpickle.list_registry_pickle_by_value()
        if is_registered_by_others:
            return
        _registrations[name] += change
        if change > 0 and _registrations[name] == 1:
            cloudpickle.register_pickle_by_value(module)
        elif not _registrations[name]:
            cloudpickle.unregister_pickle_by_value(module)
