"""From JSON to objects of the caller's classes: the other way round than `unstructure`."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

import attrs

from ..errors import OptionError, WireError
from ..records.status import StepError
from ..records.steps import Json, StepOutcome
from .class_schema import schema_of
from .class_types import (
    array_of,
    choices_of,
    fields_of_record,
    is_class,
    is_dataclass_of_pydantic,
    is_model,
    is_record,
    mapping_of,
    name_of,
    not_a_class,
    union_of,
    without_wrapping,
)
from .codec import exact_converter, read_float, read_str, unexpected
from .strict_json import shortened, write_json


def structure(outcome: StepOutcome, cls: Any) -> Any:
    """Return the `structured` of an outcome as an object; see `StepOutcome.structured_as`."""
    is_pydantic = is_model(cls) or is_dataclass_of_pydantic(cls)
    if not is_pydantic and not is_record(cls):
        raise not_a_class(cls)
    value = outcome.structured
    if value is None:
        why = "the step has failed" if not outcome.success else "give its spec an output_schema"
        raise WireError(f"there is no structured value; {why}", "structured")
    if is_pydantic:
        return _validated(value, cls)
    _check_fields(cls)
    try:
        return _converter().structure(value, cls)
    except WireError as error:
        raise WireError(error.reason, f"structured{error.field}") from None


@functools.lru_cache(128)
def _check_fields(cls: Any) -> None:
    """Refuse a class without a schema, even if the value at hand has nothing of what is at fault."""
    schema_of(cls)


def _validated(value: Json, cls: Any) -> Any:
    """Have pydantic make an object of a value."""
    from pydantic import TypeAdapter, ValidationError

    if is_model(cls) and not hasattr(cls, "model_validate_json"):
        raise OptionError(f"{cls.__name__} is a model of pydantic 1; it must be one of pydantic 2")
    # As JSON: from values of Python a strict model makes neither dates nor tuples.
    text = write_json(value)
    try:
        return cls.model_validate_json(text) if is_model(cls) else TypeAdapter(cls).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    raise WireError(first["msg"], "structured" + "".join(map(_step, first["loc"])))


def _step(key: str | int) -> str:
    """Return the part of a path that leads to a field or an item."""
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{shortened(repr(key))}]"


# --- the converter: exact, and by the types that `schema_of` takes; the last hook that applies to a type wins ---------


@functools.cache
def _converter() -> Any:
    converter = exact_converter()
    # cattrs takes an enum of strings or integers for a string or an integer.
    for plain, read in ((str, read_str), (int, _read_int), (float, read_float)):
        converter.register_structure_hook(plain, functools.partial(_read_plain_or_choice, read))
    converter.register_structure_hook(enum.Enum, _read_choice)
    converter.register_structure_hook(type(None), _read_none)
    converter.register_structure_hook(datetime, _read_datetime)
    converter.register_structure_hook(date, _read_date)
    converter.register_structure_hook_func(lambda kind: array_of(kind) is not None, _read_array)
    converter.register_structure_hook_func(lambda kind: mapping_of(kind) is not None, _read_mapping)
    converter.register_structure_hook_func(is_record, _read_record)
    converter.register_structure_hook_func(
        lambda kind: not is_class(kind) and choices_of(kind) is not None, _read_choice
    )
    converter.register_structure_hook_func(lambda kind: union_of(kind) is not None, _read_union)
    return converter


def _read_at(key: str | int, value: Json, kind: Any) -> Any:
    """Read a field or an item; its errors have the way to it."""
    try:
        return _converter().structure(value, without_wrapping(kind))
    except WireError as error:
        raise WireError(error.reason, _step(key) + error.field) from None


def _read_plain_or_choice(read: Callable[[Json, Any], Any], value: Json, kind: Any) -> Any:
    return read(value, kind) if choices_of(kind) is None else _read_choice(value, kind)


def _read_int(value: Json, _: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # to JSON Schema, 3.0 is an integer
    if not isinstance(value, int) or isinstance(value, bool):
        raise unexpected("an integer", value)
    return value


def _read_none(value: Json, _: Any) -> None:
    if value is not None:
        raise unexpected("null", value)


def _read_datetime(value: Json, _: Any) -> datetime:
    if isinstance(value, str):
        try:
            # Python 3.10 does not know the Z.
            return datetime.fromisoformat(f"{value[:-1]}+00:00" if value[-1:] in ("Z", "z") else value)
        except ValueError:
            pass
    raise unexpected("a date and time in ISO 8601", value)


def _read_date(value: Json, _: Any) -> date:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
    raise unexpected("a date in ISO 8601", value)


def _read_choice(value: Json, kind: Any) -> Any:
    choices = choices_of(kind) or []
    for choice, in_json in choices:
        if value == in_json and isinstance(value, bool) == isinstance(in_json, bool):
            return choice
    raise unexpected(f"one of {', '.join(write_json(in_json) for _, in_json in choices)}", value)


def _read_array(value: Json, kind: Any) -> Any:
    array = array_of(kind)
    assert array is not None, "the hook is for arrays"
    if not isinstance(value, list):
        raise unexpected("an array", value)
    kinds = [array.item] * len(value) if array.items is None else array.items
    if len(value) != len(kinds):
        raise WireError(f"expected an array of {len(kinds)} items, got {len(value)}")
    items = [_read_at(index, item, kinds[index]) for index, item in enumerate(value)]
    try:
        return array.make(items)
    except TypeError:  # of a set
        raise WireError("expected items that can be in a set, got objects or arrays") from None


def _read_mapping(value: Json, kind: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise unexpected("an object", value)
    return {key: _read_at(key, item, mapping_of(kind)) for key, item in value.items()}


def _read_union(value: Json, kind: Any) -> Any:
    """Read what the first type takes; of several classes, one that knows the most fields of the value goes first."""
    members = [without_wrapping(member) for member in union_of(kind) or ()]
    closest = unexpected(shortened(" or ".join(map(name_of, members)), 200), value)
    for member in sorted(members, key=lambda member: -_fields_known(member, value)):
        try:
            return _converter().structure(value, member)
        except WireError as error:
            if len(error.field) > len(closest.field):
                closest = error
    raise closest


def _fields_known(kind: Any, value: Json) -> int:
    if not is_record(kind) or not isinstance(value, dict):
        return 0
    return sum(field.name in value for field in _fields_of(kind))


def _read_record(value: Json, cls: Any) -> Any:
    if not isinstance(value, Mapping):
        raise unexpected("an object", value)
    values = {}
    for field in _fields_of(cls):
        if field.name in value:
            values[field.argument] = _read_at(field.name, value[field.name], field.type)
        elif field.is_required:
            raise WireError(f"missing; {cls.__name__} requires it", _step(field.name))
    try:
        return cls(**values)
    except Exception as error:  # of a validator, a converter, or `__post_init__`
        reason = f"{cls.__name__} refuses it: {shortened(str(StepError.of(error)), 200)}"
        raise WireError(reason, _refused_field(cls, values, error)) from None


_fields_of = functools.lru_cache(1024)(fields_of_record)


def _refused_field(cls: Any, values: Mapping[str, Any], error: Exception) -> str:
    """Return the way to the field whose validator has raised an error; `""` if none has.

    The error does not tell, so all validators are asked again.
    """
    for field in attrs.fields(cls) if attrs.has(cls) else ():
        argument = field.alias or field.name
        if field.validator is None or argument not in values:
            continue
        try:
            field.validator(None, field, values[argument])
        except Exception as again:
            if type(again) is type(error) and str(again) == str(error):
                return _step(field.name)
    return ""
