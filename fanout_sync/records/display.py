"""How a notebook displays records: by a function that is handed in, because records know nothing of HTML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar


class DisplayedRecord:
    """The method by which a notebook displays a record."""

    __slots__ = ()
    html_of: ClassVar[Callable[[Any], str]]
    """Set by `fanout_sync`."""

    def _repr_html_(self) -> str:
        return DisplayedRecord.html_of(self)
