"""Which part of a value cannot be pickled, found by pickling it once more and looking on."""

from __future__ import annotations

import copyreg
import io
import pickle
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from .code_pickler import PROTOCOL
from .parts import Part, parts_of

_MOST_STEPS = 12
_ATOMS = frozenset((str, bytes, bytearray, int, float, complex, bool, type(None)))
_CONTAINERS = (list, tuple, dict, set, frozenset)


@frozen(eq=False)
class Culprit:
    """What cannot be pickled.

    Attributes:
        path: What leads to it.
        value: The object itself.
        error: What pickling it raised.
        owners: The objects on the way to it, each with its path, from the outermost to the innermost.
    """

    path: str
    value: Any
    error: Exception
    owners: Sequence[Part]


def find_culprit(values: Mapping[str, Any], pickler: type[pickle.Pickler]) -> Culprit | None:
    """Pickle values in a row, as they were pickled before, and return what cannot be pickled.

    It takes about the time of one pickling, and runs the code that pickling runs, once.

    Args:
        values: What to pickle, by name.
        pickler: A subclass of the C implementation `pickle.Pickler`.

    Returns:
        The culprit; `None` if pickling succeeds now.
    """
    trace = _Trace()
    tracing = _tracing(pickler, trace)(io.BytesIO(), protocol=PROTOCOL)
    for name, value in values.items():
        try:
            tracing.dump(value)
        except Exception as error:
            *owners, (path, culprit) = _paths(name, trace.chain_from(value), trace)
            return Culprit(path, culprit, error, owners)
    return None


# Looking on -----------------------------------------------------------------------------------------------------------


class _Trace:
    """What a pickler has reduced so far, each object to what.

    A pickler that fails gets no further: what it was about to reduce, or had just reduced, is at fault.

    Attributes:
        latest: The object that was reduced last.
    """

    def __init__(self) -> None:
        self.latest: Any = None
        # The objects are kept, too: an `id` says nothing when its object is gone.
        self._reduced: dict[int, tuple[Any, list[Any]]] = {}

    def note(self, value: Any, reduced: Any) -> Any:
        """Note what an object was reduced to; return the same, but note the items that the pickler takes from it."""
        if type(reduced) is not tuple:
            return reduced
        parts, answer = list(reduced), list(reduced)
        for place in (3, 4):
            if len(parts) > place and hasattr(type(parts[place]), "__next__"):
                parts[place] = []
                answer[place] = self._taken(value, reduced[place], parts[place])
        self._reduced[id(value)] = value, parts
        return tuple(answer)

    def _taken(self, value: Any, items: Iterator[Any], taken: list[Any]) -> Iterator[Any]:
        try:
            for item in items:
                taken.append(item)
                yield item
        except Exception:
            self.latest = value
            raise

    def parts(self, value: Any) -> Iterator[Part]:
        """Yield what was pickled for an object; each with a name, of use where the object itself has none for it."""
        if id(value) in self._reduced:
            _, parts = self._reduced[id(value)]
            names = ("__reduce__()[0]", "__reduce__()[1]", "__getstate__()", "__reduce__()[3]", "__reduce__()[4]")
            yield from ((f".{name}", part) for name, part in zip(names, parts, strict=False))
        elif type(value) in _CONTAINERS:
            yield from parts_of(value)

    def chain_from(self, root: Any) -> list[Any]:
        """Return the shortest chain of objects, each pickled as a part of the one before, from `root` to the latest."""
        parents: dict[int, Any] = {id(root): None}
        queue = deque([root])
        while queue and id(self.latest) not in parents:
            parent = queue.popleft()
            for _, part in self.parts(parent):
                if type(part) not in _ATOMS and id(part) not in parents:
                    parents[id(part)] = parent
                    queue.append(part)
        chain = [self.latest if id(self.latest) in parents else root]
        while chain[-1] is not root:
            chain.append(parents[id(chain[-1])])
        return chain[::-1]


def _tracing(pickler: type[pickle.Pickler], trace: _Trace) -> type[pickle.Pickler]:
    """Return a subclass of `pickler` that pickles the same, and notes in `trace` what it reduces."""

    def reducer_override(self: Any, value: Any) -> Any:
        trace.latest = value
        override = getattr(super(tracing, self), "reducer_override", None)
        reduced = NotImplemented if override is None else override(value)
        return trace.note(value, _reduce(value, self) if reduced is NotImplemented else reduced)

    tracing: type[pickle.Pickler] = type("TracingPickler", (pickler,), {"reducer_override": reducer_override})
    return tracing


def _reduce(value: Any, pickler: pickle.Pickler) -> Any:
    """Reduce an object as the C implementation does where there is no `reducer_override`."""
    if issubclass(type(value), (type, types.FunctionType)):
        return NotImplemented
    table: Any = getattr(pickler, "dispatch_table", copyreg.dispatch_table)
    reduce = table.get(type(value))
    return value.__reduce_ex__(PROTOCOL) if reduce is None else reduce(value)


# Paths ----------------------------------------------------------------------------------------------------------------


def _paths(name: str, chain: Sequence[Any], trace: _Trace) -> Iterator[tuple[str, Any]]:
    """Yield the objects of a chain that a program can get at, each with its path; always the first and the last one."""
    steps, place = [name], 0
    yield name, chain[0]
    while place < len(chain) - 1:
        label, place = _step(chain, place, trace)
        steps.append(label)
        yield _joined(steps), chain[place]


def _step(chain: Sequence[Any], place: int, trace: _Trace) -> tuple[str, int]:
    """Return what leads from one object of a chain to the next one that it knows as a part, and the place of that."""
    parts = list(parts_of(chain[place]))  # a list, so that they live
    labels = {id(part): label for label, part in reversed(parts)}
    for later in range(place + 1, len(chain)):
        if id(chain[later]) in labels:
            return labels[id(chain[later])], later
        if type(chain[later]) not in _PASSED_THROUGH:
            break
    following = chain[place + 1]
    return next(label for label, part in trace.parts(chain[place]) if part is following), place + 1


_PASSED_THROUGH = (*_CONTAINERS, types.CellType)
"""What pickling makes to hold the parts of an object, such as a dictionary of its attributes."""


def _joined(steps: Sequence[str]) -> str:
    if len(steps) <= _MOST_STEPS:
        return "".join(steps)
    return "".join([*steps[: _MOST_STEPS // 2], " … ", *steps[-_MOST_STEPS // 3 :]])
