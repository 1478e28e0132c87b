"""Checks that no command writes to a file that it reads, or writes two things to one file."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from ..errors import OptionError
from .lines_file import LinesFile
from .steps_file import StepsFile
from .templates import Template


@frozen
class JournalFile:
    """The file of a journal, which need not exist yet.

    Attributes:
        name: The path of the file, as the user gave it.
        stat: The `os.stat` of the file; `None` if there is none.
    """

    name: str

    @property
    def side_files(self) -> list[Path]:
        """The other files of a journal in use: those of SQLite, and the lock file."""
        real = os.path.realpath(self.name)
        return [Path(f"{real}{suffix}") for suffix in ("-wal", "-shm", "-journal", "-lock")]

    @property
    def stat(self) -> os.stat_result | None:
        try:
            return Path(self.name).stat()
        except (OSError, ValueError):
            return None


def refuse_same_file(files: Mapping[str, StepsFile | Template | LinesFile | JournalFile | None]) -> None:
    """Refuse to write to a file that is read, or twice to one.

    Args:
        files: The files by what they are for, in words. Those that are written are open, so they exist. `None` means
            that there is no such file.

    Raises:
        OptionError: Two of the files are the same file; both are named.
    """
    seen: list[tuple[str, os.stat_result]] = []
    sides = [side for file in files.values() if isinstance(file, JournalFile) for side in file.side_files]
    for what, file in files.items():
        if file is not None and not isinstance(file, JournalFile) and Path(os.path.realpath(file.name)) in sides:
            raise OptionError(f"cannot write {what} to {file.name}: the journal uses that file; give another one")
        if file is None or (found := file.stat) is None:
            continue
        for other_what, other in seen:
            if stat.S_ISREG(found.st_mode) and os.path.samestat(found, other):
                raise OptionError(
                    f"cannot use {file.name} for {what}: it is the file of {other_what}; give another one"
                )
        seen.append((what, found))
