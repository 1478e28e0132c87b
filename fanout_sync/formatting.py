"""How a message shows what came: short, printable, and without trusting it."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any


def describe(value: Any) -> str:
    """Return a short text for any object, also one whose `__repr__` raises."""
    if value is None:
        return "None"
    try:
        return printable(f"{type(value).__name__} {reprlib.repr(value)}")
    except BaseException:  # it is somebody's object: its __repr__ may do anything
        return f"an instance of {type(value).__name__}"


def printable(text: str) -> str:
    """Return `text` with lone surrogates spelled out, so that every channel can carry it."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def did_you_mean(value: Any, words: Iterable[str]) -> str:
    """Return a hint at the one of `words` that is close to `value`, or nothing."""
    import difflib

    close = difflib.get_close_matches(value, list(words), n=1) if isinstance(value, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""
