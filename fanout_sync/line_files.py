"""The files of the command line: steps that are checked before they run, lines that are written whole and at once."""

from __future__ import annotations

import os
import select
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from itertools import islice
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, cast

from attrs import frozen

from .errors import OptionError, WireError
from .events import Event
from .intake import Rereadable
from .jsonl import read_specs
from .steps import AgentStepSpec

if TYPE_CHECKING:
    from .journalling import Journalling

SPOOLED_IN_MEMORY = 16 * 2**20


# Reading --------------------------------------------------------------------------------------------------------------


class StepsFile(Rereadable):
    """The steps, read twice: once to check them all, once to run them. Held in memory are only short ones from a pipe.

    Its length is known, and it can be iterated, after `check`.

    Attributes:
        name: For people.
        stat: What `os.fstat` says of it.
        journalling: What the steps were checked with; `None` if they are not journalled.
    """

    journalling: Journalling | None = None

    def __init__(self, path: str) -> None:
        self.name = "<stdin>" if path == "-" else path
        self._is_stdin = path == "-"
        self._count = 0
        self._begin: Callable[[], None] | None = None
        try:
            self._file = _stdin() if self._is_stdin else _open(path)
            self.stat = os.fstat(self._file.fileno())
        except OSError as error:
            raise self._unreadable(error) from None

    def count(self) -> int:
        """Read all steps once and return how many there are.

        Raises:
            WireError: A line is no step; its number and the field at fault are named.
            OptionError: The file cannot be read.
        """
        try:
            return sum(1 for _ in self._read())
        except OSError as error:
            raise self._unreadable(error) from None

    def check(self, before_first: Callable[[], None]) -> None:
        """See that every line is a step.

        Args:
            before_first: Called when the first step is asked for, which is when the run begins.

        Raises:
            WireError, OptionError: As for `count`.
        """
        # The standard input is kept even if it could be read twice: steps inherit it and may read it too.
        if self._is_stdin or not stat.S_ISREG(self.stat.st_mode):
            self._spool()
        self._count = self.count()
        self._begin = before_first

    def check_with(self, journalling: Journalling) -> None:
        try:
            journalling.check(self._checked())
        except OSError as error:
            raise self._unreadable(error) from None
        self.journalling = journalling

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[AgentStepSpec]:
        if self._begin is not None:
            self._begin()
        yield from self._checked()

    def _checked(self) -> Iterator[AgentStepSpec]:
        self._file.seek(0)
        read = 0
        # No more than were checked: somebody may be adding lines.
        for spec in islice(self._read(), self._count):
            yield spec
            read += 1
        if read < self._count:
            raise EOFError(f"{self.name} had {self._count} steps a moment ago")

    def __enter__(self) -> StepsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> Iterator[AgentStepSpec]:
        try:
            yield from read_specs(self._file)
        except WireError as error:
            raise WireError(error.reason, error.field, self.name, error.line) from None

    def _spool(self) -> None:
        spool = cast("BinaryIO", SpooledTemporaryFile(SPOOLED_IN_MEMORY))  # noqa: SIM115 - closed in place of the given
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


# Writing --------------------------------------------------------------------------------------------------------------


class LinesFile:
    """A file of lines, each written at once, so that it can be followed, and whole or not at all.

    What the file held is kept until `begin`: a command line that is refused costs nothing.

    Attributes:
        name: For people.
        stat: What `os.fstat` says of it.
        written: How many lines are.
    """

    def __init__(self, file: FileIO, name: str, new_path: Path | None = None, *, is_ours: bool = False) -> None:
        self.name = name
        self.stat = os.fstat(file.fileno())
        self.written = 0
        self._file = file
        self._new_path = new_path
        self._can_cut = is_ours and stat.S_ISREG(self.stat.st_mode)
        self._has_begun = False
        self._size = 0

    @classmethod
    def at(cls, path: str) -> LinesFile:
        """Open a file, which need not exist.

        Raises:
            OptionError: It cannot be written.
        """
        place = Path(path)
        is_new = not os.path.lexists(place)
        try:
            file = place.open("ab", buffering=0)
        except OSError as error:
            raise OptionError(f"cannot write {path}: {error.strerror or error}") from None
        return cls(file, path, place if is_new else None, is_ours=True)

    def begin(self) -> None:
        """Empty the file, the first time."""
        if not self._has_begun:
            self._has_begun = True
            self._cut()

    def write(self, line: str) -> None:
        """Add a line.

        Raises:
            OSError: It cannot be written, and is not there in part, unless to a pipe or the like.
        """
        self.begin()
        data = line.encode() + b"\n"
        try:
            self._write_all(memoryview(data))
        except OSError:
            with suppress(OSError):
                self._cut()
            raise
        self._size += len(data)
        self.written += 1

    def __enter__(self) -> LinesFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()
        if self._new_path is not None and not self._has_begun:
            self._new_path.unlink(missing_ok=True)

    def _write_all(self, rest: memoryview) -> None:
        while rest:
            count = self._file.write(rest)
            if count is None:  # a pipe that somebody made non-blocking, and that is full
                select.select([], [self._file], [])
            else:
                rest = rest[count:]

    def _cut(self) -> None:
        if self._can_cut:
            self._file.truncate(self._size)


class EventsFile:
    """An `event_tx` that writes each event as a line, from whichever thread it comes.

    Attributes:
        lines: Where they go.
        error: Why no more are written; `None` as long as they are. No step is the worse for it.
    """

    def __init__(self, lines: LinesFile) -> None:
        self.lines = lines
        self.error: OSError | None = None
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """Write `event`.

        Raises:
            TypeError: It is no `Event`.
            WireError: It holds what JSON cannot carry; the field is named.
        """
        if not isinstance(event, Event):
            raise TypeError(f"an Event is sent, got {type(event).__name__}")
        line = event.to_json()
        with self._lock:
            if self.error is None:
                try:
                    self.lines.write(line)
                except BrokenPipeError:
                    pass
                except OSError as error:
                    self.error = error


def lines_to(path: str) -> LinesFile:
    """Open a file for lines; "-" is the standard output.

    Raises:
        OptionError: It cannot be written.
    """
    return _take_stdout() if path == "-" else LinesFile.at(path)


def _take_stdout() -> LinesFile:
    """Keep the standard output for lines alone; what steps print goes to the standard error from now on."""
    if sys.stdout is None:
        raise OptionError("cannot write to the standard output, it is closed; name a file with -o")
    sys.stdout.flush()
    public = sys.stdout.fileno()
    private = os.dup(public)
    # Of the descriptor, not of `sys.stdout`: worker processes, and what steps start, print too.
    if sys.stderr is None:
        with open(os.devnull, "wb") as null:  # noqa: PTH123 - no path of anybody's
            os.dup2(null.fileno(), public)
    else:
        os.dup2(sys.stderr.fileno(), public)
    return LinesFile(FileIO(private, "wb"), "<stdout>")


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
        """Where SQLite keeps what belongs to the journal, while it is in use."""
        return [Path(f"{Path(self.name).absolute()}{suffix}") for suffix in ("-wal", "-shm", "-journal")]

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
        if file is not None and not isinstance(file, JournalFile) and Path(file.name).absolute() in sides:
            raise OptionError(f"{file.name} cannot take {what}: SQLite keeps part of the journal there")
        if file is None or (found := file.stat) is None:
            continue
        for other_what, other in seen:
            if stat.S_ISREG(found.st_mode) and os.path.samestat(found, other):
                raise OptionError(f"{file.name} cannot take {what}: it is the file of {other_what}")
        seen.append((what, found))
