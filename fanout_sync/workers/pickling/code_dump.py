"""What is sent of the caller's code: values, and what its modules define; `sent_modules` is the other side."""

from __future__ import annotations

import io
import linecache
import os
import pickle
import sys
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from . import sent_modules
from .code_pickler import CACHED, PROTOCOL, CodePickler, Sent, is_shared
from .sent_modules import Place, is_special

MOST_BYTES_BESIDES = 1 << 20
"""So many bytes, at most, are sent of what no step seems to use."""

MOST_BYTES_LOOKED_UP = 32 << 20
"""So many bytes, at most, are sent of what a step may look up by a name that is not known."""

_TRIED_FACTOR = 8
"""So many times the limit, at most, is pickled: many functions may use the same large table."""

_LARGE_BYTES = 1 << 16
_CODE = (type, FunctionType, CACHED)
_SCALARS = (str, bytes, int, float, complex, bool, type(None))
_CONTAINERS = (tuple, list, dict, set, frozenset)
_MODULE_FACTS = ("__name__", "__file__", "__package__", "__doc__")


def dump(*values: Any) -> tuple[bytes, Sent]:
    """Pickle values, with the code that a worker cannot import; `sent_modules.load` loads them.

    Returns:
        The pickle, and what the worker's modules have then.

    Raises:
        Exception: Any that pickling a value raises.
    """
    pickler = CodePickler(file := _LimitedFile())
    pickler.send_main()
    for value in values:
        pickler.dump(value)
    names = _dump_those_sent(pickler)
    names += _dump_wanted(pickler, file, set(names))
    if pickler.looks_names_up:
        file.limit(MOST_BYTES_LOOKED_UP)
        places = _defined_in(pickler.modules.values(), with_containers=True)
        pickler.wanted.update((place, None) for place in places)
        names += _dump_wanted(pickler, file, set(names))
    return _payload(pickler, file, len(values), names), _sent(names)


def dump_rest(sent: Sent) -> tuple[bytes, Sent]:
    """Pickle what the modules of the caller define besides, for those who look it up.

    Returns:
        The pickle, `b""` if there is nothing; and what a worker has then if it looks it up.
    """
    pickler = CodePickler(file := _LimitedFile(), sent)
    file.limit(MOST_BYTES_BESIDES)
    pickler.send_main()
    modules = pickler.modules | {place[0]: sys.modules[place[0]] for place in sent.places.values()}
    places = [place for place in _defined_in(modules.values()) if sent.place_of(_get(place)) is None]
    pickler.wanted.update((place, None) for place in places)
    names = _dump_wanted(pickler, file, set())
    return _payload(pickler, file, 0, names) if names else b"", _sent(names)


def dump_late(value: Any, sent: Sent) -> bytes:
    """Pickle a value for a process that has what was sent before; `sent_modules.load_late` loads it.

    Args:
        value: The value, with the code that the process neither has nor can import.
        sent: What it has, as `late` returns it.

    Raises:
        Exception: Any that pickling the value raises.
    """
    pickler = CodePickler(file := io.BytesIO(), sent)
    pickler.dump(value)
    names = _dump_wanted(pickler, file, set(sent.places.values())) if pickler.wanted else []
    return _payload(pickler, file, 1, names)


def sent_code(*parts: Sent) -> Sent:
    """Return what a value that is sent later may refer to: code and sentinels, but nothing that may have changed."""
    places = {
        id(value): part.places[id(value)]
        for part in parts
        for value in part.values
        if isinstance(value, _CODE) or type(value) is object
    }
    return Sent(parts[0].names, places, [value for part in parts for value in part.values])


def _sent(names: list[Place]) -> Sent:
    named = [_get(place) for place in names]
    return Sent(frozenset(names), {id(value): place for value, place in zip(named, names, strict=True)}, named)


def _payload(pickler: CodePickler, file: io.BytesIO, values: int, names: list[Place]) -> bytes:
    modules = [_facts_of(module) for module in pickler.modules.values()]
    return pickle.dumps((modules, _sources(pickler.filenames), file.getvalue(), values, names), PROTOCOL)


