"""JSON Schemas: which are taken, what fits them, and that the network is never used."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from bounds import HANG_BOUND_S

from fanout_sync.executors.structured import validation
from fanout_sync.executors.structured.validation import MOST_ERRORS, MOST_SCHEMAS, compiled
from fanout_sync.wire.schema_text import NotASchema

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"connects to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


FITS: list[tuple[Any, Any, bool]] = [
    (True, {"a": 1}, True),
    (False, {"a": 1}, False),
    ({}, None, True),
    ({"type": "integer"}, 3.0, True),
    ({"type": "integer"}, True, False),
    ({"enum": [1]}, True, False),
    ({"type": "string", "format": "date"}, "no date", True),
    ({"type": "array", "prefixItems": [{"type": "string"}]}, [1], False),
    ({"$schema": DRAFT_2020, "prefixItems": [{"type": "string"}]}, [1], False),
    ({"$schema": DRAFT_7, "prefixItems": [{"type": "string"}]}, [1], True),
    ({"$schema": DRAFT_7, "items": [{"type": "string"}]}, [1], False),
    ({"$schema": DRAFT_7.rstrip("#"), "items": [{"type": "string"}]}, [1], False),
    ({"$schema": DRAFT_4, "minimum": 1, "exclusiveMinimum": True}, 1, False),
    ({"$schema": DRAFT_2019, "properties": {"a": {"$recursiveRef": "#"}}}, {"a": {"a": {}}}, True),
    ({"properties": {"a": {"$ref": "#"}}, "type": "object"}, {"a": {"a": 1}}, False),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}, 1, False),
    ({"$id": "http://example.com/a", "$defs": {"b": {"$id": "b", "type": "string"}}, "$ref": "b"}, 1, False),
    ({"$ref": DRAFT_2020}, {"type": "object"}, True),
    ({"$ref": DRAFT_2020}, {"type": "nonsense"}, False),
    ({"properties": {"$ref": {"type": "string"}}}, {"$ref": 1}, False),
    ({"const": {"$ref": "http://example.com"}}, {"$ref": "http://example.com"}, True),
]


@pytest.mark.parametrize(("schema", "value", "fits"), FITS)
def test_whether_a_value_fits(schema: Any, value: Any, fits: bool) -> None:
    """The dialect is that of `$schema`, by default 2020-12; formats are not asserted; `$ref` stays in the schema."""
    assert compiled(schema).accepts(value) is fits
    assert bool(compiled(schema).errors(value)) is not fits


class Person:
    """A class in the place of a schema."""


REFUSED: list[tuple[Any, str]] = [
    (5, "$: 5 is not of type 'object', 'boolean'"),
    ("object", "$: 'object' is not of type"),
    ([], "$: [] is not of type"),
    ({"type": "strng"}, "$.type: 'strng' is not valid"),
    ({"properties": {"a": {"required": "b"}}}, "$.properties.a.required: 'b' is not of type 'array'"),
    ({"pattern": "("}, "$.pattern: '(' is not a 'regex'"),
    ({"$schema": DRAFT_4, "exclusiveMinimum": 1}, "is not of type 'boolean'"),
    ({"$schema": 5}, "5 is not of type 'string'"),
    ({"$schema": "https://example.com/mine"}, "'https://example.com/mine' is no dialect that is known here"),
    ({"$schema": "http://["}, "it cannot be used: ValueError"),
    (
        {"$ref": "http://127.0.0.1:9/schema"},
        "the reference 'http://127.0.0.1:9/schema' leads nowhere; nothing is fetched",
    ),
    ({"$ref": "https://example.com/schema"}, "the reference 'https://example.com/schema' leads nowhere"),
    ({"$ref": "file:///etc/passwd"}, "the reference 'file:///etc/passwd' leads nowhere"),
    ({"$id": "http://example.com/a/", "properties": {"b": {"$ref": "other"}}}, "the reference 'other' leads nowhere"),
    ({"items": {"$ref": "#/$defs/nope"}}, "the reference '#/$defs/nope' leads nowhere"),
    ({"$ref": "#/own/a", "own": {"a": {"$ref": "#/own/b"}}}, "the reference '#/own/b' leads nowhere"),
    ({"title": "x", "$ref": "#/title"}, "the reference '#/title' leads to the string 'x'"),
    ({"$ref": "#"}, "refers to itself without end"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "refers to itself without end"),
    ({1: 2}, "expected a string as key"),
    ({"const": float("nan")}, "$.const: expected a finite number"),
    ({"const": (1,)}, "$.const: expected a JSON value, got an instance of tuple"),
    (Person, "it is the class Person; write spec.with_output_schema(Person)"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_what_is_no_schema_is_refused(schema: Any, reason: str) -> None:
    """The reason says where, and what is wrong; a schema that lies elsewhere is never fetched."""
    with pytest.raises(NotASchema) as caught:
        compiled(schema)
    assert reason in str(caught.value)


def test_a_schema_that_nests_too_deeply_is_refused() -> None:
    """So deep that jsonschema gives up: that is an error like any other."""
    schema: dict[str, Any] = {}
    for _ in range(125):
        schema = {"items": schema}
    with pytest.raises(NotASchema, match="it is nested too deeply"):
        compiled(schema)


ORDER = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"type": "object", "properties": {"price": {"type": "number"}}}},
        "note": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"by": {"type": "string"}}}]},
    },
    "required": ["items"],
}


@pytest.mark.parametrize(
    ("value", "errors"),
    [
        ({}, ["$: 'items' is a required property"]),
        ({"items": [{"price": 1}, {"price": "ten"}]}, ["$.items[1].price: 'ten' is not of type 'number'"]),
        ({"items": [], "note": {"by": 7}}, ["$.note.by: 7 is not of type 'string'"]),
        (
            {"items": 1, "note": {"by": 7}},
            ["$.items: 1 is not of type 'array'", "$.note.by: 7 is not of type 'string'"],
        ),
    ],
)
def test_errors_have_paths(value: Any, errors: list[str]) -> None:
    """Each error begins with the place; of a value that fits none of several schemas, the innermost place is told."""
    assert compiled(ORDER).errors(value) == errors


def test_errors_are_short_and_few() -> None:
    """However large a value is and however much is wrong with it, its errors are ten lines at most."""
    errors = compiled({"items": {"type": "integer"}}).errors(["x\n" * 100_000] * 1000)
    assert len(errors) == MOST_ERRORS
    assert all(len(error) < 300 and "\n" not in error for error in errors)


def test_what_cannot_be_checked_does_not_fit() -> None:
    """A schema that turns out to be endless, and a library that fails, are errors of the value, and raise nothing."""
    endless = compiled({"properties": {"a": {"$ref": "#/properties/a"}}})
    assert not endless.accepts({"a": 1})
    assert endless.errors({"a": 1}) == [
        "$: it is nested too deeply to be checked, or the schema refers to itself without end"
    ]
    faulty = compiled({"items": {"$ref": "#/own"}, "own": {"type": "strng"}})  # a schema where no keyword has one
    assert not faulty.accepts([1])
    assert "it cannot be checked" in faulty.errors([1])[0]


def test_values_may_nest_as_deeply_as_a_record_can_hold() -> None:
    """A value of 126 levels is checked to its bottom."""
    value: Any = "bottom"
    for _ in range(126):
        value = [value]
    schema = compiled({"type": ["array", "integer"], "items": {"$ref": "#"}})
    (error,) = schema.errors(value)
    assert error.endswith("'bottom' is not of type 'array', 'integer'")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Yield the schemas that are compiled."""
    done: list[Any] = []
    really = validation._compile
    validation._compiled.cache_clear()

    def note(schema: Any) -> Any:
        done.append(schema)
        return really(schema)

    monkeypatch.setattr(validation, "_compile", note)
    yield done
    validation._compiled.cache_clear()


