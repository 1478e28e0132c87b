"""The `output_schema` of a spec as text."""

from __future__ import annotations

import json

from ..errors import WireError
from ..records.status import StepError
from ..records.steps import Json
from .strict_json import check_json


class NotASchema(Exception):
    """An `output_schema` is no JSON Schema, or none that can be used here; the message says why."""

    @property
    def error(self) -> StepError:
        """Why its step cannot run."""
        return StepError("InvalidSchema", f"output_schema is no JSON Schema: {self}")


def schema_text(schema: Json) -> str:
    """Return a schema as JSON.

    Raises:
        NotASchema: It is nothing that JSON can carry, such as the class that it should be made of.
    """
    if isinstance(schema, type):
        raise NotASchema(f"it is the class {schema.__name__}; write spec.with_output_schema({schema.__name__})")
    try:
        return json.dumps(check_json(schema, "$"), ensure_ascii=False)
    except WireError as error:
        raise NotASchema(str(error)) from None
    except Exception as error:  # of a mapping of a class of the caller's
        raise NotASchema(f"it cannot be read: {StepError.of(error)}") from None
