"""Printable text for people about any value and any exception: messages, tracebacks, the end of a program's output."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traceback import TracebackException

MAX_NOTEBOOK_LINES = 10
"""How many lines of an error of this package a notebook shows."""

MAX_TAIL_LINES = 10
MAX_TAIL_CHARS = 2000
"""How much of the end of a program's output a message has."""


def describe(value: Any) -> str:
    """Return the type and a short `repr` of any object, even of one whose `__repr__` raises."""
    if value is None:
        return "None"
    try:
        return printable(f"{type(value).__name__} {reprlib.repr(value)}")
    except BaseException:  # the class is user code: its __repr__ may raise anything
        return f"an instance of {type(value).__name__}"


def printable(text: str) -> str:
    """Return `text` with lone surrogates as escapes, so that it can be encoded as UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def did_you_mean(value: Any, words: Iterable[str]) -> str:
    """Return a hint such as `" (did you mean 'process'?)"` if one of `words` is similar to `value`, else `""`."""
    close = close_words(value, words, most=1) if isinstance(value, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def close_words(word: str, words: Iterable[str], most: int = 3) -> list[str]:
    """Return up to `most` of the `words` that are similar to `word`, the most similar first."""
    import difflib

    return difflib.get_close_matches(word, words, n=most)


# Tracebacks -----------------------------------------------------------------------------------------------------------

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


# Programs -------------------------------------------------------------------------------------------------------------


def message_of(error: BaseException) -> str:
    """Return the message of an exception; that of a program's end has the end of the program's output, too.

    Of `subprocess.CalledProcessError` and `TimeoutExpired`, if the output was captured: the last `MAX_TAIL_LINES` lines
    of stderr, or of the standard output if there are none, `MAX_TAIL_CHARS` characters at most. The last line of them
    also stands in the first line of the message, which is what summaries show.
    """
    subprocess: Any = sys.modules.get("subprocess")  # who has not imported it has no such error
    if subprocess is None or not isinstance(error, (subprocess.CalledProcessError, subprocess.TimeoutExpired)):
        return str(error)
    for name, output in (("stderr", error.stderr), ("stdout", error.output)):
        if lines := _tail(output):
            first = f"{str(error).rstrip('.')}; {name}: {lines[-1].strip()}"
            return first if len(lines) == 1 else "\n".join([first, *lines])
    return str(error)


def _tail(output: Any) -> list[str]:
    if isinstance(output, (bytes, bytearray, memoryview)):
        # At most four bytes a character; the cut may fall into one.
        output = bytes(output[-4 * MAX_TAIL_CHARS :]).decode("utf-8", "replace")
    if not isinstance(output, str):
        return []
    lines = output.rstrip()[-MAX_TAIL_CHARS:].splitlines()
    return [line for line in lines if line.strip()][-MAX_TAIL_LINES:]
