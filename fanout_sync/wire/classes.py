"""From JSON to objects of the caller's classes, and the schemas of those."""

from __future__ import annotations

from typing import Any

from ..records.steps import Json, StepOutcome, T


class UserClasses:
    """The only implementation of `records.steps.ClassCodec`; it imports what it needs lazily: slow, and few need it."""

    def schema_of(self, cls: Any) -> Json:
        from .class_schema import schema_of

        return schema_of(cls)

    def structure(self, outcome: StepOutcome, cls: type[T]) -> T:
        from .structure import structure

        made: T = structure(outcome, cls)
        return made
