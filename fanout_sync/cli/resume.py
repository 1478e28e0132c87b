"""The command that resumes a run: the one that has started it, as a line for a shell."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import stat
import sys
from pathlib import Path

import click

from .lines_file import LinesFile
from .steps_file import StepsFile

_ARGUMENTS = "fanout_sync.arguments"


def note_arguments(ctx: click.Context, arguments: list[str]) -> None:
    """Note the arguments of the command line, before they are parsed."""
    ctx.meta[_ARGUMENTS] = [*arguments]


def resume_line(steps: StepsFile, outcomes: LinesFile) -> str:
    """Return the line of a summary that says how to resume the run.

    Args:
        steps: Where the steps come from.
        outcomes: Where the outcomes go.
    """
    arguments: list[str] = click.get_current_context().meta.get(_ARGUMENTS, sys.argv[1:])
    command = " ".join(map(_quoted, [*_program(), *arguments]))
    if steps.name == "<stdin>":
        if (source := _file_behind(steps.stat, 0)) is None:
            return f"resume, with the same steps on the standard input: {command}"
        command += f" < {_quoted(source)}"
    if outcomes.name == "<stdout>" and (place := _file_behind(outcomes.stat, outcomes.fileno())) is not None:
        adds = fcntl.fcntl(outcomes.fileno(), fcntl.F_GETFL) & os.O_APPEND
        command += f" {'>>' if adds else '>'} {_quoted(place)}"
    return f"resume: {command}"


def _program() -> list[str]:
    """Return what started this command line."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.endswith(".__main__"):
        return [sys.executable, "-m", spec.name.rpartition(".")[0]]
    started = Path(sys.argv[0])
    found = shutil.which(started.name)
    is_on_path = found is not None and started.exists() and started.samefile(found)
    return [started.name if is_on_path else sys.argv[0]]


def _quoted(argument: str) -> str:
    """Return an argument as a shell takes it; one with control characters in the way of bash and zsh."""
    if argument.isprintable():
        return shlex.quote(argument)
    escaped = "".join(
        character if character.isprintable() and character not in "\\'" else _escaped(character)
        for character in argument
    )
    return f"$'{escaped}'"


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _file_behind(status: os.stat_result, descriptor: int) -> str | None:
    """Return the path of the regular file that a descriptor is open on; `None` if it is no such file."""
    if not stat.S_ISREG(status.st_mode):
        return None
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        is_there = os.path.samestat(path.stat(), status)
    except OSError:  # no Linux, or the file was deleted
        return None
    return str(path) if is_there else None
