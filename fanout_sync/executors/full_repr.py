"""The whole of any object as text, of which a `repr` may have only the type, or the beginning and the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..formatting import printable

MAX_LEVELS = 100
"""How deep objects may nest to be written in full."""

MOST_FORMATTED = 10_000
"""The largest array that numpy itself writes, which takes 40 µs an item; a larger one is written as a list."""

_BRACKETS: dict[type, tuple[str, str]] = {
    dict: ("{", "}"),
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}


def full_repr(value: Any, most_chars: int) -> str:
    """Return the `repr` of any object, also if that of the object, or of one inside of it, raises.

    An object without a `repr` of its own is followed by its attributes. Arrays of numpy have all of their items, and
    tables of pandas are written as CSV.

    Args:
        value: The object.
        most_chars: About how many characters are needed; of what is longer, the rest may be left out.
    """
    try:
        return printable(_Writer(most_chars).text(value))
    except BaseException as error:  # the class is user code, and may raise anything anywhere
        return f"an instance of {type(value).__name__}, of which reading raised {type(error).__name__}"


class _Writer:
    def __init__(self, most_chars: int) -> None:
        self._left = most_chars
        self._open: set[int] = set()

    def text(self, value: Any) -> str:
        if self._left <= 0 or len(self._open) >= MAX_LEVELS:
            return "…"
        kind = type(value)
        if kind not in _BRACKETS:
            write = _writer_for(kind)
            return self._instance(value) if write is None else self._counted(write(value, self._left))
        if not value:
            return self._counted(repr(value))
        if id(value) in self._open:
            begin, end = _BRACKETS[kind]
            return f"{begin}...{end}"
        self._open.add(id(value))
        try:
            return self._container(value)
        finally:
            self._open.discard(id(value))

    def _counted(self, text: str) -> str:
        self._left -= len(text)
        return text

    def _container(self, value: Any) -> str:
        begin, end = _BRACKETS[type(value)]
        end = ",)" if type(value) is tuple and len(value) == 1 else end
        return f"{begin}{', '.join(self._items(value))}{end}"

    def _items(self, value: Any) -> Iterator[str]:
        for item in list(value.items()) if isinstance(value, dict) else list(value):
            if self._left <= 0:
                yield "…"
                return
            yield ": ".join(map(self.text, item)) if isinstance(value, dict) else self.text(item)

    def _instance(self, value: Any) -> str:
        own: object = type(value).__repr__
        try:
            text = self._counted(repr(value))
            if own is not object.__repr__:
                return text
        except BaseException as error:  # the class is user code: its __repr__ may raise anything
            kind, raised = type(value).__name__, type(error).__name__
            text = self._counted(f"<{kind} instance at {id(value):#x}, whose repr() raised {raised}>")
        attributes = {} if id(value) in self._open else _attributes_of(value)
        if not attributes:
            return text
        self._open.add(id(value))
        try:
            return f"{text}: {self.text(attributes)}"
        finally:
            self._open.discard(id(value))


def _attributes_of(value: Any) -> dict[Any, Any]:
    """Return the attributes of an object, or what it holds as a `dict`, a `list` or the like."""
    for kind in _BRACKETS:
        if isinstance(value, kind):
            plain: Any = kind(_items_of(value, kind))
            return {kind.__name__: plain}
    slots = (name for cls in type(value).__mro__ for name in _names(vars(cls).get("__slots__", ())))
    found = {name: getattr(value, name) for name in slots if hasattr(value, name) and not name.startswith("__")}
    return found | dict(getattr(value, "__dict__", None) or {})


def _items_of(value: Any, kind: type) -> Any:
    """Return the items of an object of a subclass, none of whose own methods is called."""
    return dict.items(value) if kind is dict else kind.__iter__(value)  # type: ignore[attr-defined]  # of all the kinds


def _names(slots: str | Iterable[str]) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


# --- libraries whose `repr` is shortened; they need not be imported for this ------------------------------------------


def _writer_for(kind: type) -> Callable[[Any, int], str] | None:
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.ndarray):
        return _array
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None and issubclass(kind, (pandas.DataFrame, pandas.Series)):
        return _table
    return None


def _array(array: Any, most_chars: int) -> str:
    import numpy  # the array comes from there

    if array.size <= MOST_FORMATTED:
        with numpy.printoptions(threshold=sys.maxsize):
            return repr(array)
    items = array.ravel()[: most_chars // 2].tolist()
    return f"<{type(array).__name__} of shape {array.shape} and type {array.dtype}, its items in order: {items!r}>"


def _table(table: Any, most_chars: int) -> str:
    columns = getattr(table, "columns", None)
    rows = table.head(most_chars // (2 * (1 if columns is None else len(columns) or 1)) + 1)
    return f"<{type(table).__name__} of {len(table)} rows, as CSV:\n{rows.to_csv()}>"
