"""Pickling values together with the code that a worker cannot import; `sent_modules` is the other side."""

from __future__ import annotations

import copyreg
import enum
import functools
import importlib
import io
import linecache
import os
import pickle
import sys
import threading
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from contextvars import ContextVar, copy_context
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, ParamSpec

import cloudpickle
from attrs import frozen

from . import sent_modules
from .findable import ModuleSearch, is_extension
from .reach import globals_reached, looks_names_up, names_in_annotations

MOST_BYTES_BESIDES = 1 << 20
"""So many bytes, at most, are sent of what no step seems to use."""

MOST_BYTES_LOOKED_UP = 32 << 20
"""So many bytes, at most, are sent of what a step may look up by a name that is not known."""

_TRIED_FACTOR = 8
"""So many times the limit, at most, is pickled: many functions may use the same large table."""

_CACHED = type(functools.lru_cache(len))
_DISPATCHER_CODE = functools.singledispatch(len).__code__  # type: ignore[attr-defined]  # it is a function
_DISPATCHER_NAMES = {"register", "dispatch", "registry", "_clear_cache"}
_FUNCTION_ATTRIBUTES = (
    *("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__", "__annotations__"),
    "__type_params__",  # since Python 3.12
)
_MODULE_FACTS = ("__name__", "__file__", "__package__", "__doc__")


class CodePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no type hints
    """Pickles by value what is defined in `__main__` or in another module that a worker cannot import.

    Cloudpickle does that, too, for functions and classes one by one. Here all functions of a module share one namespace
    in the worker, and it is that of a module that can be looked up.

    Args:
        file: Where the pickles go, one after the other.
        sent: What was sent before and is not sent again.
    """

    def __init__(self, file: io.BytesIO, sent: Sent | None = None) -> None:
        super().__init__(file, protocol=5)
        self.search = ModuleSearch()
        self.modules: dict[str, ModuleType] = {}
        self.filenames: set[str] = set()
        self.wanted: dict[tuple[str, str], None] = {}  # in order
        self.looks_names_up = False
        self._sent = sent
        self._registered: list[ModuleType] = []
        self._cells: dict[int, _EmptyCell] = {}

    def close(self) -> None:
        """Have cloudpickle treat modules as before."""
        for module in self._registered:
            _register(module, -1)

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
        shared = {id(getattr(owner, name)): _Shared(owner, name) for owner, name in _SHARED if hasattr(owner, name)}
        reached = {name: shared.get(id(value), value) for name, value in reached.items()}
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
        self.wanted.update(((name, each), None) for each in list(vars(module)) if not _is_special(each))
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
        if name not in self.modules:
            if is_extension(module):
                raise pickle.PicklingError(
                    f"module {name!r} ({module.__file__}) is compiled, and no worker can import it: put its folder on "
                    "sys.path"
                )
            self.modules[name] = module
            if "__getattr__" in vars(module):  # which makes attributes when they are looked up; see PEP 562
                self.wanted[name, "__getattr__"] = None
            if module is not sys.modules["__main__"] or name != "__main__":
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
        reduced = value.__reduce_ex__(5)
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
    _CACHED: CodePickler._reduce_cached,
    functools.cached_property: CodePickler._reduce_property,
    ContextVar: CodePickler._reduce_variable,
    type(os.environ): CodePickler._reduce_environment,
    _Shared: CodePickler._reduce_shared,
    _EmptyCell: CodePickler._reduce_empty_cell,
}


@frozen
class Sent:
    """What was sent by name before."""

    names: frozenset[tuple[str, str]]
    places: dict[int, tuple[str, str]]
    values: list[Any]
    """Kept alive, so that no other object gets the identity of one of them."""

    def place_of(self, value: Any) -> tuple[str, str] | None:
        """Return the module and the name under which the worker has `value`."""
        return self.places.get(id(value))


def dump(value: Any) -> tuple[bytes, Sent]:
    """Pickle a value, with the code that a worker cannot import; `sent_modules.load` loads it.

    Returns:
        The pickle, and what the worker's modules have then.

    Raises:
        Exception: Any that pickling the value raises.
    """
    with closing(CodePickler(file := _LimitedFile())) as pickler:
        pickler.send_main()
        pickler.dump(value)
        names = _dump_those_sent(pickler)
        names += _dump_wanted(pickler, file, set(names))
        if pickler.looks_names_up:
            file.limit(MOST_BYTES_LOOKED_UP)
            pickler.wanted.update((place, None) for place in _defined_in(pickler.modules.values()))
            names += _dump_wanted(pickler, file, set(names))
        values = [_get(place) for place in names]
        sent = Sent(frozenset(names), {id(value): place for value, place in zip(values, names, strict=True)}, values)
        return _payload(pickler, file, names), sent


