"""The lines that the command line writes: each at once, and either whole or not at all."""

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
    """A file of lines. Each is written at once, so that the file can be followed, and either whole or not at all.

    The earlier content of the file is kept until `begin`, so that a command line that is refused destroys nothing.

    Attributes:
        name: The name of the file, for messages.
        stat: The `os.fstat` of the file.
        written: How many lines have been written.
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
        """Open a file; create it if it does not exist.

        Raises:
            OptionError: The file cannot be written.
        """
        place = Path(path)
        is_new = not os.path.lexists(place)
        try:
            file = place.open("ab", buffering=0)
        except OSError as error:
            raise OptionError(f"cannot write {path}: {error.strerror or error}") from None
        return cls(file, path, place if is_new else None, is_ours=True)

    def fileno(self) -> int:
        return self._file.fileno()

    def begin(self) -> None:
        """Empty the file. Calling it again does nothing."""
        if not self._has_begun:
            self._has_begun = True
            self._cut()

    def write(self, line: str) -> None:
        """Add a line.

        Raises:
            OSError: The line cannot be written. Part of it may have been written to a pipe, but never to a file.
        """
        self.begin()
        data = line.encode() + b"\n"
        try:
            self._write_all(memoryview(data))
        except BaseException:  # an interrupt must not leave half a line in a file either
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
            if count is None:  # a full pipe that is non-blocking
                select.select([], [self._file], [])
            else:
                rest = rest[count:]

    def _cut(self) -> None:
        if self._can_cut:
            self._file.truncate(self._size)


class EventsFile:
    """An `event_tx` that writes each event as a line; any thread may send.

    Attributes:
        lines: The file that the events are written to.
        error: Why no more events are written; `None` while they are. It fails no step.
    """

    def __init__(self, lines: LinesFile) -> None:
        self.lines = lines
        self.error: OSError | None = None
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """Write `event`.

        Raises:
            TypeError: `event` is not an `Event`.
            WireError: JSON cannot carry a field of the event; the field is named.
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
        OptionError: The file cannot be written.
    """
    return _take_stdout() if path == "-" else LinesFile.at(path)


def _take_stdout() -> LinesFile:
    """Reserve the standard output for lines; what steps print goes to the standard error from now on."""
    if sys.stdout is None:
        raise OptionError("cannot write to the standard output, it is closed; name a file with -o")
    sys.stdout.flush()
    public = sys.stdout.fileno()
    private = os.dup(public)
    # The descriptor is redirected, not only `sys.stdout`, because worker processes and programs of steps print, too.
    if sys.stderr is None:
        with open(os.devnull, "wb") as null:  # noqa: PTH123 - not a path of the user
            os.dup2(null.fileno(), public)
    else:
        os.dup2(sys.stderr.fileno(), public)
    return LinesFile(FileIO(private, "wb"), "<stdout>")
