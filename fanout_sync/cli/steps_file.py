"""The steps that the command line reads: all of them are checked before the first one runs."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, cast

from ..engine.input import Rereadable
from ..errors import OptionError, WireError
from ..records.steps import AgentStepSpec
from ..wire.jsonl import checked_specs

if TYPE_CHECKING:
    from ..journal.run_journal import RunJournal

SPOOLED_IN_MEMORY = 16 * 2**20
"""Bytes of standard input that are held in memory; beyond that, all is held in a temporary file."""


class StepsFile(Rereadable):
    """The steps of a file or a pipe, read twice: once to check them all, once to run them.

    Call `check` before `len` and before iterating. Only the input of a pipe is held, in memory if it is short.

    Args:
        path: The file; `"-"` is the standard input.
        read: Makes steps of what is in the file; its `WireError` needs to have no more than the line. By default the
            file has specs as JSON Lines.

    Attributes:
        name: The name of the file, for messages.
        stat: The `os.fstat` of the file.
        journal: The journal that the steps were checked with; `None` without a journal.
        agents: The agents of the steps, when these have been checked.
    """

    journal: RunJournal | None = None

    def __init__(self, path: str, read: Callable[[BinaryIO], Iterator[AgentStepSpec]] | None = None) -> None:
        self._read_from = read
        self.name = "<stdin>" if path == "-" else path
        self._is_stdin = path == "-"
        self._count = 0
        self.agents: set[str] = set()
        self._begin: Callable[[], None] | None = None
        try:
            self._file = _stdin() if self._is_stdin else _open(path)
            self.stat = os.fstat(self._file.fileno())
        except OSError as error:
            raise self._unreadable(error) from None

    def count(self, check: Callable[[AgentStepSpec], object] | None = None) -> int:
        """Read all steps once and return how many there are.

        Args:
            check: Called with each; it raises a `WireError` for what is wrong with it.

        Raises:
            WireError: A line is not a step; its number and the field at fault are named.
            OptionError: The file cannot be read.
        """
        count = 0
        try:
            for spec in self._read(check):
                self.agents.add(spec.agent)
                count += 1
        except OSError as error:
            raise self._unreadable(error) from None
        return count

    def check(self, before_first: Callable[[], None]) -> None:
        """Check that every line is a step.

        Args:
            before_first: Called when the run begins to read the steps.

        Raises:
            WireError, OptionError: As for `count`.
        """
        # The standard input is copied even if it is a file: steps inherit it and may read it, too.
        if self._is_stdin or not stat.S_ISREG(self.stat.st_mode):
            self._spool()
        self._count = self.count()
        self._begin = before_first

    def check_with(self, journal: RunJournal) -> None:
        try:
            journal.check(self._checked())
        except OSError as error:
            raise self._unreadable(error) from None
        self.journal = journal

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[AgentStepSpec]:
        if self._begin is not None:
            self._begin()
        yield from self._checked()

    def _checked(self) -> Iterator[AgentStepSpec]:
        self._file.seek(0)
        read = 0
        # Not more lines than were checked: another program may be adding lines.
        for spec in islice(self._read(), self._count):
            yield spec
            read += 1
        if read < self._count:
            raise EOFError(f"{self.name} had {self._count} steps when they were checked, and has {read} now")

    def __enter__(self) -> StepsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self, check: Callable[[AgentStepSpec], object] | None = None) -> Iterator[AgentStepSpec]:
        try:
            if self._read_from is None:
                yield from checked_specs(self._file, check)
            else:  # prompts have nothing to check
                yield from self._read_from(self._file)
        except WireError as error:
            raise WireError(error.reason, error.field, self.name, error.line) from None

    def _spool(self) -> None:
        spool = cast("BinaryIO", SpooledTemporaryFile(SPOOLED_IN_MEMORY))  # noqa: SIM115 - closed by `__exit__`
        try:
            shutil.copyfileobj(self._file, spool)
            spool.seek(0)
        except OSError as error:
            spool.close()
            raise self._unreadable(error) from None
        self._file.close()
        self._file = spool

    def _unreadable(self, error: OSError) -> OptionError:
        return OptionError(f"cannot read {self.name}: {error.strerror or error}")


def _open(path: str) -> BinaryIO:
    return Path(path).open("rb")


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise OptionError("cannot read <stdin>: it is closed")
    return sys.stdin.buffer
