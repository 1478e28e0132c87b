"""A hash of an item that has no JSON: equal items have the same one, also in another process."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterable
from typing import Any

PROTOCOL = 4
"""The version of the pickle protocol; with another one every hash would change."""


def hash_of(item: Any) -> str:
    """Return a SHA-256, in hex, over the pickle of an item.

    Sets and dictionaries are pickled in an order that does not depend on how they were filled, nor on the seed of
    `hash`, and equal texts and tuples in the same way, whether they are one object or two.

    Raises:
        Exception: Any that pickling the item raises.
    """
    return hashlib.sha256(_pickle_of(item)).hexdigest()


def _pickle_of(value: Any) -> bytes:
    file = io.BytesIO()
    _StablePickler(file, PROTOCOL).dump(value)
    return file.getvalue()


_PythonPickler: Any = pickle._Pickler


class _StablePickler(_PythonPickler):  # type: ignore[misc]  # typeshed has none of its methods
    """The pickler in Python, of which joblib overrides the same methods to hash arguments."""

    dispatch = dict(_PythonPickler.dispatch)  # noqa: RUF012 - as in the superclass

    def memoize(self, obj: Any) -> None:
        if not isinstance(obj, (str, bytes, tuple)):
            super().memoize(obj)

    def _batch_setitems(self, items: Iterable[tuple[Any, Any]], *more: Any) -> None:
        in_order = sorted(items, key=lambda item: _pickle_of(item[0]))
        super()._batch_setitems(iter(in_order), *more)

    def _save_set(self, elements: Any) -> None:
        self.save((type(elements).__name__, *sorted(map(_pickle_of, elements))))

    dispatch[set] = dispatch[frozenset] = _save_set
