"""The command that resumes a run: the one that has started it, as a line for a shell."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from .lines_file import LinesFile

_ARGUMENTS = "fanout_sync.arguments"
_NAMES_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:thread-)?self)/fd/(\d+)")


def note_arguments(ctx: click.Context, arguments: list[str]) -> None:
    """Note the arguments of the command line, before they are parsed."""
    ctx.meta[_ARGUMENTS] = [*arguments]


def resume_line(inputs: Iterable[str], outputs: Iterable[LinesFile | None]) -> str:
    """Return the line of a summary that says how to resume the run.

    Args:
        inputs: Where steps come from: the paths as the user gave them; `"-"` or `"<stdin>"` is the standard input.
        outputs: What the run writes to; `None` counts for nothing.
    """
    arguments: list[str] = [*click.get_current_context().meta.get(_ARGUMENTS, sys.argv[1:])]
    redirections, notes = [], []
    for name in inputs:
        if (number := _descriptor_of(name)) is None:
            continue
        path = _file_behind(number)
        if path is None:
            place = "on the standard input" if number == 0 else f"in the place of {name}"
            notes.append(f"with the same steps {place}")
        elif number == 0:
            redirections.append(f"< {_quoted(path)}")
        else:
            arguments = _with_path(arguments, name, path)
    for output in filter(None, outputs):
        if (number := _descriptor_of(output.name)) is None:
            continue
        is_moved = output.name == "<stdout>"  # the descriptor 1 is that of the standard error now
        path = _file_behind(output.fileno())
        if number > 2:
            arguments = arguments if path is None else _with_path(arguments, output.name, path)
            notes += [f"with an output in the place of {output.name}"] * (path is None)
        elif path is not None:
            adds = fcntl.fcntl(output.fileno() if is_moved else number, fcntl.F_GETFL) & os.O_APPEND
            redirections.append(f"{'' if number == 1 else number}{'>>' if adds else '>'} {_quoted(path)}")
    command = " ".join([*map(_quoted, [*_program(), *arguments]), *redirections])
    return f"{', '.join(['resume', *notes])}: {command}"


def _program() -> list[str]:
    """Return what started this command line, or does the same."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.endswith(".__main__"):
        return [sys.executable, "-m", spec.name.rpartition(".")[0]]
    started = Path(sys.argv[0])
    if not started.is_file():  # such as `python -c`
        return [sys.executable, "-m", __package__.partition(".")[0]]
    found = shutil.which(started.name)
    if found is not None and started.samefile(found):
        return [started.name]
    # A shell looks for a name without a slash on its PATH alone.
    return [sys.argv[0]] if os.sep in sys.argv[0] and os.access(started, os.X_OK) else [sys.executable, sys.argv[0]]


def _descriptor_of(name: str) -> int | None:
    """Return the number of the descriptor that a name stands for; `None` if it is that of a file."""
    if (found := _NAMES_DESCRIPTOR.fullmatch(name)) is not None:
        return int(found[1])
    return {"-": 0, "<stdin>": 0, "/dev/stdin": 0, "<stdout>": 1, "/dev/stdout": 1, "/dev/stderr": 2}.get(name)


def _with_path(arguments: list[str], name: str, path: str) -> list[str]:
    """Return the arguments with a path instead of a name, which may be the value of an option."""
    option = re.compile(rf"(|--[\w-]+=|-\w){re.escape(name)}")
    return [f"{found[1]}{path}" if (found := option.fullmatch(each)) else each for each in arguments]


def _quoted(argument: str) -> str:
    """Return an argument as a shell takes it; one that cannot be shown as it is, in the way of bash and zsh."""
    if all(map(_can_be_shown, argument)):
        return shlex.quote(argument)
    escaped = "".join(
        character if _can_be_shown(character) and character not in "\\'" else _escaped(character)
        for character in argument
    )
    return f"$'{escaped}'"


def _can_be_shown(character: str) -> bool:
    # In an encoding that is not that of file names, the same character would name another file.
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    return character.isprintable() and character.encode(encoding, "ignore") == os.fsencode(character)


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _file_behind(descriptor: int) -> str | None:
    """Return the path of the file that a descriptor is open on; `None` if it is no regular file that is still there."""
    try:
        status = os.fstat(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        is_there = os.path.samestat(path.stat(), status)
    except OSError:  # no Linux, it is closed, or the file was deleted
        return None
    return str(path) if is_there and (stat.S_ISREG(status.st_mode) or str(path) == os.devnull) else None
