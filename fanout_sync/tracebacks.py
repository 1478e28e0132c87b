"""Tracebacks for people: without the frames of this package, and short in notebooks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traceback import TracebackException

MAX_NOTEBOOK_LINES = 10
"""How many lines of an error of this package a notebook shows."""

_PACKAGE = __name__.partition(".")[0]

_BETWEEN = frozenset(
    (
        *("asyncio", "concurrent", "contextlib", "copy", "copyreg", "importlib", "multiprocessing", "pickle", "runpy"),
        *("threading", "_frozen_importlib", "_frozen_importlib_external"),
        *("cloudpickle", "distributed", "loky", "tenacity"),
    )
)
"""Through these libraries this package calls the user's code: their frames before the user's first one say nothing."""

_SHELL = frozenset(("IPython", "ipykernel"))


def traceback_of(error: BaseException) -> str:
    """Return the formatted traceback of an exception and of its causes, without the frames of this package.

    Also left out are the frames of the libraries through which it has called the user's code. Where the user has no
    frame at all, all are kept, because the error is an internal one. The exception itself is not changed.
    """
    from traceback import TracebackException

    formatted = TracebackException(type(error), error, error.__traceback__, lookup_lines=False, compact=True)
    chain = list(_chain(formatted, error))
    roots = {id(shown): [_root(frame) for frame, _ in _frames(raised.__traceback__)] for shown, raised in chain}
    if any(_is_users(root) for of_one in roots.values() for root in of_one):
        for shown, _ in chain:
            kept = _kept(roots[id(shown)])
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


def _kept(roots: list[str]) -> set[int]:
    """Return the places of the frames that are shown, given the package or module of each."""
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
