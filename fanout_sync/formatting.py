"""What messages need: short, printable text about any value, and the line of the caller to which a warning points."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable
from typing import Any


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
    import difflib

    close = difflib.get_close_matches(value, list(words), n=1) if isinstance(value, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def level_of_the_caller() -> int:
    """Return the `stacklevel` at which, for `warnings.warn` where this is called, the first frame of others is."""
    own = (__name__.partition(".")[0], "contextlib")  # whose frames are between those of context managers
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in own:
        level, frame = level + 1, frame.f_back
    return level