def test_a_schema_is_compiled_once(compilations: list[Any]) -> None:
    """Many threads with copies of one schema compile it once, and a faulty one is looked at once, too."""
    gate = threading.Barrier(8)

    def compile_both() -> None:
        gate.wait(HANG_BOUND_S)
        for _ in range(20):
            compiled({"type": "object", "title": "shared"})
            with pytest.raises(NotASchema):
                compiled({"type": "faulty"})

    threads = [threading.Thread(target=compile_both) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_BOUND_S)
    assert len(compilations) == 2


def test_compiled_schemas_are_bounded(compilations: list[Any]) -> None:
    """A schema for each step does not fill the memory."""
    for number in range(MOST_SCHEMAS + 10):
        compiled({"const": number})
    assert validation._compiled.cache_info().currsize == MOST_SCHEMAS


def test_schemas_that_are_equal_in_python_only_are_told_apart(compilations: list[Any]) -> None:
    """`1`, `1.0` and `True` are equal, but not the same schema; and a schema that is changed later is another one."""
    schema: dict[str, Any] = {"const": 1}
    assert compiled(schema).accepts(1)
    assert not compiled({"const": True}).accepts(1)
    schema["const"] = 2
    assert compiled(schema).accepts(2)
    assert not compiled(schema).accepts(1)
