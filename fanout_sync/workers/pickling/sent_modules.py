"""Modules of the caller that a worker cannot import: it has modules of the same names, filled with what was sent.

The first of them is `__main__`. All functions and classes of such a module share one namespace here, too, and whoever
looks up a name in the module (`pickle`, `typing.get_type_hints`, `import __main__`) finds it. Its code does not run.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import linecache
import pickle
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache, partial, singledispatch
from importlib.machinery import ModuleSpec
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

OnBegin = Callable[[int], object]

Facts = dict[str, Any]
"""What a module has that is no code, such as `__file__`."""

Place = tuple[str, str]
"""The name of a module and a name in it."""

Named = dict[Place, Any]


_GETATTR = "__getattr__ of the caller's module"
"""Where a module has the function `__getattr__` of PEP 562: Python would call it before the rest is loaded."""


def is_special(name: str) -> bool:
    """Return whether a name is one of Python's own."""
    return name.startswith("__") and name.endswith("__")


class SentModule(ModuleType):
    """A module that is filled with what the caller's module has; the rest of it is loaded when it is looked up."""

    def __getattr__(self, name: str) -> Any:
        if not is_special(name):
            load_rest()
            if name in self.__dict__:
                return self.__dict__[name]
        if _GETATTR in self.__dict__:
            return self.__dict__[_GETATTR](name)
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {name!r} in this worker process: it has the functions and "
            "classes of the caller's module, and what they use, as far as that pickles"
        )

    def __dir__(self) -> list[str]:
        load_rest()
        return sorted(self.__dict__)


class _Rest:
    """What nothing in the executor uses: it is loaded when somebody looks it up after all.

    Attributes:
        payload: What is not loaded yet.
        loaded: What was loaded, by module and name.
    """

    def __init__(self) -> None:
        self.payload = b""
        self.loaded: dict[Place, Any] = {}
        self.lock = threading.RLock()


_rest = _Rest()


def set_rest(payload: bytes) -> None:
    """Keep what the modules have besides, until somebody looks something up that they do not have yet."""
    with _rest.lock:
        _rest.payload = payload
        for (module, name), value in _rest.loaded.items():  # it may be out of date
            if vars(sys.modules[module]).get(name) is value:
                del vars(sys.modules[module])[name]
        _rest.loaded = {}


def load_rest() -> None:
    """Load what the modules have besides, as far as it can be loaded."""
    with _rest.lock:
        payload, _rest.payload = _rest.payload, b""
        if payload:
            _, named = _load(_made_modules(payload), lambda place: None)
            for (module, name), value in named.items():
                if name not in vars(sys.modules[module]):
                    vars(sys.modules[module])[name] = _rest.loaded[module, name] = value


# Loading --------------------------------------------------------------------------------------------------------------


class _Loading(threading.local):
    """The modules of the pickle that is being loaded in this thread, by name, if they are its own."""

    modules: dict[str, ModuleType] | None = None


_loading = _Loading()


def load(payload: bytes, on_begin: OnBegin = lambda place: None) -> list[Any]:
    """Return the values in what `code_dump.dump` made, and fill the modules of this process with what came along.

    Args:
        payload: What it made.
        on_begin: Called with the place of each value before it is loaded.

    Raises:
        Exception: Any that loading a value raises.
    """
    values, named = _load(_made_modules(payload), on_begin)
    _name(named)
    return values


def load_apart(payload: bytes, on_begin: OnBegin = lambda place: None) -> list[Any]:
    """Return the values in what `code_dump.dump` made, in a process that has a `__main__` of its own.

    The modules are known only to what is loaded together; this process cannot look them up.

    Args:
        payload: As in `load`.
        on_begin: As in `load`.

    Raises:
        Exception: Any that loading a value raises.
    """
    pickled = pickle.loads(payload)
    modules = pickled[0]
    before, _loading.modules = _loading.modules, {facts["__name__"]: _filled(facts) for facts in modules}
    try:
        values, named = _load(pickled, on_begin)
        _name(named)
        return values
    finally:
        _loading.modules = before


def modules_being_loaded() -> dict[str, ModuleType] | None:
    """Return the modules of `load_apart`, if it loads something in this thread now; `load_late` takes them."""
    return _loading.modules


def load_late(payload: bytes, modules: dict[str, ModuleType] | None) -> list[Any]:
    """Return the values in what `code_dump.dump_late` made; what the modules have already stays as it is.

    Args:
        payload: What it made.
        modules: The modules of the earlier `load_apart`; `None` after a `load`.

    Raises:
        Exception: Any that loading a value raises.
    """
    pickled = pickle.loads(payload)
    for facts in pickled[0]:
        name = facts["__name__"]
        if modules is not None and name not in modules:
            modules[name] = _filled(facts)
        elif modules is None and not isinstance(sys.modules.get(name), SentModule):
            _module_of_process(facts)
    before, _loading.modules = _loading.modules, modules
    try:
        values, named = _load(pickled, lambda place: None)
        for (module, name), value in named.items():
            vars(_module(module)).setdefault(name, value)
        return values
    finally:
        _loading.modules = before


def _made_modules(payload: bytes) -> tuple[Any, ...]:
    """Make the modules that a pickle needs; return what is pickled."""
    pickled: tuple[Any, ...] = pickle.loads(payload)
    for facts in pickled[0]:
        _module_of_process(facts)
    return pickled


def _name(named: Named) -> None:
    for (module, name), value in named.items():
        vars(_module(module))[name] = value