def _dump_those_sent(pickler: CodePickler) -> list[Place]:
    """Pickle, once more, those globals of the sent modules that are part of the value already; that costs little."""
    included = pickler.memo.copy()
    values = {
        (name, each): value
        for name, module in pickler.modules.items()
        for each, value in list(vars(module).items())
        if id(value) in included and not is_special(each)
    }
    for value in values.values():
        pickler.dump(value)
    return list(values)


def _dump_wanted(pickler: CodePickler, file: io.BytesIO, done: set[Place]) -> list[Place]:
    """Pickle what is wanted, and what is wanted of that in turn, but for what does not pickle."""
    names = []
    while left := [place for place in pickler.wanted if place not in done]:
        done.update(left)
        names += _dump_those_possible(pickler, file, [place for place in left if _has(place)])
    return names


def _dump_those_possible(pickler: CodePickler, file: io.BytesIO, places: list[Place]) -> list[Place]:
    """Pickle what is at these places, as far as it pickles; return the places of that."""
    names: list[Place] = []
    while places:
        # Copied only before the first and after each failure: a copy takes long when much has been pickled.
        memo, position, count = pickler.memo.copy(), file.tell(), 0
        try:
            for place in places:
                pickler.dump(_get(place))
                count += 1
        except Exception:  # no step needs it, as far as can be seen, so it is left out
            pickler.memo = memo
            file.seek(position)
            file.truncate()
            names += _dump_those_possible(pickler, file, places[:count])
            places = places[count + 1 :]
        else:
            return names + places
    return names


def _defined_in(modules: Iterable[ModuleType], *, with_containers: bool = False) -> Iterator[Place]:
    """Yield the places of the functions, classes and constants that the modules define themselves.

    Args:
        modules: The modules.
        with_containers: Whether lists, dictionaries and the like count as constants.
    """
    plain = (*_SCALARS, *_CONTAINERS) if with_containers else _SCALARS
    for module in modules:
        for name, value in list(vars(module).items()):
            has_code = isinstance(value, _CODE) and value.__module__ in (
                module.__name__,
                "__main__",
            )
            is_constant = type(value) in plain and sys.getsizeof(value) < _LARGE_BYTES and not is_shared(value)
            if (has_code or is_constant) and not is_special(name):
                yield module.__name__, name


def _has(place: Place) -> bool:
    module, name = place
    return name in vars(sys.modules[module])


def _get(place: Place) -> Any:
    module, name = place
    return vars(sys.modules[module])[name]


def _facts_of(module: ModuleType) -> sent_modules.Facts:
    """Return what a worker's module has to have that is no code."""
    facts: sent_modules.Facts = {name: getattr(module, name, None) for name in _MODULE_FACTS}
    facts = {name: value for name, value in facts.items() if isinstance(value, str)}
    if hasattr(module, "__path__"):
        facts["__path__"] = [str(folder) for folder in module.__path__]
    names = ("__main__", "__mp_main__", module.__name__)
    facts["aliases"] = sorted({name for name in names if sys.modules.get(name) is module})
    spec_name = getattr(getattr(module, "__spec__", None), "name", None)
    facts["spec_name"] = spec_name if isinstance(spec_name, str) else None
    return facts


def _sources(filenames: Iterable[str]) -> dict[str, list[str]]:
    """Return the lines of the files that only this process has, such as the cells of a notebook."""
    found = {name: linecache.getlines(name) for name in sorted(filenames) if not os.path.exists(name)}  # noqa: PTH110
    return {name: lines for name, lines in found.items() if lines}


class _LimitedFile(io.BytesIO):
    """Takes no more than it may, and not much more even if all of that is truncated again."""

    _end = _left_to_try = sys.maxsize

    def limit(self, size: int) -> None:
        """Take no more than `size` bytes from now on."""
        self._end = self.tell() + size
        self._left_to_try = _TRIED_FACTOR * size

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._left_to_try -= size
        if self.tell() + size > self._end or self._left_to_try < 0:
            raise OverflowError("it is too large to be sent to workers that may not need it")
        return super().write(data)
