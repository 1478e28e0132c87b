"""How all commands write: exit statuses, lines, tables, and text that is safe to show on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

import click

from .background_writer import LineWriter
from .lines_file import LinesFile

SOME_FAILED = 1
NOTHING_WAS_RUN = 2
INTERRUPTED = 130  # the exit status that a shell reports for a program that SIGINT ended

MAX_CHARS = 200
"""How many characters of a text are shown at most."""


def write_line(lines: LinesFile, line: str, what: str) -> None:
    """Write a line, or end the command.

    Args:
        lines: The file to write to.
        line: The line, without its end.
        what: What the lines are, in the plural, for the message.
    """
    try:
        lines.write(line)
    except BrokenPipeError:  # the reader, such as `head`, needs no more lines
        raise click.exceptions.Exit(SOME_FAILED) from None
    except OSError as error:
        raise write_error(lines, error, what) from None


def write_error(lines: LinesFile, error: OSError, what: str) -> click.ClickException:
    """Return the error that ends a command that could not write."""
    reason = error.strerror or str(error)
    return click.ClickException(f"cannot write {what} to {lines.name}: {reason}; {lines.written} were written")


def print_table(heads: Sequence[str], rows: Callable[[], Iterable[Sequence[str]]]) -> None:
    """Print aligned columns.

    Args:
        heads: The heads of the columns.
        rows: Returns the rows. Called twice, first to measure the columns, so that a long table takes little memory.
    """
    widths = [len(head) for head in heads]
    for row in rows():
        widths = [max(width, len(cell)) for width, cell in zip(widths, row, strict=True)]
    _print_row(heads, widths)
    for row in rows():
        _print_row(row, widths)


def _print_row(row: Sequence[str], widths: Sequence[int]) -> None:
    say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def say(line: str) -> None:
    """Print a line to the standard output.

    Raises:
        click.ClickException: The line cannot be written.
        BrokenPipeError: Nobody reads the standard output any more.
    """
    try:
        click.echo(line)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"cannot write to the standard output: {error.strerror or error}") from None


def say_last(text: str) -> None:
    """Print the last lines of a command to the standard error; after an interrupt, only if it takes them.

    Raises:
        OSError: They cannot be written.
    """
    if sys.stderr is not None:
        lines = LineWriter(sys.stderr)
        lines.write(text)
        lines.close()


def shown(text: str, most: int = MAX_CHARS) -> str:
    """Return the first line of a text, cut to `most` characters, with control characters escaped."""
    line, _, rest = text[: most + 1].partition("\n")
    is_cut = bool(rest) or len(text) > most
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line[:most])
    return f"{line} …" if is_cut else line
