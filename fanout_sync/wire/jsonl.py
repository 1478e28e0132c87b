"""JSON Lines files: one spec or outcome a line, read and written one at a time."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

from ..errors import WireError
from ..records.steps import AgentStepSpec, StepOutcome
from ..tracebacks import ShortTypeError

__all__ = ["read_specs", "write_outcomes"]

PathOrFile = str | os.PathLike[str] | IO[str] | IO[bytes]
"""A path, `"-"` for standard input or output, or an open file, text or binary, which is left open."""


def read_specs(path_or_file: PathOrFile) -> Iterator[AgentStepSpec]:
    r"""Read specs from JSON Lines, one at a time.

    Args:
        path_or_file: A path, `"-"` for standard input, or an open file. The text is UTF-8 without a byte order
            mark; lines end with `\n` or `\r\n`; blank lines are skipped.

    Returns:
        An iterator that holds one line at a time. If it opened the file, it closes it after the last line, and when
        the iterator is closed or garbage-collected.

    Raises:
        OSError: The file cannot be opened; raised by this call, not by the first `next`.
        WireError: A line is no spec; raised by the iterator, which ends there. It has the `source` and the `line`.
    """
    return checked_specs(path_or_file, None)


def checked_specs(path_or_file: PathOrFile, check: Callable[[AgentStepSpec], object] | None) -> Iterator[AgentStepSpec]:
    """Read specs as `read_specs` does, and call `check` with each; a `WireError` of it gets the place, too."""
    opened, source = _opened(path_or_file, "rb")
    specs = _specs(opened, source, check)
    next(specs)  # enters the `with` block, so that the file is closed even if no line is ever read
    return specs


def write_outcomes(path_or_file: PathOrFile, outcomes: Iterable[StepOutcome]) -> None:
    r"""Write outcomes as JSON Lines, each as soon as `outcomes` yields it.

    Args:
        path_or_file: A path (an existing file is replaced), `"-"` for standard output, or an open file. The text is
            UTF-8 (in a text file its own encoding), the line end is `\n`. An open file is flushed
            at the end; a path and standard output are flushed after each line.
        outcomes: Any iterable, consumed lazily.

    Raises:
        OSError: The file cannot be opened or written.
        TypeError: An item is no `StepOutcome`; the error has its index.
        WireError: An outcome holds what JSON cannot carry; the error has its index and the field. The lines before it
            are written, and no part of its own line.
    """
    items = iter(outcomes)  # first, so that an argument that is not iterable does not empty an existing file
    opened, source = _opened(path_or_file, "wb")
    with opened as file:
        is_text = isinstance(file, io.TextIOBase) or hasattr(file, "encoding")
        is_ours = isinstance(path_or_file, (str, os.PathLike))
        try:
            for index, outcome in enumerate(items):
                line = _line(outcome, index, source)
                file.write(line if is_text else line.encode())
                if is_ours:  # another program may follow the file, and outcomes must survive a crash
                    file.flush()
        finally:
            file.flush()


def _opened(path_or_file: PathOrFile, mode: str) -> tuple[AbstractContextManager[Any], str]:
    # Binary wherever possible: text files would use the encoding of the locale, and translate line ends.
    if path_or_file == "-":
        stream = sys.stdin if mode == "rb" else sys.stdout
        if mode == "wb":
            stream.flush()
        return contextlib.nullcontext(getattr(stream, "buffer", stream)), "<stdin>" if mode == "rb" else "<stdout>"
    if isinstance(path_or_file, (str, os.PathLike)):
        path = os.fsdecode(path_or_file)
        return open(path, mode), path  # noqa: PTH123 - pathlib is slow to import; the caller closes the file
    if not hasattr(path_or_file, "read" if mode == "rb" else "write"):
        raise ShortTypeError(f"expected a path, '-' or an open file, got {type(path_or_file).__name__}")
    name = getattr(path_or_file, "name", None)
    return contextlib.nullcontext(path_or_file), name if isinstance(name, str) else "<stream>"


def _specs(
    opened: AbstractContextManager[Any], source: str, check: Callable[[AgentStepSpec], object] | None
) -> Iterator[Any]:
    with opened as file:
        yield None
        line = 0
        try:
            for text in file:
                line += 1
                if text.strip(" \t\r\n" if isinstance(text, str) else b" \t\r\n"):
                    spec = AgentStepSpec.from_json(text)
                    if check is not None:
                        check(spec)
                    yield spec
        except WireError as error:
            raise WireError(error.reason, error.field, source, line) from None
        except UnicodeDecodeError as error:  # from a text file, which decodes several lines at once
            line += 1 + error.object.count(b"\n", 0, error.start)
            raise WireError(f"expected {error.encoding}, got {error.reason}", "", source, line) from None


def _line(outcome: StepOutcome, index: int, source: str) -> str:
    if not isinstance(outcome, StepOutcome):
        raise ShortTypeError(f"outcomes[{index}] must be a StepOutcome, got {type(outcome).__name__}")
    try:
        return outcome.to_json() + "\n"
    except WireError as error:
        raise WireError(f"{error.reason} (outcomes[{index}])", error.field, source) from None