def dump_rest(sent: Sent) -> bytes:
    """Pickle what the modules of the caller define besides, for those who look it up; `b""` if there is nothing."""
    with closing(CodePickler(file := _LimitedFile(), sent)) as pickler:
        file.limit(MOST_BYTES_BESIDES)
        pickler.dump(None)
        pickler.send_main()
        modules = pickler.modules | {place[0]: sys.modules[place[0]] for place in sent.places.values()}
        places = [place for place in _defined_in(modules.values()) if sent.place_of(_get(place)) is None]
        pickler.wanted.update((place, None) for place in places)
        names = _dump_wanted(pickler, file, set())
        return _payload(pickler, file, names) if names else b""


def _payload(pickler: CodePickler, file: io.BytesIO, names: list[tuple[str, str]]) -> bytes:
    modules = [_facts_of(module) for module in pickler.modules.values()]
    return pickle.dumps((modules, _sources(pickler.filenames), file.getvalue(), names), 5)


def _dump_those_sent(pickler: CodePickler) -> list[tuple[str, str]]:
    """Pickle, once more, those globals of the sent modules that are part of the value already; that costs little."""
    included = pickler.memo.copy()
    names = [
        (name, each)
        for name, module in pickler.modules.items()
        for each, value in list(vars(module).items())
        if id(value) in included and not _is_special(each)
    ]
    for place in names:
        pickler.dump(_get(place))
    return names


def _dump_wanted(pickler: CodePickler, file: io.BytesIO, done: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pickle what is wanted, and what is wanted of that in turn, but for what does not pickle."""
    names = []
    while left := [place for place in pickler.wanted if place not in done]:
        done.update(left)
        names += _dump_those_possible(pickler, file, [place for place in left if _has(place)])
    return names


def _dump_those_possible(
    pickler: CodePickler, file: io.BytesIO, places: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Pickle what is at these places, as far as it pickles; return the places of that."""
    names: list[tuple[str, str]] = []
    while places:
        # Copied only before the first and after each failure: a copy takes long when much has been pickled.
        memo, position, count = pickler.memo.copy(), file.tell(), 0
        try:
            for place in places:
                pickler.dump(_get(place))
                count += 1
        except Exception:  # no step needs it, as far as can be seen, so it is left out
            pickler.memo = memo
            file.seek(position)
            file.truncate()
            names += _dump_those_possible(pickler, file, places[:count])
            places = places[count + 1 :]
        else:
            return names + places
    return names


def _defined_in(modules: Iterable[ModuleType]) -> Iterator[tuple[str, str]]:
    """Yield the places of the functions and classes that the modules define themselves."""
    for module in modules:
        for name, value in list(vars(module).items()):
            has_code = isinstance(value, (type, FunctionType, _CACHED))
            if has_code and not _is_special(name) and value.__module__ in (module.__name__, "__main__"):
                yield module.__name__, name


def _has(place: tuple[str, str]) -> bool:
    module, name = place
    return name in vars(sys.modules[module])


def _get(place: tuple[str, str]) -> Any:
    module, name = place
    return vars(sys.modules[module])[name]


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - to see whether that is an error
    except ValueError:
        return False
    return True


def _facts_of(module: ModuleType) -> sent_modules.Facts:
    """Return what a worker's module has to have that is no code."""
    facts: sent_modules.Facts = {name: getattr(module, name, None) for name in _MODULE_FACTS}
    facts = {name: value for name, value in facts.items() if isinstance(value, str)}
    if hasattr(module, "__path__"):
        facts["__path__"] = [str(folder) for folder in module.__path__]
    names = ("__main__", "__mp_main__", module.__name__)
    facts["aliases"] = sorted({name for name in names if sys.modules.get(name) is module})
    spec_name = getattr(getattr(module, "__spec__", None), "name", None)
    facts["spec_name"] = spec_name if isinstance(spec_name, str) else None
    return facts


def _sources(filenames: Iterable[str]) -> dict[str, list[str]]:
    """Return the lines of the files that only this process has, such as the cells of a notebook."""
    found = {name: linecache.getlines(name) for name in sorted(filenames) if not os.path.exists(name)}  # noqa: PTH110
    return {name: lines for name, lines in found.items() if lines}


class _LimitedFile(io.BytesIO):
    """Takes no more than it may, and not much more even if all of that is truncated again."""

    _end = _left_to_try = sys.maxsize

    def limit(self, size: int) -> None:
        """Take no more than `size` bytes from now on."""
        self._end = self.tell() + size
        self._left_to_try = _TRIED_FACTOR * size

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._left_to_try -= size
        if self.tell() + size > self._end or self._left_to_try < 0:
            raise OverflowError("it is too large to be sent to workers that may not need it")
        return super().write(data)


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
