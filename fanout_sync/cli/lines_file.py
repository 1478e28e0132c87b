"""The lines that the command line writes: each at once, and whole or not at all."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType

from ..errors import OptionError
from ..events.senders import check_event
from ..events.types import Event


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
        except BaseException:  # an interrupt, too, leaves no half of a line in a file
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
        check_event(event)
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
