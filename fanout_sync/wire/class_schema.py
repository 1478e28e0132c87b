"""`schema_of`: the JSON Schema of a class."""

from __future__ import annotations

import math
import re
from typing import Any

from ..errors import OptionError
from ..records.steps import Json
from .class_types import (
    PLAIN,
    TIMES,
    array_of,
    can_be_in_set,
    choices_of,
    fields_of_record,
    is_class,
    is_dataclass_of_pydantic,
    is_model,
    is_record,
    mapping_of,
    no_schema_of,
    not_a_class,
    union_of,
    without_wrapping,
)

__all__ = ["schema_of"]


def schema_of(cls: type[Any]) -> dict[str, Json]:
    """Return a JSON Schema (2020-12) of a class, for the `output_schema` of a spec.

    `StepOutcome.structured_as` makes an object of each value that fits it; only dates must be dates besides, and
    validators of the class satisfied.

    Args:
        cls: A pydantic model, which makes the schema itself; or an attrs class or a dataclass. The fields of those may
            be `str`, `int`, `float`, `bool`, `None`, `Any`, `datetime`, `date`, an enum or a `Literal` of plain values,
            a union, a list, tuple or set, a dict with `str` keys, and another attrs class or dataclass, also itself. A
            field with a default is not required.

    Raises:
        OptionError: `cls` is something else, or a field has another type; the error names it.
    """
    if is_model(cls) or is_dataclass_of_pydantic(cls):
        return _schema_of_pydantic(cls)
    if not is_record(cls):
        raise not_a_class(cls)
    return _Definitions().schema_of(cls)


def _schema_of_pydantic(cls: Any) -> dict[str, Json]:
    try:
        if is_model(cls):
            schema: dict[str, Json] = cls.model_json_schema()
        else:
            from pydantic import TypeAdapter

            schema = TypeAdapter(cls).json_schema()
    except Exception as error:  # of a model of pydantic 1, too: it has no such method
        reason = str(error).partition("\n")[0]
        raise OptionError(f"pydantic 2 makes no JSON Schema of {cls.__name__}: {reason}") from None
    return schema


class _Definitions:
    """The schemas of the classes that are part of a schema."""

    def __init__(self) -> None:
        self._names: dict[type[Any], str] = {}
        self._schemas: dict[str, Json] = {}
        self._is_used = set[str]()

    def schema_of(self, cls: type[Any]) -> dict[str, Json]:
        name = self._define(cls)
        if name in self._is_used:  # it has fields of its own kind
            return {"$ref": f"#/$defs/{name}", "$defs": self._schemas}
        schema: dict[str, Json] = self._schemas.pop(name)
        return {**schema, "$defs": self._schemas} if self._schemas else schema

    def _define(self, cls: type[Any]) -> str:
        name = self._names.get(cls)
        if name is None:
            name = self._names[cls] = self._free_name(cls)
            self._schemas[name] = None  # so that it stands before those that it consists of
            self._schemas[name] = self._object(cls)
        return name

    def _free_name(self, cls: type[Any]) -> str:
        name = base = re.sub(r"\W", "_", cls.__name__)
        number = 1
        while name in self._schemas:
            number += 1
            name = f"{base}_{number}"
        return name

    def _object(self, cls: type[Any]) -> dict[str, Json]:
        fields = fields_of_record(cls)
        schema: dict[str, Json] = {
            "type": "object",
            "properties": {field.name: self._value(field.type, f"{cls.__name__}.{field.name}") for field in fields},
        }
        if required := [field.name for field in fields if field.is_required]:
            schema["required"] = required
        return schema

    def _value(self, kind: Any, where: str) -> dict[str, Json]:
        """Return the schema of the values of a type.

        Args:
            kind: The type.
            where: The field that has it, for errors.
        """
        kind = without_wrapping(kind)
        if kind is Any:
            return {}
        if (members := union_of(kind)) is not None:
            return _any_of([self._value(member, where) for member in members])
        if (choices := choices_of(kind)) is not None:
            return {"enum": _plain_choices(choices, kind, where)}
        if is_record(kind) and not is_dataclass_of_pydantic(kind):
            name = self._define(kind)
            self._is_used.add(name)
            return {"$ref": f"#/$defs/{name}"}
        return self._plain_or_container(kind, where)

    def _plain_or_container(self, kind: Any, where: str) -> dict[str, Json]:
        if (array := array_of(kind)) is not None:
            if array.items is not None:
                count = len(array.items)
                items = {"prefixItems": [self._value(item, where) for item in array.items]} if count else {}
                return {"type": "array", **items, "minItems": count, "maxItems": count}
            item = self._value(array.item, where)
            schema = {"type": "array", **({"items": item} if item else {})}
            if array.make not in (set, frozenset):
                return schema
            if not can_be_in_set(array.item):
                raise no_schema_of(kind, where)
            return {**schema, "uniqueItems": True}
        if (value := mapping_of(kind)) is not None:
            values = self._value(value, where)
            return {"type": "object", **({"additionalProperties": values} if values else {})}
        if is_class(kind) and kind in PLAIN:
            return {"type": PLAIN[kind]}
        if is_class(kind) and kind in TIMES:
            return {"type": "string", "format": TIMES[kind]}
        raise no_schema_of(kind, where)


def _any_of(schemas: list[dict[str, Json]]) -> dict[str, Json]:
    """Return the schema of a union; of plain types it is a list of them, about which errors are clearer."""
    if all(list(schema) == ["type"] and isinstance(schema["type"], str) for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": schemas}


def _plain_choices(choices: list[tuple[Any, Any]], kind: Any, where: str) -> list[Json]:
    for _, value in choices:
        is_plain = value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))
        if not is_plain:
            raise no_schema_of(kind, where)
    if not choices:
        raise no_schema_of(kind, where)
    return [value for _, value in choices]