def _load(pickled: tuple[Any, ...], on_begin: OnBegin) -> tuple[list[Any], Named]:
    """Return the values, and what the modules are to have besides, as far as it can be loaded."""
    _, sources, pickles, count, places = pickled
    for filename, lines in sources.items():
        linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
    unpickler = pickle.Unpickler(io.BytesIO(pickles))  # one for all: what comes later refers to what came earlier
    values = []
    for place in range(count):
        on_begin(place)
        values.append(unpickler.load())
    named: Named = {}
    for module, name in places:
        try:
            named[module, _GETATTR if name == "__getattr__" else name] = unpickler.load()
        except Exception:  # code of the caller's; nobody has asked for this name yet, so nobody misses it
            break
    return values, named


def _module(name: str) -> ModuleType:
    return sys.modules[name] if _loading.modules is None else _loading.modules[name]


def _module_of_process(facts: Facts) -> None:
    module = sys.modules.get(facts["__name__"])
    if not isinstance(module, SentModule):
        module = SentModule(facts["__name__"])
    for alias in facts["aliases"]:
        sys.modules[alias] = module
    _fill(module, facts)


def _filled(facts: Facts) -> SentModule:
    module = SentModule(facts["__name__"])
    _fill(module, facts)
    return module


def _fill(module: SentModule, facts: Facts) -> None:
    module.__dict__["__builtins__"] = builtins
    if facts["spec_name"] is not None:
        module.__spec__ = ModuleSpec(facts["spec_name"], None, origin=facts.get("__file__"))
    module.__dict__.update({name: value for name, value in facts.items() if name not in ("aliases", "spec_name")})


# What pickles of code consist of --------------------------------------------------------------------------------------


def sent_module(name: str) -> ModuleType:
    """Return a module that was sent."""
    return _module(name)


def attribute(module: str, name: str) -> Any:
    """Return what was sent before."""
    made = _module(module)
    return vars(made)[name] if name in vars(made) else getattr(made, name)  # the latter loads the rest


def function(module: str, code: CodeType, cells: tuple[CellType, ...] | None) -> FunctionType:
    """Return a function whose globals are those of a module that was sent."""
    return FunctionType(code, vars(_module(module)), code.co_name, None, cells)


def set_function(
    function: FunctionType,
    state: tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[tuple[CellType, Any]]],
) -> None:
    """Give a function its attributes, its own `__dict__`, the globals that it uses and what it has closed over."""
    attributes, own, reached, contents = state
    for name, value in attributes.items():
        setattr(function, name, value)
    function.__dict__.update(own)
    for name, value in reached.items():
        if name.isidentifier():  # and not a submodule, which only has to be imported
            function.__globals__[name] = value
    for cell, content in contents:
        cell.cell_contents = content


def empty_cell() -> CellType:
    """Return a cell that `set_function` fills."""
    return CellType()


def code(make: Callable[..., CodeType], arguments: tuple[Any, ...], filename: str) -> CodeType:
    """Return a code object that says which file it is from, for tracebacks."""
    return make(*arguments).replace(co_filename=filename)


def cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """Return a function with an empty cache, as `functools.lru_cache` made it."""
    return lru_cache(**parameters)(function)


def dispatching(default: Callable[..., Any]) -> Any:
    """Return a function as `functools.singledispatch` made it; `set_dispatching` registers the others."""
    return singledispatch(default)


def set_dispatching(dispatcher: Any, state: tuple[dict[type, Callable[..., Any]], dict[str, Any]]) -> None:
    """Register the functions of a dispatcher, and give it its attributes."""
    registry, own = state
    for kind, implementation in registry.items():
        dispatcher.register(kind, implementation)
    dispatcher.__dict__.update(own)


def context_variable(name: str, values: tuple[Any, ...]) -> ContextVar[Any]:
    """Return a context variable whose default is the value that the caller sees, if there is one."""
    return ContextVar(name, default=values[0]) if values else ContextVar(name)


def imported_variable(module: str, name: str, values: tuple[Any, ...]) -> ContextVar[Any]:
    """Return the context variable of an imported module, set to what the caller has set it to, if it has."""
    variable: ContextVar[Any] = getattr(importlib.import_module(module), name)
    if values:
        variable.set(values[0])
    return variable


def of_typing(kind: Any, module: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return an object of `typing` that belongs to a module that was sent, such as a `ParamSpec`."""
    made = kind(*arguments, **options)
    with contextlib.suppress(AttributeError):  # that of an alias cannot be set
        made.__module__ = module
    return made


def alias(name: str, module: str, holder: list[Any]) -> Any:
    """Return what `type name = …` makes; `set_alias` gives it a value."""
    namespace: dict[str, Any] = {"__name__": module, "value": lambda: holder[0]}
    exec(f"type {name} = value()", namespace)
    return namespace[name]


def set_alias(alias: Any, state: tuple[list[Any], Any]) -> None:
    """Give an alias its value."""
    holder, value = state
    holder.append(value)


def set_enum(kind: Any, state: tuple[Callable[[Any, Any], Any], Any, dict[str, dict[str, Any]]]) -> None:
    """Give an enum what it has, and its members what they have."""
    set_state, state_of_class, own = state
    set_state(kind, state_of_class)
    for name, attributes in own.items():
        vars(kind[name]).update(attributes)


def class_of(qualified_name: str, bases: list[type], make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return a class that `make` makes, without calling `__init_subclass__` of these bases."""
    hooks = [(base, vars(base)["__init_subclass__"]) for base in bases if "__init_subclass__" in vars(base)]
    try:
        for base, _ in hooks:
            _set_hook(base, classmethod(partial(_pass_on, base)))
        made = make(*arguments)
        made.__qualname__ = qualified_name
        return made
    finally:
        for base, hook in hooks:
            _set_hook(base, hook)


def _set_hook(base: type, hook: Any) -> None:
    type.__setattr__(base, "__init_subclass__", hook)


def _pass_on(base: Any, made: Any, **options: Any) -> None:
    super(base, made).__init_subclass__()
