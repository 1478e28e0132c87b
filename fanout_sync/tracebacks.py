"""Tracebacks for people: without the frames of this package, and short in notebooks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from traceback import TracebackException

MAX_NOTEBOOK_LINES = 10
"""How many lines of an error of this package a notebook shows."""

E = TypeVar("E", bound=BaseException)

_PACKAGE = __name__.partition(".")[0]

_BETWEEN = frozenset(
    (
        *("asyncio", "concurrent", "contextlib", "copy", "copyreg", "importlib", "multiprocessing", "pickle", "runpy"),
        *("threading", "_frozen_importlib", "_frozen_importlib_external"),
        *("cloudpickle", "distributed", "loky", "tenacity"),
    )
)
"""Through these libraries this package calls the user's code: their frames before the user's first one say nothing."""

_CALLERS = frozenset(
    f"{_PACKAGE}.{caller}"
    for caller in (
        *("runner.item_function.__call__", "executors.function.execute_step", "executors.signature.call"),
        *("executors.setup_functions.call", "executors.setup_functions.set_up", "executors.setup_functions.tear_down"),
        *("events.listener.run", "events.senders.send"),
    )
)
"""The functions of this package that call the user's: what they call has no frame if it is written in C."""

_SHELL = frozenset(("IPython", "ipykernel"))


class ShortInNotebooks:
    """A base class of errors of which a notebook shows a few lines."""

    def _render_traceback_(self) -> list[str]:
        # What IPython shows instead of its own traceback, which would show twenty lines of this package for each frame
        # of the user's; see `InteractiveShell.showtraceback`.
        return notebook_traceback(cast("BaseException", self))


def _short(kind: type[E]) -> type[E]:
    """Return a class that is `kind`, by its name, too, and when it is pickled, but short in notebooks."""

    def reduce(self: E) -> tuple[Any, ...]:
        return kind, self.args

    body = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": reduce}
    return cast("type[E]", type(kind.__name__, (ShortInNotebooks, kind), body))


ShortIndexError = _short(IndexError)
ShortKeyError = _short(KeyError)
ShortRuntimeError = _short(RuntimeError)
ShortTypeError = _short(TypeError)
ShortValueError = _short(ValueError)


def traceback_of(error: BaseException) -> str:
    """Return the formatted traceback of an exception and of its causes, without the frames of this package.

    Also left out are the frames of the libraries through which it has called the user's code. If the user has no frame
    because a function in C was called, such as `int`, there is only the line of the exception. Otherwise an error
    without a frame of the user's is an internal one, and all frames are kept. The exception itself is not changed.
    """
    from traceback import TracebackException

    formatted = TracebackException(type(error), error, error.__traceback__, lookup_lines=False, compact=True)
    chain = list(_chain(formatted, error))
    frames = {id(shown): [frame for frame, _ in _frames(raised.__traceback__)] for shown, raised in chain}
    roots = {key: list(map(_root, of_one)) for key, of_one in frames.items()}
    in_c = {key: _called_in_c(of_one) for key, of_one in frames.items()}
    if any(_is_users(root) for of_one in roots.values() for root in of_one) or in_c[id(formatted)] is not None:
        for shown, _ in chain:
            kept = _kept(roots[id(shown)], in_c[id(shown)])
            shown.stack[:] = [frame for place, frame in enumerate(shown.stack) if place in kept]
            if _is_packages_own(roots.get(id(shown.__context__), [])):
                shown.__context__ = None  # this package was handling it when it called the user's code
    return "".join(formatted.format())


def notebook_traceback(error: BaseException) -> list[str]:
    """Return what a notebook shows of an error of this package: at most `MAX_NOTEBOOK_LINES` lines.

    That is where the user's code has called this package, where the user's code has raised the cause, if it has, and
    the message.
    """
    head = f"{type(error).__name__:<42}Traceback (most recent call last)"
    message = f"{type(error).__name__}: {error}".splitlines()
    most = MAX_NOTEBOOK_LINES - 5
    if len(message) > most:
        message = [*message[: most - 2], "…", message[-1]]  # the last one says what to do
    own, cause = _users_places(error), _users_places(error.__cause__)
    places = [*own[-1:], *cause[-1:]] if cause else [*own[:1], *own[1:][-1:]]
    return [head, *(line for frame, number in places for line in _place(frame, number)), *message]


def _chain(formatted: TracebackException, error: BaseException) -> Iterator[tuple[TracebackException, BaseException]]:
    """Yield an exception and all that are shown with it: causes, contexts, and the members of groups."""
    left: list[tuple[TracebackException | None, BaseException | None]] = [(formatted, error)]
    while left:
        shown, raised = left.pop()
        if shown is None or raised is None:
            continue
        yield shown, raised
        left += [(shown.__cause__, raised.__cause__), (shown.__context__, raised.__context__)]
        left += zip(getattr(shown, "exceptions", None) or (), getattr(raised, "exceptions", ()), strict=False)


def _called_in_c(frames: list[FrameType]) -> int | None:
    """Return how many frames there are up to where this package has called a function in C; `None` if it has not."""
    roots = list(map(_root, frames))
    if _PACKAGE not in roots or any(map(_is_users, roots)):
        return None
    last = len(roots) - 1 - roots[::-1].index(_PACKAGE)
    caller = f"{frames[last].f_globals['__name__']}.{frames[last].f_code.co_name}"
    return last + 1 if caller in _CALLERS else None


def _kept(roots: list[str], in_c: int | None) -> set[int]:
    """Return the places of the frames that are shown.

    Args:
        roots: The package or module of each frame.
        in_c: What `_called_in_c` returned.
    """
    if in_c is not None:
        return set(range(in_c, len(roots)))
    first = next((place for place, root in enumerate(roots) if _is_users(root)), 0)
    kept = {place for place, root in enumerate(roots) if place >= first and root != _PACKAGE}
    return kept or set(range(len(roots)))


def _is_packages_own(roots: list[str]) -> bool:
    return _PACKAGE in roots and not any(map(_is_users, roots))


def _is_users(root: str) -> bool:
    return root != _PACKAGE and root not in _BETWEEN


def _root(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name.partition(".")[0] if isinstance(name, str) else ""


def _frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _users_places(error: BaseException | None) -> list[tuple[FrameType, int]]:
    frames = [] if error is None else _frames(error.__traceback__)
    return [(frame, number) for frame, number in frames if (root := _root(frame)) not in _SHELL and _is_users(root)]


def _place(frame: FrameType, number: int) -> list[str]:
    import linecache

    code = frame.f_code
    source = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    where = _cell_name(code.co_filename) or f"File {code.co_filename}"
    called = "" if code.co_name.startswith("<") else f", in {code.co_name}"
    return [f"{where}, line {number}{called}", f"----> {number} {source}"]


def _cell_name(filename: str) -> str | None:
    """Return what a notebook calls the cell that it has compiled under a file name; `None` if it is no cell."""
    shell: Any = sys.modules.get("IPython")
    try:
        return " ".join(shell.get_ipython().compile.format_code_name(filename))
    except (AttributeError, TypeError):  # no notebook, no cell, or an IPython that has other names for these
        return None
