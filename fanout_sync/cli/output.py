"""What all commands have in common in what they write: exit status, lines, tables, and text that is safe to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import click

from .lines_file import LinesFile

SOME_FAILED = 1
NOTHING_WAS_RUN = 2
INTERRUPTED = 130  # what a shell says of a program that SIGINT ended

MAX_CHARS = 200


def write_line(lines: LinesFile, line: str, what: str) -> None:
    """Write a line, or end the command.

    Args:
        lines: Where to.
        line: Without its end.
        what: What lines are, in plural, for the message.
    """
    try:
        lines.write(line)
    except BrokenPipeError:  # whoever read them, such as `head`, has what it wanted
        raise click.exceptions.Exit(SOME_FAILED) from None
    except OSError as error:
        raise write_error(lines, error, what) from None


def write_error(lines: LinesFile, error: OSError, what: str) -> click.ClickException:
    """Return what a command ends with that could not write."""
    reason = error.strerror or str(error)
    return click.ClickException(f"cannot write {what} to {lines.name}: {reason}; {lines.written} were written")


def print_table(heads: Sequence[str], rows: Callable[[], Iterable[Sequence[str]]]) -> None:
    """Print aligned columns.

    Args:
        heads: What stands over them.
        rows: Called twice, once to see how wide they are, so that a table of any length takes little memory.
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
        click.ClickException: It cannot be written.
        BrokenPipeError: Nobody reads it any more.
    """
    try:
        click.echo(line)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"cannot write to the standard output: {error.strerror or error}") from None


def shown(text: str, most: int = MAX_CHARS) -> str:
    """Return the first line of any text, not too long, and with nothing in it that a terminal would obey."""
    line, _, rest = text[: most + 1].partition("\n")
    is_cut = bool(rest) or len(text) > most
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line[:most])
    return f"{line} …" if is_cut else line
