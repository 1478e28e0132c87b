"""What messages need: short, printable text about any value or exception, and the line to which a warning points."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable
from typing import Any

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


def describe_argument(value: Any, kind: type, arguments: str = "") -> str:
    """Return a description of an argument; of a class in the place of an object of `kind`, also what to do.

    Args:
        value: The argument.
        kind: What it should be an object of.
        arguments: What it takes to call a class that requires no argument.
    """
    if not isinstance(value, type) or not issubclass(value, kind):
        return describe(value)
    got = f"the class {value.__name__}"
    if missing := sorted(getattr(value, "__abstractmethods__", ())):
        return f"{got}, which is abstract: call a subclass of it that has {', '.join(missing)}"
    return f"{got}; call it: {value.__name__}({'…' if _needs_arguments(value) else arguments})"


def _needs_arguments(kind: type) -> bool:
    import inspect

    try:
        inspect.signature(kind).bind()
    except TypeError:
        return True
    except ValueError:  # some builtins have no signature
        return False
    return False


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


def level_of_the_caller() -> int:
    """Return the `stacklevel` at which, for `warnings.warn` where this is called, the first frame of others is."""
    own = (__name__.partition(".")[0], "contextlib")  # whose frames are between those of context managers
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in own:
        level, frame = level + 1, frame.f_back
    return level


def message_of(error: BaseException) -> str:
    """Return the message of an exception; that of a program's end has the end of the program's output, too.

    That is of `subprocess.CalledProcessError` and `TimeoutExpired`, if the output was captured; see `with_output_tail`.
    """
    subprocess: Any = sys.modules.get("subprocess")  # who has not imported it has no such error
    if subprocess is None or not isinstance(error, (subprocess.CalledProcessError, subprocess.TimeoutExpired)):
        return str(error)
    return with_output_tail(str(error), error.stderr, error.output)


def with_output_tail(message: str, stderr: Any, stdout: Any = None) -> str:
    """Return a message with the end of a program's output.

    That is the last `MAX_TAIL_LINES` lines of stderr, or of the standard output if there are none, `MAX_TAIL_CHARS`
    characters at most. The last line of them also stands in the first line of the message, which is what summaries
    show.

    Args:
        message: What has happened.
        stderr: What the program has written there, as text or bytes; `None` if that is not known.
        stdout: As `stderr`.
    """
    for name, output in (("stderr", stderr), ("stdout", stdout)):
        if lines := _tail(output):
            first = f"{message.rstrip('.')}; {name}: {lines[-1].strip()}"
            return first if len(lines) == 1 else "\n".join([first, *lines])
    return message


def _tail(output: Any) -> list[str]:
    if isinstance(output, (bytes, bytearray, memoryview)):
        # At most four bytes a character; the cut may fall into one.
        output = bytes(output[-4 * MAX_TAIL_CHARS :]).decode("utf-8", "replace")
    if not isinstance(output, str):
        return []
    lines = output.rstrip()[-MAX_TAIL_CHARS:].splitlines()
    return [line for line in lines if line.strip()][-MAX_TAIL_LINES:]
