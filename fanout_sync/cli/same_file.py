"""No command writes to a file that it reads, nor writes two things to one file."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from ..errors import OptionError
from .lines_file import LinesFile
from .steps_file import StepsFile


@frozen
class JournalFile:
    """The file of a journal, which need not be there yet.

    Attributes:
        name: For people.
        stat: What `os.stat` says of it; `None` if it says nothing.
    """

    name: str

    @property
    def side_files(self) -> list[Path]:
        """Where else something is kept of the journal while it is in use: the files of SQLite, and the lock file."""
        real = os.path.realpath(self.name)
        return [Path(f"{real}{suffix}") for suffix in ("-wal", "-shm", "-journal", "-lock")]

    @property
    def stat(self) -> os.stat_result | None:
        try:
            return Path(self.name).stat()
        except (OSError, ValueError):
            return None


def refuse_same_file(files: Mapping[str, StepsFile | LinesFile | JournalFile | None]) -> None:
    """Refuse to write to a file that is read, or twice to one.

    Args:
        files: By what they are for, in words; those that are written are open, and so exist. `None` for no file.

    Raises:
        OptionError: Two of them are one file; both are named.
    """
    seen: list[tuple[str, os.stat_result]] = []
    sides = [side for file in files.values() if isinstance(file, JournalFile) for side in file.side_files]
    for what, file in files.items():
        if file is not None and not isinstance(file, JournalFile) and Path(os.path.realpath(file.name)) in sides:
            raise OptionError(f"{file.name} cannot take {what}: part of the journal is kept there")
        if file is None or (found := file.stat) is None:
            continue
        for other_what, other in seen:
            if stat.S_ISREG(found.st_mode) and os.path.samestat(found, other):
                raise OptionError(f"{file.name} cannot take {what}: it is the file of {other_what}")
        seen.append((what, found))
