"""Converts records to JSON and back, without any coercion. The only module that uses cattrs.

cattrs is imported lazily: slow, and many programs read no JSON.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs

from ..errors import WireError
from ..records.steps import Json, R
from .strict_json import RepeatedKeys, check_json, check_text, described, parse_json, shortened, write_json

if TYPE_CHECKING:
    from cattrs import ClassValidationError, Converter


class RecordCodec:
    """The only implementation of `records.steps.WireCodec`."""

    def to_dict(self, record: Any) -> dict[str, Json]:
        value = fields_of(record)
        check_json(value)
        return value

    def from_dict(self, cls: type[R], mapping: Any) -> R:
        return _structured(cls, mapping)

    def to_json(self, record: Any) -> str:
        return write_json(fields_of(record))

    def from_json(self, cls: type[R], text: str | bytes) -> R:
        return _structured(cls, parse_json(text))


def as_mapping(value: Any) -> Mapping[str, Json]:
    """Return `value` if it is a mapping; on the wire every record is one.

    Raises:
        WireError: It is something else.
    """
    if type(value) is dict or isinstance(value, Mapping):
        return value
    raise WireError(f"expected an object, got {described(value)}")


def refuse_repeated(mapping: Mapping[str, Json], names: Container[str]) -> None:
    """Refuse an object whose text has one of the known fields, `names`, more than once.

    Unknown fields may be repeated: they are ignored.

    Raises:
        WireError: A known field is repeated; the error names it.
    """
    seen: set[str] = set()
    for name, _ in mapping.pairs if isinstance(mapping, RepeatedKeys) else ():
        if name in seen and name in names:
            raise WireError("duplicate key", name)
        seen.add(name)


def fields_of(record: Any) -> dict[str, Json]:
    """Return the fields for the wire, unchecked, in declared order; optional ones that are `None` are left out."""
    # Not cattrs' unstructure: that would turn an attrs object inside `structured` into a dict, silently.
    fields = ((field, getattr(record, field.name)) for field in attrs.fields(type(record)))
    return {field.name: value for field, value in fields if value is not None or field.default is not None}


def json_converter() -> Converter:
    """Return a new converter for any value, as cattrs configures one for JSON."""
    from cattrs.preconf.json import make_converter

    return make_converter()


def _structured(cls: type[R], value: Any) -> R:
    from cattrs import ClassValidationError

    mapping = as_mapping(value)
    if type(mapping) is not dict:
        refuse_repeated(mapping, [field.name for field in attrs.fields(cast("type[Any]", cls))])
        mapping = dict(mapping)  # because `[]` on a defaultdict would create the missing fields
    try:
        return _converter().structure(mapping, cls)
    except ClassValidationError as error:
        refusal = _named(cls, mapping, error)
    raise refusal  # not above: IPython has no traceback of its own for an error with a group of exceptions as context


def _named(cls: type[Any], mapping: Mapping[str, Json], error: ClassValidationError) -> WireError:
    of_fields, others = error.group_exceptions()
    for cause, note in of_fields:
        if isinstance(cause, WireError):
            return WireError(cause.reason, note.name + cause.field)
        return WireError(f"missing; {cls.__name__} requires it", note.name)
    # All types were right, so a validator of the class refused a value. Its error does not name the field: try each.
    for attribute in attrs.fields(cls):
        try:
            if attribute.validator is not None:
                attribute.validator(None, attribute, mapping.get(attribute.name))
        except (TypeError, ValueError) as refusal:
            return WireError(shortened(str(refusal).removeprefix(f"{attribute.name} "), 200), attribute.name)
    return WireError(shortened(str(others[0]), 200))


@functools.cache
def _converter() -> Converter:
    return exact_converter()


def exact_converter() -> Converter:
    """Return a new converter that coerces nothing; its errors name places relative to the value, as in `".a[0]"`."""
    from cattrs import Converter

    converter = Converter()  # it coerces by default (3 to "3", "7" to 7), so every type gets a hook
    converter.register_structure_hook(str, read_str)
    converter.register_structure_hook(bool, _read_bool)
    converter.register_structure_hook(int, _read_int)
    converter.register_structure_hook(float, read_float)
    converter.register_structure_hook_func(lambda cls: cls is Any, _read_any)
    return converter


# cattrs does not pass the field to a hook, so a hook names places relative to the field, and `_named` puts it in front.


def read_str(value: Json, _: Any) -> str:
    """Return a string that UTF-8 can carry."""
    if not isinstance(value, str):
        raise unexpected("a string", value)
    check_text(value, "")
    return value


def _read_bool(value: Json, _: Any) -> bool:
    if not isinstance(value, bool):
        raise unexpected("true or false", value)
    return value


def _read_int(value: Json, _: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise unexpected("an integer", value)
    return value


def read_float(value: Json, _: Any) -> float:
    """Return any finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise unexpected("a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise unexpected("a finite number", value)
    return number


def _read_any(value: Json, _: Any) -> Json:
    return check_json(value, "")


def unexpected(expected: str, value: Any) -> WireError:
    """Return the error about a value that is something else than what was expected."""
    return WireError(f"expected {expected}, got {described(value)}")
