"""The parts of an object, each with what leads to it in Python. Nothing here runs code of the object's class."""

from __future__ import annotations

import gc
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Part = tuple[str, Any]
"""What is appended to the path of an object, such as `".client"` or `"['ask']"`, and the part that it leads to."""

_LONGEST_KEY = 40
_PLAIN_KEYS = (str, bytes, float, bool, type(None))


def parts_of(value: Any) -> Iterator[Part]:
    """Yield the parts of `value`: items, attributes, its class, and what a function or class refers to."""
    # By `type` and not by `isinstance`, which asks the object for its `__class__`.
    kind = type(value)
    for builtin, parts in _PARTS.items():
        if issubclass(kind, builtin):
            yield from parts(value)
    if not issubclass(kind, (type, types.FunctionType)):
        yield from _attributes(value)
        yield from ((f" (class {name_of(parent)})", parent) for parent in kind.__mro__)


def namespace_of(kind: type) -> Mapping[str, Any]:
    """Return the `__dict__` of a class, also if its metaclass hides it."""
    namespace: Mapping[str, Any] = _NAMESPACE.__get__(kind)
    return namespace


def name_of(kind: type) -> str:
    """Return the qualified name of a class, also if its metaclass hides it."""
    name: str = _QUALNAME.__get__(kind)
    return name


_NAMESPACE: Any = type.__dict__["__dict__"]
_QUALNAME: Any = type.__dict__["__qualname__"]


# Attributes -----------------------------------------------------------------------------------------------------------


def _attributes(value: Any) -> Iterator[Part]:
    yield from _named(_instance_dict(value))
    for kind in () if issubclass(type(value), _RUNNING) else type(value).__mro__:
        for name, descriptor in namespace_of(kind).items():
            if type(descriptor) is types.MemberDescriptorType:  # a slot
                try:
                    yield f".{name}", descriptor.__get__(value)
                except AttributeError:  # it is empty
                    continue


_RUNNING = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.FrameType, types.TracebackType)
"""What has a frame, which leads to nearly everything."""


def _instance_dict(value: Any) -> Mapping[Any, Any]:
    for kind in type(value).__mro__:
        descriptor = namespace_of(kind).get("__dict__")
        if type(descriptor) is types.GetSetDescriptorType:
            found: Mapping[Any, Any] = descriptor.__get__(value)
            return found
    return {}


def _named(attributes: Mapping[Any, Any]) -> Iterator[Part]:
    for name, part in _items(attributes):
        is_name = type(name) is str and name.isidentifier()
        yield (f".{name}" if is_name else f".__dict__{_subscript(name)}"), part


# Containers -----------------------------------------------------------------------------------------------------------


def _items(mapping: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    try:
        return list(mapping.items() if type(mapping) is not dict else dict.items(mapping))
    except RuntimeError:  # another thread is changing it
        return []


def _of_dict(value: dict[Any, Any]) -> Iterator[Part]:
    for key, part in list(dict.items(value)):
        yield _subscript(key), part
        yield f" (key {_key(key)})", key


def _of_mappingproxy(value: Any) -> Iterator[Part]:
    for mapping in gc.get_referents(value):  # iterating over the proxy would call methods of what it stands for
        if type(mapping) is dict:
            yield from _of_dict(mapping)


def _of_sequence(iterate: Callable[[Any], Iterable[Any]]) -> Callable[[Any], Iterator[Part]]:
    return lambda value: ((f"[{index}]", part) for index, part in enumerate(list(iterate(value))))


def _of_set(iterate: Callable[[Any], Iterable[Any]]) -> Callable[[Any], Iterator[Part]]:
    return lambda value: ((" (an element)", part) for part in list(iterate(value)))


def _subscript(key: Any) -> str:
    return f"[{_key(key)}]"


def _key(key: Any) -> str:
    """Return a short text for a key of a dictionary; of classes of the caller only the name."""
    kind = type(key)
    if kind in _PLAIN_KEYS and (kind not in (str, bytes) or len(key) <= _LONGEST_KEY):
        return repr(key)
    if kind in (str, bytes):
        return f"{key[: _LONGEST_KEY // 2]!r}…"
    if kind is int and key.bit_length() <= 64:
        return repr(key)
    if kind is tuple and len(key) <= 4:
        return f"({', '.join(map(_key, key))}{',' if len(key) == 1 else ''})"
    return f"<{name_of(kind)}>"


# Functions and classes ------------------------------------------------------------------------------------------------


def _of_function(function: types.FunctionType) -> Iterator[Part]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield from ((f" (closure {name})", part) for _, part in _of_cell(cell))
    names = [name for name in sorted(_names_in(code)) if name in function.__globals__]
    yield from ((f" (global {name})", function.__globals__[name]) for name in names)
    defaults = function.__defaults__ or ()
    with_default = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    by_name = [*zip(with_default, defaults, strict=False), *(function.__kwdefaults__ or {}).items()]
    yield from ((f" (default of {name})", default) for name, default in by_name)
    yield from _named(function.__dict__)
    yield ".__annotations__", function.__annotations__


def _names_in(code: types.CodeType) -> set[str]:
    """Return the names of globals and attributes in a code object and in those of its inner functions."""
    names, inner = set(code.co_names), [code]
    while inner:
        nested = [const for const in inner.pop().co_consts if type(const) is types.CodeType]
        inner += nested
        names.update(*(part.co_names for part in nested))
    return names


def _of_cell(cell: types.CellType) -> Iterator[Part]:
    try:
        yield ".cell_contents", cell.cell_contents
    except ValueError:  # it is empty
        return


def _of_class(kind: type) -> Iterator[Part]:
    yield from _named(namespace_of(kind))
    yield from ((f" (base class {name_of(base)})", base) for base in kind.__bases__)
    yield f" (metaclass {name_of(type(kind))})", type(kind)


def _of_method_object(value: Any) -> Iterator[Part]:
    yield "", value.__func__  # `Class.name` is the function itself


def _of_builtin_method(value: types.BuiltinMethodType) -> Iterator[Part]:
    yield ".__self__", value.__self__


_PARTS: dict[type, Callable[[Any], Iterator[Part]]] = {
    dict: _of_dict,
    types.MappingProxyType: _of_mappingproxy,
    list: _of_sequence(list.__iter__),
    tuple: _of_sequence(tuple.__iter__),
    deque: _of_sequence(deque.__iter__),
    set: _of_set(set.__iter__),
    frozenset: _of_set(frozenset.__iter__),
    types.FunctionType: _of_function,
    types.CellType: _of_cell,
    type: _of_class,
    staticmethod: _of_method_object,
    classmethod: _of_method_object,
    types.BuiltinMethodType: _of_builtin_method,
}
