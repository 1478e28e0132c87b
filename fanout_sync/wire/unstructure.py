"""From any Python value to JSON: data classes, models, dates, sets, arrays, and any nesting of them.

`unstructure` is the word of cattrs, which is imported lazily: slow, and most steps return text or plain JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import UserString, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, ValuesView
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID

import attrs

from ..errors import WireError
from ..records.steps import Json
from .class_types import is_model, is_record
from .codec import json_converter
from .strict_json import MAX_DEPTH, write_json

MOST_ITEMS = 100_000
"""The largest array of numpy that becomes JSON: about 2 MB of text, in memory several times and in every journal."""

BYTES = (bytes, bytearray, memoryview)
"""What is text, if it is UTF-8."""

_ARRAYS_OF_ITEMS = (Sequence, Set, ValuesView, deque)
_UNSET = object()


def unstructure(value: Any) -> Json:
    """Return `value` as JSON data.

    Each part is converted by its own type, never by an annotation, so that no field of a subclass is lost. Sets are
    sorted if their items can be. Keys that are numbers, booleans or `None` become what `json.dumps` makes of them.
    Iterators and generators are not touched.

    Returns:
        A new value. What JSON cannot hold is in it unchanged; `write_json` refuses it and says where it is.

    Raises:
        WireError: It contains itself or is nested too deeply, two keys of a mapping are the same in JSON, or an array
            has more than `MOST_ITEMS` items.
        Exception: Code of the value's class raised it.
    """
    return _unstructure(value, MAX_DEPTH)


def _unstructure(value: Any, room: int) -> Json:
    if value is None or isinstance(value, bool):
        return value
    for kind, exact in _EXACT.items():
        if isinstance(value, kind):
            return exact(value)
    if room == 0:
        raise WireError(f"it contains itself, or is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return _object(value, room - 1)
    if isinstance(value, _ARRAYS_OF_ITEMS) and not isinstance(value, (*BYTES, UserString)):
        return [_unstructure(item, room - 1) for item in _in_order(value)]
    converted = _converter().unstructure(value)
    return value if type(converted) is type(value) else _unstructure(converted, room - 1)


_EXACT: dict[type, Callable[[Any], Json]] = {str: str.__str__, int: int.__int__, float: float.__float__}
"""What makes a plain value of a subclass, such as an `IntEnum` or a `numpy.float64`."""


def _object(mapping: Mapping[Any, Any], room: int) -> dict[Any, Json]:
    result: dict[Any, Json] = {}
    for key, item in mapping.items():
        name = _key(key, room)
        if name in result:
            raise WireError(f"two keys are both {name!r} in JSON")
        result[name] = _unstructure(item, room)
    return result


def _key(key: Any, room: int) -> Any:
    """Return the key as a string, or unchanged if it cannot be one."""
    plain = _unstructure(key, room)
    if isinstance(plain, str):
        return plain
    return write_json(plain) if plain is None or isinstance(plain, (int, float)) else key


def _in_order(items: Iterable[Any]) -> Iterable[Any]:
    if not isinstance(items, Set):
        return items
    try:
        return sorted(items)  # the order of a set of strings differs between processes
    except Exception:  # items that cannot be compared
        return items


# --- one level of what is no mapping and no sequence ---------------------------------------------------------------


@functools.cache
def _converter() -> Any:
    converter = json_converter()
    hooks: dict[type, Callable[[Any], Any]] = {
        **dict.fromkeys(BYTES, _text_or_bytes),
        **dict.fromkeys((Decimal, UUID, PurePath, UserString), str),
        date: date.isoformat,
        time: time.isoformat,
        timedelta: timedelta.total_seconds,
    }
    for kind, hook in hooks.items():
        converter.register_unstructure_hook(kind, hook)
    # The last one that applies to a class wins.
    converter.register_unstructure_hook_func(is_record, _fields_of)
    converter.register_unstructure_hook_func(is_model, _dump_of_model)
    converter.register_unstructure_hook_func(_is_array, _items_of_array)
    return converter


def _text_or_bytes(value: bytes | bytearray | memoryview) -> str | bytes:
    data = bytes(value)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _fields_of(record: Any) -> dict[str, Any]:
    """Return all fields that have a value, also those that `__init__` does not take, which cattrs would leave out."""
    kind = type(record)
    fields: Iterable[Any] = attrs.fields(kind) if attrs.has(kind) else dataclasses.fields(kind)
    values = ((field.name, getattr(record, field.name, _UNSET)) for field in fields)
    return {name: value for name, value in values if value is not _UNSET}


def _dump_of_model(model: Any) -> Any:
    if not hasattr(model, "model_dump"):  # version 1
        return model.dict()
    try:
        return model.model_dump(mode="json")
    except Exception:  # pydantic makes no JSON of some field: convert that one by its own type
        dumped = model.model_dump()
    if not isinstance(dumped, dict):  # of a `RootModel`
        return dumped
    return {name: _dump_of_field(model, name, value) for name, value in dumped.items()}


def _dump_of_field(model: Any, name: str, value: Any) -> Any:
    """Return a field as pydantic makes JSON of it; where it does not, the value itself, to be converted.

    Args:
        model: The model.
        name: The name of the field.
        value: What pydantic makes of the field for Python.
    """
    try:
        return model.model_dump(mode="json", include={name})[name]
    except Exception:
        own = getattr(model, name, value)
        # Only one part of it may be at fault.
        return own if is_model(type(own)) or isinstance(own, (Mapping, *_ARRAYS_OF_ITEMS)) else value


def _is_array(kind: Any) -> bool:
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(kind, type) and issubclass(kind, (numpy.ndarray, numpy.generic))


def _items_of_array(array: Any) -> Any:
    if array.size > MOST_ITEMS:
        raise WireError(
            f"an array of {array.size} items is too large, at most {MOST_ITEMS} become JSON; save it in a file and "
            "return the path"
        )
    if array.dtype.kind == "M":  # of nanoseconds `tolist` would make integers
        return array.astype(str).tolist()
    return array.tolist()
