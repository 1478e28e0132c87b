"""How a notebook displays records: by a function that is handed in, because records know nothing of HTML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from attrs import fields

MAX_FIELD_CHARS = 1000
"""How many characters of a field IPython displays at most."""


class DisplayedRecord:
    """The methods by which IPython and notebooks display a record."""

    __slots__ = ()
    html_of: ClassVar[Callable[[Any], str]]
    """Set by `fanout_sync`."""

    def _repr_html_(self) -> str:
        return DisplayedRecord.html_of(self)


def print_record(record: Any, printer: Any, cycle: bool) -> None:
    """Print the `repr` of a record, in which long fields are cut; as `_repr_pretty_`, IPython displays that.

    A notebook stores it beside the table: of an answer of 50 MB, it would be all of it. IPython looks for it in the
    very class that has the `__repr__`, so an inherited method would not do.
    """
    printer.text(_with_short_fields(record))


def _with_short_fields(record: Any) -> str:
    """Return the `repr` of a record, in which long fields are cut."""
    text = repr(record)
    if len(text) <= MAX_FIELD_CHARS:
        return text
    names = (field.name for field in fields(type(record)))
    shown = ", ".join(f"{name}={_cut(repr(getattr(record, name)))}" for name in names)
    return f"{type(record).__name__}({shown})"


def _cut(text: str) -> str:
    more = len(text) - MAX_FIELD_CHARS
    return text if more <= 0 else f"{text[:MAX_FIELD_CHARS]}… [{more} more characters]"
