"""Checking JSON against a JSON Schema: jsonschema, without ever using the network."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping
from itertools import islice
from typing import Any

from attrs import frozen
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, specification_with

from ... import forks
from ...formatting import printable
from ...records.status import StepError
from ...records.steps import Json
from ...wire.schema_text import NotASchema, schema_text
from ...wire.strict_json import described, shortened

MOST_ERRORS = 10
"""How many errors of a value are told."""

MOST_CHARS = 200
"""How long the text of an error is at most; those of jsonschema have the whole value in them."""

MOST_SCHEMAS = 128
"""How many compiled schemas are kept."""


@frozen
class CompiledSchema:
    """A JSON Schema that values can be checked against, by any number of threads."""

    _validator: Any

    def accepts(self, value: Json) -> bool:
        """Return whether a value is valid."""
        try:
            return bool(self._validator.is_valid(value))
        except Exception:  # `errors` says which
            return False

    def errors(self, value: Json) -> list[str]:
        """Return the first errors of a value, each as `"path: message"`; none if it is valid.

        The path is a JSONPath, such as `$.items[0].name`.
        """
        try:
            errors = islice(self._validator.iter_errors(value), MOST_ERRORS)
            # Of a value that fits none of several schemas, what keeps it from fitting the one that it is closest to.
            return [_line(best_match([error])) for error in errors]
        except RecursionError:
            return ["$: it is nested too deeply to be checked, or the schema refers to itself without end"]
        except Exception as error:  # such as an overflow in the arithmetic of a keyword
            return [f"$: it cannot be checked: {_short(str(StepError.of(error)))}"]


def compiled(schema: Json) -> CompiledSchema:
    """Return a schema to check values against; it is compiled once, however many specs have it.

    Args:
        schema: The `output_schema` of a spec. Its dialect is the one that `$schema` names, by default 2020-12. Formats
            are not asserted.

    Raises:
        NotASchema: It is none, or refers to a schema that is not part of it: those are never fetched.
    """
    text = schema_text(schema)
    with _lock:
        found = _compiled(text)
    if isinstance(found, str):
        raise NotASchema(found)
    return found


_lock = threading.Lock()
"""Held to compile: threads that begin at the same time do it once."""


def _have_own_lock() -> None:
    global _lock
    _lock = threading.Lock()  # a thread of the parent may hold the other one


forks.call_in_child(_have_own_lock)


@functools.lru_cache(MOST_SCHEMAS)
def _compiled(text: str) -> CompiledSchema | str:
    """Return the schema that a text is, or why it is none."""
    try:
        return _compile(json.loads(text))
    except NotASchema as fault:
        return str(fault)
    except SchemaError as error:
        return _line(error)
    except MemoryError:  # which is no fault of the schema
        raise
    except RecursionError:
        return "it is nested too deeply, or refers to itself without end"
    except Exception as error:  # of a library, about a schema that nobody has thought of
        return f"it cannot be used: {_short(str(StepError.of(error)))}"


def _compile(schema: Json) -> CompiledSchema:
    dialect = schema.get("$schema") if isinstance(schema, dict) else None
    validator_class = validator_for(schema, default=None) if isinstance(dialect, str) else Draft202012Validator
    if validator_class is None:
        expected = Draft202012Validator.META_SCHEMA["$id"]
        raise NotASchema(f"$.$schema: {described(dialect)} is no dialect that is known here, such as {expected!r}")
    validator_class.check_schema(schema)
    _check_references(schema, dialect)
    # An explicit registry: without one, jsonschema would fetch what it does not know.
    validator = validator_class(schema, registry=Registry())
    validator.is_valid(None)  # raises RecursionError for a schema that refers to itself without end
    return CompiledSchema(validator)


_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def _check_references(schema: Json, dialect: str | None) -> None:
    """Look up every reference: better than an error after the step has run.

    Raises:
        NotASchema: One leads out of the schema, nowhere, or to what is no schema.
    """
    specification = DRAFT202012 if dialect is None else specification_with(dialect)
    root = specification.create_resource(schema)
    pending = [(REGISTRY.resolver_with_root(root), root)]
    seen = set[int]()
    while pending:
        resolver, resource = pending.pop()
        contents: Any = resource.contents
        if not isinstance(contents, Mapping) or id(contents) in seen:
            continue
        seen.add(id(contents))
        pending += [(resolver.in_subresource(part), part) for part in resource.subresources()]
        for keyword in _REFERENCES:
            reference = contents.get(keyword)
            if isinstance(reference, str):
                try:
                    found = resolver.lookup(reference)
                except Unresolvable:
                    reason = f"the reference {reference!r} leads nowhere; nothing is fetched: put the schema into $defs"
                    raise NotASchema(reason) from None
                if not isinstance(found.contents, (Mapping, bool)):
                    raise NotASchema(f"the reference {reference!r} leads to {described(found.contents)}")
                target = Resource.from_contents(found.contents, default_specification=specification)
                pending.append((found.resolver, target))


def _line(error: Any) -> str:
    """Return an error of jsonschema on one line."""
    return f"{_short(error.json_path)}: {_short(error.message)}"


def _short(text: str) -> str:
    return shortened(printable(" ".join(text.splitlines())), MOST_CHARS)
