"""What steps print while a region of the terminal is drawn: it goes to the screen above the region, in whole lines.

The standard output and the standard error are redirected to a pseudo-terminal: the descriptors, not only `sys.stdout`,
because worker processes and programs of steps print, too. It is no pipe, so that they print as to any terminal: at
once, and in colours.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from .screen import Screen

FLUSH_S = 0.25
"""What is printed goes to the screen at most once in so many seconds."""

PATIENCE_S = 1.0
"""After so many seconds the beginning of a line, such as a question, is shown although its end has not come."""

MOST_HELD = 2**18
"""How many characters are held; then the programs that print have to wait."""

_CHUNK = 65536
_COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI, such as moving the cursor
    r"|\x1b[PX^_\]].*?(?:\x07|\x1b\\|$)"  # strings, such as the title of the window
    r"|\x1b[ -/]*[0-~]"
)


class Captured:
    """Redirects descriptors that are open on the terminal of a screen, for the length of a `with` block.

    Args:
        screen: Where it goes.
        descriptors: Those that are redirected, if they are open on that terminal; the others are left alone.

    Raises:
        OSError: The system has no pseudo-terminal left.
    """

    def __init__(self, screen: Screen, descriptors: Iterable[int]) -> None:
        self._screen = screen
        self._descriptors = [number for number in descriptors if _is_open_on(number, screen.descriptor)]
        self._saved: dict[int, int] = {}
        self._end = b"\x00%s\x00" % uuid.uuid4().hex.encode()
        self._master, self._slave = os.openpty()
        _make_raw(self._slave)
        self._thread = threading.Thread(target=self._pass_on, name="fanout-sync output", daemon=True)

    def resize(self) -> None:
        """Have the size that programs see be that of the screen."""
        import fcntl
        import struct
        import termios

        columns, rows = self._screen.size()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def __enter__(self) -> Captured:
        self.resize()
        self._thread.start()
        _flush()
        for number in self._descriptors:
            is_inheritable = os.get_inheritable(number)
            self._saved[number] = os.dup(number)
            os.dup2(self._slave, number, is_inheritable)
        return self

    def __exit__(self, *_: object) -> None:
        _flush()
        for number, saved in self._saved.items():
            os.dup2(saved, number, os.get_inheritable(number))
            os.close(saved)
        # All that was printed before comes before this. A program that a step has left behind may print more: it gets
        # an error then, as if the window had been closed.
        with contextlib.suppress(OSError):
            os.write(self._slave, self._end)
        self._thread.join()
        os.close(self._slave)
        os.close(self._master)

    def _pass_on(self) -> None:
        text = _Text()
        is_at_end = False
        data, flushed_at = b"", 0.0
        while not is_at_end:
            wait_s = text.due_in(flushed_at)
            # Who prints more than is shown has to wait.
            sources = [self._master] if text.held < MOST_HELD else []
            if select.select(sources, [], [], wait_s)[0]:
                data += os.read(self._master, _CHUNK)
                before, end, _ = data.partition(self._end)
                is_at_end = bool(end)
                # The end may have come in part.
                keep = 0 if is_at_end else _overlap(before, self._end)
                text.add(before[: len(before) - keep])
                data = before[len(before) - keep :]
            if is_at_end or text.due_in(flushed_at) == 0:
                if lines := text.take(everything=is_at_end):
                    with contextlib.suppress(OSError):  # the window was closed; programs must not wait for it
                        self._screen.say(lines)
                flushed_at = time.monotonic()


class _Text:
    """What has been printed and is not on the screen yet."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._lines = ""
        self._begun = ""  # a line without its end
        self._begun_at = 0.0

    @property
    def held(self) -> int:
        return len(self._lines) + len(self._begun)

    def add(self, data: bytes) -> None:
        lines, end, begun = self._decoder.decode(data).rpartition("\n")
        if end:
            self._lines += self._begun + lines + end
            self._begun = ""
        if begun and not self._begun:
            self._begun_at = time.monotonic()
        self._begun += begun

    def due_in(self, flushed_at: float) -> float | None:
        """Return in how many seconds something is to be shown; `None` if there is nothing."""
        if not self.held:
            return None
        due_at = flushed_at + FLUSH_S if self._lines or self.held >= MOST_HELD else self._begun_at + PATIENCE_S
        return max(0.0, due_at - time.monotonic())

    def take(self, *, everything: bool) -> str:
        """Return lines to show, and forget them."""
        lines, self._lines = self._lines, ""
        is_overdue = time.monotonic() >= self._begun_at + PATIENCE_S
        if self._begun and (everything or is_overdue or len(self._begun) >= MOST_HELD):
            lines, self._begun = f"{lines}{self._begun}\n", ""
        return "".join(f"{without_movements(line)}\n" for line in lines.split("\n")[:-1])


def without_movements(line: str) -> str:
    """Return a line of a program's output without what would move the cursor; colours stay, and end with the line."""
    line = line.rstrip("\r").rpartition("\r")[2]  # a progress bar writes over its own line
    parts = _COLOUR.split(line)
    parts[::2] = ["".join(filter(_is_harmless, _SEQUENCE.sub("", part))) for part in parts[::2]]
    return "".join(parts) + "\x1b[0m" * (len(parts) > 1)


def _is_harmless(character: str) -> bool:
    return character == "\t" or not (character < " " or "\x7f" <= character < "\xa0")


def _overlap(data: bytes, end: bytes) -> int:
    """Return how many bytes at the end of `data` may be the beginning of `end`."""
    return next((size for size in range(min(len(data), len(end) - 1), 0, -1) if data.endswith(end[:size])), 0)


def _is_open_on(descriptor: int, terminal: int) -> bool:
    try:
        device = os.fstat(descriptor).st_rdev
        return os.isatty(descriptor) and device in (os.fstat(terminal).st_rdev, Path("/dev/tty").stat().st_rdev)
    except OSError:  # it is closed, or there is no /dev/tty
        return False


def _make_raw(slave: int) -> None:
    import termios

    settings = termios.tcgetattr(slave)
    settings[1] &= ~termios.OPOST  # what is printed comes through as it is
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, settings)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
