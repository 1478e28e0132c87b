"""The classes and the types of fields that JSON Schemas are made of, and JSON is converted to."""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from datetime import date, datetime
from typing import (  # noqa: UP035 - annotations of callers may have `Tuple`
    Annotated,
    Any,
    Literal,
    Tuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import attrs
from attrs import frozen

from ..errors import OptionError
from ..formatting import describe

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
"""What JSON Schema calls the types that JSON has."""

TIMES = {datetime: "date-time", date: "date"}
"""The formats of strings that stand for moments and days."""

_ARRAYS: dict[Any, Callable[[Any], Any]] = {
    **dict.fromkeys((list, Sequence, MutableSequence), list),
    **{kind: kind for kind in (tuple, set, frozenset)},
}
"""What makes the value of a type that is an array in JSON."""

_TAKEN = (
    "str, int, float, bool, None, Any, datetime, date, enums and Literal of plain values, unions, lists, tuples, sets, "
    "dicts with str keys, attrs classes and dataclasses"
)


@frozen
class RecordField:
    """A field of an attrs class or a dataclass.

    Attributes:
        name: Its name, in JSON as well.
        argument: What `__init__` calls it.
        type: Its type, no text.
        is_required: Whether it has no default.
    """

    name: str
    argument: str
    type: Any
    is_required: bool


@frozen
class ArrayType:
    """A type that is an array in JSON.

    Attributes:
        make: Makes the value of a list of its items.
        item: The type of each item, if they all have the same.
        items: The types of the items, if each has its own; otherwise `None`.
    """

    make: Callable[[Any], Any]
    item: Any
    items: tuple[Any, ...] | None = None


def is_class(kind: Any) -> bool:
    """Return whether it is a class, and no `list[int]` or the like, which Python 3.10 takes for one."""
    return isinstance(kind, type) and get_origin(kind) is None


def is_record(kind: Any) -> bool:
    """Return whether it is an attrs class or a dataclass."""
    return is_class(kind) and (attrs.has(kind) or dataclasses.is_dataclass(kind))


def is_model(kind: Any) -> bool:
    """Return whether it is a class of pydantic, of version 1 or 2, which need not be imported for that."""
    return is_class(kind) and any(
        base.__name__ == "BaseModel" and base.__module__.partition(".")[0] == "pydantic" for base in kind.__mro__
    )


def is_dataclass_of_pydantic(kind: Any) -> bool:
    """Return whether it is a dataclass that pydantic validates."""
    return is_class(kind) and dataclasses.is_dataclass(kind) and "__pydantic_validator__" in vars(kind)


def fields_of_record(cls: type[Any]) -> list[RecordField]:
    """Return the fields that make an object of an attrs class or a dataclass.

    Raises:
        OptionError: One has no type, or a type that cannot be resolved.
    """
    hints = _hints_of(cls)
    if attrs.has(cls):
        return [
            RecordField(
                field.name, field.alias or field.name, _type_of(cls, field, hints), field.default is attrs.NOTHING
            )
            for field in attrs.fields(cls)
            if field.init
        ]
    for name, hint in hints.items():
        if isinstance(hint, dataclasses.InitVar):
            raise OptionError(f"{cls.__name__}.{name} is no field of an object, but only an argument (InitVar)")
    return [
        RecordField(field.name, field.name, _type_of(cls, field, hints), _has_no_default(field))
        for field in dataclasses.fields(cls)
        if field.init
    ]


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _hints_of(cls: type[Any]) -> dict[str, Any]:
    try:
        try:
            return get_type_hints(cls, include_extras=True)
        except NameError:  # perhaps its own name, which only a function knows that it is defined in
            return get_type_hints(cls, localns={**vars(cls), cls.__name__: cls}, include_extras=True)
    except Exception as error:  # annotations in quotes are evaluated, and may raise anything
        raise OptionError(
            f"the annotations of {cls.__name__} cannot be resolved: {error}; define what they name outside of functions"
        ) from None


def _type_of(cls: type[Any], field: Any, hints: dict[str, Any]) -> Any:
    kind = hints.get(field.name, field.type)
    if kind is None and field.name not in hints:
        raise OptionError(f"{cls.__name__}.{field.name} has no type")
    return kind


def without_wrapping(kind: Any) -> Any:
    """Return the type that an `Annotated` or a `NewType` stands for."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif hasattr(kind, "__supertype__"):
            kind = kind.__supertype__
        else:
            return type(None) if kind is None else kind


def union_of(kind: Any) -> tuple[Any, ...] | None:
    """Return the members of a union; `None` if it is none."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else None


def choices_of(kind: Any) -> list[tuple[Any, Any]] | None:
    """Return the values of an enum or a `Literal`, each with what it is in JSON; `None` if it is neither."""
    if get_origin(kind) is Literal:
        return [(value, value.value if isinstance(value, enum.Enum) else value) for value in get_args(kind)]
    if is_class(kind) and issubclass(kind, enum.Enum) and not issubclass(kind, enum.Flag):
        return [(member, member.value) for member in kind]
    return None


def array_of(kind: Any) -> ArrayType | None:
    """Return what a type of arrays is made of; `None` if it is none."""
    make = _ARRAYS.get(get_origin(kind) or kind)
    if make is None:
        return None
    arguments = get_args(kind)
    if make is not tuple:
        return ArrayType(make, arguments[0] if arguments else Any)
    if kind in (tuple, Tuple):  # noqa: UP006 - as above
        return ArrayType(make, Any)
    if len(arguments) == 2 and arguments[1] is ...:
        return ArrayType(make, arguments[0])
    return ArrayType(make, None, () if arguments == ((),) else arguments)  # what Python 3.10 has for `Tuple[()]`


def can_be_in_set(kind: Any) -> bool:
    """Return whether the values of a type can be in a set, as far as the type tells."""
    kind = without_wrapping(kind)
    if (members := union_of(kind)) is not None:
        return all(map(can_be_in_set, members))
    return getattr(get_origin(kind) or kind, "__hash__", None) is not None


def mapping_of(kind: Any) -> Any:
    """Return the type of the values of a type of objects with any keys; `None` if it is none."""
    if kind not in (dict, Mapping) and get_origin(kind) not in (dict, Mapping):
        return None
    key, value = get_args(kind) or (str, Any)
    return value if without_wrapping(key) is str else None


def no_schema_of(kind: Any, where: str) -> OptionError:
    """Return the error about a type that is not taken."""
    return OptionError(f"{where} has the type {name_of(kind)}, of which no JSON Schema is made; use {_TAKEN}")


def name_of(kind: Any) -> str:
    """Return a type as it is written."""
    return "None" if kind is type(None) else kind.__qualname__ if is_class(kind) else repr(kind)


def not_a_class(value: Any) -> OptionError:
    """Return the error about an argument that is no class with fields."""
    hint = f"; pass the class {type(value).__name__}" if is_record(type(value)) or is_model(type(value)) else ""
    return OptionError(f"cls must be a pydantic model, an attrs class or a dataclass, got {describe(value)}{hint}")
