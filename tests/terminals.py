"""What a person sees on the terminal of a program: the screen of a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
from collections.abc import Callable
from contextlib import suppress

import pyte
from attrs import define, field
from bounds import HANG_BOUND_S
from scripts import EXIT_BOUND_S, Script

MAX_HISTORY = 10_000


@define
class Window:
    """A window in which a program runs.

    Attributes:
        script: The program.
        screen: What is seen.
        stream: Leads to the screen; it is one for all, because a control sequence may come in two parts.
        raw: All that the program has written.
    """

    script: Script
    screen: pyte.HistoryScreen
    stream: pyte.ByteStream
    raw: bytearray = field(factory=bytearray)

    @classmethod
    def of(cls, script: Script, columns: int = 100, rows: int = 30) -> Window:
        """Give a program that has just been started a window."""
        screen = pyte.HistoryScreen(columns, rows, history=MAX_HISTORY)
        screen.set_mode(pyte.modes.LNM)  # the terminal of a `Script` leaves "\n" as it is
        window = cls(script, screen, pyte.ByteStream(screen))
        window._tell_size(columns, rows)
        return window

    def rows(self) -> list[str]:
        """Return what is on the screen, without empty rows."""
        return [row.rstrip() for row in self.screen.display if row.strip()]

    def all_rows(self) -> list[str]:
        """Return the same, with what has scrolled out of the window above it."""
        columns = range(self.screen.columns)
        above = ["".join(row[column].data for column in columns).rstrip() for row in self.screen.history.top]
        return [*filter(None, above), *self.rows()]

    def until(self, is_seen: Callable[[list[str]], bool]) -> list[str]:
        """Wait until the screen is as it is wanted, and return its rows."""
        while not is_seen(self.rows()):
            assert self._read(HANG_BOUND_S), f"it has ended with this on the screen: {self.rows()}"
        return self.rows()

    def until_text(self, *texts: str) -> list[str]:
        """Wait until each of these texts is on the screen."""
        return self.until(lambda rows: all(any(text in row for row in rows) for text in texts))

    def end(self) -> list[str]:
        """Wait until the program has ended, and return all that is and was on the screen."""
        while self._read(EXIT_BOUND_S):
            pass
        self.script.process.wait(EXIT_BOUND_S)
        return self.all_rows()

    def fill(self) -> None:
        """Write to the terminal, which nobody reads, until it takes nothing more."""
        terminal = os.open(f"/proc/{self.script.process.pid}/fd/0", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        while select.select([], [terminal], [], 0.2)[1]:  # the system moves on a moment later what was written
            with suppress(BlockingIOError):
                while True:
                    os.write(terminal, b"x")
        os.close(terminal)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self._tell_size(columns, rows)

    @property
    def cursor_is_visible(self) -> bool:
        return not self.screen.cursor.hidden

    def _tell_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.script.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self, bound_s: float) -> bool:
        ready, _, _ = select.select([self.script.terminal], [], [], bound_s)
        assert ready, f"it hangs with this on the screen: {self.rows()}"
        try:
            data = os.read(self.script.terminal, 65536)
        except OSError:  # no process has the terminal open any more
            return False
        self.raw += data
        self.stream.feed(data)
        return True
